"""`heptad medical cross-validate`: every fold of a split is trained and tested, the predictions are pooled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from apps import cli
from apps.common.configs import find_config
from apps.common.report import write_report
from apps.common.seeds import read_run, summarise
from apps.medical import DOMAIN
from domains.common.card import read_card
from domains.common.errors import ConfigError, HeptadError
from domains.common.intervals import Estimate
from domains.common.writing import write_tables, write_whole
from domains.medical.evaluation import Cell, evaluate_diagnosis, report_tables
from domains.medical.figures import figures

RECORD = "crossvalidate.json"
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "sensitivity", "specificity", "patient_auroc")


def crossvalidate(
    config: str,
    data_root: Path,
    splits: Path,
    run: Path,
    *,
    fit: list[str] | None = None,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Train and test a model on each fold, and measure the pooled out-of-fold predictions over patients.

    Each fold is a run of its own in RUN/fold-K. Started again with the same options, it keeps finished folds, continues
    the one that was interrupted, and goes on.

    Args:
        config: shipped configuration or file.
        data_root: prepared directory.
        splits: folder with splits_0.csv and so on (train, val, test), as `heptad medical split` and CLAM write them.
        run: folder to write.
        fit: further options of `fit`, without dashes: --fit model.lr=0.001 trainer.max_epochs=20
        replicates: bootstrap resamples.

    Returns:
        `folds`, `rows`, `patients`, and `run`.

    Raises:
        HeptadError: options that cannot work, other options than those the folder was begun with, or a fold that
            stopped.
    """
    files = fold_files(splits)
    card = read_card(data_root, DOMAIN.name)
    options = [_option(word) for word in fit or ()]
    _claim(run, find_config(DOMAIN, config), data_root, files, options)
    for number, file in files.items():
        print(f"fold {number} ({list(files).index(number) + 1} of {len(files)})")
        run_fold(run / f"fold-{number}", config, data_root, file, options, replicates)
    pooled = pool(run, files)
    classes = [str(name) for name in card.get("classes", ())]
    metrics = evaluate_diagnosis(pooled, classes, replicates=replicates)
    write_tables(run / "predictions.parquet", [pooled])
    text = json.dumps({name: estimate.to_dict() for name, estimate in metrics.items()}, indent=2)
    write_whole(run / "metrics.json", text.encode() + b"\n")
    _report(run, list(files), pooled, metrics, card, config, options)
    return {"folds": len(files), "rows": len(pooled), "patients": pooled["patient"].n_unique(), "run": str(run)}


def fold_files(splits: Path) -> dict[int, Path]:
    """Number of the fold -> file, in order.

    Raises:
        ConfigError: there are none.
    """
    found = {}
    for path in splits.glob("splits_*.csv"):
        match = re.fullmatch(r"splits_(\d+)\.csv", path.name)
        if match:
            found[int(match[1])] = path
    if not found:
        raise ConfigError(f"{splits}: no splits_0.csv, splits_1.csv, ...; make them with `heptad medical split`")
    return dict(sorted(found.items()))


def _option(word: str) -> str:
    name, equals, _ = word.lstrip("-").partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.+-]*", name):
        raise ConfigError(f"--fit {word}: write options of fit as NAME=VALUE, for example trainer.max_epochs=20")
    if name in ("run", "config", "ckpt_path", "data.root", "data.splits"):
        raise ConfigError(f"--fit {word}: cross-validation sets {name} itself")
    return f"--{word.lstrip('-')}"


