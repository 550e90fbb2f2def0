"""What the readers of data sets hand to the engine: one `Item` per image, and what is known about all of them."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, LabelError
from data_prep.common.rejects import Reject
from data_prep.common.splits import SPLITS

Box = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax in pixels of the stored image; the last two excluded
FRONTAL = ("AP", "PA")
LATERAL = "LATERAL"
_SPLIT_NAMES = {"val": "valid", "validation": "valid", "training": "train", "testing": "test"}


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a data set.

    Args:
        name: what it is called in the index; unique in its listing.
        path: file that holds it.
        label: class name as the data set has it; empty where there are no labels.
        patient: patient id, unique among all sources unless the listing says otherwise; empty: unknown.
        source: collection or hospital it comes from; empty: unknown.
        view: `normalise_view` of what the data set says; empty: unknown, a DICOM header may tell.
        split: of a split that comes with the data; empty: to be drawn.
        crop: part of the stored image that counts.
        mask: file of the lung mask.
        array: name of the array in an npz file; empty: the file is the image.
        row: its row in that array.
        record: its record in the user's table, or -1.
    """

    name: str
    path: Path
    label: str = ""
    patient: str = ""
    source: str = ""
    view: str = ""
    split: str = ""
    crop: Box | None = None
    mask: Path | None = None
    array: str = ""
    row: int = 0
    record: int = -1


@dataclass(frozen=True)
class Listing:
    """All images of a data set, before any is read.

    Args:
        items: in a stable order.
        name: of the data set, with its version; empty: as the reader is called.
        lists: files that tell about them: lists, tables, the npz file.
        licence: of the data set.
        rejects: records that name no usable image.
        classes: names in the order of their codes; empty: by name.
        patients: whether an unknown patient may be found in the DICOM header.
        patients_per_source: whether one id under two sources is two patients.
        group_note: what is to be known about patients and splits.
        channels: 1 grey, 3 RGB.
        views_needed: refuse images whose view nobody tells.
        notes: facts for `counts` of `dataset.json`.
    """

    items: tuple[Item, ...]
    name: str = ""
    lists: tuple[Path, ...] = ()
    licence: str = "not stated"
    rejects: tuple[Reject, ...] = ()
    classes: tuple[str, ...] = ()
    patients: bool = True
    patients_per_source: bool = False
    group_note: str = ""
    channels: int = 1
    views_needed: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """Options that only some data sets have.

    Args:
        version: covidx: which lists.
        table: images: CSV of the images; ricord: CSV of labels.
        mapping: rsna: file that says which exam is of which NIH patient.
        targets: rsna: `pneumonia` or `detailed`.
        patient_pattern: images: regular expression that finds the patient in a file's name.
        patients_per_source: images: whether one patient id under two sources is two patients.
        channels: images: 1 or 3.
    """

    version: str = ""
    table: Path | None = None
    mapping: Path | None = None
    targets: str = "pneumonia"
    patient_pattern: str = ""
    patients_per_source: bool = False
    channels: int = 1


def normalise_id(text: str) -> str:
    """One spelling for one id: composed letters, single blanks. Upper and lower case are told apart by nobody."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def patient_key(source: str, patient: str) -> str:
    """Id of a patient among those of all sources, where ids are unique within a source only."""
    return f"{normalise_id(source)}:{normalise_id(patient)}" if source else normalise_id(patient)


def normalise_view(text: str) -> str:
    """`PA`, `AP` (also supine, semi-erect, erect), `LATERAL`, another word in capitals, or "" where nothing is said."""
    words = re.split(r"[^A-Z0-9]+", text.upper().strip())
    first = words[0] if words else ""
    if first in ("PA", "AP", "APS"):
        return first[:2]
    if first in ("LL", "RL", "LAT", "LATERAL", "L", "R", "LLD", "RLD", "LLAT", "RLAT"):
        return LATERAL
    return "_".join(word for word in words if word)


def parse_views(views: str) -> tuple[str, ...] | None:
    """`frontal` -> AP and PA, `all` -> None, `PA,LATERAL` -> these.

    Raises:
        ConfigError: no view is named.
    """
    if views == "all":
        return None
    found = FRONTAL if views == "frontal" else tuple(sorted({normalise_view(word) for word in views.split(",")} - {""}))
    if not found:
        raise ConfigError(f"views {views!r}: give frontal, all, or views as in PA,AP")
    return found


def normalise_split(text: str) -> str:
    """`train`, `valid` or `test` for their usual spellings, else ""."""
    word = text.strip().casefold()
    word = _SPLIT_NAMES.get(word, word)
    return word if word in SPLITS else ""


def parse_labels(text: str) -> dict[str, str]:
    """`normal=negative,pneumonia=negative,COVID-19=positive` -> what each label becomes; others are left out.

    Raises:
        ConfigError: not of this form.
    """
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        old, equals, new = (normalise_id(word) for word in part.partition("="))
        if not (old and equals and new) or old in found:
            raise ConfigError(f"labels {text!r}: give OLD=NEW,OLD=NEW,... with each old label once")
        found[old] = new
    return found


def check_spellings(items: Sequence[Item], labels: Mapping[str, str], where: str) -> None:
    """Refuse labels that differ in upper and lower case or blanks alone: they would become classes.

    Args:
        items: images that are asked for, with the labels of the data set.
        labels: what each label becomes; empty: it stays.
        where: file that the labels come from, for the message.

    Raises:
        LabelError: naming two such labels, an image of each, and the option that joins them.
    """
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(labels.get(item.label, item.label), item)
    spelling: dict[str, str] = {}
    for label in first:
        spelling.setdefault(_fold(label), label)
    for label, item in first.items():
        other = spelling[_fold(label)]
        if other == label:
            continue
        given = dict.fromkeys(item.label for item in items)
        joined = ",".join(f"{old}={spelling[_fold(labels.get(old, old))]}" for old in given)
        raise LabelError(
            f"{where}: {_place(item)}: label {label!r}, and {other!r} in {_place(first[other])}, differ in case or "
            f"blanks alone; if they are one class, mend the data or use --labels {shlex.quote(joined)}"
        )


def _fold(label: str) -> str:
    return "".join(unicodedata.normalize("NFC", label).split()).casefold()


def _place(item: Item) -> str:
    return f"row {item.record:,} ({item.name})" if item.record >= 0 else f"image {item.name}"


def order_classes(found: Sequence[str], known: Sequence[str], positive: str) -> tuple[str, ...]:
    """Class names in the order of their codes: as the data set has them, else by name, the positive one last.

    Args:
        found: labels that occur.
        known: order of the data set, if it has one.
        positive: name of the class which becomes the last.

    Raises:
        ConfigError: there is no such class.
    """
    names = [*known, *sorted(set(found) - set(known))]
    if positive:
        if positive not in names:
            raise ConfigError(f"positive {positive!r}: no such class; there are {', '.join(names)}")
        names.remove(positive)
        names.append(positive)
    return tuple(names)
