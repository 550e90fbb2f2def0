"""RSNA Pneumonia Detection Challenge, stage 2 (Shih et al., 2019): tables of boxes and classes, DICOM images.

`patientId` is the id of an exam: several exams may be of one NIH patient. Only the mapping file that RSNA publishes
(`pneumonia-challenge-dataset-mappings_2018.json`) tells which; its `img_id` begins with the NIH patient.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.rejects import Reject, excerpt
from data_prep.common.tables import read_table
from data_prep.medical.xray.find import ImageIndex, find_images, find_named
from data_prep.medical.xray.records import Asked, Item, Listing

LABELS, DETAILS = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
FOLDER = "stage_2_train_images"
BINARY = ("no pneumonia", "pneumonia")
DETAILED = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
TARGETS = ("pneumonia", "detailed")
LICENCE = "RSNA Pneumonia Detection Challenge terms of use (research)"
_EXAM_KEYS, _PATIENT_KEYS = ("subset_img_id", "patientid"), ("img_id", "patient", "nih_patient")


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the labelled exams.

    Args:
        raw: folder with `stage_2_train_labels.csv`, `stage_2_detailed_class_info.csv` and `stage_2_train_images`.
        asked: `targets` and `mapping`.
    """
    if asked.targets not in TARGETS:
        raise ConfigError(f"targets {asked.targets!r}: choose {' or '.join(TARGETS)}")
    path = _one(raw, LABELS)
    labels, notes = _read_labels(path)
    lists = [path]
    if asked.targets == "detailed":
        path = _one(raw, DETAILS)
        labels, lists = _read_details(path), [*lists, path]
    mapping = read_mapping(asked.mapping) if asked.mapping else None
    index = ImageIndex(find_images(raw))
    items, rejects = [], []
    for record, (exam, label) in enumerate(sorted(labels.items())):
        file = index.find(exam, FOLDER)
        patient = mapping.get(exam, "") if mapping is not None else ""
        if file is None:
            rejects.append(Reject(path.name, record, "patientId", "the image file is not there", excerpt(exam)))
        elif mapping is not None and not patient:
            rejects.append(Reject(path.name, record, "patientId", "the mapping has no patient for it", excerpt(exam)))
        else:
            items.append(Item(exam, file, label, patient, "rsna"))
    note = (
        ""
        if mapping is not None
        else (
            "patientId names an exam, not a patient: without --mapping the split is by image, "
            "and one person may be on two sides"
        )
    )
    return Listing(
        tuple(items),
        "RSNA Pneumonia Detection Challenge",
        tuple([*lists, *([asked.mapping] if asked.mapping else [])]),
        LICENCE,
        tuple(rejects),
        DETAILED if asked.targets == "detailed" else BINARY,
        patients=False,
        group_note=note,
        notes=notes,
    )


def _one(raw: Sequence[Path], name: str) -> Path:
    found = find_named(raw, name.replace(".", r"\."))
    if not found:
        raise DatasetNotFoundError(f"{raw[0]}: {name} is not there; give the folder of the unpacked challenge data")
    return found[0]


def _read_labels(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Exam -> class, and the numbers of boxes that the table has (9,555 in the real one)."""
    table = read_table(path)
    _check_columns(path, table.columns, ("patientid", "target"))
    found: dict[str, str] = {}
    boxes: Counter[str] = Counter()
    for row, (exam, target) in enumerate(table.select("patientid", "target").iter_rows()):
        if target not in ("0", "1") or not exam:
            raise CorruptRecordError(path, f"record {row}", f"Target {target!r} of {exam!r}: 0 or 1 is expected")
        label = BINARY[int(target)]
        if found.setdefault(exam, label) != label:
            raise CorruptRecordError(path, f"record {row}", f"{exam}: Target is 0 in one row and 1 in another")
        boxes[exam] += int(target)
    return found, {"rows": table.height, "exams": len(found), "boxes": sum(boxes.values())}


def _read_details(path: Path) -> dict[str, str]:
    table = read_table(path)
    _check_columns(path, table.columns, ("patientid", "class"))
    found: dict[str, str] = {}
    for row, (exam, label) in enumerate(table.select("patientid", "class").iter_rows()):
        if label not in DETAILED or found.setdefault(exam, label) != label:
            raise CorruptRecordError(path, f"record {row}", f"{exam}: class {label!r} is unknown, or has changed")
    return found


def _check_columns(path: Path, columns: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise CorruptRecordError(path, "header", f"has no column {missing[0]!r}, only {', '.join(columns)}")


def read_mapping(path: Path) -> dict[str, str]:
    """Exam -> NIH patient, from RSNA's JSON or from a CSV with the same names.

    Raises:
        CorruptRecordError: it is neither, or lacks the names.
    """
    if path.suffix.lower() == ".json":
        with translate_os_errors(path):
            data = path.read_bytes()
        try:
            rows = json.loads(data)
        except ValueError as error:
            raise CorruptRecordError(path, "file", f"not JSON ({error})") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise CorruptRecordError(path, "file", "not a list of records")
        records = [{str(name).lower(): str(value) for name, value in row.items()} for row in rows]
    else:
        records = read_table(path).to_dicts()
    first = records[0] if records else {}
    exam = next((name for name in _EXAM_KEYS if name in first), None)
    patient = next((name for name in _PATIENT_KEYS if name in first), None)
    if exam is None or patient is None:
        raise CorruptRecordError(path, "names", "needs subset_img_id (or patientId) and img_id (or patient)")
    # 00005410_000.png: patient 5410, first follow-up
    return {row[exam]: row[patient].split("_")[0] for row in records if row.get(exam) and row.get(patient)}
