"""The demo: drawn faces with planted expressions, from the raw pictures to the reports and to predictions."""

from __future__ import annotations

from pathlib import Path

from apps.common.demo import Row, compare, interval, run_command, train_and_test
from data_prep.expression.planted import write_planted_faces
from domains.common.intervals import Estimate

SYSTEMS = {"ARBEx": ("arbex", "demo"), "plain head": ("plain", "demo_plain")}
SUBJECTS, EACH = 80, 20


def demo(directory: Path) -> None:
    """Generate, prepare, train, test, explain, predict and compare, by the commands that a user types.

    Args:
        directory: everything is written below it.
    """
    raw, prepared = directory / "raw", directory / "prepared"
    print("1. drawn faces with planted expressions, 5 % of them with wrong labels")
    if not (prepared / "dataset.json").is_file():
        made = write_planted_faces(raw, SUBJECTS, EACH)
        options = ["--table", str(made.table), "--ratios", "0.65,0.1,0.25", "--taxonomy", "basic7"]
        run_command("expression", "prep", "folder", "--raw", str(made.images), "--out", str(prepared), *options)
    metrics = train_and_test("expression", SYSTEMS, prepared, directory)
    print("3. what ARBEx looks at, and what it says of other pictures")
    run = directory / "arbex"
    run_command("expression", "explain", "--run", str(run))
    run_command("expression", "predict", "--run", str(run), "--raw", str(raw / "images" / "surprise"))
    compare(
        directory,
        "Heptad demo: drawn faces with planted expressions",
        [_row(title, found) for title, found in metrics.items()],
        "accuracy",
        "Both have the same extractor; the plain head has neither anchors nor corrector. About 5 % of the labels are"
        " wrong, so that no model is right about more than some 95 %.",
        "arbex",
    )


def _row(title: str, metrics: dict[str, Estimate]) -> Row:
    accuracy = metrics["accuracy"]
    row: Row = {"model": title, "accuracy": accuracy.value, "95 % interval": interval(accuracy)}
    return row | {"macro F1": metrics["macro_f1_all_classes"].value, "ECE": metrics["ece"].value}
