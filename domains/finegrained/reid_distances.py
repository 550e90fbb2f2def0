"""Distances of queries and gallery in blocks, as fast as float32 products, with what is needed to rank them exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.finegrained.reid_ranking import Block, RetrievalInputError

Metric = Literal["euclidean", "cosine"]
PAIR_ELEMENTS = 2**17  # of a part of `pair_distances`, which stays in the cache


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32: neither autocast nor TF32, whose distances would reorder a gallery."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Features:
    """Features of images, in the precision of products, and in float64 for single pairs.

    Squared Euclidean distances stand for both metrics, as they rank alike: for `cosine` features are brought to length
    1, which makes them 2 - 2 cos.

    Args:
        features: (n, D), floating point.
        metric: euclidean or cosine.
        name: what they are of, for the message.

    Raises:
        ConfigError: there is no such metric.
        RetrievalInputError: features are not finite.
    """

    def __init__(self, features: Tensor, metric: Metric, name: str = "image") -> None:
        if metric not in ("euclidean", "cosine"):
            raise ConfigError(f"metric is {metric!r}; choose euclidean or cosine")
        self.raw = features
        self.lengths: Tensor | None = None
        wide = features if features.dtype == torch.float64 else features.float()
        if metric == "cosine":
            self.lengths = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64).clamp(min=1e-12)
            wide = wide / self.lengths[:, None].to(wide.dtype)
        self.values = wide
        self.squares = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float64).square()
        if not bool(self.squares.isfinite().all()):
            row = int((~self.squares.isfinite()).nonzero()[0])
            raise RetrievalInputError(f"{name} features of image {row} are not finite; check the weights and the image")

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> Tensor:
        """Rows in float64 (F, D)."""
        rows = self.raw[index].double()
        return rows if self.lengths is None else rows / self.lengths[index, None]


def squared_distances(a: Features, b: Features, part: slice) -> Tensor:
    """Squared distances of some rows of a to all of b, in the precision of products (c, n)."""
    with full_precision(a.values.device):
        block = torch.addmm(b.squares.to(b.values.dtype)[None], a.values[part], b.values.T, alpha=-2.0)
    return block.add_(a.squares[part, None].to(block.dtype))


def pair_distances(a: Features, b: Features, first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of pairs in float64, summed difference by difference (F,).

    Equal features have equal distances, to the last bit, which products cannot promise.
    """
    size = max(PAIR_ELEMENTS // a.raw.shape[1], 1)
    parts = zip(torch.split(first, size), torch.split(second, size), strict=True)
    found = [(a.rows(i) - b.rows(j)).square_().sum(1) for i, j in parts]
    return torch.cat(found) if found else a.squares.new_empty(0)


def distance_blocks(query: Tensor, gallery: Tensor, metric: Metric, block_elements: int) -> Iterator[Block]:
    """Blocks of squared distances.

    The tolerance is for both of two distances that are compared: each may be wrong by sqrt(D) / 2 + 8 roundings of the
    numbers it is made of. Sums of D terms in a few dozen lanes stay far below it.
    """
    own, others = Features(query, metric, "query"), Features(gallery, metric, "gallery")
    unit = torch.finfo(own.values.dtype).eps / 2.0
    largest = float(others.squares.max()) if len(others) else 0.0
    width = query.shape[1] ** 0.5 / 2.0 + 8.0
    rows = max(block_elements // max(len(others), 1), 1)

    def exact(first: Tensor, second: Tensor) -> Tensor:
        return pair_distances(own, others, first, second)

    for start in range(0, len(own), rows):
        part = slice(start, start + rows)
        tolerance = 2.0 * width * unit * (own.squares[part] + largest)
        yield Block(start, squared_distances(own, others, part), tolerance, exact)
