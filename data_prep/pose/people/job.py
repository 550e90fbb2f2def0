"""One preparation of persons in images: options checked, files found, stages run, the result described."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import PIL
import polars as pl

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.files import translate_os_errors, write_atomic
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Task
from data_prep.common.raw import check_raw, walk
from data_prep.common.rejects import Reject, check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, identify, run_once
from data_prep.common.splits import SPLITS
from data_prep.pose.people.coco_json import find_category, read_head
from data_prep.pose.people.description import COCO, CROWDPOSE, KeypointSet, complete, read_description, same_names
from data_prep.pose.people.dividing import DUPLICATES, Split, SplitRule, divide, find_duplicates
from data_prep.pose.people.find import ImageFinder, Source, find_annotations, find_coco, find_crowdpose
from data_prep.pose.people.images import BLOCK
from data_prep.pose.people.joining import Joined, join, to_parquet, write_index
from data_prep.pose.people.records import Rules, read_records

DATASETS = ("coco", "crowdpose", "coco-json")
OWN = {  # options that only some data sets have
    "annotations": ("coco-json",),
    "description": ("coco-json",),
    "group": ("coco-json",),
    "group_pattern": ("coco-json",),
    "ratios": ("coco-json",),
    "train_on_valid": ("crowdpose",),
}
PAYLOAD = frozenset(
    {"images", "train", "valid", "test", "predict", "duplicates.parquet", "rejects.parquet", "remarks.parquet"}
)
TOOLS = (pl.__version__, PIL.__version__, msgspec.__version__, BLOCK)  # what the bytes depend on besides
IMAGE_FILES = "(image files)"  # their entry in `sources`
LICENCES = {
    "coco": "annotations: CC BY 4.0 (COCO Consortium); images: terms of use of Flickr, one by one",
    "crowdpose": "for research, not commercial use (J. Li et al., 2019); images are of COCO, MPII and AI Challenger",
}
_TOLD = 5  # rejects that are printed


@dataclass(frozen=True)
class Options:
    """Options of `prepare_people`, which see."""

    dataset: str
    annotations: tuple[Path, ...] = ()
    description: Path | None = None
    group: str = ""
    group_pattern: str = ""
    ratios: Sequence[float] | None = None
    valid_share: float | None = None
    train_on_valid: bool = False
    seed: int = 0
    duplicates: str = "auto"
    exif: str = "auto"
    verify: str = "pixels"
    copy_images: bool = False
    max_rejects: float = 0.01

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.dataset not in DATASETS:
            raise ConfigError(f"dataset {self.dataset!r}: there are {', '.join(DATASETS)}")
        for name, owners in OWN.items():
            if getattr(self, name) and self.dataset not in owners:
                raise ConfigError(f"{name}: is no option of {self.dataset}")
        choices = {"duplicates": DUPLICATES, "exif": ("auto", "apply", "ignore"), "verify": ("pixels", "header")}
        for name, possible in choices.items():
            if getattr(self, name) not in possible:
                raise ConfigError(f"{name} {getattr(self, name)!r}: choose {', '.join(possible)}")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"max_rejects {self.max_rejects}: give a share from 0 to 1")
        if self.valid_share is not None and not 0 <= self.valid_share < 1:
            raise ConfigError(f"valid_share {self.valid_share}: give a share from 0 up to, not including, 1")
        if self.group and self.group_pattern:
            raise ConfigError("group_pattern: goes without group, which says the same")
        try:
            brackets = re.compile(self.group_pattern).groups if self.group_pattern else 1
        except re.error as error:
            raise ConfigError(f"group_pattern {self.group_pattern!r}: no regular expression ({error})") from None
        if brackets != 1:
            raise ConfigError(f"group_pattern {self.group_pattern!r}: put the group in one pair of brackets")

    def command(self) -> dict[str, Any]:
        """The `command` entry of `dataset.json`: everything that determines the result besides the files."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        found["annotations"] = [path.name for path in self.annotations]
        found["description"] = self.description.name if self.description is not None else None
        found["ratios"] = list(self.ratios) if self.ratios is not None else None
        del found["max_rejects"]
        return found


@dataclass(frozen=True)
class Listing:
    """What is to be prepared.

    Args:
        root: folder above all raw files.
        sources: files of annotations.
        images: all image files.
        keypoints: of the objects.
        rules: how each source is read.
        licence: of the data.
        remarks: on the description.
    """

    root: Path
    sources: tuple[Source, ...]
    images: ImageFinder
    keypoints: KeypointSet
    rules: tuple[Rules, ...]
    licence: str
    remarks: tuple[str, ...]


