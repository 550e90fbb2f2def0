"""Options of single slides: a csv with the columns of CLAM's process list, any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError
from data_prep.medical.wsi.patches.grid import TESTS
from data_prep.medical.wsi.patches.tissue import Segmentation
from data_prep.medical.wsi.slides.find import slide_id
from data_prep.medical.wsi.slides.resolution import read_table


@dataclasses.dataclass(frozen=True)
class SlideOptions:
    """How one slide is treated.

    Args:
        segmentation: how its tissue is found.
        contour_fn: which points of a patch must be in the tissue.
        use_padding: allow patches that reach beyond the slide.
        process: leave the slide out when false.
    """

    segmentation: Segmentation
    contour_fn: str = "four_pt"
    use_padding: bool = True
    process: bool = True


def read_options(path: Path, base: SlideOptions) -> dict[str, SlideOptions]:
    """Options of the slides that a table names; empty cells and missing columns leave what is given for all slides.

    Args:
        path: csv with the column slide_id (with or without extension) and any columns of a process list.
        base: options of all slides.

    Raises:
        DatasetNotFoundError: there is no such file.
        ConfigError: naming the line and the column.
    """
    rows = read_table(path)
    if not rows or "slide_id" not in rows[0]:
        raise ConfigError(f"{path}: give a csv with the column slide_id and columns such as sthresh, a_t, contour_fn")
    found: dict[str, SlideOptions] = {}
    for number, row in enumerate(rows, 2):
        where = f"{path}: line {number}"
        name = slide_id((row["slide_id"] or "").strip())
        if not name or name in found:
            raise ConfigError(f"{where}: slide {name!r} is " + ("named twice" if name else "missing; name it"))
        found[name] = _read_row(row, base, where)
    return found


def options_row(file: str, status: str, options: SlideOptions) -> dict[str, Any]:
    """A row of a process list, which `read_options` and CLAM read.

    Args:
        file: name of the slide's file.
        status: how it went.
        options: that were used.
    """
    settings = options.segmentation
    ids = {name: ",".join(map(str, getattr(settings, name))) or "none" for name in ("keep_ids", "exclude_ids")}
    return {
        "slide_id": file,
        "process": int(options.process),
        "status": status,
        **{name: getattr(settings, name) for name in ("seg_level", "sthresh", "mthresh", "close", "use_otsu")},
        **ids,
        **{name: getattr(settings, name) for name in ("a_t", "a_h", "max_n_holes")},
        "vis_level": -1,
        "line_thickness": 250,
        "use_padding": options.use_padding,
        "contour_fn": options.contour_fn,
    }


def _read_row(row: Mapping[str, str | None], base: SlideOptions, where: str) -> SlideOptions:
    values: dict[str, Any] = {}
    for name, (parse, meaning) in _COLUMNS.items():
        cell = (row.get(name) or "").strip()
        if not cell:
            continue
        try:
            values[name] = parse(cell)
        except ValueError as error:
            raise ConfigError(f"{where}: column {name}: {cell!r} is not {meaning}; correct it") from error
    own = {name: values.pop(name) for name in ("contour_fn", "use_padding", "process") if name in values}
    segmentation = dataclasses.replace(base.segmentation, **values).check(where)
    return dataclasses.replace(base, segmentation=segmentation, **own)


def _to_bool(cell: str) -> bool:
    if cell.lower() not in ("true", "false", "1", "0", "1.0", "0.0", "yes", "no"):
        raise ValueError(cell)
    return cell.lower() in ("true", "1", "1.0", "yes")


def _to_int(cell: str) -> int:
    value = float(cell)  # spreadsheet programs write 8 as 8.0
    if not value.is_integer():
        raise ValueError(cell)
    return int(value)


def _to_ids(cell: str) -> tuple[int, ...]:
    return () if cell.lower() == "none" else tuple(_to_int(part) for part in cell.replace(";", ",").split(",") if part)


def _to_test(cell: str) -> str:
    if cell not in TESTS:
        raise ValueError(cell)
    return cell


_COLUMNS: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("seg_level", "sthresh", "mthresh", "close", "max_n_holes"), (_to_int, "a whole number")),
    **dict.fromkeys(("a_t", "a_h"), (float, "a number")),
    **dict.fromkeys(("use_otsu", "use_padding", "process"), (_to_bool, "true or false")),
    **dict.fromkeys(("keep_ids", "exclude_ids"), (_to_ids, "a list of numbers, or none")),
    "contour_fn": (_to_test, f"one of {', '.join(TESTS)}"),
}
