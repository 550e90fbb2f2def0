"""The demo: a generated click log, from the raw file to the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from apps import cli
from apps.common.report import write_report
from data_prep.ctr.planted import write_planted_log
from domains.common.errors import HeptadError
from domains.common.figures import Picture, bars
from domains.common.intervals import Estimate
from domains.ctr.evaluation import evaluate_clicks

SYSTEMS = {"AutoInt": ("autoint", "demo"), "logistic regression": ("logistic-regression", "demo_logistic_regression")}


def demo(directory: Path) -> None:
    """Generate, prepare, train, test, explain and compare, by the commands that a user types.

    Args:
        directory: everything is written below it.
    """
    raw, prepared = directory / "raw", directory / "prepared"
    print("1. a click log with planted interactions of fields")
    truth = write_planted_log(raw)
    options = ["--raw", str(raw / "clicks.csv"), "--schema", str(raw / "schema.yaml"), "--out", str(prepared)]
    if not (prepared / "dataset.json").is_file():
        _heptad("prep", "generic", *options)
    for title, (system, config) in SYSTEMS.items():
        print(f"2. {title}: train, test")
        run = directory / system
        _heptad("fit", "--config", config, "--data.root", str(prepared), "--run", str(run))
        _heptad("test", "--run", str(run))
    print("3. what AutoInt attends to")
    _heptad("explain", "--run", str(directory / "autoint"))

    rows = _compare(directory, truth)
    figure = bars([float(row["auc"]) for row in rows], [str(row["model"]) for row in rows], label="test AUC")
    caption = "The true probabilities of the generated log score best; chance is 0.5."
    report = write_report(
        directory / "report.html",
        title="Heptad demo: clicks with planted interactions",
        tables={"Test split": rows},
        pictures=[Picture("AUC", caption, figure)],
        settings=f"full reports: {directory}/autoint/report.html, {directory}/autoint/explain.html",
    )
    print(f"\n{'model':24} {'AUC':>8} {'log loss':>9}")
    for row in rows:
        print(f"{row['model']:24} {row['auc']:8.4f} {row['log loss']:9.4f}")
    print(f"\nreport: {report}")


def _heptad(command: str, *options: str) -> None:
    code = cli.main(["ctr", command, *options])
    if code:
        raise HeptadError(f"the demo stopped: heptad ctr {command} ended with exit code {code}")


def _compare(directory: Path, truth: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    for title, (system, _) in SYSTEMS.items():
        metrics = json.loads((directory / system / "metrics.json").read_text(encoding="utf-8"))
        rows.append(_row(title, {name: Estimate(**entry) for name, entry in metrics.items()}))
    table = pl.read_parquet(directory / "autoint" / "predictions.parquet")
    best = table.with_columns(pl.Series("probability", truth[table["row"].to_numpy()]))
    rows.append(_row("best achievable", evaluate_clicks(best, replicates=200)))
    return rows


def _row(title: str, metrics: dict[str, Estimate]) -> dict[str, float | str]:
    auc, loss = metrics["auc"], metrics["log_loss"]
    interval = f"[{auc.low:.4f}, {auc.high:.4f}]"
    return {"model": title, "auc": auc.value, "95 % interval": interval, "log loss": loss.value}


__all__: Sequence[str] = ["demo"]
