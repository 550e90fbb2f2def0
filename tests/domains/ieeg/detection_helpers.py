"""Predictions of windows that several tests use."""

from __future__ import annotations

import numpy as np
import polars as pl

from domains.ieeg.detections import Decisions

NOTHING = Decisions(smoothing=1, min_duration=0)


def predictions(subjects=4, recordings=2, windows=400, seed=0, gain=4.0, seizures=2):
    """Predictions as a test collects them, and the annotated seizures behind them."""
    rng = np.random.default_rng(seed)
    parts, events = [], []
    for s in range(subjects):
        for r in range(recordings):
            name, onset = f"sub-{s:02d}_run-{r}", 120 + 5.0 * np.arange(windows)
            label = np.zeros(windows, dtype=int)
            for begin in rng.choice(np.arange(150, 120 + 5 * windows - 150, 150), seizures, replace=False):
                start, stop = begin + rng.uniform(0, 5), begin + rng.uniform(20, 90)
                events.append({"recording": name, "onset": start, "offset": stop, "kind": "seizure"})
                label |= (onset <= stop) & (onset + 5 >= start)
            logit = rng.normal(-3, 1.2, windows) + gain * label
            p = (1 / (1 + np.exp(-logit))).astype(np.float32)
            columns = {"recording": [name] * windows, "subject": [f"sub-{s:02d}"] * windows, "onset": onset}
            columns |= {"duration": 5.0, "label": label, "annotated": True}
            parts.append(pl.DataFrame(columns | {"probability_0": 1 - p, "probability_1": p, "predicted": p >= 0.5}))
    table = pl.concat(parts).with_columns(pl.col("predicted").cast(pl.Int64)).with_row_index("row")
    return table, pl.DataFrame(events)


def certain(labels, recording="a", subject="s"):
    """Predictions that know their labels."""
    count = len(labels)
    columns = {"recording": [recording] * count, "subject": [subject] * count, "onset": 5.0 * np.arange(count)}
    columns |= {"duration": [5.0] * count, "label": labels, "annotated": [True] * count}
    p = np.clip(np.array(labels, dtype=np.float64), 0.01, 0.99)
    columns |= {"probability_0": 1 - p, "probability_1": p, "predicted": labels}
    return pl.DataFrame(columns, schema_overrides={"label": pl.Int64, "predicted": pl.Int64})
