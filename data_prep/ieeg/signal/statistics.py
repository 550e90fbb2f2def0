"""What raw channels look like, measured block by block: holes, flat stretches, mains, amplitude, and a fingerprint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal

from data_prep.ieeg.records import F32

F64 = npt.NDArray[np.float64]
SAMPLED_PIECES = 4  # of a second each, spread over a block, for moments and spectra
GOLDEN = (5**0.5 - 1) / 2  # what is left of its multiples fills an interval evenly, and without a period
MAINS_BAND = 1.0  # Hz on either side of the mains
NEIGHBOURS = (3.0, 6.0)  # Hz from it, what it is compared with
MAINS = (50.0, 60.0)
ENVELOPE_RATE = 4  # Hz
LINE_RATE = 128.0  # Hz at which the length of a line is measured
DIGITS = 6  # of numbers that leave a task, so that they do not depend on the order of sums


@dataclass(frozen=True)
class ChannelStatistics:
    """Of a stretch of a recording; those of several stretches join.

    Args:
        samples: how many.
        missing: values that are none, of each channel.
        flat: whole seconds in which a channel does not move.
        seconds: whole seconds in all; a stretch that has none counts as one.
        zeros: longest run of seconds of exact zeros.
        count: samples behind the moments.
        moments: sums of x, x², x³, x⁴ over the sampled ones.
        amplitude: median distance from the mean of a second, averaged over the sampled ones.
        mains: sum over blocks of the power at 50 and 60 Hz, and beside them.
        envelope: mean over channels of the length of the line, four times a second.
        digest: of the values.

    Shape:
        missing, flat, zeros, amplitude (C,); moments (4, C); mains (2, 2, C); envelope (4 a second,).
    """

    samples: int
    missing: F64
    flat: F64
    seconds: int
    zeros: F64
    count: int
    moments: F64
    amplitude: F64
    mains: F64
    envelope: F64
    digest: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain: dict[str, Any] = {"samples": self.samples, "seconds": self.seconds, "count": self.count}
        for name in ("missing", "flat", "zeros", "moments", "amplitude", "mains", "envelope"):
            plain[name] = getattr(self, name).tolist()
        return plain | {"digest": self.digest}

    @classmethod
    def join(cls, parts: Sequence[Mapping[str, Any]]) -> ChannelStatistics:
        """Join those of consecutive stretches, as `to_json` wrote them."""
        arrays = {
            name: [np.asarray(part[name], dtype=np.float64) for part in parts]
            for name in ("missing", "flat", "zeros", "moments", "amplitude", "mains", "envelope")
        }
        weights = np.array([part["samples"] for part in parts], dtype=np.float64)
        return cls(
            samples=int(weights.sum()),
            missing=np.sum(arrays["missing"], axis=0),
            flat=np.sum(arrays["flat"], axis=0),
            seconds=sum(part["seconds"] for part in parts),
            zeros=np.max(arrays["zeros"], axis=0),
            count=sum(part["count"] for part in parts),
            moments=np.sum(arrays["moments"], axis=0),
            amplitude=np.average(arrays["amplitude"], axis=0, weights=weights),
            mains=np.sum(arrays["mains"], axis=0),
            envelope=np.concatenate(arrays["envelope"]),
            digest=hashlib.sha256("".join(part["digest"] for part in parts).encode()).hexdigest(),
        )

    @property
    def silent(self) -> npt.NDArray[np.bool_]:
        """Channels that do not move in any second; of the variance only samples are known, (C,)."""
        return np.asarray(self.flat >= self.seconds)

    @property
    def variance(self) -> F64:
        """Of each channel, (C,)."""
        mean, square = self.moments[0] / self.count, self.moments[1] / self.count
        return np.asarray(np.maximum(square - mean**2, 0.0))

    @property
    def kurtosis(self) -> F64:
        """Fourth central moment over the squared variance (a normal one has 3), (C,)."""
        m1, m2, m3, m4 = self.moments / self.count
        central = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        variance = self.variance
        return np.asarray(np.divide(central, variance**2, out=np.full_like(variance, np.nan), where=variance > 0))

    def mains_ratio(self, mains: float) -> F64:
        """Power at the mains over that beside it, dB, (C,)."""
        inside, beside = self.mains[MAINS.index(mains)] if mains in MAINS else self.mains[0]
        ratio = np.divide(inside, beside, out=np.ones_like(inside), where=beside > 0)
        return np.asarray(10 * np.log10(np.maximum(ratio, 1e-6)))


def power_sums(signal: npt.NDArray[np.floating[Any]]) -> F64:
    """Sums of x, x², x³ and x⁴ of each channel, (C, n) -> (4, C); added up in the precision of the signal."""
    squares = signal * signal
    sums = signal.sum(axis=1), squares.sum(axis=1)
    cubes, fourths = (np.einsum("cn,cn->c", squares, other) for other in (signal, squares))
    return np.stack([*sums, cubes, fourths]).astype(np.float64)


def _spread(signal: F32, second: int, block: int) -> F64:
    """Some seconds that lie all over a block, so that a dead beginning is not taken for all of it.

    Where they lie differs from block to block: nothing that comes back in time is always missed.

    Args:
        signal: of the block.
        second: samples of it.
        block: number of the block.

    Shape:
        (C, n) -> (C, pieces, samples of each); a block of few seconds is one piece.
    """
    room = signal.shape[1] - second
    if room < SAMPLED_PIECES * second:
        return signal[:, None].astype(np.float64)
    numbers = range(block * SAMPLED_PIECES + 1, (block + 1) * SAMPLED_PIECES + 1)
    begins = [int(number * GOLDEN % 1.0 * room) for number in numbers]
    return np.stack([signal[:, begin : begin + second] for begin in begins], axis=1).astype(np.float64)


class Scanner:
    """Collects the statistics of consecutive blocks.

    Args:
        channels: how many.
        rate: Hz.
    """

    def __init__(self, channels: int, rate: float) -> None:
        self.rate, self.channels = rate, channels
        self.samples = self.seconds = self.count = 0
        self.missing, self.flat = np.zeros(channels), np.zeros(channels)
        self.zeros, self.run = np.zeros(channels), np.zeros(channels)
        self.moments, self.mains = np.zeros((4, channels)), np.zeros((2, 2, channels))
        self.amplitudes: list[tuple[int, F64]] = []
        self.envelope = np.zeros(0)
        self.steps = np.zeros(0)
        self.last: F32 | None = None
        self.hash = hashlib.sha256()

    def add(self, signal: F32) -> None:
        """Take a block.

        Shape:
            signal (C, n) float32, raw.
        """
        self.hash.update(np.ascontiguousarray(signal).data)
        self.samples += signal.shape[1]
        if not np.isfinite(signal.sum(dtype=np.float64)):
            holes = ~np.isfinite(signal)
            self.missing += holes.sum(axis=1)
            signal = np.where(holes, np.float32(0), signal)
        second = max(int(self.rate), 1)
        if not self.seconds:
            second = min(second, signal.shape[1])
        whole = signal.shape[1] // second
        if whole:
            pieces = signal[:, : whole * second].reshape(self.channels, whole, second)
            low, high = pieces.min(axis=2), pieces.max(axis=2)
            self._stretches(low, high)
            self.seconds += whole
        self._lengths(signal)
        self._sample(signal)

    def _lengths(self, signal: F32) -> None:
        """Add the block's part of the envelope; bins and steps lie where they lie in the whole stretch."""
        begin, step = self.samples - signal.shape[1], max(int(self.rate / LINE_RATE), 1)
        places = np.arange(-(-begin // step) * step, self.samples, step)
        chosen = signal[:, places - begin]
        if self.last is not None:
            chosen, places = np.concatenate([self.last[:, None], chosen], axis=1), np.r_[places[:1] - step, places]
        if chosen.shape[1] < 2:
            return
        self.last = chosen[:, -1]
        moves = np.abs(np.diff(chosen, axis=1)).mean(axis=0, dtype=np.float64)
        bins = (places[1:] * ENVELOPE_RATE / self.rate).astype(np.int64)
        size = int(bins[-1]) + 1
        grown = [np.concatenate([old, np.zeros(size - len(old))]) for old in (self.envelope, self.steps)]
        self.envelope, self.steps = grown
        self.envelope += np.bincount(bins, moves, size)
        self.steps += np.bincount(bins, minlength=size)

    def _stretches(self, low: F32, high: F32) -> None:
        still = low == high
        self.flat += still.sum(axis=1)
        empty = still & (low == 0)
        for column in range(low.shape[1]):
            self.run = np.where(empty[:, column], self.run + 1, 0)
            self.zeros = np.maximum(self.zeros, self.run)

    def _sample(self, signal: F32) -> None:
        pieces = _spread(signal, math.ceil(self.rate), len(self.amplitudes))
        self.count += pieces[0].size
        self.moments += power_sums(pieces.reshape(self.channels, -1))
        # around the mean of each piece: a drift from one to the next is no amplitude
        heights = np.median(np.abs(pieces - pieces.mean(axis=2, keepdims=True)), axis=2)
        self.amplitudes.append((signal.shape[1], heights.mean(axis=1)))
        length = pieces.shape[2]
        if length < self.rate:
            return
        frequencies, power = scipy.signal.welch(pieces, fs=self.rate, nperseg=min(int(self.rate * 2), length))
        power = power.mean(axis=1)
        for i, mains in enumerate(MAINS):
            distance = np.abs(frequencies - mains)
            inside, beside = distance <= MAINS_BAND, (distance >= NEIGHBOURS[0]) & (distance <= NEIGHBOURS[1])
            if inside.any() and beside.any():
                self.mains[i, 0] += power[:, inside].mean(axis=1)
                self.mains[i, 1] += power[:, beside].mean(axis=1)

    def result(self) -> ChannelStatistics:
        """What was measured so far."""
        weights = [weight for weight, _ in self.amplitudes]
        return ChannelStatistics(
            samples=self.samples,
            missing=self.missing,
            flat=self.flat,
            seconds=self.seconds,
            zeros=self.zeros,
            count=self.count,
            moments=self.moments,
            amplitude=np.average([found for _, found in self.amplitudes], axis=0, weights=weights),
            mains=self.mains,
            envelope=self.envelope / np.maximum(self.steps, 1),
            digest=self.hash.hexdigest(),
        )
