"""FER+ (Barsoum et al., 2016): `fer2013new.csv` with ten votes for each image of FER2013, joined with the images.

Its rows are those of `fer2013.csv`, in that order, and name files as the authors' program writes them. They are joined
by place only with a table of as many rows that is seen to be in the same order (`row_order`), and by name with such
files; with other copies of the images they cannot be joined at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.images import SUFFIXES
from data_prep.common.names import FileIndex
from data_prep.common.rejects import Reject, excerpt
from data_prep.common.tables import read_table
from data_prep.common.telling import few
from data_prep.expression import fer2013
from data_prep.expression.pixel_table import scan
from data_prep.expression.records import Asked, Listing, find_images, find_named, normalise_split, to_rows
from data_prep.expression.row_order import find_disorder
from data_prep.expression.votes import CLASSES, MODES, NOT_A_FACE, UNKNOWN, decide

COLUMNS = (*CLASSES, "unknown", "nf")
LICENCE = "labels: MIT (Microsoft); images: those of FER2013"


class Votes(NamedTuple):
    """The table of votes.

    Args:
        path: the file.
        splits: of each row.
        names: of each row; empty: the authors removed the image.
        counts: votes; negative in rows that cannot be read.

    Shape:
        counts (N, 10) int64.
    """

    path: Path
    splits: list[str]
    names: list[str]
    counts: npt.NDArray[np.int64]


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images.

    Args:
        raw: fer2013new.csv and fer2013.csv, or fer2013new.csv and a folder of images called fer0000000.png.
        asked: `votes`.
    """
    if asked.votes not in MODES:
        raise ConfigError(f"votes {asked.votes!r}: choose {', '.join(MODES)}")
    found = find_named(raw, r"fer2013new\.csv")
    if len(found) != 1:
        raise DatasetNotFoundError(f"{raw[0]}: {len(found)} files fer2013new.csv; give the one of FER+")
    votes = read_votes(found[0])
    path = _find_pixels(raw)
    remarks: list[Reject] = []
    if path is not None:
        rows, rejects, side = _by_place(votes, path)
        lists: tuple[Path, ...] = (votes.path, path)
    else:
        rows, rejects, remarks = _by_name(votes, raw)
        lists, side = (votes.path,), 0
    bad = [record for record in range(len(votes.names)) if votes.counts[record].min() < 0]
    rejects += [Reject(votes.path.name, record, "", "the votes are not ten whole numbers", "") for record in bad]
    rows = [row for row in rows if row["record"] not in set(bad)]
    kept, notes = _label(rows, votes, asked.votes)
    return Listing(
        *(to_rows(kept), "ferplus", lists, LICENCE, CLASSES, tuple(rejects), tuple(remarks)),
        note=fer2013.NOTE,
        side=side,
        notes=notes,
    )