def _claim(run: Path, config: Path, data_root: Path, files: dict[int, Path], options: Sequence[str]) -> None:
    """Write down what the folder is made with, or refuse what it was not begun with.

    Raises:
        ConfigError: it was begun with something else.
    """
    record: dict[str, Any] = {
        "config": _digest(config),
        "data": _digest(data_root / "dataset.json"),
        "fit": list(options),
        **{f"fold {number}": _digest(path) for number, path in files.items()},
    }
    path = run / RECORD
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise ConfigError(f"{path}: cannot be read; remove {run} and start again") from None
        changed = [name for name, value in record.items() if name in before and before[name] != value]
        if changed:
            raise ConfigError(
                f"{run}: was begun with another {' and '.join(changed)}; give what it was begun with, or another --run"
            )
        record = before | record
    write_whole(path, json.dumps(record, indent=2).encode() + b"\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_fold(folder: Path, config: str, data_root: Path, splits: Path, options: Sequence[str], replicates: int) -> None:
    """Train and test one fold, as far as it has not been done.

    Raises:
        HeptadError: it stopped.
    """
    if (folder / "metrics.json").is_file() and (folder / "predictions.parquet").is_file():
        return
    if not (folder / "model" / "config.json").is_file():  # published when a training ends
        words = ["--config", config, "--data.root", str(data_root), "--data.splits", str(splits), "--run", str(folder)]
        last = folder / "checkpoints" / "last.ckpt"
        words += ["--ckpt_path", str(last)] if last.is_file() else []
        _command("fit", [*words, *options])
    _command("test", ["--run", str(folder), "--replicates", str(replicates)])


def _command(verb: str, words: Sequence[str]) -> None:
    code = cli.main([DOMAIN.name, verb, *words])
    if code:
        raise HeptadError(
            f"heptad {DOMAIN.name} {verb} {' '.join(words)} ended with exit code {code}; run the same command again to"
            " continue"
        )


def pool(run: Path, numbers: Sequence[int] | dict[int, Path]) -> pl.DataFrame:
    """Predictions of all folds one behind the other, with a column `fold`.

    Raises:
        ConfigError: a table cannot be read.
    """
    parts = []
    for number in numbers:
        path = run / f"fold-{number}" / "predictions.parquet"
        try:
            parts.append(pl.read_parquet(path).with_columns(fold=pl.lit(number, pl.Int64)))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}); remove this fold's folder and run again") from None
    return pl.concat(parts, how="diagonal_relaxed")


def _report(
    run: Path,
    numbers: Sequence[int],
    pooled: pl.DataFrame,
    metrics: dict[str, Estimate],
    card: dict[str, Any],
    config: str,
    options: Sequence[str],
) -> None:
    folds = [read_run(run / f"fold-{number}").metrics for number in numbers]
    shown = [name for name in SHOWN if name in folds[0]]
    rows: list[dict[str, Cell]] = [
        {"fold": number, "rows": pooled.filter(pl.col("fold") == number).height, **{k: found[k] for k in shown}}
        for number, found in zip(numbers, folds, strict=True)
    ]
    spread = summarise(folds).filter(pl.col("metric").is_in(shown))
    tables: dict[str, list[dict[str, Cell]]] = {
        "Folds": rows,
        "Over folds": spread.select("metric", "mean", "sd", "min", "max").to_dicts(),
    }
    path = write_report(
        run / "report.html",
        title=f"{DOMAIN.name}: {len(numbers)}-fold cross-validation on {card.get('name', 'data')}",
        metrics=metrics,
        tables=tables | report_tables(pooled, metrics),
        pictures=figures(pooled, metrics),
        card={**card, "splits": {}, "split_rule": {"kind": f"{len(numbers)} folds"}},
        settings="\n".join([f"--config {config}", *options]),
        protocol=protocol(pooled, len(numbers), card),
    )
    for name, estimate in metrics.items():
        print(f"{name:32} {estimate.value:.5f}  [{estimate.low:.5f}, {estimate.high:.5f}]")
    print(f"report: {path}")


def protocol(pooled: pl.DataFrame, folds: int, card: dict[str, Any]) -> str:
    """Say how the pooled metrics came about."""
    times = pooled.group_by("name").len()["len"]
    total = sum(int(entry.get("rows", 0)) for entry in card.get("splits", {}).values())
    text = (
        f"{folds} models, each tested on rows that it was neither trained nor chosen on; their {len(pooled):,}"
        f" predictions of {len(times):,} rows are pooled."
    )
    if total > len(times):
        text += f" {total - len(times):,} rows are in no test fold."
    again = int((times > 1).sum())
    if again:
        text += f" {again:,} rows are in several and count each time, drawn together with their patient."
    return f"{text} Pooled areas compare scores of different models; the table over folds does not."