def run_preparation(
    options: Options,
    raw: tuple[Path, ...],
    out: Path,
    workers: int | None,
    executor: str,
    shard: str | None,
    shard_patience: float,
    progress: bool,
) -> dict[str, Any]:
    """Run a preparation, or find it finished."""
    options.check()
    named = [*options.annotations, *([options.description] if options.description is not None else [])]
    check_raw([*raw, *named], out)
    listing = _list(options, raw)
    lists = [source.path for source in listing.sources] + ([options.description] if options.description else [])
    finished = _find_finished(out, options.command(), listing, lists)
    if finished is not None:
        return finished
    files = [*lists, *(listing.root / path for path in listing.images.paths())]
    settings = Settings.of(executor, workers, shard, shard_patience, progress, files)
    fingerprint = {"command": options.command(), **identify(files, *TOOLS, str(listing.root))}
    return run_once(out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, options, listing, lists))


def _list(options: Options, raw: tuple[Path, ...]) -> Listing:
    tops = [path.resolve() for path in raw]
    root = Path(os.path.commonpath([top if top.is_dir() else top.parent for top in tops]))
    with translate_os_errors(root):
        files = list(dict.fromkeys(walk(tops)))
    if options.dataset == "coco":
        sources = find_coco(files)
    elif options.dataset == "crowdpose":
        sources = find_crowdpose(files, merge=options.train_on_valid)
    else:
        sources = find_annotations(files, options.annotations)
    images = ImageFinder(files, root)
    if not len(images):
        raise PrepError(f"{root}: holds no image file; unpack the images there, or name their folder as raw, too")
    given = read_description(options.description) if options.description is not None else {}
    keypoints, rules, remarks, licence = _describe_keypoints(options, sources, given)
    return Listing(root, tuple(sources), images, keypoints, tuple(rules), licence, tuple(remarks))


def _describe_keypoints(
    options: Options, sources: Sequence[Source], given: Mapping[str, Any]
) -> tuple[KeypointSet, list[Rules], list[str], str]:
    """Keypoints, how each source is read, remarks, and the licence."""
    found: list[tuple[KeypointSet, Path]] = []
    rules, remarks, licences = [], dict[str, None](), dict[str, None]()
    for source in sources:
        head = read_head(source.path)
        category = find_category(source.path, head.categories, str(given.get("category", "")))
        if options.dataset == "coco-json":
            where = f"{options.description}" if options.description is not None else f"{source.path}"
            keypoints, more = complete(category, given, where)
            remarks |= dict.fromkeys(more)
        else:
            keypoints = COCO if options.dataset == "coco" else CROWDPOSE
            names = category.get("keypoints") or keypoints.names
            if not same_names(names, keypoints):
                raise ConfigError(
                    f"{source.path}: $.categories: the keypoints are not those of {keypoints.layout}; use coco-json"
                )
        found.append((keypoints, source.path))
        ids = tuple(each["id"] for each in head.categories)
        area_of_box = options.dataset == "crowdpose"
        rules.append(Rules(len(keypoints.names), category["id"], ids, area_of_box, options.group))
        listed = head.licenses if isinstance(head.licenses, list) else []
        licences |= dict.fromkeys(str(each["name"]) for each in listed if isinstance(each, dict) and each.get("name"))
    other = next((path for keypoints, path in found if keypoints != found[0][0]), None)
    if other is not None:
        raise ConfigError(f"{other}: $.categories: other keypoints than in {found[0][1]}; make them the same")
    licence = LICENCES.get(options.dataset) or given.get("licence") or "; ".join(licences) or "not stated"
    return found[0][0], rules, list(remarks), licence


def _prepare(run: Run, options: Options, listing: Listing, lists: Sequence[Path]) -> dict[str, Any]:
    tasks = [
        Task(f"{number:02d}", read_records, (source.path, rules))
        for number, (source, rules) in enumerate(zip(listing.sources, listing.rules, strict=True))
    ]
    joined = join(run, run.stage("records", tasks), listing.sources, listing.images, options)
    rejects = run.scratch / "rejects.parquet"
    table = to_frame(joined.rejects)
    write_atomic(rejects, to_parquet(table))
    _tell(joined, listing.remarks)
    check_rejects(table, joined.read, options.max_rejects, rejects)
    where = ", ".join(source.path.name for source in listing.sources)
    if not len(joined.images):
        raise PrepError(f"{where}: no image is left; see rejects.parquet in {run.scratch}")
    rule = SplitRule(options.ratios, options.valid_share, options.seed)
    split = divide(joined.images, rule, options.group or "group", where, spare=not options.train_on_valid)
    images = joined.images.with_columns(split=pl.Series(split.splits, dtype=pl.String))
    found = find_duplicates(images, options.duplicates, split.drawn)
    images = images.filter(~found.dropped)
    files, splits = write_index(images, joined.persons, run.scratch, test_is_valid=split.test_is_valid)
    files |= joined.stored(images)
    for name, rows in {"duplicates.parquet": found.table, "remarks.parquet": to_frame(joined.remarks)}.items():
        write_atomic(run.scratch / name, to_parquet(rows))
        files[name] = run.scratch / name
    files["rejects.parquet"] = rejects
    _tell_split(split, splits, found.summary)
    manifest = {
        **_describe(options, listing, lists, joined, split),
        "counts": _count(images, joined),
        "duplicates": found.summary,
        "command": options.command(),
        "splits": splits,
        "rejects": {"count": table.height, "share": table.height / max(joined.read, 1)},
    }
    return run.publish(files, manifest)


