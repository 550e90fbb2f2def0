"""Attention of a model over the patches of one slide: its file, its scaling, its strongest patches, its objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import polars as pl
from numpy.typing import NDArray

from domains.common.errors import PreparedDataError

Scale = Literal["rank", "raw"]
Float32s = NDArray[np.float32]
# share of the patches, from the strongest -> class of the objects
CLASSES = (
    (0.01, "top 1 %"),
    (0.02, "top 2 %"),
    (0.05, "top 5 %"),
    (0.1, "top 10 %"),
    (0.25, "top 25 %"),
    (1.0, "rest"),
)


@dataclass(frozen=True)
class SlideAttention:
    """Attention over the patches of a slide.

    Args:
        slide: id of the slide.
        coords: upper left corners x, y in level-0 pixels.
        sizes: sides of the patches in level-0 pixels.
        attention: of each patch; of a whole bag they sum to 1.
        width: of the slide in level-0 pixels.
        height: likewise.

    Shape:
        coords (N, 2) int64; sizes, attention (N,) float32.
    """

    slide: str
    coords: NDArray[np.int64]
    sizes: Float32s
    attention: Float32s
    width: int
    height: int


def read_attention(path: Path, column: str = "attention") -> SlideAttention:
    """Read `<slide>.parquet`, as `predict` and `test` write it.

    Where the size of the patches is unknown (0), it is that of the grid they lie on.

    Args:
        path: columns x, y, size, width, height, and the attention.
        column: `attention` for that of the bag, `branch_0` and so on for that of one branch.

    Raises:
        PreparedDataError: it is no such file, or holds no patches, or values that are no numbers.
    """
    needed = ["x", "y", "size", column, "width", "height"]
    try:
        table = pl.read_parquet(path)
    except FileNotFoundError:
        raise PreparedDataError(f"{path}: not found; `predict` writes the attention of each slide") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise PreparedDataError(f"{path}: no readable Parquet file ({reason}); run predict again") from None
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise PreparedDataError(
            f"{path}: no columns {', '.join(missing)}; it has {', '.join(table.columns)}; give the attention that"
            " predict wrote"
        )
    if not len(table):
        raise PreparedDataError(f"{path}: holds no patches; the slide has an empty bag")
    numbers = table.select(needed).cast(pl.Float64).to_numpy()
    broken = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(broken):
        raise PreparedDataError(f"{path}: row {broken[0]} holds a value that is no number; run predict again")
    coords = numbers[:, :2].astype(np.int64)
    if coords.min() < 0:
        raise PreparedDataError(f"{path}: patches have no places; prepare the bags from features with coordinates")
    sizes = numbers[:, 2].astype(np.float32)
    if sizes.min() <= 0:
        side = grid_step(coords)
        if side is None:
            raise PreparedDataError(
                f"{path}: the size of the patches is not known, and they lie on no grid that would tell it; prepare the"
                " bags from files of coordinates that hold it"
            )
        sizes = np.where(sizes > 0, sizes, np.float32(side))
    width, height = (int(value) for value in numbers[0, 4:])
    if width <= 0 or height <= 0:  # unknown: as far as the patches reach
        width, height = (int(value) for value in (coords + sizes[:, None]).max(axis=0))
    slide = path.name.removesuffix(".parquet")
    return SlideAttention(slide, coords, sizes, numbers[:, 3].astype(np.float32), width, height)


def grid_step(coords: NDArray[np.int64]) -> int | None:
    """The most common distance between neighbours in a row or a column: the side of patches that do not overlap.

    Feature files of CLAM hold coordinates without the size of the patches.

    Shape:
        coords (N, 2).
    """
    gaps = []
    for along, across in ((0, 1), (1, 0)):
        ordered = coords[np.lexsort((coords[:, along], coords[:, across]))]
        same = ordered[1:, across] == ordered[:-1, across]
        gaps.append((ordered[1:, along] - ordered[:-1, along])[same])
    values, counts = np.unique(np.concatenate(gaps), return_counts=True)
    values, counts = values[values > 0], counts[values > 0]
    return int(values[counts.argmax()]) if len(values) else None


def scale_attention(attention: Float32s, scale: Scale) -> Float32s:
    """Attention for the eye, in [0, 1].

    `rank`: the share of the patches with less attention, ties sharing their mean (a percentile: half of the patches lie
    above 0.5, however peaked the attention is). `raw`: the attention over its maximum.

    Shape:
        attention (N,) -> (N,) float32.
    """
    if scale == "raw":
        return attention / max(float(attention.max(initial=0.0)), 1e-30)
    _, inverse, counts = np.unique(attention, return_inverse=True, return_counts=True)
    above = np.cumsum(counts)
    middles = (above - counts / 2) / len(attention)
    return middles[inverse].astype(np.float32)


def strongest(found: SlideAttention, count: int) -> NDArray[np.int64]:
    """Indices of the patches with the most attention, strongest first, none overlapping a stronger one."""
    order = np.argsort(-found.attention, kind="stable")
    chosen: list[int] = []
    for index in order:
        if len(chosen) == count:
            break
        if chosen:
            gaps = np.abs(found.coords[chosen] - found.coords[index]).max(axis=1)
            if (gaps < np.minimum(found.sizes[chosen], found.sizes[index])).any():
                continue
        chosen.append(int(index))
    return np.array(chosen, dtype=np.int64)


def to_geojson(found: SlideAttention, *, share: float = 0.05, limit: int = 20_000, colours: str = "turbo") -> bytes:
    """Patches with the most attention as objects that QuPath opens (File, Import objects from file; from 0.4 on).

    Each patch is a detection, a square in level-0 pixels, of the class `Attention top 1 %` and so on, with the
    measurements `Attention`, `Attention percentile` (100 is the most) and `Attention rank` (1 is the most).

    Args:
        found: attention of the slide.
        share: of the patches, from the strongest; QuPath opens tens of thousands of objects, not millions.
        limit: of the number of objects, whatever the share.
        colours: colour map that the classes are coloured from.
    """
    total = len(found.attention)
    count = min(max(round(share * total), 1), limit, total)
    order = np.argsort(-found.attention, kind="stable")[:count]
    percentiles = 100 * scale_attention(found.attention, "rank")[order].astype(np.float64)
    classes = [
        {"name": f"Attention {name}", "color": list(_colour(colours, 1 - i / (len(CLASSES) - 1)))}
        for i, (_, name) in enumerate(CLASSES)
    ]
    bounds = np.array([bound for bound, _ in CLASSES])
    kinds = np.searchsorted(bounds, (np.arange(count) + 0.5) / total)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_square(x, y, size)]},
            "properties": {
                "objectType": "detection",
                "classification": classes[kind],
                "measurements": {
                    "Attention": float(f"{attention:.6g}"),
                    "Attention percentile": round(percentile, 4),
                    "Attention rank": rank + 1,
                },
            },
        }
        for rank, ((x, y), size, attention, percentile, kind) in enumerate(
            zip(
                found.coords[order].tolist(),
                found.sizes[order].tolist(),
                found.attention[order].tolist(),
                percentiles.tolist(),
                kinds.tolist(),
                strict=True,
            )
        )
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


def _square(x: int, y: int, size: float) -> list[list[float]]:
    right, lower = (_plain(x + size), _plain(y + size))
    return [[x, y], [right, y], [right, lower], [x, lower], [x, y]]


def _plain(value: float) -> float:
    return int(value) if value == int(value) else round(value, 2)


def _colour(colours: str, value: float) -> Sequence[int]:
    colour: Any = matplotlib.colormaps[colours](value, bytes=True)
    return [int(part) for part in colour[:3]]
