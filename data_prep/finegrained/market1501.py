"""Market-1501 (Zheng et al., 2015): `bounding_box_train`, `query`, `bounding_box_test`.

Names such as `0002_c1s1_000451_03.jpg` say identity, camera and sequence, frame, and detected box. Identity -1 is junk,
0000 is background. DukeMTMC-reID (withdrawn by its authors) has the same folders and names as `0001_c2_f0046182.jpg`,
which are read as well.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from data_prep.common.errors import DatasetNotFoundError
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import (
    DISTRACTOR,
    GALLERY,
    IDENTITIES,
    JUNK,
    QUERY,
    Asked,
    Collector,
    Item,
    Listing,
)

LICENCE = "for research (Market-1501); pictures show people"
FOLDERS = {"bounding_box_train": "train", "query": QUERY, "bounding_box_test": GALLERY}
RULES = {
    JUNK: "identity -1: bad detections, in the gallery, neither right nor wrong",
    DISTRACTOR: "identity 0000: background, in the gallery, always wrong",
}
_NAME = re.compile(r"(-1|\d{4,})_c(\d+)(?:s\d+)?_f?\d+(?:_\d+)?\.[A-Za-z]+(?:\.jpg)?")
_EXTRA = {"-1": JUNK, "0000": DISTRACTOR}


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of the data set.
        asked: has no options for this data set.
    """
    del asked
    found = Collector()
    held = {folder: files.in_folder(folder) for folder in FOLDERS}
    missing = [folder for folder, pictures in held.items() if not pictures]
    if missing:
        there = ", ".join(folder for folder, pictures in held.items() if pictures) or "none of them"
        raise DatasetNotFoundError(
            f"{files.root}: no picture in a folder {missing[0]}; Market-1501 has {', '.join(FOLDERS)}, found {there}; "
            "give the folder that holds all of them as raw"
        )
    for folder, split in FOLDERS.items():
        for number, path in enumerate(held[folder]):
            name = PurePosixPath(path).name
            match = _NAME.fullmatch(name)
            if match is None:
                found.reject(folder, number, "the name is not as 0002_c1s1_000451_03.jpg", path, "name")
                continue
            extra = _EXTRA.get(match[1], "")
            if extra and split != GALLERY:
                found.reject(folder, number, f"identity {match[1]} outside of the gallery", path, "name")
                continue
            label = "" if extra else match[1]
            found.add(Item(path, label, split, camera=match[2].lstrip("0") or "0", extra=extra), folder, number)
    used = sum(map(len, held.values()))
    return Listing(
        IDENTITIES,
        tuple(found.items),
        name="market1501",
        licence=LICENCE,
        rejects=tuple(found.rejects),
        rules=RULES,
        notes={"pictures_in_other_folders": len(files.pictures) - used},
    )
