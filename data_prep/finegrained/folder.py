"""Pictures of one's own in a folder for each class or identity, below train and test (query, gallery) where wanted."""

from __future__ import annotations

import re
from collections import Counter
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
        asked: `kind`, `identity_pattern`, `camera_pattern`.
    """
    files.need_pictures()
    identity = compile_pattern("identity_pattern", asked.identity_pattern)
    camera = compile_pattern("camera_pattern", asked.camera_pattern)
    kind = asked.kind if asked.kind != "auto" else IDENTITIES if identity or camera else CLASSES
    if kind == CLASSES and (identity or camera):
        raise ConfigError("identity_pattern, camera_pattern: go with --kind identities")
    depth = _depth_of_wrapping(files.pictures, flat=identity is not None)
    found = Collector()
    for number, path in enumerate(files.pictures):
        parts = PurePosixPath(path).parts[depth:]
        inner = "/".join(parts)
        split = split_of(parts[0]) if len(parts) > 1 else ""
        folders = parts[1 if split else 0 : -1]
        label = normalise((_find(identity, inner) if identity else folders[0] if folders else "") or "")
        if not label and identity is None:
            top = "/".join(PurePosixPath(path).parts[:depth]) or "."
            raise ConfigError(
                f"{files.root / path}: is in no folder of a {'class' if kind == CLASSES else 'person or object'}; put "
                f"pictures into {files.root / top}/NAME/ (or {top}/train/NAME/), or use csv with --table"
            )
        seen = _find(camera, inner) if camera else ""
        if not label or seen is None:
            what = "identity_pattern" if not label else "camera_pattern"
            found.reject("(folder)", number, f"{what} finds nothing in the path", path)
            continue
        found.add(Item(path, label, split, camera=seen), "(folder)", number)
    _check_splits(found.items, kind, files)
    around = "/".join(PurePosixPath(files.pictures[0]).parts[:depth])
    remarks = (f"folder {around} is around all pictures: it is neither class nor identity",) if around else ()
    return Listing(kind, tuple(found.items), rejects=tuple(found.rejects), remarks=remarks)


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
