"""Names of expressions: one spelling for each, orders of classes, and maps between them that are never guessed."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.common.errors import LabelError

# the six expressions of Ekman and Friesen (1971) behind neutral, in the order of Aff-Wild2
BASIC7 = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
BASIC8 = (*BASIC7, "contempt")
TAXONOMIES = {"basic7": BASIC7, "basic8": BASIC8}
NATIVE = "native"
_SPELT = {
    "neutral": ("neutral", "neutrality", "neutralness"),
    "anger": ("anger", "angry"),
    "disgust": ("disgust", "disgusted"),
    "fear": ("fear", "fearful", "afraid"),
    "happiness": ("happiness", "happy", "joy"),
    "sadness": ("sadness", "sad"),
    "surprise": ("surprise", "surprised"),
    "contempt": ("contempt", "contemptuous"),
    # everything else that Aff-Wild2 annotates; it is not contempt
    "other": ("other", "others"),
}
SPELLINGS = {word: name for name, words in _SPELT.items() for word in words}


@dataclass(frozen=True)
class Classes:
    """What labels become.

    Args:
        names: classes in the order of their codes.
        of: label as it is written -> class; labels that are left out are absent.
        left_out: label -> images, of labels outside the taxonomy.
    """

    names: tuple[str, ...]
    of: Mapping[str, str]
    left_out: Mapping[str, int]


def clean(text: str) -> str:
    """One spelling for one label: composed letters, single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def expression(text: str) -> str:
    """The expression that a word stands for, in any case (`Happy` -> happiness), or "" if it is none that is known."""
    return SPELLINGS.get(clean(text).casefold(), "")


def settle(counts: Mapping[str, int], native: Sequence[str], taxonomy: str, where: str) -> Classes:
    """Decide what each label becomes.

    Args:
        counts: label as it is written -> images.
        native: classes of the data set in its own order; empty: it has none, and classes go by name.
        taxonomy: native, basic7 or basic8.
        where: file that the labels come from, for messages.

    Raises:
        LabelError: two labels differ in case or blanks alone and are no known expressions, or no label is left.
    """
    named = {label: expression(label) or clean(label) for label in counts}
    _check_spellings(named, where)
    if taxonomy == NATIVE:
        order = tuple(dict.fromkeys([*native, *sorted(set(named.values()) - set(native))]))
        return Classes(order, named, {})
    order = TAXONOMIES[taxonomy]
    kept = {label: name for label, name in named.items() if name in order}
    left = {label: counts[label] for label in sorted(counts) if label not in kept}
    if not kept:
        shown = ", ".join(map(repr, sorted(counts)[:9]))
        raise LabelError(f"{where}: no label ({shown}) is a class of {taxonomy} ({', '.join(order)}); use native")
    return Classes(order, kept, left)


def _check_spellings(named: Mapping[str, str], where: str) -> None:
    first: dict[str, str] = {}
    for label, name in named.items():
        key = "".join(name.split()).casefold()
        other = first.setdefault(key, name)
        if other != name:
            raise LabelError(
                f"{where}: labels {label!r} and {other!r} differ in case or blanks alone; if they are one class, write "
                "them in one way"
            )
