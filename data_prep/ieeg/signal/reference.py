"""Re-referencing: every channel against others, as one matrix product wherever that is linear."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_prep.common.errors import ConfigError
from data_prep.ieeg.find import some
from data_prep.ieeg.records import F32, Channel

FAR = 2.0  # times the median distance of an electrode's pairs; contacts further apart are no neighbours
SMALLEST_GRID = 6  # contacts; shorter electrodes on the cortex are strips
LONGEST_SHAFT = 18  # contacts of a depth electrode
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

    def made_of(self) -> list[list[int]]:
        """For each kept channel, the prepared ones that are its own: in an average it is no more than a share."""
        if self.matrix is None:
            return [[row] for row in range(len(self.channels))]
        columns = self.matrix.tocsc()
        return [columns.getcol(column).indices.tolist() for column in range(columns.shape[1])]


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
    """Indices of neighbouring contacts: of one electrode, with numbers that differ by one, and not far apart.

    The last contact in a row of a grid and the first one of the next row are no neighbours. Where places are known,
    pairs are left out that are further apart than twice the median distance of the electrode's pairs.
    """
    pairs = _numbered(channels)
    far = _far(channels, pairs)
    return [pair for pair in pairs if pair not in far]


def remark_pairs(channels: Sequence[Channel]) -> list[str]:
    """What a user should know of the bipolar pairs of some channels, one line each."""
    pairs = _numbered(channels)
    far = _far(channels, pairs)
    said = []
    if far:
        names = some(f"{channels[one].name}-{channels[other].name}" for one, other in pairs if (one, other) in far)
        said.append(
            f"bipolar: {len(far)} pairs are left out, further apart than the others of their electrode: {names}"
        )
    unknown = {channels[one].shaft for one, other in pairs if math.isnan(_distance(channels[one], channels[other]))}
    last = {shaft: max(one.contact for one in channels if one.shaft == shaft) for shaft in sorted(unknown)}
    cortical = {channel.shaft for channel in channels if channel.kind == "ECOG"}
    grids = [
        f"{shaft} up to {shaft}{number}"
        for shaft, number in last.items()
        if number > LONGEST_SHAFT or (shaft in cortical and number >= SMALLEST_GRID)
    ]
    if grids:
        said.append(
            f"bipolar: without known places, contacts are paired by their numbers alone ({some(grids)}); on a grid, "
            "pairs across the ends of its rows are no neighbours: give places in electrodes.tsv, or another reference"
        )
    return said


def _numbered(channels: Sequence[Channel]) -> list[tuple[int, int]]:
    place = {(channel.shaft, channel.contact): i for i, channel in enumerate(channels) if channel.shaft}
    return [
        (i, place[channel.shaft, channel.contact + 1])
        for i, channel in enumerate(channels)
        if channel.contact >= 0 and (channel.shaft, channel.contact + 1) in place
    ]


def _far(channels: Sequence[Channel], pairs: Sequence[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    """Pairs that are no neighbours by their places."""
    known: defaultdict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for one, other in pairs:
        distance = _distance(channels[one], channels[other])
        if not math.isnan(distance):
            known[channels[one].shaft][one, other] = distance
    found = set()
    for distances in known.values():
        usual = float(np.median(list(distances.values())))
        # places that are all the same are none
        found |= {pair for pair, distance in distances.items() if distance > FAR * usual > 0}
    return frozenset(found)


def _distance(one: Channel, other: Channel) -> float:
    """Between two contacts; NaN: a place is unknown."""
    return math.dist(one.place, other.place)
