"""FER2013 (Goodfellow et al., 2013, arXiv 1307.0414): a table of 48 x 48 grey pixels, or folders of its images.

`fer2013.csv` (emotion, pixels, Usage) and `icml_face_data.csv` (emotion, Usage, pixels) hold 28,709 + 3,589 + 3,589
rows, `train.csv` of the challenge only the first of these; copies of the data set come as `{train,test}/CLASS/*.jpg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.common.errors import DatasetNotFoundError
from data_prep.common.rejects import Reject, excerpt
from data_prep.expression import folder
from data_prep.expression.pixel_table import Line, PixelTable, is_pixel_table, scan
from data_prep.expression.records import Asked, Listing, find_named, normalise_split, to_rows
from data_prep.expression.taxonomy import expression

CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
LICENCE = "for research (ICML 2013 challenges in representation learning); images were found on the web"
NOTE = "nobody knows who is on the images: one person may be in several splits"
_FILES = (r"fer2013\.csv", r"icml_face_data\.csv", r"train\.csv")


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images.

    Args:
        raw: the table, or a folder with it, or folders of images by class.
        asked: has no options for this data set.
    """
    del asked
    path = find_table(raw)
    if path is None:
        return _from_folders(raw)
    table = scan(path)
    rows, rejects = label_lines(table, CLASSES, "fer2013")
    return Listing(to_rows(rows), "fer2013", (path,), LICENCE, CLASSES, tuple(rejects), note=NOTE, side=table.side)


def _from_folders(raw: Sequence[Path]) -> Listing:
    listing = folder.from_folders(raw)
    odd = next((label for label in listing.rows["label"] if expression(label) not in CLASSES), None)
    if odd is not None:
        raise DatasetNotFoundError(
            f"{raw[0]}: neither fer2013.csv nor folders of classes alone: {odd!r} is none of {', '.join(CLASSES)}"
        )
    return replace(listing, name="fer2013", classes=CLASSES, licence=LICENCE, note=NOTE)


def find_table(raw: Sequence[Path]) -> Path | None:
    """The table with the pixels: that of the whole data set before `train.csv` of the challenge, then any other.

    Raises:
        DatasetNotFoundError: there are several of one kind.
    """
    for pattern in (*_FILES, r".*\.csv"):
        # a damaged file of the published name is read, too, so that its fault is told
        known = pattern in _FILES[:2]
        found = [path for path in dict.fromkeys(find_named(raw, pattern)) if known or is_pixel_table(path)]
        if len(found) > 1:
            shown = f"{found[0]} and {found[1]}"
            raise DatasetNotFoundError(f"{raw[0]}: {len(found)} tables with pixels, such as {shown}; give one alone")
        if found:
            return found[0]
    return None


def label_lines(table: PixelTable, classes: Sequence[str], name: str) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Rows of a listing, and what cannot be used.

    Args:
        table: the table.
        classes: names of the codes 0, 1, ...
        name: what images are called, with their number behind.
    """
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for line in table.lines:
        field, reason = fault_of(line, classes, split="usage" in table.columns)
        if reason:
            rejects.append(Reject(table.path.name, line.record, field, reason, excerpt(f"{line.label},{line.usage}")))
            continue
        label = classes[int(line.label)]
        rows.append({**place(table, line, name), "label": label, "split": normalise_split(line.usage)})
    return rows, rejects


def fault_of(line: Line, classes: Sequence[str], *, split: bool) -> tuple[str, str]:
    """Column and reason why a row cannot be used; two empty texts if it can."""
    if line.fault:
        return "", line.fault
    if not line.label.isdecimal() or not line.label.isascii() or int(line.label) >= len(classes):
        return "emotion", f"the label is outside 0 to {len(classes) - 1}"
    if split and not normalise_split(line.usage):
        return "usage", "is none of Training, PublicTest, PrivateTest"
    return "", ""


def place(table: PixelTable, line: Line, name: str) -> dict[str, Any]:
    """Where the pixels of a row are."""
    return {
        **{"name": f"{name}-{line.record:07d}", "path": str(table.path), "record": line.record},
        **{"column": table.columns["pixels"], "start": line.start, "size": line.size},
    }
