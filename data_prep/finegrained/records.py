"""What the readers of data sets hand to the engine: one `Item` per picture, and what is known about all of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, CorruptRecordError, LabelError, LeakError
from data_prep.common.files import translate_os_errors
from data_prep.common.rejects import Reject, excerpt

CLASSES, IDENTITIES = "classes", "identities"
QUERY, GALLERY = "query", "gallery"  # roles of test pictures
JUNK, DISTRACTOR = "junk", "distractor"  # of no identity: never counted; counted as wrong
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the stored picture
_SPLITS = {
    **{"train": "train", "training": "train", "bounding_box_train": "train", "image_train": "train"},
    **{"val": "valid", "valid": "valid", "validation": "valid", "test": "test", "testing": "test"},
    **{"query": QUERY, "probe": QUERY, "image_query": QUERY, "gallery": GALLERY, "bounding_box_test": GALLERY},
}


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a data set.

    Args:
        path: below the root of the raw files.
        label: class or identity, as the data set writes it.
        split: train, valid, test, query or gallery as the data set says it; empty: to be drawn.
        camera: that took it; empty: unknown.
        box: of the object, if the data set gives one.
        group: pictures of a group stay in one split; empty: it is alone.
        extra: junk, distractor, or empty.
    """

    path: str
    label: str
    split: str = ""
    camera: str = ""
    box: Box | None = None
    group: str = ""
    extra: str = ""


@dataclass(frozen=True)
class Asked:
    """Options that only some data sets have.

    Args:
        kind: folder, csv: classes or identities.
        table: csv: the table.
        level: aircraft: variant, family or manufacturer.
        version: msmt17: V1 or V2.
        train_on_valid: aircraft, msmt17: train on the validation list, too.
        identity_pattern: folder: regular expression whose bracket finds the identity in a path.
        camera_pattern: folder: regular expression whose bracket finds the camera in a path.
        class_level: folder: which of the folders around a picture names its class or identity, from 1; 0: see `folder`.
    """

    kind: str = "auto"
    table: Path | None = None
    level: str = "variant"
    version: str = ""
    train_on_valid: bool = False
    identity_pattern: str = ""
    camera_pattern: str = ""
    class_level: int = 0


@dataclass(frozen=True)
class Listing:
    """All pictures of a data set, before any is read.

    Args:
        kind: classes or identities.
        items: in a stable order.
        name: of the data set, with its version; empty: as the reader is called.
        version: of the data set, if it has several.
        lists: files that tell about the pictures.
        licence: of the data set.
        rejects: records that name no usable picture.
        classes: names in the order of their codes; empty: by name.
        trim: pixels cut off at the bottom of each picture.
        rules: what becomes of pictures that are junk or distractors.
        notes: facts for `counts` of `dataset.json`.
        remarks: lines to be told.
    """

    kind: str
    items: tuple[Item, ...]
    name: str = ""
    version: str = ""
    lists: tuple[Path, ...] = ()
    licence: str = "not stated"
    rejects: tuple[Reject, ...] = ()
    classes: tuple[str, ...] = ()
    trim: int = 0
    rules: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class Collector:
    """Items and rejects while a data set is listed; the same picture twice is told, in two splits refused.

    Args:
        lines: records are lines of text, whose numbers (from 1) are told, too.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self.lines = lines
        self.items: list[Item] = []
        self.rejects: list[Reject] = []
        self._seen: dict[str, Item] = {}

    def reject(self, source: str, record: int, reason: str, shown: str, name: str = "") -> None:
        """Note a record that names no usable picture.

        Args:
            source: name of the list or folder.
            record: its number, from 0.
            reason: what is wrong.
            shown: what the record says.
            name: of the field that is at fault, or of the place where the record stands.
        """
        self.rejects.append(Reject(source, record, self._place(record, name), reason, excerpt(shown)))

    def add(self, item: Item, source: str, record: int, name: str = "") -> None:
        """Take a picture.

        Args:
            item: the picture.
            source: name of the list that has it.
            record: its number there, from 0.
            name: of its place there, if it is not the line of this number.

        Raises:
            LeakError: it is in another split, too.
        """
        before = self._seen.setdefault(item.path, item)
        if before is item:
            self.items.append(item)
        elif before.split != item.split:
            raise LeakError(
                f"{source}: {self._place(record, name) or f'record {record}'}: {item.path} is in "
                f"{item.split or 'no split'} and in "
                f"{before.split or 'no split'}, too; mend the lists"
            )
        else:
            other = "" if before.label == item.label else f", with the label {before.label!r}"
            self.reject(source, record, f"the picture is listed before{other}", item.path, name)

    def _place(self, record: int, name: str) -> str:
        return name or (f"line {record + 1}" if self.lines else "")


def normalise(text: str) -> str:
    """One spelling for one name: composed letters, single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def split_of(text: str) -> str:
    """`train`, `valid`, `test`, `query` or `gallery` for their usual spellings, else ""."""
    return _SPLITS.get(text.strip().casefold(), "")


def compile_pattern(name: str, text: str) -> re.Pattern[str] | None:
    """A regular expression with one bracket, or None where none is given.

    Raises:
        ConfigError: it is none.
    """
    try:
        pattern = re.compile(text) if text else None
    except re.error as error:
        raise ConfigError(f"{name} {text!r}: no regular expression ({error})") from None
    if pattern is not None and pattern.groups != 1:
        raise ConfigError(rf"{name} {text!r}: put what is looked for in one pair of brackets, as in 'person(\d+)_'")
    return pattern


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number (from 0) and text of the lines of a list that are not blank.

    Raises:
        CorruptRecordError: it is no UTF-8 text.
    """
    with translate_os_errors(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorruptRecordError(path, f"line {line:,}", "is no UTF-8 text; download the file again") from None
    # Only what ends lines in such files: splitlines() would cut at form feeds, too.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines) if line.strip()]


def check_spellings(labels: Iterable[str], what: str, where: str) -> None:
    """Refuse names that differ in upper and lower case or blanks alone: they would become two.

    Args:
        labels: names that occur.
        what: what they are, for the message.
        where: file or folder that they come from, for the message.

    Raises:
        LabelError: naming two.
    """
    spelling: dict[str, str] = {}
    for label in sorted(set(labels)):
        other = spelling.setdefault("".join(label.split()).casefold(), label)
        if other != label:
            raise LabelError(
                f"{where}: {what} {label!r} and {other!r} differ in upper and lower case or blanks alone; give "
                "them one spelling"
            )


def order_classes(found: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Class names in the order of their codes: as the data set has them, else by name."""
    return (*known, *sorted(set(found) - set(known)))
