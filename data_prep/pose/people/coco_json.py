"""JSON of COCO's form: the document first, then record by record, so that memory holds the text and little more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from data_prep.common.errors import ConfigError, CorruptRecordError
from data_prep.common.files import open_binary, translate_os_errors

_NO_NUMBER = re.compile(rb"(?<=[\[,:\s])-?(?:NaN|Infinity)(?=[\s,\]}])")  # Python writes them, JSON has none
WHAT = "a COCO-style file of annotations"
_BYTE = re.compile(r" \(byte ([0-9]+)\)")


class Document(msgspec.Struct):
    """A file of annotations; its records are not yet decoded.

    Args:
        images: of the entry of this name.
        annotations: of the entry of this name.
    """

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


class Head(msgspec.Struct):
    """What a file of annotations says about all of its records.

    Args:
        categories: of the entry of this name.
        licenses: of the entry of this name.
    """

    categories: Any = None
    licenses: Any = None


def read_bytes(path: Path) -> bytes:
    """The whole file, unpacked if it is gzip, without a byte order mark.

    Raises:
        CorruptRecordError: it is empty, or a damaged gzip file.
    """
    try:
        with translate_os_errors(path), open_binary(path) as stream:
            data = stream.read()
    except EOFError:
        raise CorruptRecordError(path, "end", "the gzip file is cut short; download it again") from None
    if not data.strip():
        raise CorruptRecordError(path, "byte 0", "the file is empty; download it again")
    return data.removeprefix(b"\xef\xbb\xbf")


def decode(path: Path, data: bytes, kind: Any, what: str) -> Any:
    """Decode JSON; NaN and Infinity, which are none, become null.

    Args:
        path: of the file, for messages.
        data: its content.
        kind: type to decode to.
        what: what the file should be, for messages.

    Raises:
        CorruptRecordError: it is no JSON, is cut short, is nested too deeply, or of another form; with the place.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at ")
        position = place.strip("`") or "document"
        raise CorruptRecordError(path, position, f"{_lower(reason)}; is this {what}?") from None
    except RecursionError:
        raise CorruptRecordError(path, "document", f"is nested too deeply to be {what}") from None
    except msgspec.DecodeError as error:
        place_found = _BYTE.search(str(error))
        offset = int(place_found[1]) if place_found else len(data)
        if place_found and data[offset : offset + 1] in (b"N", b"I", b"-") and _NO_NUMBER.search(data):
            return decode(path, _NO_NUMBER.sub(b"null", data), kind, what)
        line = data.count(b"\n", 0, offset) + 1
        if "truncated" in str(error):
            raise CorruptRecordError(path, "end", "the file is cut short; download or export it again") from None
        reason = _lower(_BYTE.sub("", str(error)).removeprefix("JSON is malformed: "))
        raise CorruptRecordError(path, f"line {line:,}, byte {offset:,}", f"is no JSON ({reason})") from None
    except UnicodeDecodeError as error:
        raise CorruptRecordError(path, f"byte {error.start:,} of a text", "is not encoded in UTF-8") from None


def read_document(path: Path) -> Document:
    """Read a file of annotations.

    Raises:
        CorruptRecordError: see `decode`; or there is no image in it.
    """
    document: Document = decode(path, read_bytes(path), Document, WHAT)
    if not document.images:
        raise CorruptRecordError(path, "$.images", "there is no image in it; is this the right file?")
    return document


def read_head(path: Path) -> Head:
    """Read the categories of a file of annotations and pass over its records.

    Raises:
        CorruptRecordError: see `decode`.
        ConfigError: there is no category with an id and a name.
    """
    head: Head = decode(path, read_bytes(path), Head, WHAT)
    listed = head.categories if isinstance(head.categories, list) else []
    head.categories = [
        each
        for each in listed
        if isinstance(each, dict) and type(each.get("id")) is int and isinstance(each.get("name"), str)
    ]
    if not head.categories:
        raise ConfigError(f"{path}: $.categories: there is none with a whole number as id and a name")
    return head


def find_category(path: Path, categories: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """The category with keypoints.

    Args:
        path: of the file, for messages.
        categories: of the file.
        wanted: its name; empty: the only one that has keypoints.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if wanted:
        chosen = [each for each in categories if each["name"] == wanted]
        if not chosen:
            names = ", ".join(each["name"] for each in categories)
            raise ConfigError(f"{path}: there is no category {wanted!r}; the categories are {names}")
        return chosen[0]
    chosen = [each for each in categories if each.get("keypoints")]
    if not chosen and len(categories) == 1:
        return categories[0]
    if len(chosen) != 1:
        names = ", ".join(each["name"] for each in chosen or categories)
        raise ConfigError(
            f"{path}: {len(chosen)} categories have keypoints (of {names}); name one in `category:` of the file of "
            "--description"
        )
    return chosen[0]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
