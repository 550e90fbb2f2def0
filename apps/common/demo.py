"""`heptad DOMAIN demo`: the whole way from raw data to report on data the project makes itself."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from apps import cli
from apps.common.domain import Domain, load
from apps.common.report import write_report
from domains.common.errors import HeptadError
from domains.common.figures import Picture, bars
from domains.common.intervals import Estimate

Row = dict[str, float | str]


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Run the domain's demo."""
    parser = argparse.ArgumentParser(prog=f"heptad {domain.name} {command}")
    parser.add_argument("--run", type=Path, default=Path("runs") / f"{domain.name}-demo", help="folder to write")
    load(domain.demo)(parser.parse_args(options).run)


def run_command(domain: str, command: str, *options: str) -> None:
    """Run a command as a user types it.

    Raises:
        HeptadError: it failed.
    """
    code = cli.main([domain, command, *options])
    if code:
        raise HeptadError(f"the demo stopped: heptad {domain} {command} ended with exit code {code}")


def train_and_test(
    domain: str, systems: Mapping[str, tuple[str, str]], prepared: Path, directory: Path, *options: str
) -> dict[str, dict[str, Estimate]]:
    """Train and test systems on prepared data, each in a folder of its name.

    Args:
        domain: name of the domain.
        systems: title -> (system, configuration).
        prepared: directory of the data.
        directory: where the folders go.
        options: further options of `fit`.

    Returns:
        Title -> metrics of the test.
    """
    metrics = {}
    for title, (system, config) in systems.items():
        print(f"2. {title}: train, test")
        run = directory / system
        run_command(domain, "fit", "--config", config, "--data.root", str(prepared), "--run", str(run), *options)
        run_command(domain, "test", "--run", str(run))
        found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        metrics[title] = {name: Estimate(**entry) for name, entry in found.items()}
    return metrics


def interval(estimate: Estimate) -> str:
    """Write the bounds of an estimate; `-` where there are none."""
    if estimate.low is None or math.isnan(estimate.low):  # JSON has no NaN
        return "-"
    return f"[{estimate.low:.4f}, {estimate.high:.4f}]"


def compare(directory: Path, title: str, rows: Sequence[Row], column: str, caption: str, detailed: str) -> None:
    """Write a report that compares models, and print its table.

    Args:
        directory: where report.html goes.
        title: heading of the report.
        rows: one per model: `model`, and its metrics.
        column: the metric that is drawn.
        caption: what to read from the picture.
        detailed: name of the run whose own reports are pointed to.
    """
    figure = bars([float(row[column]) for row in rows], [str(row["model"]) for row in rows], label=f"test {column}")
    report = write_report(
        directory / "report.html",
        title=title,
        tables={"Test split": rows},
        pictures=[Picture(column, caption, figure)],
        settings=f"full reports: {directory}/{detailed}/report.html, {directory}/{detailed}/explain.html",
    )
    numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
    print(f"\n{'model':24}" + "".join(f" {name:>10}" for name in numbers))
    for row in rows:
        print(f"{row['model']:24}" + "".join(f" {row[name]:10.4f}" for name in numbers))
    print(f"\nreport: {report}")
