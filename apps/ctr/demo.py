"""The demo: a generated click log, from the raw file to the report."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from apps.common.demo import Row, compare, interval, run_command, train_and_test
from data_prep.ctr.planted import write_planted_log
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
        run_command("ctr", "prep", "generic", *options)
    metrics = train_and_test("ctr", SYSTEMS, prepared, directory)
    print("3. what AutoInt attends to")
    run_command("ctr", "explain", "--run", str(directory / "autoint"))
    table = pl.read_parquet(directory / "autoint" / "predictions.parquet")
    best = table.with_columns(pl.Series("probability", truth[table["row"].to_numpy()]))
    metrics["best achievable"] = evaluate_clicks(best, replicates=200)
    compare(
        directory,
        "Heptad demo: clicks with planted interactions",
        [_row(title, found) for title, found in metrics.items()],
        "AUC",
        "The true probabilities of the generated log score best; chance is 0.5.",
        "autoint",
    )


def _row(title: str, metrics: dict[str, Estimate]) -> Row:
    auc, loss = metrics["auc"], metrics["log_loss"]
    return {"model": title, "AUC": auc.value, "95 % interval": interval(auc), "log loss": loss.value}
