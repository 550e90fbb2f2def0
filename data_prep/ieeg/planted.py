"""Made-up intracranial EEG with seizures whose place is known: for demonstrations and tests, not for medicine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.signal

F32 = npt.NDArray[np.float32]
RAMP = 3.0  # s in which a planted seizure reaches its full amplitude


@dataclass(frozen=True)
class PlantedSeizure:
    """One seizure.

    Args:
        onset: s.
        offset: s.
        channels: indices of those it reaches.
        delays: s after the onset at which it reaches each.
    """

    onset: float
    offset: float
    channels: tuple[int, ...]
    delays: tuple[float, ...]


def background(rng: np.random.Generator, channels: int, samples: int, rate: float, mains: float = 50.0) -> F32:
    """Background of a recording: 1/f noise, a part that all channels share, rhythms, spikes, and the mains.

    Args:
        rng: of everything random.
        channels: C.
        samples: n.
        rate: Hz.
        mains: Hz; 0: none.

    Shape:
        -> (C, n) float32, microvolts.
    """
    frequencies = np.fft.rfftfreq(samples, 1 / rate)
    slope = 1 / np.maximum(frequencies, 0.5)
    slope[0] = 0

    def noise() -> npt.NDArray[np.float64]:
        phases = rng.normal(size=len(frequencies)) + 1j * rng.normal(size=len(frequencies))
        found = np.fft.irfft(slope * phases, samples)
        return np.asarray(found / found.std())

    common = 15 * noise()
    times = np.arange(samples) / rate
    signal = np.empty((channels, samples), np.float32)
    for channel in range(channels):
        own = rng.uniform(25, 50) * noise() + rng.uniform(0.6, 1.2) * common
        envelope = np.maximum(noise_slow(rng, samples, rate), 0)
        own += rng.uniform(5, 15) * envelope * np.sin(2 * np.pi * rng.uniform(8, 12) * times + rng.uniform(0, 6))
        own += rng.normal(0, 2, samples)
        if mains:
            own += rng.uniform(2, 8) * np.sin(2 * np.pi * mains * times + rng.uniform(0, 6))
        for place in rng.integers(0, samples, rng.poisson(samples / rate / 20)):
            _add_spike(own, int(place), rate, rng.uniform(100, 250))
        signal[channel] = own
    return signal


def noise_slow(rng: np.random.Generator, samples: int, rate: float) -> npt.NDArray[np.float64]:
    """A curve of unit variance that changes over seconds, (n,)."""
    knots = rng.normal(size=int(samples / rate / 2) + 2)
    return np.interp(np.arange(samples) / rate / 2, np.arange(len(knots)), knots)


def _add_spike(signal: npt.NDArray[np.float64], place: int, rate: float, height: float) -> None:
    """Add an interictal spike and its slow wave."""
    times = np.arange(int(0.4 * rate)) / rate
    shape = np.exp(-(((times - 0.05) / 0.012) ** 2)) - 0.35 * np.exp(-(((times - 0.2) / 0.06) ** 2))
    stop = min(place + len(shape), len(signal))
    signal[place:stop] += height * shape[: stop - place]


def seizure_waves(rng: np.random.Generator, samples: int, rate: float) -> npt.NDArray[np.float64]:
    """Rhythmic discharges that begin fast and slow down, sharper than a sine, (n,) of about unit amplitude."""
    times = np.arange(samples) / rate
    duration = samples / rate
    fast, slow = rng.uniform(8, 12), rng.uniform(3, 5)
    phase = 2 * np.pi * np.cumsum(fast + (slow - fast) * times / duration) / rate
    waves = np.sin(phase) + 0.5 * np.sin(2 * phase + 0.6) + 0.25 * np.sin(3 * phase)
    return np.asarray(waves * (1 + 0.2 * noise_slow(rng, samples, rate)))


def add_seizure(
    rng: np.random.Generator, signal: F32, rate: float, seizure: PlantedSeizure, height: float = 180.0
) -> None:
    """Add a seizure to a recording, in place: it builds up in each channel from the delay on.

    Args:
        rng: of everything random.
        signal: the recording.
        rate: Hz.
        seizure: where.
        height: microvolts at its full amplitude.

    Shape:
        signal (C, n).
    """
    for channel, delay in zip(seizure.channels, seizure.delays, strict=True):
        begin, end = int((seizure.onset + delay) * rate), int(seizure.offset * rate)
        if end - begin < rate:
            continue
        waves = seizure_waves(rng, end - begin, rate)
        ramp = np.minimum(np.arange(end - begin) / rate / RAMP, 1)
        signal[channel, begin:end] += (rng.uniform(0.6, 1.2) * height * ramp * waves).astype(np.float32)


def draw_seizures(
    rng: np.random.Generator, seconds: float, shafts: Sequence[Sequence[int]], count: int
) -> list[PlantedSeizure]:
    """Draw seizures of 20 to 45 s that begin on one electrode and spread, far from each other.

    Args:
        rng: of everything random.
        seconds: of the recording.
        shafts: indices of the channels of each electrode.
        count: how many.
    """
    found = []
    room = seconds / max(count, 1)
    for number in range(count):
        duration = float(rng.uniform(20, min(45, room * 0.4)))
        onset = number * room + float(rng.uniform(0.3, max(0.95 - duration / room, 0.35))) * room
        order = rng.permutation(len(shafts))
        channels: list[int] = []
        delays: list[float] = []
        for place, shaft in enumerate(order[: max(1, int(rng.integers(1, len(shafts) + 1)))]):
            for channel in shafts[shaft]:
                if place == 0 or rng.random() < 0.7:
                    channels.append(channel)
                    delays.append(float(rng.uniform(0, 2) + 5 * place) if channels[:1] != [channel] else 0.0)
        found.append(PlantedSeizure(round(onset, 3), round(onset + duration, 3), tuple(channels), tuple(delays)))
    return found


def insert_segments(
    signal: F32,
    segments: Sequence[F32],
    places: Sequence[int],
    channels: Sequence[Sequence[int]],
    delays: Sequence[Sequence[int]],
    fade: int,
) -> F32:
    """Replace stretches of some channels by recorded seizures, with a delay in each channel, and fade in and out.

    Args:
        signal: background.
        segments: seizures, one-dimensional.
        places: sample at which each begins.
        channels: those that each reaches.
        delays: samples after the beginning at which it reaches each of them.
        fade: samples of a cross-fade.

    Shape:
        signal (C, n), segments (m,) each -> (C, n).
    """
    made = signal.copy()
    for segment, place, reached, late in zip(segments, places, channels, delays, strict=True):
        for channel, delay in zip(reached, late, strict=True):
            piece = segment[: len(segment) - delay]
            begin = place + delay
            weight = np.ones(len(piece), np.float32)
            ramp = scipy.signal.windows.hann(2 * fade)[:fade].astype(np.float32)
            weight[:fade], weight[-fade:] = ramp, ramp[::-1]
            here = slice(begin, begin + len(piece))
            made[channel, here] = (1 - weight) * made[channel, here] + weight * piece
    return made
