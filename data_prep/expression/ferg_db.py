"""FERG-DB (Aneja et al., 2016): 55,767 pictures of six drawn characters, `aia/aia_anger/aia_anger_1.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import DatasetNotFoundError
from data_prep.common.names import unique_names
from data_prep.common.rejects import Reject
from data_prep.expression.records import Asked, Listing, find_images, to_rows
from data_prep.expression.taxonomy import expression

CLASSES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")  # folders call happiness joy
LICENCE = "for non-commercial research"


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images.

    Args:
        raw: the folder of the data set.
        asked: has no options for this data set.
    """
    del asked
    images = find_images(raw)
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for path, name in zip(images, unique_names(images, raw), strict=True):
        character, _, word = path.parent.name.partition("_")
        label = expression(word)
        if label not in CLASSES:
            reason = "the folder does not say character and expression, as aia_anger does"
            rejects.append(Reject(path.name, 0, "folder", reason, path.parent.name[:99]))
            continue
        rows.append({"name": name, "path": str(path), "label": label, "subject": character.lower()})
    if not rows:
        found = f"{len(images):,} images in other folders" if images else "no image"
        raise DatasetNotFoundError(f"{raw[0]}: no folder as in aia/aia_anger holds images ({found})")
    return Listing(
        *(to_rows(rows), "ferg-db", (), LICENCE, CLASSES, tuple(rejects)),
        group="character",
        note="six characters: a split that keeps them apart leaves whole characters for the test",
    )
