"""RICORD-1c (Tsai et al., 2021): chest X-rays of COVID-19 patients, as DICOM from The Cancer Imaging Archive.

    MIDRC-RICORD-1C-<MRN>/<MM-DD-YYYY>-...-<end of the study UID>/<series>/*.dcm

An image is called `MIDRC-RICORD-1C-<MRN>-<uid>-<i>.png`: uid = last five characters of the study UID, i = its place
among the sorted files of the study. `ricord_data_set.txt` of COVID-Net lists those that can be used, some with a box
that cuts padding off; the xlsx of the collection lists the X-ray studies.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, MissingExtraError
from data_prep.common.files import translate_os_errors
from data_prep.common.names import name_key
from data_prep.common.raw import walk
from data_prep.common.rejects import Reject, excerpt
from data_prep.common.tables import read_table
from data_prep.medical.xray.find import find_named, stem_key
from data_prep.medical.xray.records import Asked, Box, Item, Listing, patient_key

PREFIX = "MIDRC-RICORD-1C-"
SHEET = "CR Pos - TCIA Submission"
USABLE = "ricord_data_set.txt"
CLASSES = ("negative", "positive")
LICENCE = "CC BY-NC 4.0"
UID_END = 5  # characters of the study UID in names
_MRN, _UID = "Anon MRN", "Anon Study UID"
Study = tuple[str, str]  # MRN, end of the study UID


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images of all studies, or those that the usable list names.

    Without a table of labels every image is `positive`: the collection holds COVID-19 patients only.

    Args:
        raw: folder of the DICOM tree; xlsx and usable list are found in the folders given.
        asked: `table`: CSV with `label`, and `image` (name as above) or `patient` (MRN).
    """
    studies = find_studies(raw)
    if not studies:
        raise DatasetNotFoundError(f"{raw[0]}: no folder {PREFIX}<MRN> with DICOM files; give the one that holds them")
    sheets = [path for path in find_named(raw, r".*\.xlsx") if not path.name.startswith("~")]
    lists = find_named(raw, re.escape(USABLE))
    rejects: list[Reject] = []
    notes: dict[str, Any] = {"studies": len(studies)}
    if sheets:
        listed = read_sheet(sheets[0])
        notes["studies_not_in_sheet"] = len(studies.keys() - listed)
        missing = sorted(listed - studies.keys())
        rejects += [Reject(sheets[0].name, 0, _UID, "the study is not there", f"{mrn} {uid}") for mrn, uid in missing]
        studies = {study: files for study, files in studies.items() if study in listed}
    names = {name: (path, mrn) for (mrn, uid), files in studies.items() for name, path in _names(mrn, uid, files)}
    usable = read_usable(lists[0]) if lists else None
    if usable is not None:
        keys = {name_key(name) for name in names}
        for record, name in enumerate(usable):
            if name_key(name) not in keys:
                rejects.append(Reject(lists[0].name, record, "image", "the image file is not there", excerpt(name)))
        notes["images_not_usable"] = len(names) - sum(name in usable for name in names)
    labels = _read_labels(asked.table) if asked.table else None
    items = []
    for name, (path, mrn) in sorted(names.items()):
        if usable is not None and name not in usable:
            continue
        label = "positive" if labels is None else labels.get(stem_key(name_key(name)), labels.get(name_key(mrn), ""))
        if not label:
            rejects.append(Reject(name, 0, "label", "the table has no label for it", ""))
            continue
        box = usable[name] if usable is not None else None
        items.append(Item(name, path, label, patient_key("", mrn), "ricord", crop=box))
    return Listing(
        tuple(items),
        "RICORD-1c",
        tuple([*sheets[:1], *lists[:1], *([asked.table] if asked.table else [])]),
        LICENCE,
        tuple(rejects),
        () if asked.table else CLASSES,
        patients=False,
        views_needed=usable is None,
        notes=notes,
    )


def find_studies(raw: Sequence[Path]) -> dict[Study, list[Path]]:
    """DICOM files of each study, sorted."""
    found: defaultdict[Study, list[Path]] = defaultdict(list)
    for path in walk(raw):
        if path.suffix.lower() != ".dcm" or len(path.parts) < 4:
            continue
        patient, study = path.parts[-4], path.parts[-3]
        if patient.upper().startswith(PREFIX) and "-" in study:
            found[patient[len(PREFIX) :], study.rpartition("-")[2][-UID_END:]].append(path)
    return {study: sorted(files) for study, files in sorted(found.items())}


def name_studies(raw: Sequence[Path]) -> dict[str, tuple[Path, Box | None]]:
    """`name_key` of each image that the tree holds -> file, and box of the usable list if there is one."""
    lists = find_named(raw, re.escape(USABLE))
    usable = read_usable(lists[0]) if lists else {}
    return {
        name_key(name): (path, usable.get(name))
        for (mrn, uid), files in find_studies(raw).items()
        for name, path in _names(mrn, uid, files)
    }


def _names(mrn: str, uid: str, files: Sequence[Path]) -> list[tuple[str, Path]]:
    return [(f"{PREFIX}{mrn}-{uid}-{index}.png", path) for index, path in enumerate(files)]


def read_usable(path: Path) -> dict[str, Box | None]:
    """`ricord_data_set.txt`: image name -> box `xmin ymin xmax ymax`, or None.

    Raises:
        CorruptRecordError: a line that is neither.
    """
    found: dict[str, Box | None] = {}
    with translate_os_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        name, *numbers = line.split() or [""]
        if not name:
            continue
        box = [int(word) for word in numbers if word.isdecimal()]
        if len(box) != len(numbers) or len(box) not in (0, 4) or (box and not (box[0] < box[2] and box[1] < box[3])):
            raise CorruptRecordError(path, f"line {number + 1}", "not an image name, or a name and xmin ymin xmax ymax")
        found[name] = (box[0], box[1], box[2], box[3]) if box else None
    return found


def read_sheet(path: Path) -> set[Study]:
    """X-ray studies of the xlsx.

    Raises:
        CorruptRecordError: it lacks the sheet or a column, or cannot be read.
        MissingExtraError: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise MissingExtraError("medical", f"reading {path.name}") from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # zip, XML and key errors of a damaged file
        raise CorruptRecordError(path, "file", f"cannot be read as xlsx ({error})") from error
    try:
        if SHEET not in book.sheetnames:
            raise CorruptRecordError(path, "workbook", f"has no sheet {SHEET!r}, only {', '.join(book.sheetnames)}")
        rows = [[str(cell or "").strip() for cell in row] for row in book[SHEET].iter_rows(values_only=True)]
    finally:
        book.close()
    header = rows[0] if rows else []
    for name in (_MRN, _UID):
        if name not in header:
            raise CorruptRecordError(path, f"sheet {SHEET!r}", f"has no column {name!r}")
    mrn, uid = header.index(_MRN), header.index(_UID)
    return {(row[mrn], row[uid][-UID_END:]) for row in rows[1:] if row[mrn] and row[uid]}


def _read_labels(path: Path) -> dict[str, str]:
    table = read_table(path)
    key = next((name for name in ("image", "patient") if name in table.columns), None)
    if key is None or "label" not in table.columns:
        raise ConfigError(f"{path}: needs the columns label, and image or patient; it has {', '.join(table.columns)}")
    rows = zip(table[key].to_list(), table["label"].to_list(), strict=True)
    return {stem_key(name_key(name.removeprefix(PREFIX) if key == "patient" else name)): label for name, label in rows}
