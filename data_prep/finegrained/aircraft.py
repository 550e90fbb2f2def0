"""FGVC-Aircraft (Maji et al., 2013, arXiv 1306.5151): `images_variant_{train,val,trainval,test}.txt`.

The lowest 20 pixels of each picture say who owns it; they are cut off.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.common.errors import DatasetNotFoundError
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import CLASSES, Asked, Box, Collector, Item, Listing, normalise, read_lines

BANNER = 20  # pixels
LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
LICENCE = "for non-commercial research; pictures belong to their photographers (FGVC-Aircraft)"


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of `fgvc-aircraft-2013b`.
        asked: `level` and `train_on_valid`.
    """
    lists = {
        side: path
        for side in ("train", "val", "trainval", "test")
        if (path := files.find_any(f"images_{asked.level}_{side}.txt")) is not None
    }
    whole = "trainval" in lists
    if "test" not in lists or not (whole or {"train", "val"} <= set(lists)):
        raise DatasetNotFoundError(
            f"{files.root}: needs images_{asked.level}_test.txt, and _trainval.txt or _train.txt and _val.txt, of "
            f"fgvc-aircraft-2013b/data; found {', '.join(sorted(path.name for path in lists.values())) or 'none'}"
        )
    joined = asked.train_on_valid or not {"train", "val"} <= set(lists)
    sides = {"trainval": "train"} if joined and whole else {"train": "train", "val": "train" if joined else "valid"}
    sides["test"] = "test"
    names_file = files.find_any(LEVELS[asked.level])
    names = tuple(normalise(line) for _, line in read_lines(names_file)) if names_file is not None else ()
    boxes_file = files.find_any("images_box.txt")
    boxes = _boxes(boxes_file) if boxes_file is not None else {}
    found = Collector(lines=True)
    for side, split in sides.items():
        _read_list(lists[side], split, files, names, boxes, found)
    used = [lists[side] for side in sides] + [path for path in (names_file, boxes_file) if path is not None]
    remark = () if joined else ("trained on train alone; published results are of trainval: --train_on_valid true",)
    return Listing(
        CLASSES,
        tuple(found.items),
        name=f"fgvc-aircraft-{asked.level}",
        lists=tuple(used),
        licence=LICENCE,
        rejects=tuple(found.rejects),
        classes=names,
        trim=BANNER,
        remarks=remark,
    )


def _boxes(path: Path) -> dict[str, Box | None]:
    """Box of each picture: the list counts pixels from 1 and includes the last ones; None: damaged."""
    found: dict[str, Box | None] = {}
    for _, line in read_lines(path):
        key, *words = line.split()
        try:
            left, top, right, bottom = (float(word) for word in words)
            found[key] = (left - 1, top - 1, right, bottom)
        except ValueError:
            found[key] = None
    return found


def _read_list(
    path: Path, split: str, files: RawFiles, names: tuple[str, ...], boxes: dict[str, Box | None], found: Collector
) -> None:
    for number, line in read_lines(path):
        key, _, label = line.partition(" ")
        label = normalise(label)
        image, reason = files.locate(f"{key}.jpg", path.parent / "images")
        if not label:
            reason = "no class behind the number of the picture"
        elif names and label not in names:
            reason = "the class is not in the list of classes"
        elif boxes and boxes.get(key) is None:
            reason = reason or "no box of four numbers in images_box.txt"
        if reason:
            found.reject(path.name, number, reason, line)
        else:
            found.add(Item(image, label, split, box=boxes.get(key)), path.name, number)