def _describe(
    options: Options, listing: Listing, lists: Sequence[Path], joined: Joined, split: Split
) -> dict[str, Any]:
    grouped = bool(options.group or options.group_pattern)
    return {
        "domain": "pose",
        "kind": "people",
        "name": options.dataset,
        "version": tool_version(),
        "licence": listing.licence,
        "sources": [*(describe_source(path) for path in lists), describe_images(listing.root, listing.images.paths())],
        "keypoints": listing.keypoints.entry(),
        "units": "pixels, from the left and the top edge of the image",
        "area": "box" if options.dataset == "crowdpose" else "given",
        "protocol": "crowdpose" if options.dataset == "crowdpose" else "coco",
        "image_root": str(listing.root),  # of the images that stay where they are
        "group": {
            "name": options.group or ("group" if grouped else "image"),
            "kept_apart": True,
            "groups": joined.images["group"].n_unique(),
            "note": "" if grouped else "images of one scene or video may be in several splits: no groups are known",
        },
        "split_rule": split.entry,
    }


def _count(images: pl.DataFrame, joined: Joined) -> dict[str, Any]:
    return {
        "images": len(images),
        "persons": int(images["persons"].sum()),
        "annotations": int(images["annotations"].sum()),
        "crowds": int(images["crowds"].sum()),
        "images_without_persons": int((images["persons"] == 0).sum()),
        **joined.counts,
        "remarks": tally(joined.remarks),
        "rejects": tally(joined.rejects),
    }


def tally(found: Sequence[Reject]) -> dict[str, int]:
    """How often each reason occurs, the commonest first."""
    counts = Counter(f"{each.field}: {each.reason}" for each in found)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_images(root: Path, paths: Iterable[str]) -> dict[str, Any]:
    """Entry of image files in `sources`: the digest is that of names and sizes, so that it is known in seconds.

    Args:
        root: folder above all of them.
        paths: below it.
    """
    digest, total, count = hashlib.sha256(), 0, 0
    for path in paths:
        size = (root / path).stat().st_size
        digest.update(f"{path}\t{size}\n".encode())
        total, count = total + size, count + 1
    return {"path": IMAGE_FILES, "bytes": total, "sha256": digest.hexdigest(), "files": count}


def _find_finished(
    out: Path, command: dict[str, Any], listing: Listing, lists: Sequence[Path]
) -> dict[str, Any] | None:
    """The manifest of `out` when it holds this preparation of exactly these files.

    Raises:
        ConfigError: it holds prepared data of something else.
    """
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    with translate_os_errors(out):
        found = [*(describe_source(path) for path in lists), describe_images(listing.root, listing.images.paths())]
    same_place = manifest.get("image_root") == str(listing.root)
    if manifest.get("command") == command and manifest.get("sources") == found and same_place:
        return manifest
    raise ConfigError(
        f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
    )


def _tell(joined: Joined, remarks: Sequence[str]) -> None:
    for line in remarks:
        say(line)
    for reject in joined.rejects[:_TOLD]:
        say(f"{reject.source}: record {reject.record}: {reject.field}: {reject.reason} ({reject.excerpt})")
    if len(joined.rejects) > _TOLD:
        say(f"... and {len(joined.rejects) - _TOLD:,} more, listed in rejects.parquet")
    if joined.remarks:
        reason, count = next(iter(tally(joined.remarks).items()))
        say(
            f"{len(joined.remarks):,} remarks on records that are kept ({count:,}: {reason}), listed in remarks.parquet"
        )


def _tell_split(split: Split, splits: Mapping[str, Any], duplicates: Mapping[str, Any]) -> None:
    say("; ".join(f"{name}: {splits[name]['rows']:,} images" for name in SPLITS))
    if split.test_is_valid:
        say(
            "the validation split is used for test, too, as in publications: choosing a checkpoint by it flatters the "
            "test; take the last one, or spare training images with --valid-share"
        )
    if duplicates["across"]:
        told = ", ".join(f"{count:,} {border}" for border, count in duplicates["across"].items())
        dropped = ", ".join(f"{count:,} of {name}" for name, count in duplicates["dropped"].items())
        say(f"images with the same pixels in two splits: {told}; left out: {dropped or 'none'}; see duplicates.parquet")


def say(line: str) -> None:
    """Tell the user something that is no error."""
    sys.stderr.write("".join(mark if mark.isprintable() else "?" for mark in line) + "\n")
