"""Multivariate time series in a CSV file -> prepared series, split by time.

ETTh1, ETTh2, ETTm1, ETTm2 (Zhou et al., AAAI 2021; zhouhaoyi/ETDataset, CC BY-ND 4.0): a column `date`, seven variates,
hourly or every 15 minutes. Any other CSV with one row per step is read in the same way.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, PrepError
from data_prep.common.files import sha256_file, translate_os_errors, write_atomic
from data_prep.common.manifest import tool_version
from data_prep.common.run import Settings, describe_source, find_finished, identify, open_run
from data_prep.common.splits import SPLITS, check_ratios

PAYLOAD = frozenset({"series.parquet", "rejects.parquet"})
MONTH = 30 * 24  # hours, as the peers of ETT count
LICENCES = {"ett": "CC BY-ND 4.0 (zhouhaoyi/ETDataset)", "series": "not stated"}


def prepare_series(
    dataset: Literal["ett", "series"],
    raw: Path,
    out: Path,
    *,
    time: str = "date",
    variates: list[str] | None = None,
    ratios: tuple[float, float, float] | None = None,
    fill: Literal["refuse", "previous"] = "refuse",
) -> dict[str, Any]:
    """Prepare a multivariate time series for forecasting.

    The split is by time: what is forecast in a later split was never seen in an earlier one. ETT has the borders that
    all its peers use: 12, 4 and 4 months of 30 days; what lies behind them is left out. Numbers stay in their units;
    the model scales them by the training split.

    Args:
        dataset: ett, or series for any CSV file with one row per step.
        raw: the CSV file, or a folder that holds one.
        out: output directory; new, empty, or of the same preparation begun before.
        time: name of the column of times; rows must rise in it. Empty: there is none.
        variates: columns to take; default all but the time.
        ratios: shares of the steps in train, valid, test; for series 0.7, 0.1, 0.2; ett has its own borders.
        fill: what to do with missing values: refuse, or put the previous value in their place.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, the column and the row, what is wrong and what to do.
    """
    path = _find(raw)
    if dataset == "ett" and ratios is not None:
        raise ConfigError("ratios: ett has borders of its own, which all its peers use; prepare it as `series`")
    shares = None if dataset == "ett" else list(check_ratios(ratios or (0.7, 0.1, 0.2)))
    command = {"dataset": dataset, "time": time, "variates": variates, "ratios": shares, "fill": fill}
    finished = find_finished(out, {"command": command}, [path])
    if finished is not None:
        return finished
    with open_run(out, {"command": command, **identify([path], pl.__version__)}, Settings("serial"), PAYLOAD) as run:
        table, seconds = _read(path, time, variates, fill)
        borders = _ett_borders(path, table, seconds) if dataset == "ett" else _borders(table.height, shares or ())
        table = table.head(borders[-1])
        series = run.scratch / "series.parquet"
        write_atomic(series, _parquet(table))
        rejects = run.scratch / "rejects.parquet"
        write_atomic(rejects, _parquet(pl.DataFrame(schema={"source": pl.String, "reason": pl.String})))
        digest = sha256_file(series)
        parts = {
            name: {"first": begin, "rows": end - begin, "parts": [{"path": "series.parquet", "sha256": digest}]}
            for name, begin, end in zip(SPLITS, (0, *borders), borders, strict=False)
        }
        manifest = {
            "domain": "ieeg",
            "kind": "series",
            "name": path.stem,
            "version": tool_version(),
            "command": command,
            "licence": LICENCES[dataset],
            "sources": [describe_source(path)],
            "variates": [name for name in table.columns if name != "time"],
            "step_seconds": seconds,
            "group": {"name": "time", "kept_apart": True, "groups": len(SPLITS)},
            "split_rule": {"kind": "time", "borders": list(borders)},
            "splits": parts,
            "rejects": {"count": 0, "share": 0.0},
        }
        return run.publish({"series.parquet": series, "rejects.parquet": rejects}, manifest)


def _find(raw: Path) -> Path:
    if raw.is_file():
        return raw
    found = sorted(raw.glob("*.csv")) if raw.is_dir() else []
    if len(found) != 1:
        what = f"holds {len(found)} CSV files" if raw.is_dir() else "not found"
        raise DatasetNotFoundError(f"{raw}: {what}; name one CSV file")
    return found[0]


def _read(path: Path, time: str, variates: list[str] | None, fill: str) -> tuple[pl.DataFrame, float | None]:
    """Float32 columns, and `time` where there is one; seconds of a step."""
    try:
        with translate_os_errors(path):
            table = pl.read_csv(path, try_parse_dates=True, infer_schema_length=None)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise CorruptRecordError(path, "table", f"is no CSV of numbers ({str(error).splitlines()[0]})") from None
    if time and time not in table.columns:
        raise PrepError(f"{path}: no column {time!r} of times; there are {', '.join(table.columns)}; see --time")
    chosen = variates or [name for name in table.columns if name != time]
    unknown = [name for name in chosen if name not in table.columns]
    if unknown or not chosen:
        raise ConfigError(f"variates {unknown}: no such columns in {path}; there are {', '.join(table.columns)}")
    for name in chosen:
        if not table[name].dtype.is_numeric():
            wrong = table[name].cast(pl.Float64, strict=False).is_null() & table[name].is_not_null()
            row = int(wrong.arg_max() or 0)
            text = table[name][row]
            raise CorruptRecordError(path, f"row {row} column {name!r}", f"{text!r} is no number; correct or leave out")
    values = table.select(pl.col(chosen).cast(pl.Float32)).fill_nan(None)
    for name in chosen:
        missing = values[name].is_null()
        if missing.any() and (fill == "refuse" or missing[0]):
            row = int(missing.arg_max() or 0)
            raise CorruptRecordError(path, f"row {row} column {name!r}", "has no value; correct it, or --fill previous")
    values = values.fill_null(strategy="forward")
    if not time:
        return values, None
    return values.insert_column(0, table[time].alias("time")), _step(path, table[time], time)


def _step(path: Path, times: pl.Series, name: str) -> float | None:
    if not times.dtype.is_temporal() and not times.dtype.is_numeric():
        raise PrepError(f"{path}: column {name!r} holds no times ({times[0]!r}); name another with --time")
    steps = times.diff().drop_nulls()
    if not len(steps):
        raise PrepError(f"{path}: has {len(times)} rows; a series needs more")
    numbers = steps.dt.total_seconds() if times.dtype.is_temporal() else steps
    wrong = np.flatnonzero(numbers.to_numpy() <= 0)
    if len(wrong):
        raise CorruptRecordError(path, f"row {int(wrong[0]) + 1}", f"{name} does not rise; sort the rows, drop copies")
    usual = float(numbers.median() or 0)  # type: ignore[arg-type]
    gaps = int((numbers.to_numpy() > 1.5 * usual).sum())
    if gaps:
        print(f"{path}: {gaps} gaps in {name}, rows on both sides are taken for neighbours")
    return usual if times.dtype.is_temporal() else None


def _borders(rows: int, ratios: Any) -> tuple[int, ...]:
    ends = np.round(np.cumsum(ratios) * rows).astype(int)
    return tuple(int(end) for end in ends)


def _ett_borders(path: Path, table: pl.DataFrame, seconds: float | None) -> tuple[int, ...]:
    if seconds not in (3600.0, 900.0):
        raise PrepError(f"{path}: ETT has a row every 60 or 15 minutes, this file every {seconds} s; use `series`")
    month = MONTH * (1 if seconds == 3600.0 else 4)
    borders = (12 * month, 16 * month, 20 * month)
    if table.height < borders[-1]:
        raise PrepError(f"{path}: {table.height:,} rows, the split of ETT needs {borders[-1]:,}; download it again")
    return borders


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()
