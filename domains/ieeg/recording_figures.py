"""Pictures of what was detected when: all recordings, single ones, and single seizures."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, plain
from domains.common.intervals import Floats
from domains.ieeg.evidence import Evidence
from domains.ieeg.scoring import EVENT_RATE
from domains.ieeg.subject_scores import event_scores
from domains.ieeg.timeline import Coverage, Intervals, clipped, extended

RED = "#b3261e"
SHOWN_RECORDINGS = 30
SHOWN_SEIZURES = 60
POINTS = 2400  # of a line of probabilities
BEFORE, AFTER = 120.0, 180.0  # s around the onset of a seizure


def true_detections(evidence: Evidence) -> NDArray[np.bool_]:
    """Which detections touch a seizure with its tolerances."""
    durations, scoring = evidence.table.durations, evidence.settings.scoring
    reference = clipped(evidence.reference, durations)
    wide = extended(reference, scoring.tolerance_start, scoring.tolerance_end, durations)
    return Coverage(wide, durations, EVENT_RATE).inside(evidence.detections) > 0


def overview(evidence: Evidence) -> Picture:
    """Draw seizures and detections of all recordings over time, a row each."""
    names = evidence.table.names
    eventful = np.zeros(len(names), dtype=np.int64)
    np.add.at(eventful, evidence.reference.recording, 2)
    np.add.at(eventful, evidence.detections.recording, 1)
    chosen = np.sort(np.argsort(-eventful, kind="stable")[:SHOWN_RECORDINGS])
    figure, panel = axes(9.0, 0.34 * len(chosen) + 1.5)
    unit, divisor = _time_unit(float(evidence.table.durations[chosen].max()))
    found = evidence.seizures["detected"].to_numpy()
    true = true_detections(evidence)
    for row, i in enumerate(chosen):
        panel.hlines(row, 0, evidence.table.durations[i] / divisor, color=GREY, linewidth=0.8, zorder=1)
        mine = evidence.reference.recording == i
        for kept, colour in ((mine & found, BLUE), (mine & ~found, RED)):
            _ticks(panel, evidence.reference[kept], divisor, row, -0.4, colour)
        mine = evidence.detections.recording == i
        for kept, colour in ((mine & true, BLUE), (mine & ~true, ORANGE)):
            _ticks(panel, evidence.detections[kept], divisor, row, 0.4, colour)
    panel.set_yticks(range(len(chosen)), [plain(names[i], 30) for i in chosen], fontsize=8)
    panel.set_ylim(len(chosen) - 0.4, -0.7)
    panel.margins(x=0.01)
    panel.set_xlabel(f"time in the recording, {unit}")
    _legend(panel)
    rest = (
        f" {len(names) - len(chosen)} recordings with fewer events are not shown." if len(chosen) < len(names) else ""
    )
    caption = (
        "Above each line true seizures, below it detections; marks have a least width, so that short ones can be seen."
    )
    return Picture("Seizures and detections over time", caption + rest, figure)


def _ticks(panel: Axes, events: Intervals, divisor: float, row: int, height: float, colour: str) -> None:
    if len(events):
        width = np.maximum(events.stop - events.start, 1e-9) / divisor
        low = min(0.0, height)
        bars = [(start / divisor, length) for start, length in zip(events.start, width, strict=True)]
        panel.broken_barh(bars, (row + low, abs(height)), facecolor=colour, edgecolor=colour, linewidth=1.1, zorder=2)


def _legend(panel: Axes) -> None:
    labels = (("found, or a true detection", BLUE), ("missed seizure", RED), ("false alarm", ORANGE))
    handles = [
        Line2D([], [], color=colour, marker="|", markersize=9, linestyle="", label=text) for text, colour in labels
    ]
    for handle in handles:
        handle.set_markeredgewidth(2.5)
    panel.legend(handles=handles, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)


def _time_unit(seconds: float) -> tuple[str, float]:
    return ("h", 3600.0) if seconds > 7200 else ("min", 60.0)


def telling_recordings(evidence: Evidence) -> list[tuple[str, int]]:
    """The recordings that were scored best and worst: what it is, and its number.

    Those with seizures by event F1, then by false alarms per hour; without any seizure, by false alarms alone.
    """
    counts = evidence.counts
    with_seizures = counts["reference"].to_numpy() > 0
    rows = np.flatnonzero(with_seizures) if with_seizures.any() else np.arange(len(counts))
    scores = event_scores(*(counts[name].to_numpy()[rows].astype(np.float64) for name in ("reference", "tp", "fp")))
    rate = counts["fp"].to_numpy()[rows] / counts["seconds"].to_numpy()[rows]
    order = rows[np.lexsort((rows, rate, -np.nan_to_num(scores[2])))]
    if len(order) == 1:
        return [("A recording", int(order[0]))]
    return [("The recording that was scored best", int(order[0])), ("The one scored worst", int(order[-1]))]


def close_up(evidence: Evidence, title: str, recording: int) -> Picture:
    """Draw the seizures, detections and probabilities of one recording over time."""
    table = evidence.table
    unit, divisor = _time_unit(float(table.durations[recording]))
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    for panel in (above, below):
        panel.spines[["top", "right"]].set_visible(False)
    found, true = evidence.seizures["detected"].to_numpy(), true_detections(evidence)
    mine = evidence.reference.recording == recording
    for kept, colour in ((mine & found, BLUE), (mine & ~found, RED)):
        _ticks(above, evidence.reference[kept], divisor, 0, 0.8, colour)
    mine = evidence.detections.recording == recording
    for kept, colour in ((mine & true, BLUE), (mine & ~true, ORANGE)):
        _ticks(above, evidence.detections[kept], divisor, 1, 0.8, colour)
    above.set_yticks([0.4, 1.4], ["seizures", "detections"])
    above.set_ylim(2.0, -0.2)
    _legend(above)
    low, high = np.searchsorted(table.recording, [recording, recording + 1])
    times, highest = _peaks(table.onset[low:high] / divisor, evidence.scores[low:high], table.stretch[low:high])
    below.plot(times, highest, color=GREY, linewidth=0.8)
    if evidence.settings.threshold is not None:
        below.axhline(evidence.settings.threshold, color=ORANGE, linewidth=1, linestyle="--", label="threshold")
        below.legend(frameon=False, loc="upper right", fontsize=8)
    below.set_ylim(-0.02, 1.02)
    below.set_xlim(-0.01 * table.durations[recording] / divisor, 1.01 * table.durations[recording] / divisor)
    width = evidence.settings.decisions.smoothing if evidence.settings.threshold is not None else 1
    below.set_ylabel("probability of\na seizure" + (", smoothed" if width > 1 else ""))
    below.set_xlabel(f"time in the recording, {unit}")
    row = evidence.counts.row(recording, named=True)
    caption = (
        f"{row['recording']}: {row['tp']} of {row['reference']} events found, {row['fp']} false alarms in"
        f" {row['seconds'] / 3600:.2f} h. Where windows are too many, the highest probability of neighbours is drawn."
    )
    return Picture(title, caption, figure)


def _peaks(times: Floats, values: Floats, stretch: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """At most `POINTS` times with the highest value around each; NaN where windows are missing."""
    step = -(-len(times) // POINTS)
    starts = np.arange(0, len(times), step)
    thin, highest, run = times[starts], np.maximum.reduceat(values, starts), stretch[starts]
    gaps = np.flatnonzero(np.diff(run)) + 1
    return np.insert(thin, gaps, np.nan), np.insert(highest, gaps, np.nan)


def onsets(evidence: Evidence) -> Picture | None:
    """Draw the probability around the onset of each seizure; None without seizures."""
    table, seizures = evidence.table, evidence.seizures.with_row_index("place")
    if seizures.is_empty():
        return None
    ordered = seizures.sort("latency", "place", nulls_last=True)["place"].to_numpy()
    chosen = ordered[np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), SHOWN_SEIZURES)).round().astype(int))]
    grid = np.arange(-BEFORE, AFTER, 5.0) + 2.5
    image = np.full((len(chosen), len(grid)), np.nan)
    for line, i in zip(image, chosen, strict=True):
        low, high = np.searchsorted(table.recording, np.r_[0, 1] + evidence.reference.recording[i])
        moments = evidence.reference.start[i] + grid
        place = low + np.searchsorted(table.onset[low:high], moments, side="right") - 1
        inside = (place >= low) & (moments <= table.end[np.maximum(place, low)])
        line[inside] = table.probability[place[inside]]
    figure, panel = axes(7.0, max(2.4, 0.09 * len(chosen) + 1.6))
    extent = (-BEFORE, AFTER, len(chosen) - 0.5, -0.5)
    shown = panel.imshow(image, aspect="auto", cmap="viridis", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    panel.axvline(0, color="white", linewidth=1.2)
    length = (evidence.reference.stop - evidence.reference.start)[chosen]
    inside = length < AFTER
    panel.plot(length[inside], np.flatnonzero(inside), "|", color="white", markersize=5)
    latency = seizures["latency"].to_numpy()[chosen]
    panel.plot(latency, np.arange(len(chosen)), ".", color=ORANGE, markersize=5)
    panel.set_xlim(-BEFORE, AFTER)
    panel.set_yticks([])
    panel.set_ylabel(f"{len(chosen)} seizure{'' if len(chosen) == 1 else 's'}")
    panel.set_xlabel("time from the onset of the seizure, s")
    figure.colorbar(shown, ax=panel, label="probability of a seizure", shrink=0.9)
    rest = f" {len(chosen)} of {len(seizures)}, evenly chosen." if len(chosen) < len(seizures) else ""
    caption = (
        "A row per seizure, early detections first, missed ones last. White: onset and end; orange: the detection's"
        f" onset, not drawn where it was missed; no colour: no window.{rest}"
    )
    return Picture("Probability around the onset of seizures", caption, figure)
