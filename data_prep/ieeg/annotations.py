"""What annotated labels mean: which begin a seizure, end one, or span one.

A mapping file (YAML or JSON) has one entry per line, in order; the first whose regular expression is found in the
label, whatever its case, decides:

    "sz (start|onset)": onset
    "sz (end|offset)": offset
    "seizure": interval
    "artefact": ignore

`interval` is a seizure from the event's onset over its duration; without a duration it is an `onset`. `ignore` is known
to be none. Data sets of short segments have `exclude` besides: such segments are left out. A file replaces the built-in
mapping as a whole. Labels that nothing matches are counted, never guessed. A recording counts as looked through for
seizures where some label of it has a meaning, be it `ignore`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.ieeg.tables import read_text

ONSET, OFFSET, INTERVAL, IGNORE, EXCLUDE, UNMATCHED = "onset", "offset", "interval", "ignore", "exclude", "unmatched"
MEANINGS = (ONSET, OFFSET, INTERVAL, IGNORE, EXCLUDE)
_COUNTED = 500  # labels without a meaning that are listed one by one
_SEARCHED = 300  # characters of a label; what is longer is a note, and slow to search

# Words for a seizure: English (also sz, as recorders and SzCORE write), French, German, Italian, Spanish, Portuguese.
# Names are written with `_` as often as with blanks, so \b is no border here.
_SEIZURE = (
    r"(?:sz\w?|seiz|seizures?|ictal(?:ly)?|ictus|iktal\w*|\w*anf(?:a|ä|ae)ll\w*|kris[ei]\w*|crises?|"
    r"crisis|crisi|convulsi[oó]n\w*|convulsions?)"
)
_BEGIN = (
    r"(?:start(?:s|ed|ing)?|onsets?|begin(?:s|ning)?|began|beginn|anfang|d[ée]buts?|inizio|inizia|inicio|"
    r"in[ií]cio|comienzo|comienza|on)"
)
_END = (
    r"(?:ends?|ended|ending|offsets?|stop(?:s|ped)?|ende|endet|fin|fins?|fine|finale|final|termina(?:ison|tion)?|"
    r"terminated|termine|arr[êe]t|off)"
)
_LEFT, _RIGHT, _GAP = r"(?<![^\W_])", r"(?![^\W_])", r"[\W_]{0,3}"
_OF = r"(?:(?:of|the|de|du|des|d|la|le|l|les|del|della|delle|di|der|des|eines|a)[\W_]{1,2}){0,3}"
_KIND = r"(?:(?:\w+[\W_]+){0,2})"
_NO = (
    r"(?:no|without|free of|not an?|never|keine?[nrms]?|ohne|pas d|pas de|sans|aucune?|nessuna?|senza|sin|"
    r"ning[uú]na?|nenhuma?|sem)"
)

BUILT_IN: tuple[tuple[str, str], ...] = (
    # what names a seizure and is none
    (rf"{_LEFT}{_NO}[\W_]{{1,2}}{_OF}(?:\w+[ _-]){{0,3}}{_SEIZURE}{_RIGHT}", IGNORE),
    (rf"{_SEIZURE}{_GAP}(?:free|frei)|anfallsfrei|(?:non?|nicht|not){_GAP}(?:ictal|iktal|epilept\w+)", IGNORE),
    (r"(?:post|inter|peri|pr[äae]e?)[\W_]?(?:ictal|iktal|itt?ical|kritis|criti|cr[ií]tic|seizure|sz)", IGNORE),
    (rf"(?:after|before|since|nach|vor|apr[èe]s|avant|dopo|prima|despu[ée]s)[\W_]+{_OF}{_KIND}{_SEIZURE}", IGNORE),
    (rf"{_SEIZURE}{_GAP}(?:like|[äa]hnlich|artig)|(?:pseudo|psychogen|functional){_GAP}\w*|pnes{_RIGHT}", IGNORE),
    (rf"art[ei]fa[ck]t|artefatt|onset{_GAP}(?:zone|channel|area|region|contact)|{_LEFT}soz{_RIGHT}", IGNORE),
    (rf"{_SEIZURE}{_GAP}(?:risk|predict\w*|forecast\w*|freq\w*|med\w*|drug|history|diary|count|detector)", IGNORE),
    (rf"{_LEFT}(?:bckg|bckgrd|bkg|background){_RIGHT}", IGNORE),
    # kinds of seizures that have "onset" in their name
    (r"(?:focal|generali[sz]ed|unknown|motor|aware|bilateral)[\W_]*onset(?![\W_]*(?:time|$))", INTERVAL),
    # beginning and end, in either order of words
    (rf"{_LEFT}{_SEIZURE}{_GAP}(?:\d+{_GAP})?{_END}{_RIGHT}|{_LEFT}anfalls?{_GAP}ende", OFFSET),
    (rf"{_LEFT}{_END}[\W_]+{_OF}{_KIND}{_SEIZURE}{_RIGHT}", OFFSET),
    (rf"{_LEFT}(?:clin\w*|eeg|electro\w*|elec)[\W_]+(?:end|offset){_RIGHT}", OFFSET),
    (rf"{_LEFT}{_SEIZURE}{_GAP}(?:\d+{_GAP})?{_BEGIN}{_RIGHT}|{_LEFT}anfalls?{_GAP}(?:beginn|anfang)", ONSET),
    (rf"{_LEFT}{_BEGIN}[\W_]+{_OF}{_KIND}{_SEIZURE}{_RIGHT}", ONSET),
    (rf"{_LEFT}(?:clin\w*|eeg|electro\w*|elec)[\W_]+onset{_RIGHT}", ONSET),
    # seizures: SzCORE (sz, sz_foc_ia, ...), TUSZ (fnsz, gnsz, ...), and plain words
    (rf"{_LEFT}{_SEIZURE}{_RIGHT}|{_LEFT}(?:fn|gn|sp|cp|ab|tn|tc|my|sn)sz{_RIGHT}", INTERVAL),
    (rf"{_LEFT}(?:fbtcs|gtcs|btcs|grand[\W_]?mal|status[\W_]epilepticus){_RIGHT}", INTERVAL),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """One annotation as it was found.

    Args:
        onset: seconds from the first sample; NaN: not stated.
        duration: seconds; NaN: not stated.
        texts: labels, of which the first with a meaning counts.
        row: its number in the file it is of, from 0.
        place: that number for people, such as `line 5`.
        channels: where it was seen; empty: all, or unknown.
        meaning: where it is known without a rule; empty: the rules say.
    """

    onset: float
    duration: float = math.nan
    texts: tuple[str, ...] = ()
    row: int = 0
    place: str = ""
    channels: tuple[str, ...] = ()
    meaning: str = ""


@dataclass
class Labels:
    """Rules, and how often each label was met.

    Args:
        rules: regular expressions and meanings, in order.
        counts: how often each label was met.
    """

    rules: tuple[tuple[re.Pattern[str], str], ...]
    counts: dict[str, int] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def meaning(self, text: str) -> str:
        """What a label means; `UNMATCHED` where no rule is found in it."""
        found = self.known.get(text)
        if found is None:
            begin = text[:_SEARCHED]
            found = next((meaning for pattern, meaning in self.rules if pattern.search(begin)), UNMATCHED)
            self.known[text] = found
        return found

    def judge(self, mark: Mark) -> tuple[str, str]:
        """Meaning and label of an annotation, counted: of several texts the first that means something."""
        filled = [text for text in mark.texts if text]
        if mark.meaning:
            return mark.meaning, filled[0] if filled else ""
        label = next((text for text in filled if self.meaning(text) != UNMATCHED), filled[0] if filled else "")
        self.counts[label] = self.counts.get(label, 0) + 1
        return (self.meaning(label) if label else UNMATCHED), label

    def means(self, mark: Mark) -> bool:
        """Whether an annotation tells anything about seizures, be it that there is none."""
        return bool(mark.meaning) or any(text and self.meaning(text) != UNMATCHED for text in mark.texts)

    def told(self) -> dict[str, dict[str, Any]]:
        """For the notes of a listing: each label with its count and meaning, those of seizures first."""
        order = {meaning: at for at, meaning in enumerate((*MEANINGS, UNMATCHED))}
        rows = [(label, count, self.meaning(label) if label else UNMATCHED) for label, count in self.counts.items()]
        rows.sort(key=lambda row: (order[row[2]], -row[1], row[0]))
        told: dict[str, dict[str, Any]] = {}
        for meaning in order:
            own = [row[:2] for row in rows if row[2] == meaning]
            listed = _COUNTED if meaning in (IGNORE, UNMATCHED) else len(own)
            told |= {label or "(blank)": {"count": count, "meaning": meaning} for label, count in own[:listed]}
            if own[listed:]:
                count = sum(count for _, count in own[listed:])
                told[f"({len(own) - listed:,} rarer labels: {meaning})"] = {"count": count, "meaning": meaning}
        return told


def make_labels(rules: Iterable[tuple[str, str]]) -> Labels:
    """`Labels` of rules in order."""
    return Labels(tuple((re.compile(pattern, re.IGNORECASE), meaning) for pattern, meaning in rules))


def read_labels(path: Path | None, built_in: Iterable[tuple[str, str]] = BUILT_IN, segments: bool = False) -> Labels:
    """The rules of a mapping file, or built-in ones.

    Args:
        path: YAML or JSON file; None: there is none.
        built_in: what is used then.
        segments: whether `exclude` means something: in data sets of short segments.

    Raises:
        DatasetNotFoundError: the file is not there.
        ConfigError: naming the entry that is none.
    """
    if path is None:
        return make_labels(built_in)
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such file of labels")
    rules = _read_mapping(path)
    allowed = MEANINGS if segments else MEANINGS[:-1]
    for pattern, meaning in rules.items():
        if not isinstance(meaning, str) or meaning.casefold() not in allowed:
            raise ConfigError(f"{path}: entry {pattern!r}: {meaning!r} is none of {', '.join(allowed)}")
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise ConfigError(f"{path}: entry {pattern!r}: no regular expression ({error})") from error
    return make_labels((str(pattern), meaning.casefold()) for pattern, meaning in rules.items())


def _read_mapping(path: Path) -> Mapping[Any, Any]:
    import yaml  # reads JSON as well

    text, _ = read_text(path)
    try:
        value = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark is not None else "file"
        raise ConfigError(f"{path}: {where}: no valid YAML or JSON; put regular expressions in quotes") from error
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f'{path}: give one entry per line, as in "sz start": onset')
    return value
