"""What is suspicious in a table of slides, though it can be used: told, not refused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

PATTERNS = {"tcga": r"TCGA-\w{2}-\w{4}", "tcga-site": r"TCGA-(\w{2})-", "camelyon17": r"patient_\d{3}"}
_MADE_UP = re.compile(r"(patient|case|subject)[ _-]?\d+", re.IGNORECASE)


class Row(NamedTuple):
    """One slide of a table."""

    slide: str
    patient: str
    site: str | None


def say_copies(where: str, copies: int, folders: Sequence[str]) -> list[str]:
    """Lines about rows that were merged.

    Args:
        where: file, for messages.
        copies: rows that say what another says.
        folders: slides that such rows name in different folders.
    """
    told = [f"{where}: {copies:,} rows are copies of others and were left out"] if copies else []
    if folders:
        told.append(
            f"{where}: warning: {len(folders):,} slide ids, such as {folders[0]!r}, stand in several folders, and "
            "count as one slide each; give slides of different places different names"
        )
    return told


def patient_doubts(where: str, rows: Sequence[Row], *, from_column: bool) -> list[str]:
    """Patients that are most likely none, or several.

    Args:
        where: file, for messages.
        rows: slides.
        from_column: the table names the patients, rather than the slide ids.
    """
    slides: defaultdict[str, list[str]] = defaultdict(list)
    sites: defaultdict[str, set[str]] = defaultdict(set)
    barcodes: defaultdict[str, set[str]] = defaultdict(set)
    for slide, patient, site in rows:
        slides[patient].append(slide)
        if site:
            sites[patient].add(site)
        if barcode := re.match(PATTERNS["tcga"], slide):
            barcodes[barcode.group()].add(patient)
    told = _made_up(where, slides) if from_column else []
    split = sorted(barcode for barcode, found in barcodes.items() if len(found) > 1)
    if split:
        told.append(
            f"{where}: warning: slides of TCGA patient {split[0]!r} count as different patients ({len(split):,} "
            "such in all); use --patient-pattern tcga"
        )
    spread = sorted(patient for patient, found in sites.items() if len(found) > 1)
    if spread:
        told.append(
            f"{where}: warning: {len(spread):,} patients have slides of several sites, such as {spread[0]!r} "
            f"({', '.join(sorted(sites[spread[0]])[:3])}), and count as one patient each; if each site counts its own "
            "patients from 1, put the site into their ids"
        )
    return told


def _made_up(where: str, slides: dict[str, list[str]]) -> list[str]:
    for patient in sorted(slides):
        names = slides[patient]
        # CAMELYON17 has true numbers of patients: its slides are named after them.
        after = any(patient.lower() in name.lower() for name in names)
        alike = len({re.sub(r"\d+", "", name) for name in names}) == 1
        if _MADE_UP.fullmatch(patient) and not after and not alike:
            return [
                f"{where}: warning: patient {patient!r} has slides whose names have nothing in common "
                f"({', '.join(sorted(names)[:3])}): these look like made-up numbers (as in tables for CAMELYON16); "
                "slides of one patient may be in several splits unless the table names the true patients"
            ]
    return []
