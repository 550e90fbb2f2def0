"""Tables of a detection test's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import polars as pl

from domains.common.figures import WARNINGS
from domains.common.intervals import Estimate, Floats
from domains.ieeg.evidence import Evidence, evidence_of
from domains.ieeg.scoring import DAY
from domains.ieeg.subject_scores import MEANS, subject_scores, window_scores

SHOWN_SEIZURES = 500
FEW_SUBJECTS, FEW_SEIZURES = 5, 10
SHORT = 3600.0  # s of a subject, below which its rate of false alarms is told to be a guess

Cell = float | int | str

_MEANING = {
    "tolerance_start": "s that a detection may lie before a seizure and still find it",
    "tolerance_end": "s that it may lie behind",
    "min_overlap": "share of the seizure with its tolerances that must be detected; 0: any overlap",
    "max_event_duration": "s; longer events, true and detected, are cut into pieces of this length",
    "min_duration_between_events": "s; events, true and detected, that are less apart are one",
    "smoothing": "windows over which probabilities are smoothed; 1: none",
    "method": "of smoothing",
    "causal": "smoothed over the past alone; else centred, so that a detection waits for half of these windows",
    "min_gap": "s; detections that are less apart become one before scoring",
    "min_duration": "s; shorter detections are dropped",
}


def report_tables(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> dict[str, list[dict[str, Cell]]]:
    """Tables of a test's report: heading -> rows.

    Args:
        predictions: see `evaluate_detection`.
        metrics: as it returns them; they carry what was counted. Of others, the column `predicted` is counted again.
    """
    evidence = evidence_of(predictions, metrics)
    scores = subject_scores(evidence, window_scores(evidence))
    tables: dict[str, list[dict[str, Cell]]] = {}
    warnings = cautions(evidence)
    if warnings:
        tables[WARNINGS] = [{"warning": text} for text in warnings]
    tables["Mean and standard deviation over subjects"] = [_spread(name, scores[name]) for name in MEANS]
    tables["By subject"] = _subject_rows(evidence, scores)
    seizures = _seizure_rows(evidence)
    if seizures:
        more = len(evidence.seizures) - len(seizures)
        tables["Seizures" + (f" (the first {len(seizures)}; {more} more)" if more else "")] = seizures
    tables["How it was scored"] = _parameters(evidence)
    return tables


def cautions(evidence: Evidence) -> list[str]:
    """Say why numbers of this test may mislead."""
    found = []
    if evidence.left_out:
        found.append(
            f"{_number(len(evidence.left_out), 'recording')} that nobody looked through for seizures left out of all"
            f" numbers: {_list(evidence.left_out)}. No annotation is not the same as no seizure."
        )
    subjects, owner = evidence.subjects, dict(zip(evidence.table.names, evidence.owner, strict=True))
    per_subject = np.bincount([owner[name] for name in evidence.seizures["recording"]], minlength=len(subjects))
    without = [name for name, count in zip(subjects, per_subject, strict=True) if not count]
    total = len(evidence.seizures)
    if not total:
        found.append("There is no seizure in these recordings: only false alarms and specificity are measured.")
    elif without:
        found.append(
            f"{len(without)} of {len(subjects)} subjects without any seizure: {_list(without)}. Their sensitivity is"
            " undefined; means of it are over the others."
        )
    if 0 < total < FEW_SEIZURES:
        found.append(
            f"Only {_number(total, 'seizure')}: one more or less found moves the sensitivity by {1 / total:.0%}."
        )
    if len(subjects) < 2:
        found.append("There is only one subject: intervals over subjects do not exist.")
    elif len(subjects) < FEW_SUBJECTS:
        found.append(f"Only {len(subjects)} subjects: bootstrap intervals over so few are too narrow.")
    seconds = evidence.by_subject("seconds")
    if seconds.sum() < DAY:
        found.append(
            f"Only {seconds.sum() / 3600:.2g} h were judged, less than the 24 h that false alarms are told for."
        )
    short = [name for name, length in zip(subjects, seconds, strict=True) if length < SHORT]
    if short and seconds.sum() >= DAY:
        found.append(
            f"{_number(len(short), 'subject')} with less than {SHORT / 3600:g} h: {_list(short)}. Their false alarms"
            " per 24 h count as much in the mean over subjects as those of the others."
        )
    unseen = evidence.seizures.filter(pl.col("probability").is_null())
    if len(unseen):
        names = unseen["recording"].unique().sort().to_list()
        found.append(
            f"{_number(len(unseen), 'seizure')} where no window decided (before the first window of a recording is"
            f" full, or in gaps), found only by what lies within the tolerances: {_list(names)}."
        )
    detected = float((evidence.detections.stop - evidence.detections.start).sum())
    if total and not len(evidence.detections):
        found.append("Nothing was detected: the threshold is above all probabilities, or the detections are too short.")
    elif detected > seconds.sum() / 2:
        found.append(f"Detections cover {detected / seconds.sum():.0%} of the time: finding seizures so says nothing.")
    return found


def _spread(name: str, values: Floats) -> dict[str, Cell]:
    known = values[np.isfinite(values)]
    numbers = (known.mean(), known.std(), *np.quantile(known, (0.5, 0, 1))) if len(known) else ()
    titles = ("mean", "SD (of the population, as SzCORE)", "median", "lowest", "highest")
    shown = [_shown(value) for value in numbers] or ["-"] * len(titles)
    return {"metric": name, "subjects with it": len(known), **dict(zip(titles, shown, strict=True))}


def _subject_rows(evidence: Evidence, scores: Mapping[str, Floats]) -> list[dict[str, Cell]]:
    """One row per subject, that with the lowest event F1 first."""
    seizures = evidence.seizures.group_by("subject").agg(
        seizures=pl.len(), detected=pl.col("detected").sum(), latency=pl.col("latency").median()
    )
    found = {row["subject"]: row for row in seizures.iter_rows(named=True)}
    recordings = np.bincount(evidence.owner, minlength=len(evidence.subjects))
    hours, reference, false = (evidence.by_subject(name) for name in ("seconds", "reference", "fp"))
    rows: list[dict[str, Cell]] = []
    f1 = np.nan_to_num(scores["event_f1"], nan=2.0)  # undefined ones last
    for i in np.lexsort((np.arange(len(f1)), f1)):
        own = found.get(evidence.subjects[i], {"seizures": 0, "detected": 0, "latency": None})
        rows.append(
            {
                "subject": evidence.subjects[i],
                "recordings": int(recordings[i]),
                "hours": f"{hours[i] / 3600:.2f}",
                "seizures": own["seizures"],
                "detected": own["detected"],
                "scored events": int(reference[i]),
                "false alarms": int(false[i]),
                "event sensitivity": _shown(scores["event_sensitivity"][i]),
                "event precision": _shown(scores["event_precision"][i]),
                "event F1": _shown(scores["event_f1"][i]),
                "false alarms per 24 h": _shown(scores["false_alarms_per_24h"][i], 2),
                "window kappa": _shown(scores["cohen_kappa"][i]),
                "window F1": _shown(scores["f1"][i]),
                "AUROC": _shown(scores["auroc"][i]),
                "median latency, s": _shown(own["latency"], 1),
            }
        )
    return rows


def _seizure_rows(evidence: Evidence) -> list[dict[str, Cell]]:
    """One row per true seizure, missed ones first."""
    ordered = evidence.seizures.sort("detected", "recording", "onset").head(SHOWN_SEIZURES)
    return [
        {
            "recording": row["recording"],
            "subject": row["subject"],
            "onset, s": f"{row['onset']:.1f}",
            "duration, s": f"{row['offset'] - row['onset']:.1f}",
            "detected": "yes" if row["detected"] else "no",
            "latency, s": _shown(row["latency"], 1),
            "highest probability": _shown(row["probability"]),
        }
        for row in ordered.iter_rows(named=True)
    ]


def _parameters(evidence: Evidence) -> list[dict[str, Cell]]:
    """Every parameter of the decisions and of the scoring."""
    settings = evidence.settings
    if settings.threshold is None:
        decided: list[tuple[str, Cell, str]] = [("decisions", "as predicted", "runs of the column predicted")]
    else:
        decided = [
            (
                "threshold",
                f"{settings.threshold:.6g}",
                "of the smoothed probability of a seizure; of single windows, of their own",
            )
        ]
        decided += [(name, str(value), _MEANING[name]) for name, value in asdict(settings.decisions).items()]
    source = "annotations" if evidence.exact else "labels of windows, with the times of the windows"
    rules: list[tuple[str, Cell, str]] = [
        ("seizures from", source, "overlapping ones are one"),
        (
            "scorer",
            "timescoring, after SzCORE",
            "events at 10 Hz, samples at 1 Hz; window scores use the threshold alone",
        ),
    ]
    rules += [(name, f"{value:g}", _MEANING[name]) for name, value in asdict(settings.scoring).items()]
    rules.append(
        ("time of false alarms", f"{evidence.counts['seconds'].sum() / 3600:.4g} h", "in which some window decided")
    )
    return [{"parameter": a, "value": b, "meaning": c} for a, b, c in (*decided, *rules)]


def _shown(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
