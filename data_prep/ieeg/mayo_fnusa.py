"""MAYO and FNUSA (Nejedly et al., Scientific Data 2020): segments of one channel, 3 s at 5 kHz, with a category each.

Beside the segments (`<segment_id>.mat`, variable `data`) lies `segments.csv`. A category is physiology, pathology,
noise (artefacts) or powerline; the usual task is pathology against the rest, so a pathological segment is an event from
its beginning to its end. A file of labels makes other tasks: `"noise|powerline": exclude` leaves such segments out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.rejects import Reject, excerpt
from data_prep.ieeg.annotations import EXCLUDE, IGNORE, INTERVAL, UNMATCHED, Mark
from data_prep.ieeg.errors import AnnotationError, SidecarError
from data_prep.ieeg.find import below, unique_names, walk
from data_prep.ieeg.header import Header
from data_prep.ieeg.listing import Annotated, Gatherer, Identity
from data_prep.ieeg.matlab import describe_matrix
from data_prep.ieeg.records import Asked, Channel, Listing, Recording
from data_prep.ieeg.tables import Table, read_table

RATE = 5000.0  # Hz
RULES = ((r"patholog", INTERVAL), (r"physiolog|noise|art[ei]?fa[ck]t|power[\s_-]?line", IGNORE))
# Of tables with numbers alone.
CATEGORIES = {"0": "powerline", "1": "noise", "2": "pathology", "3": "physiology"}
LICENCE = "not stated in the files; see Nejedly et al., Scientific Data 2020"
_SITES = ("MAYO", "FNUSA")


@dataclass(frozen=True, slots=True)
class _Segment:
    subject: str
    channel: str
    category: str
    path: Path | None
    row: int
    table: Path
    source: str


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List segments, each of which is one recording.

    Args:
        raw: folders with `segments.csv` and the .mat files.
        asked: options; `version`: MAYO or FNUSA, where both are there.

    Raises:
        DatasetNotFoundError: there is no segments.csv.
        ConfigError: an option asks for something that cannot be.
        SidecarError: the table has no segments, patients or categories.
    """
    gatherer = Gatherer(asked, RULES, segments=True)
    files = walk(raw)
    tables = [path for path in files if re.fullmatch(r"segments?\w*\.csv", path.name, re.IGNORECASE)]
    if not tables:
        raise DatasetNotFoundError(f"{raw[0]}: holds no segments.csv; give the folder that holds it and the .mat files")
    matrices = {path.stem: path for path in reversed(files) if path.suffix.lower() == ".mat"}
    segments = [segment for table in tables for segment in _read_segments(table, matrices, raw, gatherer, len(tables))]
    wanted = asked.version.upper()
    if wanted:
        segments = [segment for segment in segments if segment.subject.startswith(f"{wanted}_")]
        if not segments:
            raise ConfigError(f"version {asked.version!r}: no segment is of it; give MAYO or FNUSA")
    names = unique_names(f"{segment.subject}_{Path(segment.source).stem}" for segment in segments)
    identities = [
        Identity(name, segment.subject, segment.source) for name, segment in zip(names, segments, strict=True)
    ]
    gatherer.read_events(identities)
    excluded: Counter[str] = Counter()
    for at, (segment, identity) in enumerate(zip(segments, identities, strict=True)):
        gatherer.add(segment.source, partial(_recording, gatherer, segment, identity, at, excluded))
    published = "train: the first four patients of a site by their ids; test: the others"
    notes = {"excluded_segments": dict(excluded), "published_split": published}
    return gatherer.finish(_name(segments), LICENCE, tables, notes)


def _name(segments: Sequence[_Segment]) -> str:
    sites = [site for site in _SITES if any(segment.subject.startswith(f"{site}_") for segment in segments)]
    return " and ".join(sites) or "MAYO / FNUSA"


def _read_segments(
    path: Path, matrices: Mapping[str, Path], raw: Sequence[Path], gatherer: Gatherer, tables: int
) -> list[_Segment]:
    """Rows of a table; a segment that several reviewers judged counts once, if they agree."""
    table = read_table(path)
    columns = {
        "segment": _column(table, "segment_id", "segment", "file", "filename"),
        "patient": _column(table, "patient_id", "patient", "subject"),
        "category": _column(table, "category_name", "category", "category_id"),
    }
    channel, site = table.find("channel", "channel_name"), table.find("institution", "site")
    found: dict[str, _Segment] = {}
    doubtful: set[str] = set()
    for row, cells in enumerate(table.rows):
        name = cells[columns["segment"]].removesuffix(".mat")
        patient, category = cells[columns["patient"]], cells[columns["category"]]
        if not name or not patient:
            gatherer.rejects.append(Reject(path.name, row, "", "the row names no segment, or no patient", name))
            continue
        where = _site(cells[site] if site else "", path, tables)
        subject = f"{where}_{patient}" if where else patient
        # Beside the table first: two sites may number alike.
        here = path.with_name(f"{name}.mat")
        matrix = here if here.is_file() else matrices.get(name) if tables == 1 else None
        segment = _Segment(
            subject,
            cells[channel] if channel else "",
            CATEGORIES.get(category, category),
            matrix,
            row,
            path,
            below(matrix or here, raw),
        )
        first = found.setdefault(name, segment)
        if gatherer.looks and first.category != segment.category:
            doubtful.add(name)
    for name in doubtful:
        one = found.pop(name)
        gatherer.rejects.append(Reject(one.source, 0, "category", "reviewers put it into several categories", ""))
    return list(found.values())


def _column(table: Table, *names: str) -> str:
    column = table.find(*names)
    if column is None:
        raise SidecarError(table.path, "header", f"has no column {names[0]!r}, only {', '.join(table.columns)}")
    return column


def _site(institution: str, path: Path, tables: int) -> str:
    for text in (institution, path.parent.name, path.stem):
        sites = [site for site in _SITES if site in text.upper()]
        if len(sites) == 1:
            return sites[0]
    return institution or (path.parent.name if tables > 1 else "")


def _recording(
    gatherer: Gatherer, segment: _Segment, identity: Identity, position: int, excluded: Counter[str]
) -> Recording | None:
    place = f"row {segment.row:,}"
    if segment.path is None:
        raise DatasetNotFoundError(f"{segment.source}: the file of {segment.table.name}, {place}, is not there")
    mark = Mark(0.0, 0.0, (segment.category,), segment.row, place)
    meaning = gatherer.labels.meaning(segment.category) if segment.category else UNMATCHED
    if not gatherer.looks:
        meaning = IGNORE
    if meaning == EXCLUDE:
        gatherer.labels.judge(mark)
        excluded[segment.category] += 1
        return None
    if meaning == UNMATCHED:
        gatherer.labels.judge(mark)
        raise AnnotationError(
            segment.table,
            place,
            f"category {excerpt(segment.category)!r} is none that is known; say in a file for --labels what it means",
        )
    matrix = describe_matrix(segment.path, ("data",))
    seconds = matrix.samples / RATE
    channels = tuple(
        Channel(segment.channel or "iEEG", at, "SEEG", rate=RATE)
        if matrix.channels == 1
        else Channel(f"{segment.channel or 'iEEG'}-{at + 1}", at, "SEEG", rate=RATE)
        for at in range(matrix.channels)
    )
    header = Header(
        segment.path,
        "mat",
        channels,
        (matrix.samples,) * matrix.channels,
        options={"variables": (matrix.variable,), "lengths": (matrix.samples,), "channels": matrix.channels},
    )
    marks = (Mark(0.0, seconds, mark.texts, segment.row, place),)
    return gatherer.build(header, identity, Annotated(marks, True, segment.table), position)
