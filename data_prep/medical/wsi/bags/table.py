"""The table of slides: which patient a slide is of, what its label is, where it comes from, which split it is in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, LabelError
from data_prep.common.rejects import Reject, excerpt
from data_prep.medical.wsi.bags.doubts import PATTERNS, Row, patient_doubts, say_copies
from data_prep.medical.wsi.bags.labels import class_of, is_missing, order_classes, parse_label_map, plain_label
from data_prep.medical.wsi.bags.spelling import join_spellings, refuse_spellings, say_joined
from data_prep.medical.wsi.bags.table_files import RECORD, read_strings
from data_prep.medical.wsi.slides.find import slide_id

# Names of columns in the tables of CLAM, ACMIL, TRIDENT, TCGA and others, whatever their case; the first found counts.
COLUMNS = {
    "slide": ("slide_id", "slide", "slide_name", "image_id", "image", "filename", "file_name", "full_path", "wsi"),
    "patient": ("patient_id", "case_id", "patient", "case", "subject_id", "subject", "submitter_id"),
    "label": ("label", "labels", "slide_label", "class", "target", "diagnosis"),
    "site": ("site", "center", "centre", "hospital", "institution", "source"),
    "split": ("split_info", "split"),
}
SCHEMA = {
    "slide": pl.String,
    "record": pl.UInt32,
    "patient": pl.String,
    "label": pl.UInt32,
    "site": pl.String,
    "split": pl.String,
}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def clean_slide(text: str) -> str:
    """Slide id out of what tables hold: without folders, and without the extension of a slide or feature file.

    Numbered DICOM files are called after their folder, as `slide_id` calls them.

    Example:
        >>> clean_slide("slides/TCGA-CR-7395.1F2A.svs"), clean_slide("slides/CR-7395/1.dcm")
        ('TCGA-CR-7395.1F2A', 'CR-7395')
    """
    name = slide_id(text.strip().replace("\\", "/"))
    return re.sub(r"\.(h5|hdf5|pt|pth)$", "", name, flags=re.IGNORECASE)


@dataclass(frozen=True)
class TableOptions:
    """How to read a table of slides. Columns are found by their usual names where none is given.

    Args:
        slide_column: column of the slide ids: with or without folder and file extension.
        patient_column: column of the patients.
        label_column: column of the labels.
        site_column: column of the sites (hospitals, scanners).
        split_column: column of an official split.
        patients: column, or slide: every slide is of another patient.
        patient_pattern: regular expression that finds the patient in the slide id (its first group, if it has one), or
            tcga, camelyon17.
        site_pattern: the same for the site, or tcga-site.
        label_map: see `parse_label_map`.
        classes: names of the classes in order.
        encoding: of a text table.
    """

    slide_column: str = ""
    patient_column: str = ""
    label_column: str = ""
    site_column: str = ""
    split_column: str = ""
    patients: str = "column"
    patient_pattern: str = ""
    site_pattern: str = ""
    label_map: str = ""
    classes: tuple[str, ...] = ()
    encoding: str = ""


@dataclass(frozen=True)
class SlideTable:
    """Slides that can be learned from, and what was wrong with the others.

    Args:
        path: the file.
        frame: slide, record (row of the table), patient, label (uint32), site and split (null where not known), by
            slide.
        classes: names of the labels 0, 1, ...
        records: rows of the table.
        rejects: rows that cannot be used.
        told: lines for the user.
        unusable: slides of such rows.
        slide_of: slide id out of what lists of splits call a slide.
    """

    path: Path
    frame: pl.DataFrame
    classes: list[str]
    records: int
    rejects: list[Reject] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    unusable: frozenset[str] = frozenset()
    slide_of: Callable[[str], str] = clean_slide


def read_slide_table(path: Path, options: TableOptions) -> SlideTable:
    """Read a table of slides.

    Args:
        path: CSV, TSV, Excel or Parquet, with a header.
        options: columns and labels.

    Raises:
        DatasetNotFoundError: there is no such file.
        CorruptRecordError: it cannot be read as a table.
        ConfigError: a column is missing, or an option cannot be.
        LabelError: no label, or labels of one class only.
    """
    cells, told = read_strings(path, options.encoding)
    return slides_of(path, cells, told, options)


def slides_of(
    path: Path,
    cells: pl.DataFrame,
    told: list[str],
    options: TableOptions,
    slide_of: Callable[[str], str] = clean_slide,
) -> SlideTable:
    """Make a table of slides out of text cells; see `read_slide_table`.

    Args:
        path: where the cells come from, for messages.
        cells: columns of text, and `record`.
        told: lines for the user so far.
        options: columns and labels.
        slide_of: slide id out of a cell, and out of what lists of splits call a slide.
    """
    found = _find_columns(path, cells, options)
    patient_of, site_of = _finder("patient", found, options), _finder("site", found, options)
    mapping = parse_label_map(options.label_map)
    given = [plain_label(label) for label in cells[found["label"]]]
    named = {*mapping, *options.classes}  # a class may be called "NA"
    present = [not is_missing(label) or label in named for label in given]
    labels = [label for label, is_there in zip(given, present, strict=True) if is_there]
    if not named:
        refuse_spellings(path, labels, cells[RECORD].filter(pl.Series(present)).to_list())
    classes = order_classes(labels, mapping, options.classes)
    rejects: list[Reject] = []
    rows: list[dict[str, Any]] = []
    slides = [slide_of(cell) for cell in cells[found["slide"]]]
    patients = [patient_of(row, slide) for row, slide in zip(cells.iter_rows(named=True), slides, strict=True)]
    # Where every slide is of another patient, names that are alike are those of different slides.
    joined = dict[str, str]() if options.patients == "slide" else join_spellings(patients)
    for index, (row, label, is_there) in enumerate(zip(cells.iter_rows(named=True), given, present, strict=True)):
        slide, patient = slides[index], joined.get(patients[index], patients[index])
        name = class_of(label, mapping, classes) if is_there else None
        split = row[found["split"]].lower() if "split" in found else ""
        column, wrong = _fault(slide, patient, name, split)
        if wrong or name is None:
            wrong = wrong if is_there or column != "label" else "label missing"
            shown = excerpt(f"{row[found['slide']]}: {row[found[column]]}" if column in found else row[found["slide"]])
            rejects.append(Reject(path.name, row[RECORD], found.get(column, column), wrong, shown))
            continue
        facts = {"patient": patient, "label": classes.index(name), "site": site_of(row, slide) or None}
        facts |= {"split": SPLIT_NAMES.get(split), "cell": row[found["slide"]]}
        rows.append({"slide": slide, "record": row[RECORD], **facts})
    if not rows:
        reason = f"row {rejects[0].record}: {rejects[0].reason} ({rejects[0].excerpt})"
        raise LabelError(f"{path}: no row of {cells.height:,} can be used ({reason}); check columns and labels")
    kept, conflicts, lines = _merge_rows(path, rows)
    frame = pl.DataFrame(kept, schema=SCHEMA, orient="row").sort("slide")
    named_patients = options.patients == "column" and not options.patient_pattern
    known = [Row(*row) for row in frame.select("slide", "patient", "site").iter_rows()]
    lines = [*told, *lines, *say_joined(path.name, "patients", joined)]
    lines += patient_doubts(path.name, known, from_column=named_patients)
    check_classes(path, frame, classes)
    ordered = sorted([*rejects, *conflicts], key=lambda reject: reject.record)
    unusable = frozenset(slides) - frozenset(frame["slide"])
    return SlideTable(path, frame, classes, cells.height, ordered, lines, unusable, slide_of)


def _fault(slide: str, patient: str, name: str | None, split: str) -> tuple[str, str]:
    """Which column of a row is at fault, and why; empty when none is."""
    if not slide:
        return "slide", "slide id missing"
    if not patient:
        return "patient", "patient missing"
    if name is None:
        return "label", "label is in neither label_map nor classes"
    return ("split", "split is none of train, val, test") if split and split not in SPLIT_NAMES else ("", "")


def check_classes(path: Path, frame: pl.DataFrame, classes: Sequence[str]) -> None:
    """Refuse slides that are all of one class.

    Raises:
        LabelError: naming the class.
    """
    held = frame["label"].unique().sort().to_list()
    if len(held) < 2:
        what = f"all {frame.height:,} slides are {classes[held[0]]!r}" if held else "no slide has a label"
        raise LabelError(f"{path}: {what}; two classes are needed, check the labels and label_map")


def _find_columns(path: Path, cells: pl.DataFrame, options: TableOptions) -> dict[str, str]:
    """What each column is called in this table."""
    known = {name.lower(): name for name in reversed(cells.columns) if name != RECORD}
    shown = ", ".join(name for name in cells.columns if name not in (RECORD, ""))
    found: dict[str, str] = {}
    for role, usual in COLUMNS.items():
        asked = getattr(options, f"{role}_column")
        if asked and asked not in cells.columns and asked.lower() not in known:
            raise ConfigError(f"{path}: no column {asked!r} ({role}_column); there are {shown}")
        names = [asked] if asked else usual
        match = next((known[name.lower()] for name in names if name.lower() in known), None)
        if match is not None:
            found[role] = asked if asked and asked in cells.columns else match
    if options.patients not in ("column", "slide"):
        raise ConfigError(f"patients {options.patients!r}: choose column or slide (every slide is of another patient)")
    derived = options.patients == "slide" or options.patient_pattern
    if derived and not options.patient_column:
        found.pop("patient", None)
    advice = {
        "slide": "name the column of slide ids with --slide-column",
        "label": "name the column of labels with --label-column",
        "patient": "name the column with --patient-column, find patients in slide ids with --patient-pattern, or say "
        "--patients slide if every slide is of another patient",
    }
    for role, what in advice.items():
        if role not in found and not (role == "patient" and derived):
            raise ConfigError(f"{path}: no column of {role}s among {shown}; {what}")
    if derived and options.patient_column:
        raise ConfigError("patient_column goes with neither patients slide nor patient_pattern: give one of them")
    return found


def _finder(role: str, found: dict[str, str], options: TableOptions) -> Any:
    """Function (row, slide id) -> patient or site; empty when there is none."""
    pattern = getattr(options, f"{role}_pattern")
    if pattern:
        try:
            compiled = re.compile(PATTERNS.get(pattern, pattern))
        except re.error as error:
            raise ConfigError(f"{role}_pattern {pattern!r}: no regular expression ({error})") from error
        return lambda _, slide: _matched(compiled, slide)
    if role == "patient" and options.patients == "slide":
        return lambda _, slide: slide
    column = found.get(role)
    return lambda row, _: "" if column is None or is_missing(row[column]) else row[column]


def _matched(pattern: re.Pattern[str], slide: str) -> str:
    match = pattern.search(slide)
    return "" if match is None else (match.group(1) or "" if pattern.groups else match.group())


def _merge_rows(path: Path, rows: list[dict[str, Any]]) -> tuple[list[list[Any]], list[Reject], list[str]]:
    """One row per slide; rows that contradict each other are rejected, copies told."""
    kept: list[list[Any]] = []
    rejects: list[Reject] = []
    copies, spread = 0, list[str]()
    grouped: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["slide"]].append(row)
    for slide, same in grouped.items():
        odd = next((name for name in ("label", "patient", "split", "site") if len({row[name] for row in same}) > 1), "")
        if odd:
            numbers = ", ".join(str(row["record"]) for row in same[:5])
            reason = f"rows of one slide have different {odd}s"
            rejects += [Reject(path.name, row["record"], odd, reason, f"{slide} (rows {numbers})") for row in same]
            continue
        copies += len(same) - 1
        folders = {row["cell"].strip().replace("\\", "/").rpartition("/")[0] for row in same} - {""}
        if len(folders) > 1:
            spread.append(slide)
        kept.append([same[0][name] for name in SCHEMA])
    return kept, rejects, say_copies(path.name, copies, spread)
