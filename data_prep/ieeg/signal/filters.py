"""One linear-phase filter for everything: band-pass, mains, anti-aliasing and resampling in one product of spectra.

Each part is a Kaiser-windowed FIR filter (Kaiser, 1974) that attenuates by 80 dB, centred, so that nothing is delayed.
Blocks of the recording overlap by the length of the filters' joint impulse response (overlap-save), so that the result
is that of the whole recording, whatever the blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal

from data_prep.common.errors import ConfigError
from data_prep.ieeg.records import F32

ATTENUATION = 80.0  # dB
NOTCH = 1.0  # Hz on either side of a mains frequency; transitions lie outside
NOTCH_TRANSITION = 1.0  # Hz
HOP_SECONDS = 60.0  # of a block, unless it would hold too many samples
HOP_SAMPLES = 8 << 20  # samples of all channels
LARGEST_RATIO = 200_000  # numerator and denominator of a ratio of rates


@dataclass(frozen=True)
class FilterRules:
    """What is done to a signal.

    Args:
        rate: of the prepared signal, Hz.
        highpass: lower edge of the pass-band, Hz; 0: none.
        lowpass: upper edge, Hz; 0: as high as the rates allow.
        notches: frequencies that are taken out, Hz; those that the low-pass filter leaves nothing of do not count.
    """

    rate: float
    highpass: float = 0.5
    lowpass: float = 150.0
    notches: tuple[float, ...] = ()


@dataclass(frozen=True)
class BlockPlan:
    """How a recording is cut into blocks and filtered.

    Args:
        rate_in: of the raw signal, Hz.
        rate_out: of the prepared signal, Hz; of awkward raw rates what it really is, next to what was asked for.
        up: resampling ratio, numerator.
        down: likewise, denominator.
        hop: raw samples that a block makes, a multiple of `down`.
        overlap: raw samples read before and behind them.
        size: raw samples of a block's Fourier transform.
        response: of the filter at its frequencies; None: nothing is filtered.

    Shape:
        response (size // 2 + 1,) float32.
    """

    rate_in: float
    rate_out: float
    up: int
    down: int
    hop: int
    overlap: int
    size: int
    response: F32 | None

    @property
    def hop_out(self) -> int:
        """Prepared samples that a block makes."""
        return self.hop * self.up // self.down

    def samples_out(self, samples: int) -> int:
        """Prepared samples of a recording of so many raw ones."""
        return samples * self.up // self.down

    def blocks(self, samples: int) -> int:
        """Blocks of a recording."""
        return max(1, math.ceil(samples / self.hop))

    def apply(self, signal: F32) -> F32:
        """Filter and resample a block with its margins.

        Shape:
            (C, size) -> (C, hop_out) float32.
        """
        if self.response is None:
            return signal[:, self.overlap : self.overlap + self.hop]
        spectrum = scipy.fft.rfft(signal, axis=1)
        size_out = self.size * self.up // self.down
        bins = min(self.size, size_out) // 2 + 1
        spectrum = spectrum[:, :bins]
        spectrum *= self.response[:bins]
        filtered = scipy.fft.irfft(spectrum, n=size_out, axis=1, overwrite_x=True)
        first = self.overlap * self.up // self.down
        return np.asarray(filtered[:, first : first + self.hop_out], dtype=np.float32)


def mains_harmonics(mains: float, highest: float) -> tuple[float, ...]:
    """Frequency of the mains and its multiples up to a highest one; none of 0."""
    return tuple(mains * i for i in range(1, int(highest / mains) + 1)) if mains > 0 else ()


def plan_blocks(rate: float, channels: int, rules: FilterRules) -> BlockPlan:
    """Design the filter of a recording, and how it is cut.

    Args:
        rate: of the raw signal, Hz.
        channels: how many are read.
        rules: what is to be done.

    Raises:
        ConfigError: the pass-band is empty or beyond what the rates allow, or notches run into each other.
    """
    ratio = _ratio(rate, rules.rate)
    nyquist = min(rate, rules.rate) / 2
    if rules.lowpass and rules.highpass >= rules.lowpass:
        raise ConfigError(f"highpass {rules.highpass:g} and lowpass {rules.lowpass:g} Hz: nothing is left between them")
    if rules.highpass >= nyquist:
        raise ConfigError(
            f"highpass {rules.highpass:g} Hz: a signal of {2 * nyquist:g} Hz has nothing above {nyquist:g}"
        )
    if rules.notches and min(rules.notches) < 2 * (NOTCH + NOTCH_TRANSITION):
        raise ConfigError(
            f"mains of {min(rules.notches):g} Hz: its harmonics are too close; give 50 or 60, or notch none"
        )
    parts = _parts(rate, nyquist, rules)
    needed = sum(len(taps) // 2 for taps in parts)
    down = ratio.denominator
    overlap = math.ceil(needed / down) * down
    hop_seconds = min(HOP_SECONDS, max(HOP_SAMPLES / (channels * rate), 2 * overlap / rate))
    hop = max(round(hop_seconds * rate / down), 1) * down
    if not parts and ratio == 1:
        return BlockPlan(rate, rules.rate, 1, 1, hop, 0, hop, None)
    size = scipy.fft.next_fast_len((hop + 2 * overlap) // down, real=True) * down
    response = np.ones(size // 2 + 1)
    for taps in parts:
        centred = np.zeros(size)
        centred[: len(taps)] = taps
        response *= scipy.fft.rfft(np.roll(centred, -(len(taps) // 2))).real
    rate_out = float(Fraction(rate).limit_denominator(10**9) * ratio)
    size_out = size * ratio.numerator // down
    response *= size_out / size
    if size_out < size:  # what stands at the new Nyquist frequency has no phase
        response[size_out // 2 :] = 0
    return BlockPlan(rate, rate_out, ratio.numerator, down, hop, overlap, size, response.astype(np.float32))


def _ratio(rate: float, wanted: float) -> Fraction:
    exact = Fraction(wanted).limit_denominator(10**6) / Fraction(rate).limit_denominator(10**6)
    if max(exact.numerator, exact.denominator) <= LARGEST_RATIO:
        return exact
    return exact.limit_denominator(4096)


def _parts(rate: float, nyquist: float, rules: FilterRules) -> list[npt.NDArray[np.float64]]:
    """Impulse responses, of odd length each."""
    parts = []
    resampled = rules.rate != rate
    if rules.highpass > 0:
        width = min(max(0.25 * rules.highpass, 2.0), rules.highpass)
        parts.append(_design(rate, [rules.highpass - width / 2], width, pass_zero=False))
    # beyond the pass-band everything must be gone at the Nyquist frequency of either signal
    edge = min(rules.lowpass or nyquist, 0.9 * nyquist)
    gone = rate / 2  # where the low-pass filter leaves nothing; within its transition the mains is still heard
    if resampled or edge < 0.9 * rate / 2:
        width = min(max(0.25 * edge, 2.0), nyquist - edge)
        parts.append(_design(rate, [edge + width / 2], width, pass_zero=True))
        gone = edge + width
    half = NOTCH + NOTCH_TRANSITION / 2
    notches = [f for f in rules.notches if f - half < gone and f + NOTCH + NOTCH_TRANSITION < rate / 2]
    if notches:
        edges = [bound for f in notches for bound in (f - half, f + half)]
        parts.append(_design(rate, edges, NOTCH_TRANSITION, pass_zero=True))
    return parts


def _design(rate: float, edges: list[float], width: float, *, pass_zero: bool) -> npt.NDArray[np.float64]:
    taps, beta = scipy.signal.kaiserord(ATTENUATION, width / (rate / 2))
    found = scipy.signal.firwin(taps | 1, edges, window=("kaiser", beta), pass_zero=pass_zero, fs=rate)
    return np.asarray(found, dtype=np.float64)
