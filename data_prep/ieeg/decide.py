"""What becomes of each recording and channel, once all have been looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_prep.common.errors import ConfigError
from data_prep.common.rejects import Reject
from data_prep.ieeg.duplicates import Fingerprint
from data_prep.ieeg.records import Recording
from data_prep.ieeg.signal.blocks import SHORT_GAP
from data_prep.ieeg.signal.filters import FilterRules, mains_harmonics, plan_blocks
from data_prep.ieeg.signal.quality import VOLTS, doubts, in_volts, too_large
from data_prep.ieeg.signal.reference import make_reference, remark_pairs
from data_prep.ieeg.signal.statistics import MAINS, ChannelStatistics
from data_prep.ieeg.tasks import Work
from data_prep.ieeg.units import microvolts

CLEAR_MAINS = 6.0  # dB above its neighbours that a frequency has at least to be taken for the mains
LONG_ZEROS = 60  # s of exact zeros in all channels that are told


@dataclass(frozen=True)
class Processing:
    """What the user wants done to signals.

    Args:
        rate: of the prepared signal, Hz.
        reference: common-average, median, bipolar, or none.
        highpass: Hz; 0: none.
        lowpass: Hz; 0: none.
        notch: auto, none, or a frequency in Hz.
        bad_channels: report or drop.
    """

    rate: float = 512.0
    reference: str = "common-average"
    highpass: float = 0.5
    lowpass: float = 150.0
    notch: str = "auto"
    bad_channels: str = "report"

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.rate <= 0 or self.highpass < 0 or self.lowpass < 0:
            raise ConfigError(
                f"rate {self.rate:g}, highpass {self.highpass:g}, lowpass {self.lowpass:g}: give a rate above 0 Hz, "
                "and 0 or more for the others"
            )
        if self.notch not in ("auto", "none"):
            try:
                positive = float(self.notch) > 0
            except ValueError:
                positive = False
            if not positive:
                raise ConfigError(f"notch {self.notch!r}: give auto, none, or the frequency of the mains in Hz")
        notches = () if self.notch in ("auto", "none") else mains_harmonics(float(self.notch), self.rate / 2)
        plan_blocks(self.rate, 1, FilterRules(self.rate, self.highpass, self.lowpass, notches))


@dataclass(frozen=True)
class Decided:
    """One recording that is prepared.

    Args:
        work: what its tasks do.
        found: statistics of its kept channels.
        doubts: why each kept channel is doubtful, or "".
        mains: Hz; 0: unknown.
        told: what the user should know, one line each.
    """

    work: Work
    found: ChannelStatistics
    doubts: tuple[str, ...]
    mains: float
    told: tuple[str, ...]

    @property
    def fingerprint(self) -> Fingerprint:
        """What tells its content."""
        recording = self.work.recording
        return Fingerprint(recording.name, recording.subject, self.found.digest, self.found.envelope)


def decide(recording: Recording, parts: Sequence[Mapping[str, Any]], wanted: Processing) -> Decided | Reject:
    """Say what is made of a recording, or why nothing is.

    Args:
        recording: the raw one.
        parts: what its scanning tasks returned.
        wanted: what the user wants done.
    """
    broken = next((part for part in parts if part["reason"]), None)
    if broken is not None:
        return Reject(recording.source or recording.name, 0, broken["position"][:120], broken["reason"], "")
    found = ChannelStatistics.join([part["statistics"] for part in parts])
    source = recording.source or recording.name
    wrong = _wrong_numbers(recording, found)
    if wrong is not None:
        return Reject(source, 0, *wrong, "")
    mains, told = _mains(recording, found)
    reasons = doubts(found, mains)
    # a channel that never moves is left out in either case: it holds no signal
    drop = np.array([bool(reason) for reason in reasons]) if wanted.bad_channels == "drop" else found.silent
    keep, good = ~drop, np.array([not reason for reason in reasons])
    channels = [channel for channel, kept in zip(recording.kept, keep, strict=True) if kept]
    notches: tuple[float, ...] = ()
    if wanted.notch != "none":
        notches = mains_harmonics(mains if wanted.notch == "auto" else float(wanted.notch), recording.rate / 2)
    try:
        if not channels:
            return Reject(source, 0, "channels", f"all {len(keep)} channels are doubtful and dropped", "")
        make_reference(wanted.reference, channels, good[keep])
        rules = FilterRules(wanted.rate, wanted.highpass, wanted.lowpass, notches)
        plan = plan_blocks(recording.rate, len(recording.kept), rules)
    except ConfigError as error:
        return Reject(source, 0, "channels", str(error), "")
    said = _remarks(found, recording.rate, plan.rate_out, wanted.rate)
    if wanted.reference == "bipolar":
        said += remark_pairs(channels)
    work = Work(recording, rules, wanted.reference, tuple(good.tolist()), tuple(keep.tolist()))
    return Decided(work, found, tuple(reasons), mains, (*told, *(f"{source}: {line}" for line in said)))


def _remarks(found: ChannelStatistics, rate: float, made: float, wanted: float) -> list[str]:
    """What is unusual about a signal of some rate that is wanted at one and made at another, in Hz."""
    said = []
    drift = abs(made / wanted - 1)
    if drift > 1e-9:
        said.append(f"{rate:g} Hz becomes {made:.6f} Hz: {drift * 3600:.2f} s in an hour off")
    if found.zeros.min() >= LONG_ZEROS:
        said.append(f"{found.zeros.min():.0f} s of zeros in all channels: data may be missing there")
    if found.missing.sum():
        worst = found.missing.max() / max(found.samples, 1)
        said.append(
            f"values are missing (up to {worst:.2%} of a channel): up to {SHORT_GAP:g} s are bridged, longer gaps "
            "become zeros"
        )
    return said


def _wrong_numbers(recording: Recording, found: ChannelStatistics) -> tuple[str, str] | None:
    """What is wrong with the whole signal, by field and reason, where that is so."""
    if in_volts(found):
        return "unit", (
            f"the median amplitude is {float(np.median(found.amplitude)):.1e} uV, below {VOLTS:g}: the numbers are "
            "most likely volts; correct the unit in the file or its sidecar"
        )
    if found.silent.all():
        return "signal", "all channels are flat"
    largest = too_large(found)
    if largest is None:
        return None
    channel = recording.kept[largest]
    stated = channel.scale != 1.0 and channel.scale == microvolts(channel.unit)
    of = f" of numbers in {channel.unit}" if stated else ""
    return "unit", (
        f"channel {channel.name}: the amplitude{of} is {found.amplitude[largest]:.1e} uV, none of a brain: the unit is "
        "most likely wrong; correct it in the header (--unit uV does, where the range of the file is told to be "
        "doubtful), or leave the channel out with --exclude"
    )


def _mains(recording: Recording, found: ChannelStatistics) -> tuple[float, tuple[str, ...]]:
    """Frequency of the mains: as the data say, else as the spectrum shows it; 0 where neither does."""
    if recording.power_line:
        return recording.power_line, ()
    levels = [float(np.median(found.mains_ratio(mains)[~found.silent])) for mains in MAINS]
    best = int(np.argmax(levels))
    if levels[best] >= CLEAR_MAINS and recording.rate / 2 > MAINS[best]:
        return MAINS[best], (f"{recording.source}: nobody says the mains; the spectrum shows {MAINS[best]:g} Hz",)
    return 0.0, ()


def rename(recording: Recording, name: str, subject: str) -> Recording:
    """The same recording under pseudonyms."""
    return replace(recording, name=name, subject=subject, source=name, session="")
