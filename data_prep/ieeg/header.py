"""What the header of a signal file says, before sidecars, options and annotations are put to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.ieeg.annotations import Mark
from data_prep.ieeg.find import some
from data_prep.ieeg.records import Channel


@dataclass(frozen=True)
class Header:
    """A signal file by its header.

    Args:
        path: of the file.
        format: which reader opens it.
        channels: all of them; kind empty where the file tells none, scale 0 where the unit is unknown, `keep` false
            where the file itself says that a channel cannot be used.
        lengths: samples of each channel.
        marks: its own annotations.
        faults: annotations that cannot be read: row, reason, excerpt.
        remarks: what is unusual about the file.
        options: for the reader.
        scalp: whether channels on the scalp are as good as others, in data sets that compare them.
        doubtful: places of channels whose unit is known, but whose range in it is that of no amplifier.
    """

    path: Path
    format: str
    channels: tuple[Channel, ...]
    lengths: tuple[int, ...]
    marks: tuple[Mark, ...] = ()
    faults: tuple[tuple[int, str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    scalp: bool = False
    doubtful: frozenset[int] = frozenset()


def distinct_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of channels made unique, and remarks about those that were not.

    A second `A1` becomes `A1-2`; a channel without a name becomes `channel-007` by its place in the file.
    """
    counts = Counter(names)
    twice = [name for name, count in counts.items() if count > 1 and name]
    taken = set(names)
    seen: Counter[str] = Counter()
    found: list[str] = []
    for at, name in enumerate(names):
        seen[name] += 1
        if name and seen[name] == 1:
            found.append(name)
            continue
        stem, number = (name, seen[name]) if name else (f"channel-{at + 1:03d}", 1)
        new = stem if number == 1 else f"{stem}-{number}"
        while new in taken:
            number += 1
            new = f"{stem}-{number}"
        taken.add(new)
        found.append(new)
    remarks = []
    if twice:
        remarks.append(
            f"channel names occur more than once ({some(twice)}): the later ones are numbered, as {twice[0]}-2"
        )
    if counts[""]:
        remarks.append(f"{counts['']} channels have no name and are called by their place, as in channel-001")
    return found, remarks
