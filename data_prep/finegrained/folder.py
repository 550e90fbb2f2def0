"""Pictures of one's own in a folder for each class or identity, below train and test (query, gallery) where wanted.

Where folders lie in folders, as `audi/a3`, a class is the folder that holds the pictures, provided that all pictures
lie equally deep; else it is the outermost, and so it is of identities whose inner folders come again in others, as
cameras and sessions do. Which it was is told, and `class_level` chooses otherwise.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from data_prep.common.errors import ConfigError
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import (
    CLASSES,
    GALLERY,
    IDENTITIES,
    QUERY,
    Asked,
    Collector,
    Item,
    Listing,
    compile_pattern,
    normalise,
    split_of,
)


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of the data set.
        asked: `kind`, `identity_pattern`, `camera_pattern`, `class_level`.
    """
    files.need_pictures()
    identity = compile_pattern("identity_pattern", asked.identity_pattern)
    camera = compile_pattern("camera_pattern", asked.camera_pattern)
    kind = asked.kind if asked.kind != "auto" else IDENTITIES if identity or camera else CLASSES
    if kind == CLASSES and (identity or camera):
        raise ConfigError("identity_pattern, camera_pattern: go with --kind identities")
    if asked.class_level < 0:
        raise ConfigError(f"class_level {asked.class_level}: give 1 for the outermost folder, or more")
    if asked.class_level and identity:
        raise ConfigError("class_level: goes without identity_pattern, which finds the identity; leave one out")
    depth = _depth_of_wrapping(files.pictures, flat=identity is not None)
    found = Collector()
    inner = [PurePosixPath(path).parts[depth:] for path in files.pictures]
    splits = [split_of(parts[0]) if len(parts) > 1 else "" for parts in inner]
    folders = [parts[1 if split else 0 : -1] for parts, split in zip(inner, splits, strict=True)]
    remarks = []
    if identity is None:
        _need_folders(files, folders, depth, kind)
        labels, remark = name_folders(folders, kind, asked.class_level, files)
        remarks += [remark] * bool(remark)
    else:
        labels = [_find(identity, "/".join(parts)) or "" for parts in inner]
    for number, (path, parts, split) in enumerate(zip(files.pictures, inner, splits, strict=True)):
        label = normalise(labels[number])
        seen = _find(camera, "/".join(parts)) if camera else ""
        if not label or seen is None:
            what = "identity_pattern" if not label else "camera_pattern"
            found.reject("(folder)", number, f"{what} finds nothing in the path", path)
            continue
        found.add(Item(path, label, split, camera=seen), "(folder)", number)
    _check_splits(found.items, kind, files)
    around = "/".join(PurePosixPath(files.pictures[0]).parts[:depth])
    if around:
        remarks.append(f"folder {around} is around all pictures: it is neither class nor identity")
    return Listing(kind, tuple(found.items), rejects=tuple(found.rejects), remarks=tuple(remarks))


def _need_folders(files: RawFiles, folders: Sequence[tuple[str, ...]], depth: int, kind: str) -> None:
    """Refuse pictures in no folder, and folders of splits below those of classes."""
    for path, around in zip(files.pictures, folders, strict=True):
        if not around:
            top = files.root.joinpath(*PurePosixPath(path).parts[:depth])
            raise ConfigError(
                f"{files.root / path}: is in no folder of a {'class' if kind == CLASSES else 'person or object'}; put "
                f"pictures into {top}/NAME/ (or {top}/train/NAME/), or use csv with --table"
            )
    if all(len(around) > 1 and split_of(around[-1]) for around in folders):
        name, split = folders[0][0], folders[0][-1]
        raise ConfigError(
            f"{files.root / files.pictures[0]}: split {split} is inside of {name}; put splits outside, as in "
            f"{split}/{name}, or use csv with --table"
        )


def name_folders(folders: Sequence[tuple[str, ...]], kind: str, level: int, files: RawFiles) -> tuple[list[str], str]:
    """Class or identity of each picture by the folders around it, and what is to be told about the choice.

    Args:
        folders: around each picture, without those of splits and of all pictures; at least one.
        kind: classes or identities.
        level: which of them has the name, from 1; 0: as this module says.
        files: of the pictures, for messages.

    Raises:
        ConfigError: a picture has no folder at that level.
    """
    lowest, deepest = (choose(map(len, folders)) for choose in (min, max))
    if level:
        for path, around in zip(files.pictures, folders, strict=True):
            if len(around) < level:
                raise ConfigError(
                    f"{files.root / path}: class_level {level}: is in {len(around)} folders only; move it, or give "
                    f"--class_level {lowest}"
                )
        return _names_at(folders, level), ""
    if deepest == 1:
        return _names_at(folders, 1), ""
    level = 1 if lowest < deepest or (kind == IDENTITIES and _come_again(folders, deepest)) else deepest
    labels = _names_at(folders, level)
    what, whats = ("class", "classes") if kind == CLASSES else ("identity", "identities")
    which = "the outermost folder" if level == 1 else "the folder that holds them"
    deep = f"{lowest} to {deepest}" if lowest < deepest else f"{deepest}"
    example = max(zip(map(len, folders), map("/".join, folders), labels, strict=True))
    remark = (
        f"pictures lie {deep} folders deep: {which} is the {what}, as {example[2]!r} of {example[1]} "
        f"({len(set(labels)):,} {whats})"
    )
    if lowest < deepest:
        return labels, f"{remark}; where folders below it are {whats}, too, let all pictures lie equally deep"
    others = [at for at in range(1, deepest + 1) if at != level]
    return labels, "; ".join(
        [remark, *(f"--class_level {at} makes {len(set(_names_at(folders, at))):,} {whats}" for at in others)]
    )


def _come_again(folders: Sequence[tuple[str, ...]], level: int) -> bool:
    """Whether folders of one name at a level are in several folders."""
    parents: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for around in folders:
        if len(around) >= level:
            parents[around[level - 1]].add(around[: level - 1])
    return any(len(found) > 1 for found in parents.values())


def _names_at(folders: Sequence[tuple[str, ...]], level: int) -> list[str]:
    """Names of the folders at a level; with those above where one name is in several of them."""
    whole = _come_again(folders, level)
    return ["/".join(around[:level]) if whole else around[level - 1] for around in folders]


def _depth_of_wrapping(paths: list[str], *, flat: bool) -> int:
    """How many folders stand around all of the data, as archives make them."""
    parts = [PurePosixPath(path).parts[:-1] for path in paths]
    depth = 0
    while all(len(each) > depth + (0 if flat else 1) for each in parts):
        names = {each[depth] for each in parts}
        if len(names) > 1 or split_of(next(iter(names))):
            break
        depth += 1
    return depth


def _find(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return (match[1] or None) if match else None


def _check_splits(items: list[Item], kind: str, files: RawFiles) -> None:
    """Refuse pictures outside of the splits that others are in, and splits that the kind does not have."""
    counts = Counter(item.split for item in items)
    odd = next((item for item in items if not item.split), None)
    if odd is not None and len(counts) > 1:
        others = ", ".join(sorted(set(counts) - {""}))
        raise ConfigError(f"{files.root / odd.path}: is in none of {others}, as other pictures are; move it into one")
    if kind == CLASSES and (counts[QUERY] or counts[GALLERY]):
        raise ConfigError(f"{files.root}: has queries or a gallery: identities, not classes; use --kind identities")
