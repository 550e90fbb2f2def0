"""Which channels are doubtful, by what all channels of the same recording look like."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.ieeg.signal.statistics import ChannelStatistics

MOST = 0.5  # share of a recording that may be flat or missing
OUTLIER = 6.0  # robust standard deviations
LOUD_MAINS = 20.0  # dB above its neighbours that the mains has at least in a channel called noisy
FEWEST = 5  # channels below which none is compared with the others
# microvolts; recordings whose median amplitude lies outside are in another unit
VOLTS, HUGE = 1e-2, 1e5
IMPOSSIBLE = 1e6  # microvolts; a channel whose amplitude is above was measured by no amplifier


def doubts(found: ChannelStatistics, mains: float) -> list[str]:
    """Why each channel is doubtful; "" where it is not.

    Flat or missing for most of the recording; an amplitude of no brain; variance, power of the mains, or kurtosis far
    from those of the other channels: more than 6 robust standard deviations (from the median absolute one, of
    logarithms).

    Args:
        found: statistics of the raw recording.
        mains: Hz; 0: unknown, 50 is looked at.
    """
    count = len(found.flat)
    flat = found.flat / max(found.seconds, 1)
    missing = found.missing / max(found.samples, 1)
    still = (flat > MOST) | found.silent
    reasons = [[] for _ in range(count)]  # type: list[list[str]]
    for i in range(count):
        if missing[i] > MOST:
            reasons[i].append(f"{missing[i]:.0%} missing")
        elif still[i]:
            reasons[i].append(f"flat for {flat[i]:.0%}")
        elif found.amplitude[i] > HUGE:
            reasons[i].append(f"amplitude {found.amplitude[i]:.1e} uV, none of a brain")
    alive = np.flatnonzero(~still & (missing <= MOST))
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
    moving = found.amplitude > 0  # in the sampled seconds: who is silent there tells nothing
    return bool(moving.any()) and float(np.median(found.amplitude[moving])) < VOLTS


def too_large(found: ChannelStatistics) -> int | None:
    """The channel of the largest numbers where they cannot be microvolts; None where they can.

    So it is where the median amplitude of the recording is that of no brain, or one channel's that of no amplifier.
    """
    moving = found.amplitude > 0
    if not moving.any():
        return None
    largest = int(np.argmax(found.amplitude))
    beyond = float(np.median(found.amplitude[moving])) > HUGE or found.amplitude[largest] > IMPOSSIBLE
    return largest if beyond else None


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
