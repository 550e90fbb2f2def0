"""The threshold of detections, chosen on validation data and on nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from domains.common.classification import choose_threshold
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.intervals import Floats
from domains.ieeg.detections import Decisions, labelled_events, positive_windows, smoothed, window_labels
from domains.ieeg.evidence import annotated_windows, true_events
from domains.ieeg.scoring import Scoring, count_events
from domains.ieeg.timeline import Intervals, Ints
from domains.ieeg.window_table import WindowTable, window_table

EXTREME = 1e-7  # probabilities are so far from 0 and 1 at least before their log-odds are taken
ROUNDS = 3  # of finer thresholds between the best ones


class Choice(NamedTuple):
    """A threshold and how it came about.

    Args:
        threshold: of the smoothed probability of a seizure.
        sentence: for the report.
    """

    threshold: float
    sentence: str


def choose_detection_threshold(
    validation: pl.DataFrame,
    *,
    events: pl.DataFrame | None = None,
    decisions: Decisions | None = None,
    scoring: Scoring | None = None,
    candidates: int = 128,
) -> Choice:
    """Threshold with the highest F1 of events, summed over all recordings of the validation data.

    Of several, that with the fewest false alarms, then the middle of the widest range of equal ones in log-odds. Where
    the validation data have no seizure, the window-level threshold of Youden's index takes its place.

    Args:
        validation: predictions of the validation split, see `evaluate_detection`; a column `split`, where there is
            one, must say `valid` in each row.
        events: annotated seizures, see there.
        decisions: smoothing and lengths of detections; the threshold belongs to them.
        scoring: parameters of event scoring.
        candidates: thresholds tried in each of three rounds.

    Raises:
        PreparedDataError: there is nothing to choose by, predictions are broken, or of another split.
        ConfigError: fewer than 2 candidates.
    """
    if candidates < 2:
        raise ConfigError(f"{candidates} candidate thresholds are no choice; give at least 2")
    if "split" in validation.columns and (validation["split"] != "valid").any():
        other = validation.filter(pl.col("split") != "valid")["split"][0]
        raise PreparedDataError(f"a threshold is chosen on validation data alone; these have rows of split {other!r}")
    rules, judge = decisions or Decisions(), scoring or Scoring()
    table = window_table(annotated_windows(validation)[0], labelled=events is None)
    reference = labelled_events(table) if events is None else true_events(table, events)
    if not len(reference):
        return _by_windows(table, reference)
    sweep = EventSweep(table, reference, rules, judge)
    threshold, f1, alarms = _middle(sweep, *_search(sweep, candidates))
    if f1 == 0:
        value = _by_windows(table, reference).threshold
        return Choice(
            value,
            f"No threshold found a seizure of the validation data; {value:.4g} is the best one of single windows there"
            " (sensitivity + specificity).",
        )
    return Choice(
        threshold,
        f"The threshold {threshold:.4g} has the best F1 of events on the validation data ({f1:.3f}, with"
        f" {alarms} false alarms; {len(reference)} seizures in {len(table.names)} recordings).",
    )


class EventSweep:
    """Counts of events as a function of the threshold.

    Args:
        table: windows.
        reference: true seizures.
        decisions: smoothing and lengths of detections.
        scoring: parameters.
        scores: smoothed probabilities (N,), where they are known.
    """

    def __init__(
        self,
        table: WindowTable,
        reference: Intervals,
        decisions: Decisions,
        scoring: Scoring,
        scores: Floats | None = None,
    ) -> None:
        self.table, self.reference, self.decisions, self.scoring = table, reference, decisions, scoring
        self.scores = smoothed(table, decisions) if scores is None else scores
        self._durations = table.durations

    def counts(self, thresholds: Floats) -> Floats:
        """True events, detected ones and false alarms of all recordings, (n,) -> (n, 3)."""
        found = np.empty((len(thresholds), 3))
        for row, threshold in zip(found, thresholds, strict=True):
            positive = positive_windows(self.table, float(threshold), self.decisions, self.scores)
            counts = count_events(self.reference, self.table.runs(positive), self._durations, self.scoring)
            row[:] = counts.reference.sum(), counts.tp.sum(), counts.fp.sum()
        return found

    def worth(self, thresholds: Floats) -> Floats:
        """F1 and false alarms, (n,) -> (n, 2)."""
        true, hits, alarms = self.counts(thresholds).T
        return np.stack([2 * hits / (true + hits + alarms), alarms], axis=1)


def spread_thresholds(sweep: EventSweep, count: int) -> Floats:
    """About `count` scores to try as thresholds, rising: by rank of all, by rank of those in seizures, by log-odds."""
    levels = np.unique(sweep.scores)
    if len(levels) <= count:
        return levels
    near = window_labels(sweep.table, sweep.reference) == 1
    odds, third = _log_odds(levels), count // 3 + 1
    places = np.searchsorted(odds, np.linspace(odds[0], odds[-1], third)).clip(max=len(levels) - 1)
    return np.unique(np.r_[_every(levels, third), _every(np.unique(sweep.scores[near]), third), levels[places]])


def _search(sweep: EventSweep, candidates: int) -> tuple[Floats, Floats]:
    """Tried thresholds, rising, and what they are worth; ever finer around the best ones."""
    levels = np.unique(sweep.scores)
    thresholds, worth = np.zeros(0), np.zeros((0, 2))
    wanted = spread_thresholds(sweep, candidates)
    for _ in range(ROUNDS):
        fresh = np.setdiff1d(wanted, thresholds)
        both = np.r_[thresholds, fresh]
        order = np.argsort(both)
        thresholds, worth = both[order], np.r_[worth, sweep.worth(fresh)][order]
        best = _best(worth)
        low, high = thresholds[max(best[0] - 1, 0)], thresholds[min(best[-1] + 1, len(thresholds) - 1)]
        wanted = _every(levels[(levels >= low) & (levels <= high)], candidates)
    return thresholds, worth


def _every(levels: Floats, count: int) -> Floats:
    """At most `count` of sorted values, first and last among them."""
    if len(levels) <= count:
        return levels
    return levels[np.unique(np.linspace(0, len(levels) - 1, count).round().astype(np.int64))]


def _best(worth: Floats) -> Ints:
    """Which of several (F1, false alarms) are best: highest F1, then fewest alarms."""
    top = worth[:, 0] >= worth[:, 0].max() - 1e-12
    return np.flatnonzero(top & (worth[:, 1] == worth[top, 1].min())).astype(np.int64)


def _middle(sweep: EventSweep, thresholds: Floats, worth: Floats) -> tuple[float, float, int]:
    """The middle of the widest plateau of best thresholds, and F1 and false alarms there."""
    best = _best(worth)
    odds = _log_odds(thresholds)
    ranges = []
    for run in np.split(best, np.flatnonzero(np.diff(best) > 1) + 1):
        # above the next lower score, no threshold changes a decision
        lower = sweep.scores[sweep.scores < thresholds[run[0]]].max(initial=0.0)
        low = float(_log_odds(np.array([lower]))[0]) if lower > 0 else float(odds[run[0]])
        ranges.append((float(odds[run[-1]]) - low, low, run))
    width, low, run = max(ranges, key=lambda one: one[0])
    f1, alarms = worth[run[0]]
    value = float(1 / (1 + np.exp(-(low + width / 2))))
    if not np.array_equal(sweep.worth(np.array([value]))[0], worth[run[0]]):  # untried scores lie between
        value = float(thresholds[run[np.argmin(np.abs(odds[run] - low - width / 2))]])
    return value, float(f1), int(alarms)


def _log_odds(probabilities: Floats) -> Floats:
    p = probabilities.clip(EXTREME, 1 - EXTREME)
    return np.asarray(np.log(p) - np.log1p(-p))


def _by_windows(table: WindowTable, reference: Intervals) -> Choice:
    labels = window_labels(table, reference) if table.label is None else table.label
    value = choose_threshold(labels, table.probability)
    return Choice(
        value,
        f"The validation data have no seizure to choose a threshold by; {value:.4g} is the best one of single windows"
        " there (sensitivity + specificity; 0.5 where they have none of one kind).",
    )
