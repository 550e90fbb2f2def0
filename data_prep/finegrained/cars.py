"""Stanford Cars (Krause et al., 2013): `cars_annos.mat`, or the files of its devkit.

Boxes count pixels from 1 and include the last ones; classes count from 1. The devkit's test annotations come with
labels only in `cars_test_annos_withlabels.mat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.mat5 import read_variables
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import CLASSES, Asked, Box, Collector, Item, Listing, normalise

LICENCE = "for non-commercial research (Stanford Cars)"
_BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_WITHOUT_LABELS = "cars_test_annos.mat"


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of the data set: `car_ims` and `cars_annos.mat`, or `cars_train`, `cars_test` and the devkit.
        asked: has no options for this data set.
    """
    del asked
    found = Collector()
    one = files.find_any("cars_annos.mat")
    if one is not None:
        values = read_variables(one, ("annotations", "class_names"))
        names = _class_names(values, one)
        _collect(one, values, names, "", files, found)
        lists: tuple[Path, ...] = (one,)
    else:
        lists = _devkit(files)
        names = _class_names(read_variables(lists[-1], ("class_names",)), lists[-1])
        for path, split in zip(lists, ("train", "test"), strict=False):
            _collect(path, read_variables(path, ("annotations",)), names, split, files, found)
    return Listing(
        CLASSES,
        tuple(found.items),
        name="stanford-cars",
        lists=lists,
        licence=LICENCE,
        rejects=tuple(found.rejects),
        classes=names,
    )


def _devkit(files: RawFiles) -> tuple[Path, ...]:
    """Annotations of train and of test, and the names of classes.

    Raises:
        DatasetNotFoundError: one of them is missing.
    """
    wanted = ("cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat")
    found = [files.find_any(name) for name in wanted]
    missing = [name for name, path in zip(wanted, found, strict=True) if path is None]
    if missing:
        more = ""
        if wanted[1] in missing and files.find_any(_WITHOUT_LABELS) is not None:
            more = f" ({_WITHOUT_LABELS} has no classes; the file with labels is a download of its own)"
        raise DatasetNotFoundError(
            f"{files.root}: there is neither cars_annos.mat nor {missing[0]}{more}; give the folder that "
            "holds it as raw"
        )
    return tuple(path for path in found if path is not None)


def _class_names(values: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = values.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise CorruptRecordError(path, "class_names", "is no cell array of names; download the file again")
    return tuple(normalise(name) for name in names)


def _collect(
    path: Path, values: Mapping[str, Any], names: Sequence[str], split: str, files: RawFiles, found: Collector
) -> None:
    records = values.get("annotations")
    if not isinstance(records, list) or not records or not isinstance(records[0], dict):
        raise CorruptRecordError(path, "annotations", "is no structure; download the file again")
    name_field = next((name for name in ("relative_im_path", "fname") if name in records[0]), None)
    wanted = [name_field or "fname", *_BOX, "class", *([] if split else ["test"])]
    missing = [name for name in wanted if name not in records[0]]
    if missing:
        raise CorruptRecordError(path, "annotations", f"has no field {missing[0]!r}: give the file with labels")
    for number, record in enumerate(records):
        numbers = [_number(record[name]) for name in wanted[1:]]
        name = record[wanted[0]]
        shown = str(name)
        if not isinstance(name, str) or None in numbers:
            found.reject(path.name, number, "a field is no text, or no number, where one belongs", shown)
            continue
        # cars_annos.mat says `car_ims/000001.jpg`; the devkit only the file, in the folder of its split
        image, reason = files.locate(name if "/" in name else f"cars_{split}/{name}")
        left, top, right, bottom, code, *test = (float(value) for value in numbers if value is not None)
        if not reason and not (code.is_integer() and 1 <= code <= len(names)):
            reason = f"class {code:g} is none of 1 to {len(names)}"
        if reason:
            found.reject(path.name, number, reason, shown)
            continue
        box: Box = (left - 1, top - 1, right, bottom)
        side = split or ("test" if test[0] else "train")
        found.add(Item(image, names[int(code) - 1], side, box=box), path.name, number)


def _number(value: Any) -> float | None:
    """The number of a field of one; None: it is not there."""
    array = np.asarray(value) if isinstance(value, np.ndarray) else np.zeros(0)
    return float(array.reshape(-1)[0]) if array.size == 1 and np.isfinite(array).all() else None
