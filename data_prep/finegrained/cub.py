"""CUB-200-2011 (Wah et al., 2011): `images.txt` and the lists beside it; ids and classes count from 1."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.errors import CorruptRecordError
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import CLASSES, Asked, Box, Collector, Item, Listing, read_lines

LICENCE = "for non-commercial research and education; pictures belong to their photographers (Caltech)"
_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of `CUB_200_2011.tgz`, unpacked.
        asked: has no options for this data set.
    """
    del asked
    images = files.find("images.txt", "the list of CUB_200_2011")
    paths = {name: _beside(images, name, files) for name in _LISTS}
    boxes_file = images.parent / "bounding_boxes.txt"
    classes = read_table(paths["classes.txt"])
    labels, sides = read_table(paths["image_class_labels.txt"]), read_table(paths["train_test_split.txt"])
    boxes = read_table(boxes_file) if boxes_file.is_file() else {}
    found = Collector(lines=True)
    for number, line in read_lines(images):
        key, _, name = line.partition(" ")
        reason, item = _item(key, name.strip(), images.parent, files, classes, labels, sides, boxes)
        if item is None:
            found.reject(images.name, number, reason, line)
        else:
            found.add(item, images.name, number)
    lists = (*paths.values(), boxes_file) if boxes else tuple(paths.values())
    names = tuple(classes[key] for key in sorted(classes, key=lambda key: (len(key), key)))
    return Listing(
        CLASSES,
        tuple(found.items),
        name="cub-200-2011",
        lists=lists,
        licence=LICENCE,
        rejects=tuple(found.rejects),
        classes=names,
    )


def _beside(images: Path, name: str, files: RawFiles) -> Path:
    path = images.parent / name
    return path if path.is_file() else files.find(name, "a list of CUB_200_2011")


def read_table(path: Path) -> dict[str, str]:
    """Lines "id value" of a list.

    Raises:
        CorruptRecordError: a line has no value, or an id is there twice.
    """
    found: dict[str, str] = {}
    for number, line in read_lines(path):
        key, _, value = line.partition(" ")
        if not value.strip():
            raise CorruptRecordError(
                path, f"line {number + 1:,}", f"{line[:60]!r} is not 'id value'; download it again"
            )
        if key in found:
            raise CorruptRecordError(path, f"line {number + 1:,}", f"id {key!r} is there twice; download it again")
        found[key] = value.strip()
    return found


def _item(
    key: str,
    name: str,
    folder: Path,
    files: RawFiles,
    classes: dict[str, str],
    labels: dict[str, str],
    sides: dict[str, str],
    boxes: dict[str, str],
) -> tuple[str, Item | None]:
    label, side = classes.get(labels.get(key, "")), {"1": "train", "0": "test"}.get(sides.get(key, ""))
    path, reason = files.locate(name, folder / "images")
    if reason:
        return reason, None
    if label is None:
        return "no class of the picture in image_class_labels.txt, or none of classes.txt", None
    if side is None:
        return "neither 0 nor 1 in train_test_split.txt", None
    if not boxes:
        return "", Item(path, label, side)
    box = parse_box(boxes.get(key, ""))
    return ("", Item(path, label, side, box=box)) if box else ("no box of four numbers in bounding_boxes.txt", None)


def parse_box(text: str) -> Box | None:
    """`left top width height` -> left, top, right, bottom; None: not of this form."""
    try:
        left, top, width, height = (float(word) for word in text.split())
    except ValueError:
        return None
    return left, top, left + width, top + height
