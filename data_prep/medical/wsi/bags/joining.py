"""Which slides have features, a label and a patient, and what is wrong with those that lack one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.rejects import Reject
from data_prep.medical.wsi.bags.table import SlideTable, TableOptions, clean_slide, read_slide_table, slides_of
from data_prep.medical.wsi.bags.table_files import RECORD
from data_prep.medical.wsi.features.layouts import FeatureEntry, file_slide_id, find_features


@dataclass(frozen=True)
class Joined:
    """Features and labels of the same slides.

    Args:
        table: slides with labels.
        entries: features of those slides which have both, by slide.
        rejects: what cannot be used.
        total: records looked at: rows of the table, and features without one.
        told: lines for the user.
    """

    table: SlideTable
    entries: list[FeatureEntry]
    rejects: list[Reject]
    total: int
    told: list[str]


def join_features(raw: Sequence[Path], table: Path | None, options: TableOptions, *, ignore: bool) -> Joined:
    """Find features and labels, and bring them together by slide id.

    Args:
        raw: files and folders of features.
        table: of slides; None: the labels are those stored beside the features.
        options: of the table.
        ignore: slides that are in the table alone, or have features alone, are no rejects.

    Raises:
        PrepError: no features, no labels, or no slide that has both.
    """
    problems: list[CorruptRecordError] = []
    entries = clean_entries(find_features(raw, problems))
    slides = read_slide_table(table, options) if table else _stored_labels(raw[0], entries, options)
    known = set(slides.frame["slide"])
    matched = [entry for entry in entries if entry.slide in known]
    damaged = {clean_slide(file_slide_id(Path(error.path))) for error in problems}
    if not matched and entries:
        raise ConfigError(
            f"{slides.path}: none of its {len(known):,} slides has features in {raw[0]}: the table has "
            f"{min(known)!r}, the features {entries[0].slide!r}; name the column of the same ids with --slide-column"
        )
    have = damaged.union(entry.slide for entry in matched)
    without_features = [
        Reject(slides.path.name, record, "slide", "slide without features", slide)
        for slide, record in slides.frame.select("slide", "record").iter_rows()
        if slide not in have
    ]
    without_row = [
        Reject(entry.path.name, 0, "label", "slide without a row in the table", entry.slide)
        for entry in entries
        if entry.slide not in known | slides.unusable
    ]
    broken = [reject_of(error) for error in problems]
    rejects, total, told = [*broken, *slides.rejects], slides.records, list(slides.told)
    if not ignore:
        rejects, total = [*rejects, *without_features, *without_row], total + len(without_row)
    elif without_features or without_row:
        told.append(
            f"ignored: {len(without_features):,} slides of the table without features, {len(without_row):,} slides "
            "with features that the table does not know"
        )
    return Joined(slides, matched, rejects, total, told)


def clean_entries(entries: Sequence[FeatureEntry]) -> list[FeatureEntry]:
    """Features by slide ids without extensions ("a.svs.h5" is slide "a").

    Raises:
        ConfigError: two files have one id.
    """
    found: dict[str, FeatureEntry] = {}
    for entry in entries:
        slide = clean_slide(entry.slide)
        other = found.setdefault(slide, replace(entry, slide=slide))
        if other.path != entry.path or other.dataset != entry.dataset:
            raise ConfigError(f"{entry.path}: slide {slide!r} is also in {other.path}; keep one of the two")
    return [found[slide] for slide in sorted(found)]


def reject_of(error: CorruptRecordError) -> Reject:
    """A damaged file of features as a reject."""
    path = Path(error.path)
    return Reject(path.name, 0, error.position, error.reason, clean_slide(file_slide_id(path)))


def _stored_labels(raw: Path, entries: Sequence[FeatureEntry], options: TableOptions) -> SlideTable:
    """A table of the labels beside the features."""
    labels = ["" if entry.label is None else str(entry.label) for entry in entries]
    if not any(labels):
        raise ConfigError(f"{raw}: no labels are stored beside these features; give --table with labels and patients")
    cells = pl.DataFrame({"slide_id": [entry.slide for entry in entries], "label": labels}).with_row_index(RECORD)
    return slides_of(raw, cells, [], options)
