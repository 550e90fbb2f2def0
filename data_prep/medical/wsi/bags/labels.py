"""Labels of slides: codes and words of a table -> the names and the order of classes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.common.errors import ConfigError
from data_prep.common.files import translate_os_errors

MISSING = frozenset({"", "na", "n/a", "nan", "<na>", "null", "?"})
_WHOLE = re.compile(r"([+-]?\d+)(?:\.0*)?")
# BRACS (Brancati et al., 2022): 0 N, 1 PB, 2 UDH, 3 FEA, 4 ADH, 5 DCIS, 6 IC; the coarser tasks as ACMIL sets them.
# LBC: the codes 3 to 5 are one class.
_BRACS = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")


def _bracs(names: Sequence[str]) -> dict[str, str]:
    return {key: names[code] for code, name in enumerate(_BRACS) for key in (str(code), name)}


PRESETS: Mapping[str, Mapping[str, str]] = {
    "bracs-7": _bracs(_BRACS),
    "bracs-3": _bracs(("benign",) * 3 + ("atypical",) * 2 + ("malignant",) * 2),
    "bracs-2": _bracs(("benign",) * 3 + ("atypical or malignant",) * 4),
    "lbc-4": {str(code): str(min(code, 3)) for code in range(6)},
}


def is_missing(label: str) -> bool:
    """Whether a cell says that there is no label."""
    return label.strip().lower() in MISSING


def plain_label(label: str) -> str:
    """A label as it is compared: "1.0", as other programs write a 1 beside missing values, is "1"."""
    number = _WHOLE.fullmatch(label.strip())
    return str(int(number[1])) if number else label.strip()


def parse_label_map(text: str) -> dict[str, str]:
    """Read a label map.

    Args:
        text: name of a preset (bracs-7, bracs-3, bracs-2, lbc-4), pairs as in "0=normal,1=tumor", JSON, or a JSON file.

    Returns:
        Label of the table -> name of the class; empty when nothing was given.

    Raises:
        ConfigError: none of these.
    """
    if not text or text in PRESETS:
        return dict(PRESETS.get(text, {}))
    advice = f"give pairs as in 0=normal,1=tumor, a JSON file, or one of {', '.join(PRESETS)}"
    pairs: object
    if text.endswith(".json") or text.lstrip().startswith("{"):
        try:
            with translate_os_errors(Path(text)):
                pairs = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"label_map {text!r}: not JSON ({error}); {advice}") from error
    else:
        split = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        pairs = (
            {key: value for key, equals, value in split if equals} if all(equals for _, equals, _ in split) else None
        )
    if not isinstance(pairs, dict) or not pairs or not all(isinstance(value, str | int) for value in pairs.values()):
        raise ConfigError(f"label_map {text!r}: {advice}")
    found = {plain_label(str(key)): plain_label(str(value)) for key, value in pairs.items()}
    if "" in found.values():
        raise ConfigError(f"label_map {text!r}: a class has no name; {advice}")
    return found


def order_classes(labels: Sequence[str], mapping: Mapping[str, str], classes: Sequence[str]) -> list[str]:
    """Names of the classes; their order gives the codes 0, 1, ...

    Args:
        labels: labels of the table that are not missing, as `plain_label` gives them.
        mapping: label map, or nothing.
        classes: names in the order that the user wants, or nothing.

    Returns:
        `classes`; else what the map leads to, in its order; else the labels: numbers by value, words by the alphabet.
    """
    if classes:
        return list(classes)
    wanted = list(dict.fromkeys(mapping.values() if mapping else labels))
    if all(_WHOLE.fullmatch(label) for label in wanted):
        return sorted(wanted, key=int)
    return wanted if mapping else sorted(wanted)


def class_of(label: str, mapping: Mapping[str, str], classes: Sequence[str]) -> str | None:
    """Class of a label of the table; None when it has none.

    A number that is no name of a class counts as its position among the classes, when these are given as words.
    """
    name = mapping.get(label) if mapping else label
    if name is None or name in classes:
        return name
    if _WHOLE.fullmatch(name) and not any(_WHOLE.fullmatch(known) for known in classes):
        return classes[int(name)] if 0 <= int(name) < len(classes) else None
    return None
