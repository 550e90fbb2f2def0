"""Which channels of a recording are prepared: intracranial ones, in microvolts, of one sampling rate."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.common.errors import ConfigError
from data_prep.ieeg.electrodes import INTRACRANIAL, guess_kinds, parse_name
from data_prep.ieeg.errors import NoChannelError, RateError, UnitError
from data_prep.ieeg.find import some
from data_prep.ieeg.header import Header
from data_prep.ieeg.records import Asked, Channel
from data_prep.ieeg.units import ask_microvolts, is_other, microvolts

_MAJORITY = 2 / 3  # share of the channels that must have the rate of the recording
_LOWEST, _HIGHEST = 1.0, 200_000.0  # Hz
# Beginnings of reasons that are told in other lines, or that a sidecar gives.
_TOLD = ("bad", "sampled at", "unit ", "has no unit")


@dataclass(frozen=True)
class Chosen:
    """Channels of a recording with what becomes of each.

    Args:
        channels: all of them, in order.
        rate: of those that are kept, in Hz.
        samples: of each that is kept.
        remarks: what a user should know.
    """

    channels: tuple[Channel, ...]
    rate: float
    samples: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The options `channels`, `exclude` and `unit`, checked."""

    channels: re.Pattern[str] | None
    exclude: re.Pattern[str] | None
    unit: str

    @classmethod
    def of(cls, asked: Asked) -> Choice:
        """Check them.

        Raises:
            ConfigError: no regular expression, or no voltage.
        """
        ask_microvolts(asked.unit)
        return cls(_compile("channels", asked.channels), _compile("exclude", asked.exclude), asked.unit)


