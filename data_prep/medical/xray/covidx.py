"""COVIDx (Wang, Lin and Wong, 2020): lists of images as COVID-Net publishes them, all versions.

A line is `<patient id> <file name> <label> [<source>]`, without header, and is read from its end: 943 patient ids of
versions 7B, 8A and 8B hold a blank, on which the official loader fails. Lists of three fields have no source. The
source `rnsa` of versions 9A and 9B is `rsna`. Blanks and case of file names differ between lists and disks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.names import name_key
from data_prep.common.rejects import Reject, excerpt
from data_prep.medical.xray.find import ImageIndex, find_images, find_named
from data_prep.medical.xray.records import Asked, Box, Item, Listing, normalise_split, patient_key
from data_prep.medical.xray.ricord import name_studies

CLASSES = (("negative", "positive"), ("normal", "pneumonia", "COVID-19"), ("level1", "level2"))
LABELS = {name.casefold(): name for names in CLASSES for name in names}
MISSPELT = {"rnsa": "rsna"}
LICENCE = "by source: RSNA competition terms, RICORD CC BY-NC 4.0, cohen per image, fig1 and actmed research use"
_LIST = r"(?P<split>train|val|test)(_COVIDx_?(?P<version>[\w.-]*?))?\.txt"


class ListLine(NamedTuple):
    """One line of a list.

    Args:
        patient: as written, single blanks.
        file: name of the image.
        label: one of `LABELS`.
        source: lower case; empty in lists of three fields.
    """

    patient: str
    file: str
    label: str
    source: str


def parse_line(line: str) -> ListLine:
    """Read a line from its end: source, label, file name; what is left is the patient id.

    Raises:
        ValueError: what is wrong with it.
    """
    words = line.split()
    at = next((at for at in (len(words) - 1, len(words) - 2) if at >= 0 and words[at].casefold() in LABELS), -1)
    if at < 0:
        raise ValueError(f"neither the last nor the last but one field is a label ({', '.join(LABELS.values())})")
    if at < 2:
        raise ValueError("needs a patient id, a file name and a label")
    source = words[at + 1].casefold() if at + 1 < len(words) else ""
    return ListLine(
        " ".join(words[: at - 1]), words[at - 1], LABELS[words[at].casefold()], MISSPELT.get(source, source)
    )


class _Entry(NamedTuple):
    line: ListLine
    split: str
    place: Path
    record: int


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images of one version.

    The test list is taken as it is. Training images of a patient of the test list (there is one in 7B) are left out.

    Args:
        raw: folders with the lists and the images: PNG or JPEG as COVIDx is built, or the DICOM files of RICORD and
            RSNA that it is built from.
        asked: `version`, where lists of several are there.
    """
    lists = _find_lists(raw, asked.version)
    entries, rejects = _read_lists(lists)
    if not entries:
        raise CorruptRecordError(lists[0], "file", "no line can be read; is this a list of COVIDx?")
    classes = _classes(entries, lists[0])
    index, studies = ImageIndex(find_images(raw)), name_studies(raw)
    sourced = all(entry.line.source for entry in entries)
    items: list[Item] = []
    seen: dict[str, _Entry] = {}
    # The held-out lists first: an image that is in two lists stays there.
    for entry in sorted(entries, key=lambda entry: ("test", "valid", "train").index(entry.split)):
        found = _locate(entry, index, studies)
        first = seen.setdefault(name_key(entry.line.file), entry)
        if first is not entry:
            reason = "listed before" if first.line.label == entry.line.label else "listed before with another label"
            rejects.append(_reject(entry, reason))
        elif entry.line.label not in classes:
            rejects.append(_reject(entry, f"label {entry.line.label} among {', '.join(classes)}"))
        elif found is None:
            rejects.append(_reject(entry, "the image file is not there"))
        else:
            items.append(_item(entry, *found, sourced=sourced))
    held = {item.patient.casefold() for item in items if item.split != "train"}
    kept = [item for item in items if item.split != "train" or item.patient.casefold() not in held]
    order = {"train": 0, "valid": 1, "test": 2}
    return Listing(
        tuple(sorted(kept, key=lambda item: order[item.split])),
        f"COVIDx {lists[0].stem.partition('_')[2].removeprefix('COVIDx').lstrip('_')}".strip(),
        tuple(lists),
        LICENCE,
        tuple(rejects),
        classes,
        patients=False,
        group_note="patient ids are per source: one person may be in two sources"
        if sourced
        else "a list has no sources: equal patient ids count as one patient whatever their source",
        notes={
            "lines": len(entries),
            "patients_with_several_labels": _count_mixed(kept),
            "training_images_of_held_out_patients": len(items) - len(kept),
        },
    )


