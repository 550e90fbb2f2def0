"""Names of channels: electrode (shaft or grid) and number of the contact, and what a name says about the kind."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

INTRACRANIAL = frozenset({"SEEG", "ECOG", "DBS"})  # types of BIDS
# Apostrophes that recorders and editors make of the prime, which is part of the name: v'12 is not v12.
_PRIMES = str.maketrans({mark: "'" for mark in "\u2019\u2018\u2032\u00b4\u0060\u02b9\u02bc"})
_PREFIX = re.compile(r"^(?:POL|EEG|SEEG|ECOG|IEEG|LFP)[\s_:.-]+(?=\S)", re.IGNORECASE)
_REFERENCE = re.compile(r"[\s_-]+(?:REF\w*|G[12]|AVG?|AVERAGE|LE|AR|CAR|ORG|GND|WM)$", re.IGNORECASE)
_CONTACT = re.compile(r"(?P<shaft>.*[^\W\d_]'*)[\s_-]?0*(?P<contact>\d{1,3})")
_PAIR = re.compile(r"(?P<first>.*\d)\s*[-\u2013]\s*(?P<second>.*\d)")
_NO_SHAFT = frozenset({"ch", "chan", "channel", "eeg", "seeg", "ieeg", "ecog", "lfp", "contact", "electrode", "e"})
_LAST = 256  # contacts of the largest grids

_SITES = {
    "fp": "1 2 z", "f": "3 4 7 8 z", "c": "3 4 z", "t": "3 4 5 6 7 8", "p": "3 4 7 8 z", "o": "1 2 z",
}  # fmt: skip
SCALP = frozenset(letters + number for letters, numbers in _SITES.items() for number in numbers.split())
_SITES_10_10 = {
    "fp": "1 2 z", "af": "1 2 3 4 5 6 7 8 z", "f": "1 2 3 4 5 6 7 8 9 10 z", "ft": "7 8 9 10", "fc": "1 2 3 4 5 6 z",
    "t": "3 4 5 6 7 8 9 10", "c": "1 2 3 4 5 6 z", "tp": "7 8 9 10", "cp": "1 2 3 4 5 6 z",
    "p": "1 2 3 4 5 6 7 8 9 10 z", "po": "3 4 5 6 7 8 z", "o": "1 2 z", "i": "1 2 z", "a": "1 2", "m": "1 2",
}  # fmt: skip
_CAP = frozenset(letters + number for letters, numbers in _SITES_10_10.items() for number in numbers.split())
_EARS = frozenset({"a1", "a2", "m1", "m2"})
_MIDLINE = frozenset({"fz", "cz", "pz"})
_SITE = re.compile(r"([a-z]+)(\d{1,2}|z)")

# Words that are also the letters of some electrode (LOC, POS, E) count only without a number.
_KINDS = (
    ("TRIG", r"(trig(ger)?|sti|stim|status|event|marker|mkr|ttl|sync|photic)[\s_]*\d*[+-]?"),
    ("MISC", r"(edf|bdf)[\s_]annotations?"),
    ("ECG", r"(.*\b)?(ecg|ekg)\w*(\b.*)?"),
    ("EOG", r"((.*\b)?[vh]?eog[lr]?\d*(\b.*)?|[lr]oc)"),
    ("EMG", r"((.*\b)?emg\d*(\b.*)?|(chin|delt|leg)[\s/_+-]?[lr]?)"),
    ("RESP", r"resp\d*|thor(ax)?|abd(omen)?|(air)?flow|nasal"),
    ("MISC", r"(dc|aux|misc|ref|gnd|ground|null|empty|unused|none)[\s_]*\d*"),
    ("MISC", r"(spo2|sao2|osat|pulse|puls|pleth|pr|hr|beat|rate|(et)?co2( ?wave)?|temp|snore|light|batt\w*|pos|x|e)"),
    ("MISC", r"\$.*"),
)
_PATTERNS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _KINDS)


class Contact(NamedTuple):
    """Where a channel's name puts it.

    Args:
        shaft: letters of the electrode, primes included, as they are written; empty: unknown.
        number: of the contact; -1: unknown.
        other: of a channel that is already bipolar, the number of the second contact; -1: it is not.
    """

    shaft: str = ""
    number: int = -1
    other: int = -1


def core_name(name: str) -> str:
    """A name without what recorders put around it: `POL A1`, `EEG A1-Ref` -> `A1`."""
    text = " ".join(name.translate(_PRIMES).split())
    return _REFERENCE.sub("", _PREFIX.sub("", text))


def parse_name(name: str) -> Contact:
    """Electrode and contact: letters (primes belong to them) before a number.

    `A'12`, `TBa1`, `LAH03`, `POL A1`, `EEG A1-Ref`; `A1-A2` and `A1-2` are bipolar. Names that only count, such as
    `Ch 7` or `iEEG01`, tell no electrode.
    """
    core = core_name(name)
    pair = _PAIR.fullmatch(core)
    if pair:
        first, second = _single(pair["first"]), _single(pair["second"])
        if second.number < 0 and pair["second"].strip().isdigit():
            second = Contact(first.shaft, int(pair["second"]))
        if first.shaft and first.shaft == second.shaft:
            return Contact(first.shaft, first.number, second.number)
        if first.shaft and second.shaft:
            return Contact()  # between two electrodes
    return _single(core)


def _single(core: str) -> Contact:
    found = _CONTACT.fullmatch(core)
    if not found or int(found["contact"]) > _LAST:
        return Contact()
    shaft = found["shaft"].strip(" _-")
    return Contact() if shaft.casefold() in _NO_SHAFT else Contact(shaft, int(found["contact"]))


def guess_kinds(names: Sequence[str]) -> list[str]:
    """What channels are, by their names alone: SEEG unless a name says something else.

    Scalp sites of the 10-20 system are also names of contacts: `F3` is one where the recording has `F1` or `F11` too.
    So letters are taken for scalp only where all their numbers are sites of that system, or where the whole recording
    is a cap of the 10-10 system.
    """
    kinds = [_auxiliary(name) for name in names]
    cores = [core_name(name).casefold().replace(" ", "") for name in names]
    # Both ends of a scalp derivation, such as Fp1-F7, must be sites.
    ends = [core.split("-") if core.count("-") == 1 else [core] for core in cores]
    unknown = [at for at, kind in enumerate(kinds) if not kind]
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for end in {end for at in unknown for end in ends[at]}:
        site = _SITE.fullmatch(end)
        if site:
            groups[site[1]].add(end)
    there = {end for at in unknown for end in ends[at]}
    if there <= _CAP and there & _MIDLINE:
        sites = there
    else:
        sites = {end for members in groups.values() if members <= SCALP for end in members}
        if len(sites) >= 4:  # beside other scalp channels, A1 and A2 are ears unless there is an A3
            sites |= {end for members in groups.values() if members <= _EARS for end in members}
    for at in unknown:
        kinds[at] = "EEG" if all(end in sites for end in ends[at]) else "SEEG"
    return kinds


def _auxiliary(name: str) -> str:
    core = core_name(name)
    if not core:
        return "MISC"
    return next((kind for kind, pattern in _PATTERNS if pattern.fullmatch(core)), "")