def _compile(option: str, text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise ConfigError(f"{option} {text!r}: no regular expression ({error})") from error


def choose(header: Header, choice: Choice) -> Chosen:
    """Decide about every channel of a recording.

    A channel is kept when nothing was said against it before, it is intracranial by its type or name (or its whole name
    matches `channels`), it does not match `exclude`, its unit is a voltage, and it has the rate that most have.

    Raises:
        NoChannelError: none is left.
        UnitError: none is left because of their units.
        RateError: no rate is that of most channels, or it is impossible.
    """
    channels = [_locate(channel) for channel in _name_kinds(header.channels)]
    channels = [_select(channel, choice, header.scalp) for channel in channels]
    channels, remarks = _convert(channels, header.doubtful, choice.unit, header.path)
    channels = [_measure(channel, length) for channel, length in zip(channels, header.lengths, strict=True)]
    rate = _common_rate(channels, header.path)
    channels = [_of_rate(channel, rate) for channel in channels]
    first = next(at for at, channel in enumerate(channels) if channel.keep)
    samples = header.lengths[first]
    channels = [
        _drop(channel, f"has {length:,} samples, others {samples:,}") if channel.keep and length != samples else channel
        for channel, length in zip(channels, header.lengths, strict=True)
    ]
    return Chosen(tuple(channels), rate, samples, (*remarks, *_tell(channels, choice)))


def _drop(channel: Channel, reason: str) -> Channel:
    return replace(channel, keep=False, reason=reason)


def _name_kinds(channels: Sequence[Channel]) -> list[Channel]:
    guessed = guess_kinds([channel.name for channel in channels])
    return [
        channel if channel.kind else replace(channel, kind=kind)
        for channel, kind in zip(channels, guessed, strict=True)
    ]


def _locate(channel: Channel) -> Channel:
    if channel.contact >= 0 or channel.kind not in INTRACRANIAL:
        return channel
    found = parse_name(channel.name)
    return replace(channel, shaft=found.shaft or channel.shaft, contact=found.number)


def _select(channel: Channel, choice: Choice, scalp: bool) -> Channel:
    if not channel.keep:
        return channel
    if choice.exclude is not None and choice.exclude.fullmatch(channel.name):
        return _drop(channel, "left out by --exclude")
    if choice.channels is not None:
        named = choice.channels.fullmatch(channel.name)
        return channel if named else _drop(channel, "not named by --channels")
    wanted = channel.kind in INTRACRANIAL or (scalp and channel.kind == "EEG")
    return channel if wanted else _drop(channel, f"{channel.kind}, not intracranial")


def _is_wanted(channel: Channel, choice: Choice) -> bool:
    """Whether the options do not leave a channel out."""
    if choice.exclude is not None and choice.exclude.fullmatch(channel.name):
        return False
    return choice.channels is None or choice.channels.fullmatch(channel.name) is not None


def _convert(
    channels: Sequence[Channel], doubtful: frozenset[int], unit: str, path: Path
) -> tuple[list[Channel], list[str]]:
    """Scales of the channels to keep; `unit` where theirs is unknown or, by their places, doubtful."""
    found, remarks = [], []
    taken: list[str] = []
    unknown: list[Channel] = []
    for at, channel in enumerate(channels):
        if not channel.keep or (channel.scale and not (unit and at in doubtful)):
            found.append(channel)
        elif unit and not is_other(channel.unit):
            taken.append(channel.name)
            found.append(replace(channel, scale=microvolts(unit)))
        else:
            unknown.append(channel)
            said = f"unit {channel.unit!r} is no voltage" if channel.unit.strip() else "has no unit"
            found.append(_drop(channel, said))
    kept = [channel for channel in found if channel.keep]
    if unknown and not kept:
        units = some(dict.fromkeys(repr(channel.unit) for channel in unknown))
        raise UnitError(
            path, f"channels {some(channel.name for channel in unknown)}", f"unit {units}: no voltage that is known; "
            "correct the header, or give --unit uV (mV, V) if you know it"
        )  # fmt: skip
    if unknown:
        remarks.append(f"{len(unknown)} channels have no unit, or none that is known: {_names(unknown)}")
    if taken:
        remarks.append(f"the unit of {len(taken)} channels is taken for {unit}, as asked ({some(taken)})")
    others = Counter(channel.unit.strip() for channel in kept if channel.scale != 1.0 and channel.name not in taken)
    remarks += [f"{count} channels are in {name} and are converted to uV" for name, count in others.items()]
    return found, remarks


def _measure(channel: Channel, length: int) -> Channel:
    if not channel.keep:
        return channel
    if length < 1:
        return _drop(channel, "has no samples")
    if not math.isfinite(channel.rate) or not _LOWEST <= channel.rate <= _HIGHEST:
        return _drop(channel, f"sampling rate {channel.rate:g} Hz is none of a brain signal")
    return channel


def _common_rate(channels: Sequence[Channel], path: Path) -> float:
    kept = [channel for channel in channels if channel.keep]
    if not kept:
        reasons = Counter(channel.reason for channel in channels)
        told = "; ".join(f"{reason or 'left out'}: {count}" for reason, count in reasons.most_common(4))
        raise NoChannelError(
            path, "channels", f"none of {len(channels)} is to be prepared ({told}); name those to keep with --channels"
        )
    rates = Counter(channel.rate for channel in kept).most_common()
    rate, count = rates[0]
    if count < _MAJORITY * len(kept):
        told = ", ".join(f"{share} at {one:g} Hz" for one, share in sorted(rates))
        raise RateError(
            path, "channels", f"mixed sampling rates, none of most channels: {told}; choose with --channels"
        )
    return rate


def _of_rate(channel: Channel, rate: float) -> Channel:
    if not channel.keep or channel.rate == rate:
        return channel
    return _drop(channel, f"sampled at {channel.rate:g} Hz, most channels at {rate:g} Hz")


def _tell(channels: Sequence[Channel], choice: Choice) -> list[str]:
    remarks = []
    unusable: defaultdict[str, list[Channel]] = defaultdict(list)
    for channel in channels:
        if channel.kind in INTRACRANIAL and not channel.keep and not channel.reason.startswith(_TOLD):
            unusable[channel.reason].append(channel)
    for reason, several in unusable.items():
        wanted = [channel for channel in several if _is_wanted(channel, choice)]
        if wanted:
            remarks.append(f"{len(wanted)} intracranial channels are left out ({reason}): {_names(wanted)}")
    others = [channel for channel in channels if channel.reason.startswith("sampled at")]
    if others:
        remarks.append(f"{len(others)} channels are left out, whose rate is another: {_names(others)}")
    scalp = [
        channel for channel in channels if not channel.keep and channel.kind == "EEG" and "intra" in channel.reason
    ]
    if scalp:
        remarks.append(f"{len(scalp)} channels are taken for scalp EEG and left out: {_names(scalp)}")
    kept = [channel for channel in channels if channel.keep]
    paired = [channel for channel in kept if parse_name(channel.name).other >= 0]
    if len(paired) > len(kept) / 2:  # a lone A1-2 is the second channel of the name A1
        remarks.append(f"{len(paired)} channels are bipolar already by their names: {_names(paired)}")
    return remarks


def _names(channels: Sequence[Channel]) -> str:
    return some(channel.name for channel in channels)
