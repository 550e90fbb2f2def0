"""Recordings with the same signal under other names, so that no subject is on two sides of a split under two ids."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
BUDGET = 256 << 20  # bytes of transforms that are kept
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


def find_duplicates(prints: Sequence[Fingerprint], progress: bool = False) -> pl.DataFrame:
    """Pairs of recordings that hold the same signal.

    Equal raw values are found by their digest. Copies that were cut elsewhere, scaled, shifted, resampled or
    re-referenced are found by the correlation of their envelopes, which is looked for at every shift in time at which
    at least a minute, and half of the shorter one, overlap. Two recordings of one subject are on one side in any case,
    so that only equal ones are told.

    Args:
        prints: of all recordings.
        progress: show a bar.

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
    for i, j, found, shift, seconds in sorted(_find_similar(prints, equal, progress)):
        one, other = prints[i], prints[j]
        rows.append((one.name, other.name, one.subject, other.subject, "similar", round(found, 4), shift, seconds))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _find_similar(
    prints: Sequence[Fingerprint], equal: Collection[tuple[int, int]], progress: bool
) -> Iterator[tuple[int, int, float, float, float]]:
    """Positions of two recordings whose envelopes are alike, correlation, shift, seconds in common."""
    usable = [i for i, entry in enumerate(prints) if len(entry.envelope) >= (SHORTEST + 2) * ENVELOPE_RATE]
    # By length: neighbours are padded to one size.
    usable.sort(key=lambda i: len(prints[i].envelope))
    subjects = [prints[i].subject for i in usable]
    own = sum(count * (count - 1) // 2 for count in Counter(subjects).values())
    total = len(usable) * (len(usable) - 1) // 2 - own
    if not total:
        return
    transforms = Transforms([_changes(prints[i].envelope) for i in usable])
    for one, other in _watched(_pairs(subjects, transforms.together), total, progress):
        first, second = sorted((one, other), key=lambda at: usable[at])
        if (usable[first], usable[second]) in equal:
            continue
        found, shift, seconds = transforms.best_shift(first, second)
        if found >= max(LEAST, min(MOST, SIGMAS / np.sqrt(seconds))):
            yield usable[first], usable[second], found, shift, seconds


def _pairs(subjects: Sequence[str], together: int) -> Iterator[tuple[int, int]]:
    """All pairs of two subjects, in blocks of so many first members that the transforms of all of them can be kept."""
    for start in range(0, len(subjects), together):
        for j in range(start + 1, len(subjects)):
            for i in range(start, min(start + together, j)):
                if subjects[i] != subjects[j]:
                    yield i, j


def _watched(pairs: Iterable[tuple[int, int]], total: int, progress: bool) -> Iterable[tuple[int, int]]:
    if not progress:
        return pairs
    from rich.console import Console
    from rich.progress import track

    return track(pairs, " compare", total=total, console=Console(stderr=True))


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


@dataclass(frozen=True)
class _Transform:
    """A sequence (n,), made ready for correlation with any other.

    Args:
        spectrum: Fourier transform of the sequence, padded with zeros.
        sums: of its first 0 ... n values.
        squares: likewise of their squares.
        size: to which it was padded.
    """

    spectrum: npt.NDArray[np.complex128]
    sums: F64
    squares: F64
    size: int

    @classmethod
    def of(cls, values: F64, size: int) -> _Transform:
        sums, squares = (np.concatenate([[0.0], np.cumsum(each)]) for each in (values, values**2))
        return cls(scipy.fft.rfft(values, size), sums, squares, size)

    @property
    def nbytes(self) -> int:
        return int(self.spectrum.nbytes + self.sums.nbytes + self.squares.nbytes)

    def best_shift(self, other: _Transform) -> tuple[float, float, float]:
        mine, others = len(self.sums) - 1, len(other.sums) - 1
        least = max(SHORTEST * ENVELOPE_RATE, min(mine, others) // 2)
        if min(mine, others) < least:
            return -1.0, 0.0, 0.0
        product = scipy.fft.irfft(self.spectrum * np.conj(other.spectrum), self.size)
        ahead, behind = mine - least + 1, others - least  # shifts that leave enough in common
        shift = np.concatenate([np.arange(ahead), np.arange(-behind, 0)])
        covered = np.concatenate([product[:ahead], product[len(product) - behind :]])
        first, second = np.maximum(shift, 0), np.maximum(-shift, 0)  # where the overlap begins in each
        n = np.minimum(mine - first, others - second)
        sums = self.sums[first + n] - self.sums[first], other.sums[second + n] - other.sums[second]
        squares = self.squares[first + n] - self.squares[first], other.squares[second + n] - other.squares[second]
        spread = np.sqrt(
            np.maximum(squares[0] - sums[0] ** 2 / n, 1e-12) * np.maximum(squares[1] - sums[1] ** 2 / n, 1e-12)
        )
        score = (covered - sums[0] * sums[1] / n) / spread
        place = int(score.argmax())
        return float(score[place]), int(shift[place]) / ENVELOPE_RATE, int(n[place]) / ENVELOPE_RATE


@dataclass
class Transforms:
    """Correlates sequences in pairs; the transform of each is made once for every padded size, and kept for a while.

    Args:
        sequences: each (n,).
        budget: bytes of transforms that are kept.
    """

    sequences: Sequence[F64]
    budget: int = BUDGET
    _kept: OrderedDict[tuple[int, int], _Transform] = field(default_factory=OrderedDict)
    _bytes: int = 0

    @property
    def together(self) -> int:
        """How many sequences have their transforms kept at a time, for sure."""
        longest = max(len(one) for one in self.sequences)
        largest = 8 * (_padded(2 * longest) + 2) + 16 * (longest + 1)
        return max(self.budget // largest - 2, 1)

    def best_shift(self, i: int, j: int) -> tuple[float, float, float]:
        """`best_shift` of two of the sequences."""
        size = _padded(len(self.sequences[i]) + len(self.sequences[j]) - 1)
        return self._get(i, size).best_shift(self._get(j, size))

    def _get(self, i: int, size: int) -> _Transform:
        found = self._kept.pop((i, size), None)
        if found is None:
            found = _Transform.of(self.sequences[i], size)
            self._bytes += found.nbytes
        self._kept[i, size] = found
        while self._bytes > self.budget and len(self._kept) > 2:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found


def _padded(length: int) -> int:
    """A fast size of at least this length; few sizes differ, so that one transform serves many pairs."""
    step = 1 << max(length.bit_length() - 4, 0)
    return int(scipy.fft.next_fast_len(-(-length // step) * step, real=True))


def best_shift(one: F64, other: F64) -> tuple[float, float, float]:
    """Highest correlation of two sequences over all shifts, that shift, and how much they overlap there, in seconds.

    A correlation of -1 says that they are too short to be compared.
    """
    return Transforms([one, other]).best_shift(0, 1)


def find_persons(subjects: Iterable[str], groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Groups of subjects that are probably one person, without subjects that are not among the given ones."""
    left = set(subjects)
    found = [[subject for subject in group if subject in left] for group in groups]
    return [group for group in found if len(group) > 1]


def group_subjects(
    subjects: Sequence[str], pairs: pl.DataFrame, persons: Iterable[Sequence[str]] = ()
) -> dict[str, str]:
    """Subject -> the first, by name, of all those that must stay on one side with it, also through others.

    Args:
        subjects: of all recordings.
        pairs: recordings that share content.
        persons: groups of some of these subjects, each of which is probably one person.
    """
    parent = {subject: subject for subject in sorted(set(subjects))}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    joined = list(pairs.select("first_subject", "second_subject").iter_rows())
    joined += [(person[0], other) for person in persons for other in person[1:]]
    for one, other in joined:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {subject: root(subject) for subject in parent}


def describe_groups(groups: Mapping[str, str], crossing: int, persons: int, rule: str) -> dict[str, Any]:
    """The `group` entry of `dataset.json`.

    Args:
        groups: of `group_subjects`.
        crossing: pairs of recordings of two subjects that share content.
        persons: how many groups of subjects are probably one person.
        rule: the option `duplicates`.
    """
    notes = [f"{crossing} pairs of recordings of two subjects hold the same signal"] if crossing else []
    notes += [f"{persons} groups of subjects are one patient by the headers of their files"] if persons else []
    return {
        "name": "subject",
        "kept_apart": not notes or rule == "auto",
        "groups": len(set(groups.values())),
        "note": "; ".join(notes),
    }


def refuse_duplicates(pairs: pl.DataFrame, persons: Sequence[Sequence[str]] = ()) -> None:
    """Stop where subjects share content, or are probably one person.

    Raises:
        LeakError: naming the first two.
    """
    shared = pairs.filter(pl.col("first_subject") != pl.col("second_subject"))
    if shared.height:
        row = shared.row(0, named=True)
        raise LeakError(
            f"recording {row['first']} of subject {row['first_subject']} and {row['second']} of subject "
            f"{row['second_subject']} hold the same signal ({row['kind']}; {shared.height:,} such pairs): leave one "
            "out, or use --duplicates auto, which keeps both subjects on one side"
        )
    if persons:
        one, other = persons[0][:2]
        raise LeakError(
            f"subjects {one} and {other}: the headers of their files name the same patient ({len(persons):,} such "
            "groups of subjects): give them one id with --subject_pattern or in one folder, or use --duplicates auto, "
            "which keeps them on one side"
        )