def _find_lists(raw: Sequence[Path], version: str) -> list[Path]:
    found: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for path in find_named(raw, _LIST):
        match = re.fullmatch(_LIST, path.name, re.IGNORECASE)
        if match:
            found[(match["version"] or "").upper()].setdefault(normalise_split(match["split"]), path)
    wanted = version.upper().removeprefix("COVIDX").lstrip("_")
    if version and wanted not in found:
        raise ConfigError(f"version {version!r}: there are lists of {_versions(found)} in {raw[0]}")
    if not found:
        raise DatasetNotFoundError(
            f"{raw[0]}: no lists such as train_COVIDx8B.txt and test_COVIDx8B.txt; give the folder that holds them "
            "(and the images, or a second folder with those)"
        )
    if not version and len(found) > 1:
        raise ConfigError(f"{raw[0]}: lists of {_versions(found)}; choose one with --version")
    lists = found[wanted if version else next(iter(found))]
    for split in ("train", "test"):
        if split not in lists:
            there = next(iter(lists.values()))
            raise DatasetNotFoundError(f"{there}: the {split} list of the same version is not there; put it beside")
    return [lists[split] for split in ("train", "valid", "test") if split in lists]


def _versions(found: dict[str, dict[str, Path]]) -> str:
    return ", ".join(version or "train.txt, test.txt" for version in sorted(found))


def _read_lists(lists: Sequence[Path]) -> tuple[list[_Entry], list[Reject]]:
    entries, rejects = [], []
    for path in lists:
        split = normalise_split(re.split(r"[_.]", path.name)[0])
        with translate_os_errors(path):
            data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CorruptRecordError(path, f"byte {error.start:,}", "not UTF-8 text; save it as UTF-8") from error
        for record, line in enumerate(text.split("\n")):
            if not line.strip():
                continue
            try:
                entries.append(_Entry(parse_line(line), split, path, record))
            except ValueError as error:
                rejects.append(Reject(path.name, record, "", str(error), excerpt(line)))
    return entries, rejects


def _classes(entries: Sequence[_Entry], where: Path) -> tuple[str, ...]:
    counts = [sum(entry.line.label in names for entry in entries) for names in CLASSES]
    best = max(range(len(CLASSES)), key=lambda at: counts[at])
    if counts[best] < 0.9 * len(entries):
        raise CorruptRecordError(where, "labels", "labels of several versions are mixed; use lists of one version")
    return CLASSES[best]


def _locate(
    entry: _Entry, index: ImageIndex, studies: dict[str, tuple[Path, Box | None]]
) -> tuple[Path, Box | None] | None:
    folder = "val" if entry.split == "valid" else entry.split
    path = index.find(entry.line.file, folder)
    return (path, None) if path is not None else studies.get(name_key(entry.line.file))


def _item(entry: _Entry, path: Path, crop: Box | None, *, sourced: bool) -> Item:
    line = entry.line
    patient = patient_key(line.source if sourced else "", line.patient)
    return Item(line.file, path, line.label, patient, line.source, split=entry.split, crop=crop)


def _reject(entry: _Entry, reason: str) -> Reject:
    return Reject(entry.place.name, entry.record, "image", reason, excerpt(entry.line.file))


def _count_mixed(items: Sequence[Item]) -> int:
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        labels[item.patient.casefold()].add(item.label)
    return sum(len(names) > 1 for names in labels.values())
