"""Which channels are doubtful, by what all channels of the same recording look like."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.ieeg.signal.statistics import ChannelStatistics

MOST = 0.5  # share of a recording that may be flat or missing
OUTLIER = 6.0  # robust standard deviations
LOUD_MAINS = 20.0  # dB above its neighbours that the mains has at least in a channel called noisy
FEWEST = 5  # channels below which none is compared with the others
VOLTS = 1e-2  # microvolts; recordings whose median amplitude is below are in another unit


def doubts(found: ChannelStatistics, mains: float) -> list[str]:
    """Why each channel is doubtful; "" where it is not.

    Flat or missing for most of the recording; variance, power of the mains, or kurtosis far from those of the other
    channels: more than 6 robust standard deviations (from the median absolute one, of logarithms).

    Args:
        found: statistics of the raw recording.
        mains: Hz; 0: unknown, 50 is looked at.
    """
    count = len(found.flat)
    flat = found.flat / max(found.seconds, 1)
    missing = found.missing / max(found.samples, 1)
    silent = (flat > MOST) | (missing > MOST) | (found.variance == 0)
    reasons = [[] for _ in range(count)]  # type: list[list[str]]
    for i in range(count):
        if missing[i] > MOST:
            reasons[i].append(f"{missing[i]:.0%} missing")
        elif flat[i] > MOST or found.variance[i] == 0:
            reasons[i].append(f"flat for {max(flat[i], float(found.variance[i] == 0)):.0%}")
    alive = np.flatnonzero(~silent)
    if len(alive) >= FEWEST:
        noise = found.mains_ratio(mains or 50.0)
        deviation = np.sqrt(found.variance)
        for name, values, floor in (
            ("amplitude", np.log(np.maximum(deviation, 1e-12)), -np.inf),
            ("mains", noise, LOUD_MAINS),
            ("kurtosis", np.log(np.maximum(np.nan_to_num(found.kurtosis, nan=3.0), 1e-12)), np.log(10.0)),
        ):
            score = _robust(values[alive])
            for i, distance in zip(alive.tolist(), score, strict=True):
                if abs(distance) > OUTLIER and values[i] > floor and (name == "amplitude" or distance > 0):
                    reasons[i].append(_say(name, i, found, noise))
    return ["; ".join(reason) for reason in reasons]


def in_volts(found: ChannelStatistics) -> bool:
    """Whether the numbers are too small for microvolts: most likely volts."""
    moving = found.variance > 0
    return bool(moving.any()) and float(np.median(found.amplitude[moving])) < VOLTS


def _robust(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    middle = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), 1e-3 + 0.05 * abs(float(middle)))
    return np.asarray((values - middle) / spread)


def _say(name: str, i: int, found: ChannelStatistics, noise: npt.NDArray[np.float64]) -> str:
    if name == "amplitude":
        return f"deviation {np.sqrt(found.variance[i]):.3g} uV, far from the others'"
    if name == "mains":
        return f"mains {noise[i]:.0f} dB above its neighbours"
    return f"kurtosis {found.kurtosis[i]:.3g}"
