"""Files of a data set of persons: annotations and their splits, image files by the names that annotations give them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.images import SUFFIXES
from data_prep.common.splits import SPLITS

_COCO = re.compile(r"person_keypoints_(train|val)([0-9]*)\.json(\.gz)?")
_CROWDPOSE = re.compile(r"crowdpose_(train|val|trainval|test)\.json(\.gz)?")
_SPLIT = re.compile(r"(?:^|[_\-. ])(train|training|val|valid|validation|test|testing)[0-9]*(?=$|[_\-. ])")
_NAMES = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"}


@dataclass(frozen=True)
class Source:
    """A file of annotations.

    Args:
        path: the file.
        split: that its images belong to; empty: to be drawn.
        folder: name of the folder that its images are in, where there are several of their name.
    """

    path: Path
    split: str
    folder: str = ""


def find_coco(files: Sequence[Path]) -> list[Source]:
    """Annotations of COCO: `person_keypoints_{train,val}2017.json`, images in `{train,val}2017`.

    Raises:
        DatasetNotFoundError: there are none.
        ConfigError: there are those of several years.
    """
    found = [(path, match) for path in files if (match := _COCO.fullmatch(path.name))]
    if not found:
        raise DatasetNotFoundError(
            "raw: there is no person_keypoints_train2017.json or person_keypoints_val2017.json; unpack "
            "annotations_trainval2017.zip of cocodataset.org there"
        )
    sources = [Source(path, _NAMES.get(match[1], match[1]), f"{match[1]}{match[2]}") for path, match in found]
    return _one_each(sources)


def find_crowdpose(files: Sequence[Path], *, merge: bool) -> list[Source]:
    """Annotations of CrowdPose: `crowdpose_{train,val,trainval,test}.json`.

    Args:
        files: of the raw folder.
        merge: train on the validation split, too, as published results do.

    Raises:
        DatasetNotFoundError: there are none, or those to be merged are missing.
    """
    found = {match[1]: path for path in files if (match := _CROWDPOSE.fullmatch(path.name))}
    if not found:
        raise DatasetNotFoundError("raw: there is no crowdpose_train.json, crowdpose_val.json or crowdpose_test.json")
    whole = ("trainval",) if "trainval" in found else ("train", "val")
    missing = [name for name in whole if name not in found]
    if merge and missing:
        raise DatasetNotFoundError(f"raw: there is no crowdpose_{missing[0]}.json, which train_on_valid needs")
    if merge or not {"train", "val"} & set(found):
        splits = dict.fromkeys(whole, "train")
    else:
        splits = {"train": "train", "val": "valid"}
    splits["test"] = "test"
    return [Source(found[name], split) for name, split in splits.items() if name in found]


def find_annotations(files: Sequence[Path], given: Sequence[Path]) -> list[Source]:
    """Annotations of one's own: one file, or one for each split whose name says which.

    Args:
        files: of the raw folder.
        given: those that the user names; else all JSON files, of which there may be one of each split.

    Raises:
        DatasetNotFoundError: there are none.
        ConfigError: it is not clear which file is for which split.
    """
    paths = list(given) or [path for path in files if path.name.lower().endswith((".json", ".json.gz"))]
    if not paths:
        raise DatasetNotFoundError("raw: there is no JSON file; name the files with --annotations")
    if len(paths) == 1:
        return [Source(paths[0], "")]
    sources = [Source(path, split_of(path.name) or split_of(path.parent.name)) for path in paths]
    unknown = next((source for source in sources if not source.split), None)
    if unknown is not None:
        raise ConfigError(
            f"{unknown.path}: of several files each must say in its name (or in that of its folder) whether it is "
            "train, val or test; name the files that are meant with --annotations"
        )
    return _one_each(sources)


def split_of(name: str) -> str:
    """The split that the name of a file or folder says; empty: none, or several."""
    stem = name.lower().removesuffix(".gz").removesuffix(".json")
    found = {_NAMES.get(name, name) for name in _SPLIT.findall(stem)}
    return found.pop() if len(found) == 1 else ""


def _one_each(sources: Sequence[Source]) -> list[Source]:
    by_split: defaultdict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_split[source.split].append(source)
    for split, several in by_split.items():
        if len(several) > 1:
            raise ConfigError(
                f"{several[1].path}: annotations of {split} are in {several[0].path}, too; give one folder or file"
            )
    return [by_split[split][0] for split in SPLITS if split in by_split]


class ImageFinder:
    """Image files by the names that annotations give them.

    Args:
        files: all files; those that are no images by their suffix are passed over.
        root: folder above them all.
    """

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self.root = root
        self.names: defaultdict[str, list[str]] = defaultdict(list)
        for path in files:
            if path.suffix.lower() in SUFFIXES:
                relative = path.relative_to(root).as_posix()
                self.names[path.name].append(relative)

    def __len__(self) -> int:
        """Return the number of image files."""
        return sum(map(len, self.names.values()))

    def paths(self) -> list[str]:
        """All image files below the root, by name."""
        return sorted(path for paths in self.names.values() for path in paths)

    def find(self, name: str, source: Source) -> tuple[str, str]:
        """The file of a name, which may be a path, also of another machine.

        Args:
            name: as the annotations have it.
            source: of the annotations; of several files, one in its folder, or below the annotations, is taken.

        Returns:
            Path below the root, and what is wrong (one of both is empty).
        """
        parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".", "..")]
        if not parts:
            return "", "has no file name"
        found = self.names.get(parts[-1], [])
        if not found:
            return "", "the image file is not there"
        for count in range(len(parts), 0, -1):  # as much of the path as there is
            tail = tuple(parts[-count:])
            matching = [path for path in found if PurePosixPath(path).parts[-count:] == tail]
            if matching:
                break
        named = [path for path in matching if source.folder in PurePosixPath(path).parts[:-1]]
        chosen = named or [path for path in matching if self._is_below(path, source.path.parent)] or matching
        if len(chosen) > 1:
            return "", f"there are several such files ({chosen[0]}, {chosen[1]})"
        return chosen[0], ""

    def _is_below(self, path: str, folder: Path) -> bool:
        return (self.root / path).is_relative_to(folder)
