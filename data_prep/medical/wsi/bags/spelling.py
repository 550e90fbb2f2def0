"""Names that people spell in several ways: of patients, of labels, and of bags that become files."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.common.errors import LabelError

SHOWN = 12  # labels that a proposed map spells out
# What a path, or a file system, takes for something else.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


def same_key(name: str) -> str:
    """What two spellings of one name share: letters whatever their case and composition, single blanks.

    Example:
        >>> same_key(" Pat.  7A") == same_key("pat. 7a")
        True
    """
    plain = " ".join(unicodedata.normalize("NFC", name).split())
    # Case folding can take letters apart again.
    return unicodedata.normalize("NFC", plain.casefold())


def join_spellings(names: Iterable[str]) -> dict[str, str]:
    """Name -> the spelling that stands for it: the first by the alphabet, so that the order of rows is of no account.

    Args:
        names: as they are spelled; empty ones are left out.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        found[same_key(name)].add(name)
    return {name: min(spelled) for key, spelled in found.items() if key for name in spelled}


def say_joined(where: str, what: str, joined: Mapping[str, str]) -> list[str]:
    """A line about names that were spelled in several ways; none if there are not any.

    Args:
        where: file they come from.
        what: they name, in the plural.
        joined: from `join_spellings`.
    """
    others = sorted(name for name, shown in joined.items() if name != shown)
    if not others:
        return []
    return [
        f"{where}: {len(others):,} spellings of {what} differ from another only in case or blanks and were joined with "
        f"it, as {others[0]!r} with {joined[others[0]]!r}"
    ]


def refuse_spellings(path: Path, labels: Sequence[str], records: Sequence[int]) -> None:
    """Refuse labels that would be classes of their own only for their case or blanks.

    Args:
        path: table, for the message.
        labels: that are not missing.
        records: row of each.

    Raises:
        LabelError: naming two spellings, a row of each, and a map that joins them.
    """
    first: dict[str, int] = {}
    for label, record in zip(labels, records, strict=True):
        first.setdefault(label, record)
    by_key: dict[str, str] = {}
    for label in first:
        by_key.setdefault(same_key(label), label)
    odd = next((label for label in first if by_key[same_key(label)] != label), None)
    if odd is None:
        return
    usual = by_key[same_key(odd)]
    named = list(first) if len(first) <= SHOWN else [usual, odd]
    pairs = ",".join(f"{label}={by_key[same_key(label)]}" for label in named) + ",..." * (len(first) > SHOWN)
    raise LabelError(
        f"{path}: row {first[odd]}: label {odd!r} differs from {usual!r} (row {first[usual]}) only in case or blanks; "
        f"correct it, or say what is what: --label-map {pairs!r}"
    )


def file_name_of(bag: str) -> str:
    """Name of a bag that can name a file: marks that a path cannot hold become "_".

    Example:
        >>> file_name_of("dogs/1.jpg")
        'dogs_1.jpg'
    """
    return _UNSAFE.sub("_", bag.strip())
