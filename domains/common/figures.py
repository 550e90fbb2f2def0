"""Pictures for reports, drawn without any global state of the plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from domains.common.intervals import Estimate

BLUE, ORANGE, GREY = "#2f6db3", "#d9822b", "#8a94a3"
WARNINGS = "Read before trusting the numbers"  # heading of the report table whose `warning`s are also printed


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and a sentence that says how to read it."""

    title: str
    caption: str
    figure: Figure


def plain(text: str, width: int = 28) -> str:
    """Make any text a label: cut to `width` characters, no control characters, dollar signs that start no formula."""
    shown = "".join(mark if mark.isprintable() else "?" for mark in text)
    shown = shown if len(shown) <= width else f"{shown[: width - 1]}…"
    return shown.replace("$", r"\$")


def axes(width: float = 6.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panel = figure.add_subplot()
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def heat_map(values: NDArray[Any], names: Sequence[str], *, label: str) -> Figure:
    """Draw a square matrix with named rows and columns.

    Shape:
        values (M, M), names M.
    """
    size = max(4.0, 0.24 * len(names) + 2.0)
    figure, panel = axes(size + 0.8, size)
    image = panel.imshow(values, cmap="viridis", vmin=0.0, vmax=max(float(np.max(values)), 1e-12))
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.spines[:].set_visible(False)
    figure.colorbar(image, ax=panel, label=label, shrink=0.8)
    return figure


def bars(values: Sequence[float], names: Sequence[str], *, label: str, errors: NDArray[Any] | None = None) -> Figure:
    """Draw horizontal bars, first on top.

    Shape:
        values and names n; errors (2, n) distances to the lower and upper bound.
    """
    figure, panel = axes(6.0, max(2.0, 0.26 * len(names) + 1.0))
    panel.barh(range(len(names)), values, color=BLUE, xerr=errors, ecolor=GREY)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.invert_yaxis()
    panel.axvline(0.0, color=GREY, linewidth=0.8)
    panel.set_xlabel(label)
    return figure


def dots(
    estimates: Sequence[tuple[str, Estimate]], *, label: str, overall: float | None = None, chance: float | None = None
) -> Figure:
    """Draw one metric of several parts of the data with its intervals, first on top.

    Args:
        estimates: name of the part and its metric.
        label: of the axis.
        overall: value of all rows, drawn as a dashed line.
        chance: value of guessing, drawn as a grey line.
    """
    figure, panel = axes(6.0, max(1.8, 0.3 * len(estimates) + 1.0))
    values = np.array([estimate.value for _, estimate in estimates])
    gaps = np.array([[e.value - e.low, e.high - e.value] for _, e in estimates]).T
    places = np.arange(len(values))
    errors = np.nan_to_num(gaps).clip(0)
    panel.errorbar(values, places, xerr=errors, fmt="o", color=BLUE, ecolor=GREY, markersize=5)
    if overall is not None:
        panel.axvline(overall, color=BLUE, linewidth=0.8, linestyle="--")
    if chance is not None:
        panel.axvline(chance, color=GREY, linewidth=0.8)
    panel.set_yticks(places, [plain(name, 36) for name, _ in estimates])
    panel.set_ylim(len(values) - 0.5, -0.5)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlabel(label)
    return figure
