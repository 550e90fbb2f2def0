"""Units of voltage as files and sidecars spell them, in microvolts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from data_prep.common.errors import ConfigError
from data_prep.ieeg.find import some

# U+00B5 and U+03BC become "u" before the look-up; so does their UTF-8 that was read as Latin-1 or cp437.
_MICRO = ("\u00c2\u00b5", "\u00ce\u00bc", "\u00b5", "\u03bc")
_UNREADABLE = "\ufffd"  # what decoders put in place of a byte; before a V nothing but a micro sign is written
_SCALES = {
    "v": 1e6, "volt": 1e6, "volts": 1e6,
    "mv": 1e3, "millivolt": 1e3, "millivolts": 1e3,
    "uv": 1.0, "microv": 1.0, "microvolt": 1.0, "microvolts": 1.0,
    "nv": 1e-3, "nanovolt": 1e-3, "nanovolts": 1e-3,
}  # fmt: skip
_NO_VOLTAGES = frozenset(
    [
        "%",
        "db",
        "deg",
        "degc",
        "degf",
        "c",
        "f",
        "k",
        "ohm",
        "kohm",
        "kohms",
        "s",
        "ms",
        "us",
        "hz",
        "bpm",
        "a",
        "ma",
        "ua",
        "g",
        "n",
        "pa",
        "kpa",
        "mmhg",
        "bar",
        "lux",
        "w",
        "j",
        "boolean",
        "bool",
        "bit",
        "bits",
        "m",
        "mm",
        "cm",
        "m/s",
        "rad",
        "t",
        "ft",
        "l",
        "l/min",
    ]
)
_WIDEST, _NARROWEST = 2e6, 20.0  # uV between the ends of an amplifier's range; DC amplifiers have 0.8e6


def _fold(text: str) -> str:
    for spelling in _MICRO:
        text = text.replace(spelling, "u")
    text = unicodedata.normalize("NFKC", text).strip().rstrip(".").replace(_UNREADABLE, "u")
    return text.strip("[]() ").replace(" ", "")


def microvolts(unit: str) -> float:
    """What one of a unit is in microvolts; 0 for what is blank, unknown, or no voltage.

    `MV` is read as nothing: it would be a million volts, and is meant by nobody.
    """
    text = _fold(unit)
    return 0.0 if text == "MV" else _SCALES.get(text.casefold(), 0.0)


def is_other(unit: str) -> bool:
    """Whether a unit is known and measures something else than a voltage, such as % or degC."""
    return _fold(unit).replace("\u00b0", "deg").casefold() in _NO_VOLTAGES


def ask_microvolts(unit: str) -> float:
    """What the option `unit` is in microvolts; 0 where nothing is asked.

    Raises:
        ConfigError: it is no voltage.
    """
    scale = microvolts(unit)
    if unit and not scale:
        raise ConfigError(f"unit {unit!r}: give uV, mV, V or nV")
    return scale


def tell_absurd(low: float, high: float, unit: str, names: Sequence[str]) -> str:
    """A remark about channels of which `is_absurd` says so, with the range of the first."""
    return (
        f"the range {low:g} to {high:g} {unit} is none of an amplifier; the unit is doubtful ({some(names)}): give the "
        "right one with --unit if it is another"
    )


def is_absurd(low: float, high: float, unit: str) -> bool:
    """Whether no amplifier has such a range: its unit is doubtful.

    Args:
        low: one end of the range.
        high: the other.
        unit: of both.
    """
    scale = microvolts(unit)
    return bool(scale) and not _NARROWEST <= abs(high - low) * scale <= _WIDEST
