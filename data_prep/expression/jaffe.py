"""JAFFE (Lyons et al., 1998): 213 grey pictures of ten women, subject and expression in the name: `KA.AN1.39.tiff`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import DatasetNotFoundError
from data_prep.common.names import unique_names
from data_prep.common.rejects import Reject
from data_prep.expression.records import Asked, Listing, find_images, to_rows

CODES = {
    **{"NE": "neutral", "HA": "happiness", "SA": "sadness", "SU": "surprise"},
    **{"AN": "anger", "DI": "disgust", "FE": "fear"},
}
LICENCE = "for non-commercial research; not to be passed on"
_NAME = re.compile(r"([A-Z]{2})\.([A-Z]{2})(\d+)\.(\d+)", re.IGNORECASE)


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
        match = _NAME.fullmatch(path.stem)
        label = CODES.get(match[2].upper(), "") if match else ""
        if match is None or not label:
            reason = f"the name does not say subject and one of {', '.join(CODES)}, as KA.AN1.39.tiff does"
            rejects.append(Reject(path.name, 0, "name", reason, ""))
            continue
        rows.append({"name": name, "path": str(path), "label": label, "subject": match[1].upper()})
    if not rows:
        found = f"{len(images):,} images with other names" if images else "no image"
        raise DatasetNotFoundError(f"{raw[0]}: holds no image called as KA.AN1.39.tiff ({found})")
    return Listing(to_rows(rows), "jaffe", (), LICENCE, tuple(CODES.values()), tuple(rejects))