def read_votes(path: Path) -> Votes:
    """Read the table of votes.

    Raises:
        CorruptRecordError: a column or a row is missing, or its rows are not in their order.
    """
    table = read_table(path)
    lacking = [name for name in ("usage", "image name", *COLUMNS) if name not in table.columns]
    if lacking:
        raise CorruptRecordError(path, "header", f"has no column {lacking[0]!r}; give fer2013new.csv as it is loaded")
    counts = table.select(pl.col(name).cast(pl.Int64, strict=False).fill_null(-1) for name in COLUMNS).to_numpy()
    names = table["image name"].to_list()
    _check_names(path, names)
    return Votes(path, [normalise_split(text) for text in table["usage"]], names, counts)


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse names that are out of order, or count more images than there are rows.

    The number of a name goes up by one from row to row; that of an image which the authors removed is left out, or
    goes to the next one.
    """
    last, place, before, gap = -1, -1, "the header", ""
    for record, name in enumerate(names):
        match = re.fullmatch(r"fer(\d{7})\.png", name)
        if not match:
            if name:
                raise CorruptRecordError(path, f"row {record:,}", f"image name {name!r} is not as in fer0000000.png")
            continue
        number = int(match[1])
        if number <= last:
            why = "is there twice" if name == before else f"stands behind {before}: the rows are not in their order"
            raise CorruptRecordError(path, f"row {record:,}", f"image {name} {why}; load the file again")
        lacking = number - last - (record - place)
        if lacking > 0 and not gap:
            gap = f"behind {before}, {lacking:,} row{'s are' if lacking > 1 else ' is'} missing before {name}"
        last, place, before = number, record, name
    if gap:
        raise CorruptRecordError(path, "rows", f"{gap}; load the file again")


def _find_pixels(raw: Sequence[Path]) -> Path | None:
    rest = [path for path in raw if path.name.lower() != "fer2013new.csv"]
    return fer2013.find_table(rest) if rest else None


def _by_place(votes: Votes, path: Path) -> tuple[list[dict[str, Any]], list[Reject], int]:
    table = scan(path)
    if len(table.lines) != len(votes.names):
        raise ConfigError(
            f"{path}: {len(table.lines):,} rows, and {votes.path.name} has {len(votes.names):,}: they can only be "
            "joined row by row; give the whole fer2013.csv"
        )
    for line, split in zip(table.lines, votes.splits, strict=True):
        if "usage" not in table.columns or normalise_split(line.usage) != split:
            raise ConfigError(
                f"{path}: row {line.record:,} is of {line.usage!r}, and of another split in {votes.path.name}: the "
                "order of the rows was changed, and nothing else tells whose votes are whose; give it as it is loaded"
            )
    _check_order(votes, [line.label for line in table.lines], path)
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for line in table.lines:
        if line.fault:
            rejects.append(Reject(path.name, line.record, "", line.fault, excerpt(f"{line.label},{line.usage}")))
        else:
            place = {"name": votes.names[line.record], "split": votes.splits[line.record]}
            rows.append({**fer2013.place(table, line, "fer"), **place})
    return rows, rejects, table.side


def _check_order(votes: Votes, labels: Sequence[str], path: Path) -> None:
    """Refuse tables of which one is in another order, wholly or in a few rows."""
    theirs = np.array([CLASSES.index(fer2013.CLASSES[int(text)]) if text in set("0123456") else -1 for text in labels])
    counts = np.maximum(votes.counts, 0)
    ours = decide(counts, "argmax").label
    ours[ours >= UNKNOWN] = -1
    found = find_disorder(theirs, ours, decide(counts, "majority").label < UNKNOWN, len(CLASSES))
    if found is not None:
        fit = "those of no row near it" if found.shift is None else f"those {abs(found.shift):,} rows "
        fit += "" if found.shift is None else "further on" if found.shift > 0 else "before"
        raise ConfigError(
            f"{path}: from about row {found.row:,} on, labels do not fit the votes of these rows of {votes.path.name}, "
            f"but {fit}: the order of the rows was changed, or rows are missing; give both files as they are loaded"
        )


def _by_name(votes: Votes, raw: Sequence[Path]) -> tuple[list[dict[str, Any]], list[Reject], list[Reject]]:
    images = find_images(raw)
    index = FileIndex(images, SUFFIXES)
    named = [path for path in images if re.fullmatch(r"fer\d{7}", path.stem, re.IGNORECASE)]
    if not named:
        has = f"{len(images):,} images with other names ({few([path.name for path in images])})" if images else "none"
        raise ConfigError(
            f"{raw[0]}: FER+ needs fer2013.csv, or images called fer0000000.png as the authors' program writes them; "
            f"there are {has}, whose place in fer2013.csv is lost: their votes cannot be told"
        )
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for record, name in enumerate(votes.names):
        files = index.all(name) if name else []
        if len(files) == 1 or not name:
            split = votes.splits[record]
            rows.append({"name": name, "path": str(files[0]) if files else "", "record": record, "split": split})
        else:
            reason = "the image file is not there" if not files else f"{len(files)} files have this name"
            rejects.append(Reject(votes.path.name, record, "image name", reason, name))
    known = {Path(name).stem for name in votes.names}
    spare = [path.name for path in named if path.stem.lower() not in known]
    remarks = [Reject(name, 0, "", f"no row of {votes.path.name} names this image", "") for name in spare]
    return rows, rejects, remarks


def _label(rows: Sequence[dict[str, Any]], votes: Votes, mode: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    decided = decide(np.maximum(votes.counts, 0), mode)
    left: Counter[str] = Counter()
    kept = []
    ties: Counter[str] = Counter()
    for row in rows:
        record, split = row["record"], votes.splits[row["record"]]
        label = int(decided.label[record])
        if not split:
            left["without_split"] += 1
        elif not votes.names[record]:
            left[f"{split}_removed_by_the_authors"] += 1
        elif label in (UNKNOWN, NOT_A_FACE):
            left[f"{split}_{'unknown' if label == UNKNOWN else 'not_a_face'}"] += 1
        else:
            ties[split] += int(decided.ties[record])
            kept.append({**row, "label": CLASSES[label], "target": decided.target[record].tolist()})
    if mode in ("majority", "argmax"):
        kept = [{**row, "target": None} for row in kept]
    return kept, {"votes": mode, "left_out_by_votes": dict(sorted(left.items())), "ties": dict(sorted(ties.items()))}
