"""Sheets of pictures: queries with what was found, mistakes with what was decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from domains.common.errors import PreparedDataError
from domains.common.figures import plain
from domains.common.pictures import Pixels
from domains.finegrained.images import REGION, read_region

SIDE = 120  # of a picture on a sheet, pixels
RIGHT, WRONG, NEUTRAL = "#2f8f3f", "#c2352d", "#3a4756"


@dataclass(frozen=True)
class Cell:
    """A picture on a sheet.

    Args:
        pixels: (H, W, 3) uint8; None: the file cannot be read.
        title: above it.
        right: whether its frame is that of right or of wrong ones; None: neither.
    """

    pixels: Pixels | None
    title: str
    right: bool | None = None


def shown(row: dict[str, Any]) -> Pixels | None:
    """The used part of a picture, small; None where the file is gone.

    Args:
        row: of a table of predictions: path, left, top, right, bottom.
    """
    try:
        pixels = read_region(Path(row["path"]), tuple(int(row[name]) for name in REGION))  # type: ignore[arg-type]
    except PreparedDataError:
        return None
    factor = SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=method), dtype=np.uint8)


def sheet(rows: Sequence[Sequence[Cell]], *, first_apart: bool = False) -> Figure:
    """Draw cells in a grid.

    Args:
        rows: of cells; shorter ones end earlier.
        first_apart: leave a gap behind the first column.
    """
    columns = max(len(row) for row in rows)
    tall = any(
        cell.pixels is not None and cell.pixels.shape[0] > 1.4 * cell.pixels.shape[1] for r in rows for cell in r
    )
    width, height = (0.75, 1.55) if tall else (1.15, 1.4)
    gap = [1.25 if tall else 1.15] if first_apart else [1.0]
    ratios = (gap + [1.0] * columns)[:columns]
    figure = Figure(figsize=(width * sum(ratios) + 0.3, height * len(rows) + 0.2), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False, width_ratios=ratios)
    for row, cells in enumerate(rows):
        for column in range(columns):
            _draw(panels[row][column], cells[column] if column < len(cells) else None)
    return figure


def _draw(panel: Axes, cell: Cell | None) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    if cell is None:
        panel.set_axis_off()
        return
    if cell.pixels is None:
        panel.text(0.5, 0.5, "file\nis gone", ha="center", va="center", fontsize=7, transform=panel.transAxes)
    else:
        panel.imshow(cell.pixels)
    colour = NEUTRAL if cell.right is None else RIGHT if cell.right else WRONG
    for spine in panel.spines.values():
        spine.set_visible(True)
        spine.set_edgecolor(colour)
        spine.set_linewidth(1.2 if cell.right is None else 2.6)
    panel.set_title(cell.title, fontsize=6.5, pad=2.5, color=colour)


def retrieval_sheet(table: pl.DataFrame, queries: Sequence[dict[str, Any]], count: int = 10) -> Figure:
    """Draw each query, and behind it its nearest pictures, framed as right or wrong where identities are known.

    Args:
        table: predictions of all pictures.
        queries: rows of it.
        count: pictures of each.
    """
    wanted = {row for query in queries for row in query["neighbours"][:count]}
    places = {row["row"]: row for row in table.filter(pl.col("row").is_in(list(wanted))).iter_rows(named=True)}
    grid = []
    for query in queries:
        label = query.get("label")
        title = f"AP {query['ap_mean']:.2f}" if query.get("ap_mean") is not None else "query"
        cells = [Cell(shown(query), f"{plain(str(query.get('identity') or 'query'), 12)}, {title}")]
        for rank, (row, distance) in enumerate(
            zip(query["neighbours"][:count], query["neighbour_distances"][:count], strict=True), 1
        ):
            found = places[row]
            right = None if label is None or found.get("label") is None else found["label"] == label
            cells.append(Cell(shown(found), f"{rank}: {distance:.2g}", right))
        grid.append(cells)
    return sheet(grid, first_apart=True)


def mistake_sheet(rows: Sequence[dict[str, Any]], columns: int = 6) -> Figure:
    """Draw wrongly decided pictures, with the class that they are of and the one that they were taken for.

    Args:
        rows: of a table of predictions, with class, predicted_class, confidence.
        columns: of the sheet.
    """
    cells = [
        Cell(
            shown(row),
            f"{plain(row['class'], 20)}\n→ {plain(row['predicted_class'], 18)} {row['confidence']:.2f}",
            False,
        )
        for row in rows
    ]
    return sheet([cells[start : start + columns] for start in range(0, len(cells), columns)])
