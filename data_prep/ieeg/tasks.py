"""The tasks of a preparation: each reads a stretch of one raw recording, alone and in any order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import CorruptRecordError
from data_prep.ieeg.records import Recording, SignalReader
from data_prep.ieeg.signal.blocks import read_block, silence_gaps
from data_prep.ieeg.signal.files import PartWriter
from data_prep.ieeg.signal.filters import HOP_SAMPLES, HOP_SECONDS, FilterRules, plan_blocks
from data_prep.ieeg.signal.reference import make_reference
from data_prep.ieeg.signal.statistics import Scanner

PART_SECONDS = 1800.0  # of a task


@dataclass(frozen=True)
class Work:
    """What is made of one recording.

    Args:
        recording: the raw one.
        rules: filter and rate.
        reference: kind of reference.
        good: kept channels that the reference is taken of.
        keep: kept channels that are prepared.
    """

    recording: Recording
    rules: FilterRules
    reference: str
    good: tuple[bool, ...]
    keep: tuple[bool, ...]


def scan_stretches(recording: Recording) -> list[tuple[int, int]]:
    """First and last sample of each scanning task of a recording."""
    length = max(round(PART_SECONDS * recording.rate), 1)
    return [(start, min(start + length, recording.samples)) for start in range(0, recording.samples, length)]


def scan_part(recording: Recording, start: int, stop: int, folder: Path) -> dict[str, Any]:
    """Measure a stretch; a recording that cannot be read says why instead."""
    del folder
    channels = len(recording.kept)
    scanner = Scanner(channels, recording.rate)
    seconds = max(1, int(min(HOP_SECONDS, HOP_SAMPLES / (channels * recording.rate))))
    step = max(round(seconds * recording.rate), 1)
    try:
        with opened(recording) as reader:
            for first in range(start, stop, step):
                scanner.add(reader.read(first, min(first + step, stop)))
    except CorruptRecordError as error:
        return {"reason": error.reason, "position": error.position}
    return {"reason": "", "statistics": scanner.result().to_json()}


def part_blocks(recording: Recording, rules: FilterRules) -> list[tuple[int, int]]:
    """First block, and the block behind the last one, of each task that makes prepared signal."""
    plan = plan_blocks(recording.rate, len(recording.kept), rules)
    each = max(1, round(PART_SECONDS * recording.rate / plan.hop))
    blocks = plan.blocks(recording.samples)
    return [(first, min(first + each, blocks)) for first in range(0, blocks, each)]


def prepare_part(work: Work, first: int, stop: int, folder: Path) -> dict[str, Any]:
    """Filter, re-reference and resample some blocks of a recording into `part.h5`."""
    recording = work.recording
    channels = [channel for channel, keep in zip(recording.kept, work.keep, strict=True) if keep]
    chosen = np.flatnonzero(work.keep)
    reference = make_reference(work.reference, channels, np.array(work.good, dtype=bool)[chosen])
    parts = reference.made_of()
    place = {row: at for at, row in enumerate(chosen.tolist())}
    plan = plan_blocks(recording.rate, len(recording.kept), work.rules)
    total = plan.samples_out(recording.samples)
    begin, end = first * plan.hop_out, min(stop * plan.hop_out, total)
    names = [channel.name for channel in reference.channels]
    events = [(event.onset, event.offset) for event in recording.events]
    path = folder / "part.h5"
    start = begin / plan.rate_out
    with PartWriter(path, names, plan.rate_out, start, end - begin, events) as writer, opened(recording) as reader:
        for block in range(first, stop):
            left = block * plan.hop - plan.overlap
            raw, gaps = read_block(reader, left, left + plan.size, recording.samples, recording.rate, plan.overlap)
            if len(chosen) < len(raw):
                raw = raw[chosen]
                gaps = [gap._replace(row=place[gap.row]) for gap in gaps if gap.row in place]
            filtered = plan.apply(raw)
            silence_gaps(filtered, gaps, [[row] for row in range(len(chosen))], block * plan.hop, plan.up, plan.down)
            made = reference.apply(filtered)
            silence_gaps(made, gaps, parts, block * plan.hop, plan.up, plan.down)
            writer.append(made[:, : min(plan.hop_out, total - block * plan.hop_out)])
    # rounded, so that the sums of another library version are the same numbers
    moments = [[float(f"{value:.12g}") for value in row] for row in writer.moments.tolist()]
    return {"samples": end - begin, "moments": moments, "channels": names, "rate": plan.rate_out}


@contextlib.contextmanager
def opened(recording: Recording) -> Iterator[SignalReader]:
    """Open a recording, and close it again."""
    from data_prep.ieeg.signals import open_signal  # readers bring libraries along

    reader = open_signal(recording)
    try:
        yield reader
    finally:
        reader.close()
