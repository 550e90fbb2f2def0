"""Re-referencing: every channel against others, as one matrix product wherever that is linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_prep.common.errors import ConfigError
from data_prep.ieeg.records import F32, Channel

KINDS = ("common-average", "median", "bipolar", "none")


@dataclass(frozen=True)
class Reference:
    """How prepared channels are made of kept ones.

    Args:
        kind: common-average, median, bipolar, or none.
        channels: prepared channels, in order.
        matrix: (prepared, kept) for the linear kinds; None: median, or none.
        good: kept channels that the average or median is taken of.
        pairs: names of the two contacts of each bipolar channel.

    Shape:
        good (C,) bool.
    """

    kind: str
    channels: tuple[Channel, ...]
    matrix: scipy.sparse.csr_matrix | None
    good: npt.NDArray[np.bool_]
    pairs: tuple[tuple[str, str], ...] = ()

    def apply(self, signal: F32) -> F32:
        """Re-reference.

        Shape:
            (kept, n) -> (prepared, n) float32.
        """
        if self.kind == "median":
            return np.asarray(signal - np.median(signal[self.good], axis=0), dtype=np.float32)
        if self.kind == "common-average":  # the matrix has no zeros: a mean is the faster product
            return np.asarray(signal - signal[self.good].mean(axis=0), dtype=np.float32)
        if self.matrix is None:
            return signal
        return np.asarray(self.matrix @ signal, dtype=np.float32)


def make_reference(kind: str, channels: Sequence[Channel], good: npt.NDArray[np.bool_]) -> Reference:
    """Say how the kept channels of a recording are re-referenced.

    Args:
        kind: see `Reference`.
        channels: kept ones.
        good: which of them nobody doubts; of none, all count.

    Raises:
        ConfigError: the recording has too few channels, or none that are neighbours.
    """
    kept = tuple(channels)
    chosen = good if good.any() else np.ones(len(kept), dtype=bool)
    if kind == "none":
        return Reference(kind, kept, None, chosen)
    if len(kept) < 2:
        raise ConfigError(f"{kind} needs 2 channels, there is {len(kept)}: use --reference none")
    if kind in ("common-average", "median"):
        return Reference(kind, kept, None, chosen)
    pairs = neighbours(kept)
    if not pairs:
        raise ConfigError("bipolar: no two channels are neighbouring contacts of one electrode; use another reference")
    rows, columns, values = [], [], []
    made = []
    for row, (one, other) in enumerate(pairs):
        rows += [row, row]
        columns += [one, other]
        values += [1.0, -1.0]
        a, b = kept[one], kept[other]
        x, y, z = ((p + q) / 2 for p, q in zip(a.place, b.place, strict=True))
        made.append(
            Channel(
                f"{a.name}-{b.name}", a.index, a.kind, rate=a.rate, shaft=a.shaft, contact=a.contact, place=(x, y, z)
            )
        )
    matrix = scipy.sparse.csr_matrix(
        (np.array(values, dtype=np.float32), (rows, columns)), shape=(len(pairs), len(kept))
    )
    names = tuple((kept[one].name, kept[other].name) for one, other in pairs)
    return Reference(kind, tuple(made), matrix, chosen, names)


def neighbours(channels: Sequence[Channel]) -> list[tuple[int, int]]:
    """Indices of neighbouring contacts: of one shaft, with numbers that differ by one."""
    place = {(channel.shaft, channel.contact): i for i, channel in enumerate(channels) if channel.shaft}
    return [
        (i, place[channel.shaft, channel.contact + 1])
        for i, channel in enumerate(channels)
        if channel.contact >= 0 and (channel.shaft, channel.contact + 1) in place
    ]
