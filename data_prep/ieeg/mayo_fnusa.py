"""Segments of the MAYO and FNUSA sets (Nejedly et al., Scientific Data 7:179, 2020): 3 s of one channel at 5 kHz.

A table (`segments.csv`) names each segment, its patient, channel and category; a .mat file of that name holds it
(variable `data`, 15,000 samples, microvolts). Pathological activity counts as the event, physiological activity as
background, as the paper does; artefacts and power-line noise are left out unless a file of labels says otherwise.
The licence is that of the download.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.ieeg.annotations import EXCLUDE, IGNORE, INTERVAL, UNMATCHED, Mark
from data_prep.ieeg.errors import SidecarError
from data_prep.ieeg.find import below, name_recordings, natural_key, some, walk
from data_prep.ieeg.header import Header
from data_prep.ieeg.listing import Annotated, Gatherer, Identity
from data_prep.ieeg.matlab import describe_matrix
from data_prep.ieeg.records import Asked, Channel, Listing, Recording
from data_prep.ieeg.tables import Table, read_table

RATE = 5000.0  # Hz
VARIABLES = ("data", "EEG", "signal")
RULES = (
    (r"pathol|epilep|spike|hfo", INTERVAL),
    (r"physiol|normal|background", IGNORE),
    (r"art[ei]fa[ck]t|noise|power|line|mains", EXCLUDE),
)
COLUMNS = {
    "segment": ("segment_id", "segment", "filename", "file", "id"),
    "category": ("category_name", "category", "class", "label"),
    "patient": ("patient_id", "patient", "subject", "patientid"),
    "channel": ("channel", "channel_name", "electrode"),
}


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List recordings: one for each segment.

    Args:
        raw: folders with segments.csv and .mat files; `MAYO` and `FNUSA` in a path tell the hospital.
        asked: options.

    Raises:
        DatasetNotFoundError: there is no table of segments.
        SidecarError: the table lacks a column, or names files that are not there.
    """
    gatherer = Gatherer(asked, RULES, segments=True)
    files = walk(raw)
    tables = [path for path in files if path.suffix.lower() in (".csv", ".tsv") and "segment" in path.stem.lower()]
    if not tables:
        raise DatasetNotFoundError(f"{raw[0]}: holds no segments.csv beside the .mat files; check the path")
    mats = {path.stem.casefold(): path for path in files if path.suffix.lower() == ".mat"}
    rows: list[tuple[Path, int, dict[str, str], Path, str]] = []
    for path in tables:
        table = read_table(path)
        names = _columns(table)
        hospital = next((part for part in ("MAYO", "FNUSA") if part in str(path).upper()), "")
        for number, cells in enumerate(table.rows):
            values = {key: cells[name] if name else "" for key, name in names.items()}
            mat = mats.get(Path(values["segment"]).stem.casefold())
            if mat is not None:
                rows.append((path, number, values, mat, hospital))
        found = {row[2]["segment"] for row in rows if row[0] == path}
        missing = [cells[str(names["segment"])] for cells in table.rows if cells[str(names["segment"])] not in found]
        if missing:
            raise SidecarError(path, "segments", f"{len(missing):,} segments have no .mat file ({some(missing, 3)})")
    rows.sort(key=lambda row: (row[4], natural_key(row[2]["patient"]), natural_key(row[2]["segment"])))
    sources = [below(row[3], raw) for row in rows]
    identities = [
        Identity(name, f"{hospital}{'-' * bool(hospital)}{values['patient']}", source)
        for (_, _, values, _, hospital), name, source in zip(rows, name_recordings(sources), sources, strict=True)
    ]
    gatherer.read_events(identities)
    for at, (identity, row) in enumerate(zip(identities, rows, strict=True)):
        gatherer.add(identity.source, partial(_describe, gatherer, identity, at, *row[:4]))
    return gatherer.finish("MAYO/FNUSA segments", "not stated; see the download", tables)


def _columns(table: Table) -> dict[str, str | None]:
    found = {key: table.find(*names) for key, names in COLUMNS.items()}
    for key in ("segment", "category", "patient"):
        if found[key] is None:
            raise SidecarError(
                table.path, "header", f"lacks a column {COLUMNS[key][0]}; there are {some(table.columns)}"
            )
    return found


def _describe(
    gatherer: Gatherer, identity: Identity, position: int, table: Path, row: int, values: dict[str, str], path: Path
) -> Recording | None:
    meaning = gatherer.labels.meaning(values["category"])
    matrix = describe_matrix(path, VARIABLES)
    mark = Mark(0.0, matrix.samples / RATE, (values["category"],), row, f"line {row + 2}")
    if meaning == UNMATCHED:
        raise ConfigError(
            f"{table}: line {row + 2}: nobody says what category {values['category']!r} means; give a file of --labels"
        )
    if meaning == EXCLUDE:
        gatherer.labels.judge(mark)
        return None
    channel = Channel(values["channel"] or "depth", 0, "SEEG", unit="uV", rate=RATE)
    options = {"variables": (matrix.variable,), "lengths": (matrix.samples,), "channels": 1}
    header = Header(path, "mat", (channel,), (matrix.samples,), options=options)
    return gatherer.build(header, identity, Annotated((mark,), True, table), position)
