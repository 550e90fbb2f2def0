"""Recordings with the same signal under other names, so that no subject is on two sides of a split under two ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.fft
import scipy.stats

from data_prep.common.errors import LeakError
from data_prep.ieeg.signal.statistics import ENVELOPE_RATE

LEAST = 0.6  # correlation of envelopes, at least
MOST = 0.9  # that is asked of the shortest
SIGMAS = 8.0  # standard deviations of the correlation of independent envelopes
SHORTEST = 60  # s in common
SCHEMA = {
    "first": pl.String,
    "second": pl.String,
    "first_subject": pl.String,
    "second_subject": pl.String,
    "kind": pl.String,
    "correlation": pl.Float64,
    "shift": pl.Float64,
    "seconds": pl.Float64,
}
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fingerprint:
    """What tells the content of one recording.

    Args:
        name: of the recording.
        subject: whose it is said to be.
        digest: of its raw values.
        envelope: length of the line, four times a second.
    """

    name: str
    subject: str
    digest: str
    envelope: F64


def find_duplicates(prints: Sequence[Fingerprint]) -> pl.DataFrame:
    """Pairs of recordings that hold the same signal.

    Equal raw values are found by their digest. Copies that were cut elsewhere, scaled, shifted, resampled or
    re-referenced are found by the correlation of their envelopes, which is looked for at every shift in time at which
    at least a minute, and half of the shorter one, overlap.

    Returns:
        first, second (names), their subjects, kind (`equal` or `similar`), correlation, shift (s of the second behind
        the first), seconds in common.
    """
    rows: list[tuple[str, str, str, str, str, float, float, float]] = []
    by_digest: defaultdict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(prints):
        by_digest[entry.digest].append(i)
    equal = set()
    for members in by_digest.values():
        for i in members[1:]:
            one, other = prints[members[0]], prints[i]
            equal.add((members[0], i))
            seconds = len(one.envelope) / ENVELOPE_RATE
            rows.append((one.name, other.name, one.subject, other.subject, "equal", 1.0, 0.0, seconds))
    usable = [i for i, entry in enumerate(prints) if len(entry.envelope) >= (SHORTEST + 2) * ENVELOPE_RATE]
    changes = {i: _changes(prints[i].envelope) for i in usable}
    for place, i in enumerate(usable):
        for j in usable[place + 1 :]:
            if (i, j) in equal:
                continue
            found, shift, seconds = best_shift(changes[i], changes[j])
            if found >= max(LEAST, min(MOST, SIGMAS / np.sqrt(seconds))):
                one, other = prints[i], prints[j]
                values = ("similar", round(found, 4), shift, seconds)
                rows.append((one.name, other.name, one.subject, other.subject, *values))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _changes(envelope: F64) -> F64:
    """Ranks of the changes of the logarithm from second to second: gain and slow drifts play no part.

    Seconds overlap, so that a copy that begins between two of them is like enough. Of ranks, a single jump, such as the
    onset of a seizure, makes no correlation.
    """
    smooth = np.convolve(envelope, np.ones(ENVELOPE_RATE) / ENVELOPE_RATE, mode="valid")
    floor = max(float(np.median(smooth)) * 1e-3, 1e-12)
    logarithm = np.log(np.maximum(smooth, floor))
    changes = logarithm[ENVELOPE_RATE:] - logarithm[:-ENVELOPE_RATE]
    return np.asarray(scipy.stats.rankdata(changes) / len(changes) - 0.5)


def best_shift(one: F64, other: F64) -> tuple[float, float, float]:
    """Highest correlation of two sequences over all shifts, that shift, and how much they overlap there, in seconds."""
    least = max(SHORTEST * ENVELOPE_RATE, min(len(one), len(other)) // 2)
    size = scipy.fft.next_fast_len(len(one) + len(other) - 1, real=True)

    def correlate(a: F64, b: F64) -> F64:
        product = scipy.fft.rfft(a, size) * np.conj(scipy.fft.rfft(b, size))
        return np.asarray(scipy.fft.irfft(product, size))

    ones = np.ones_like(one), np.ones_like(other)
    counts = np.rint(correlate(ones[0], ones[1]))
    sums = correlate(one, ones[1]), correlate(ones[0], other)
    squares = correlate(one**2, ones[1]), correlate(ones[0], other**2)
    n = np.maximum(counts, 1)
    covariance = correlate(one, other) - sums[0] * sums[1] / n
    spread = np.sqrt(
        np.maximum(squares[0] - sums[0] ** 2 / n, 1e-12) * np.maximum(squares[1] - sums[1] ** 2 / n, 1e-12)
    )
    score = np.where(counts >= least, covariance / spread, -1.0)
    place = int(score.argmax())
    shift = place if place < len(one) else place - size
    return float(score[place]), shift / ENVELOPE_RATE, float(counts[place]) / ENVELOPE_RATE


def group_subjects(subjects: Sequence[str], pairs: pl.DataFrame) -> dict[str, str]:
    """Subject -> the first, by name, of all those that share content with it, also through others."""
    parent = {subject: subject for subject in sorted(set(subjects))}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for one, other in pairs.select("first_subject", "second_subject").iter_rows():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {subject: root(subject) for subject in parent}


def refuse_duplicates(pairs: pl.DataFrame) -> None:
    """Stop where subjects share content.

    Raises:
        LeakError: naming the first pair.
    """
    shared = pairs.filter(pl.col("first_subject") != pl.col("second_subject"))
    if shared.height:
        row = shared.row(0, named=True)
        raise LeakError(
            f"recording {row['first']} of subject {row['first_subject']} and {row['second']} of subject "
            f"{row['second_subject']} hold the same signal ({row['kind']}; {shared.height:,} such pairs): leave one "
            "out, or use --duplicates auto, which keeps both subjects on one side"
        )
