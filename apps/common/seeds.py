"""`heptad DOMAIN summary`: mean and deviation of the test metrics of several runs, such as seeds or folds."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from apps.common.domain import Domain
from domains.common.errors import ConfigError
from domains.common.writing import write_whole

# settings in which runs that are summarised together may differ without a word
OWN = ("seed_everything", "run", "out", "ckpt_path", "init_from", "data.root", "data.seed", "model.seed", "replicates")


@dataclass(frozen=True)
class Run:
    """One finished test.

    Args:
        path: its folder.
        metrics: name -> value; NaN where undefined.
        settings: its configuration, `group.option` -> value; empty where none was found.
    """

    path: Path
    metrics: dict[str, float]
    settings: dict[str, Any]


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Summarise runs."""
    parser = argparse.ArgumentParser(
        prog=f"heptad {domain.name} {command}",
        description="Mean, standard deviation and range of each test metric over several runs of one experiment.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a tested run")
    parser.add_argument("--folds", action="store_true", help="the runs were tested on different rows, as folds are")
    parser.add_argument("--out", type=Path, help="file to write, .csv or .json")
    arguments = parser.parse_args(options)
    if arguments.out is not None and arguments.out.suffix not in (".csv", ".json"):
        raise ConfigError(f"--out {arguments.out}: name a .csv or a .json file")
    runs = [read_run(path) for path in arguments.runs]
    notes = check_comparable(runs, folds=arguments.folds)
    table = summarise([run.metrics for run in runs])
    width = max(len(name) for name in table["metric"])
    print(f"{'metric':{width}} {'mean':>9} {'sd':>9} {'min':>9} {'max':>9}  runs")
    for row in table.iter_rows(named=True):
        numbers = " ".join(f"{_text(row[key]):>9}" for key in ("mean", "sd", "min", "max"))
        print(f"{row['metric']:{width}} {numbers}  {row['runs']}")
    for note in notes:
        print(f"note: {note}")
    if arguments.out is not None:
        write_summary(arguments.out, runs, table)
        print(f"summary: {arguments.out}")


def read_run(path: Path) -> Run:
    """Read what the test of a run left.

    Raises:
        ConfigError: it was not tested, or its files are damaged.
    """
    file = path if path.name == "metrics.json" else path / "metrics.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        metrics = {str(k): math.nan if e["value"] is None else float(e["value"]) for k, e in content.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{file}: not found; test the run first (heptad DOMAIN test --run {file.parent})") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); test the run again") from None
    settings: dict[str, Any] = {}
    for name in ("test.yaml", "fit.yaml"):
        if (file.parent / name).is_file():
            settings = _flat(yaml.safe_load((file.parent / name).read_text(encoding="utf-8")))
            break
    return Run(file.parent, metrics, settings)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): content}
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key}.")
    return found


def check_comparable(runs: Sequence[Run], *, folds: bool = False) -> list[str]:
    """Refuse runs that are no repetitions of one experiment; return what a reader of the summary should know.

    Args:
        runs: two or more.
        folds: they were tested on different rows.

    Raises:
        ConfigError: a run is named twice, or runs have different systems, metrics or data.
    """
    if len(runs) < 2:
        raise ConfigError("a summary needs two or more runs; name their folders one after another")
    first = runs[0]
    places = [run.path.resolve() for run in runs]
    for place in places:
        if places.count(place) > 1:
            raise ConfigError(f"{place}: named twice; name each run once")
    for run in runs[1:]:
        if run.settings.get("system") != first.settings.get("system") and run.settings and first.settings:
            raise ConfigError(
                f"{first.path} is of system {first.settings.get('system')}, {run.path} of {run.settings.get('system')};"
                " summarise runs of one system"
            )
        if run.metrics.keys() != first.metrics.keys():
            extra = sorted(run.metrics.keys() ^ first.metrics.keys())
            raise ConfigError(
                f"{first.path} and {run.path} have different metrics ({', '.join(extra[:4])}"
                f"{' ...' if len(extra) > 4 else ''} in one only); test both with this version, on the same data"
            )
        if not folds and _tested(run) != _tested(first):
            raise ConfigError(
                f"{first.path} and {run.path} were tested on different data ({first.settings.get('data.root')},"
                f" {run.settings.get('data.root')}); summarise runs on the same data, or say --folds"
            )
    return _notes(runs)


def _tested(run: Run) -> Any:
    """What tells test rows apart: the checksums of the prepared test split, else the place of the data."""
    root = run.settings.get("data.root")
    if root is None:
        return None
    try:
        card = json.loads((Path(root) / "dataset.json").read_text(encoding="utf-8"))
        return [part["sha256"] for part in card["splits"]["test"]["parts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return str(Path(root).resolve())


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    unknown = [str(run.path) for run in runs if not run.settings]
    if unknown:
        notes.append(f"no configuration in {', '.join(unknown)}: whether the runs belong together was not checked")
        return notes
    for name in sorted(set().union(*(run.settings for run in runs))):
        given = list(dict.fromkeys(str(run.settings.get(name)) for run in runs))
        if len(given) > 1 and name not in OWN and not name.startswith(("trainer.logger", "trainer.default_root")):
            notes.append(f"the runs differ in {name}: {', '.join(given[:4])}{' ...' if len(given) > 4 else ''}")
    seeds = [run.settings.get("seed_everything") for run in runs]
    if len(set(map(str, seeds))) < len(runs) and len({str(run.settings.get("data.splits")) for run in runs}) == 1:
        notes.append(f"the seeds are {', '.join(map(str, seeds))}: runs of one seed tell nothing about the deviation")
    return notes


def summarise(metrics: Sequence[Mapping[str, float]]) -> pl.DataFrame:
    """Table of each metric over runs: `metric`, `runs` (in which it is defined), `mean`, `sd`, `min`, `max`.

    The standard deviation is that of a sample (n - 1).
    """
    rows = []
    for name in metrics[0]:
        values = [run[name] for run in metrics if name in run and math.isfinite(run[name])]
        rows.append(
            {
                "metric": name,
                "runs": len(values),
                "mean": statistics.fmean(values) if values else math.nan,
                "sd": statistics.stdev(values) if len(values) > 1 else math.nan,
                "min": min(values, default=math.nan),
                "max": max(values, default=math.nan),
            }
        )
    return pl.DataFrame(rows, schema_overrides={"runs": pl.Int64})


def write_summary(path: Path, runs: Sequence[Run], table: pl.DataFrame) -> None:
    """Write the table, as CSV, or as JSON with the values of each run."""
    if path.suffix == ".csv":
        write_whole(path, table.fill_nan(None).write_csv().encode())
        return
    rows = table.fill_nan(None).to_dicts()
    metrics = {
        row.pop("metric"): row | {"values": [_null(run.metrics[name]) for run in runs]}
        for row, name in zip(rows, table["metric"], strict=True)
    }
    content = {"runs": [str(run.path) for run in runs], "metrics": metrics}
    write_whole(path, json.dumps(content, indent=2).encode() + b"\n")


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
