"""A multivariate series with two periods, in the layout of ETT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl


def write_series(path: Path, rows: int = 500, minutes: int = 60, seed: int = 0) -> Path:
    """Write a CSV file: date, and three variates that follow a day, a week, and each other."""
    rng, hour = np.random.default_rng(seed), np.arange(rows) * minutes / 60
    day, week = np.sin(hour * 2 * np.pi / 24), np.cos(hour * 2 * np.pi / 168)
    table = {
        "HUFL": 10 + 3 * day + rng.normal(0, 0.3, rows),
        "LULL": 2 * day * week + rng.normal(0, 0.3, rows),
        "OT": 20 + np.roll(3 * day, 3) + week + rng.normal(0, 0.3, rows),
    }
    dates = pl.datetime_range(
        pl.datetime(2016, 7, 1), pl.datetime(2016, 7, 1) + pl.duration(minutes=minutes * (rows - 1)), f"{minutes}m",
        eager=True,
    )  # fmt: skip
    pl.DataFrame({"date": dates.dt.strftime("%Y-%m-%d %H:%M:%S"), **table}).write_csv(path)
    return path
