"""`heptad medical split`: lists of slides for cross-validation or hold-out, divided by patient, in CLAM's files."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, ManifestError
from data_prep.common.files import (
    canonical_json,
    make_folder,
    sha256_file,
    stale_temporaries,
    translate_os_errors,
    write_atomic,
)
from data_prep.common.hashing import hash_numbers
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.rejects import check_rejects, to_frame
from data_prep.common.splits import SPLITS
from data_prep.medical.wsi.bags.assign import (
    RATIOS,
    SplitRule,
    assign_splits,
    check_splits,
    count_splits,
    divide,
    hold_out_valid,
    keep_shots,
    with_splits,
)
from data_prep.medical.wsi.bags.spelling import file_name_of, join_spellings, say_joined
from data_prep.medical.wsi.bags.split_files import clam_files
from data_prep.medical.wsi.bags.table import SlideTable, TableOptions, check_classes, clean_slide, read_slide_table

CARD, REJECTS = "split.json", "rejects.parquet"
LEFT = frozenset({REJECTS, "rejects.csv"})  # by a run that stopped for too many rejects


def split(
    table: Path,
    out: Path,
    *,
    method: Literal["k-fold", "hold-out", "lists"] = "k-fold",
    folds: int = 5,
    ratios: tuple[float, float, float] = RATIOS,
    seed: int = 0,
    by_site: bool = True,
    n_shot: int = 0,
    splits: str = "",
    fixed_test: str = "",
    slide_column: str = "",
    patient_column: str = "",
    label_column: str = "",
    site_column: str = "",
    split_column: str = "",
    patients: Literal["column", "slide"] = "column",
    patient_pattern: str = "",
    site_pattern: str = "",
    label_map: str = "",
    classes: list[str] | None = None,
    encoding: str = "",
    max_rejects: float = 0.01,
) -> dict[str, Any]:
    """Divide slides by patient and write the lists as CLAM does: splits_<k>.csv, _bool.csv and _descriptor.csv.

    All slides of a patient are in the same split; each split has the same mixture of labels and sites, and every class
    wherever there are enough patients. The result depends on the seed and the content of the table, not on the order
    of its rows. Lists that put a patient on two sides are refused.

    Args:
        table: CSV, TSV, Excel or Parquet with a row per slide, or a prepared directory.
        out: folder to write; new, empty, or holding the same lists.
        method: k-fold: every patient is tested once; hold-out: divided anew for each fold; lists: no new division, the
            lists named by splits are checked and written.
        folds: how many.
        ratios: shares of train, valid and test, of the patients. With k-fold 1/folds are tested; valid counts.
        seed: another seed gives another division.
        by_site: stratify by site, too, where sites are known.
        n_shot: so many training slides of each class, of as many patients as possible; 0 is all.
        splits: method lists: a file or folder of lists (CLAM, CLAM bool, ACMIL JSON, a table), column, or camelyon.
        fixed_test: lists (or column, camelyon) whose test slides are tested in every fold; k-fold then goes over valid.
        slide_column: column of slide ids, with or without folder and file extension; found by its name.
        patient_column: column of patients (case_id, patient_id, patient, ...).
        label_column: column of labels.
        site_column: column of sites.
        split_column: column of an official split.
        patients: slide: every slide is of another patient.
        patient_pattern: regular expression that finds the patient in the slide id, or tcga, camelyon17.
        site_pattern: the same for the site, or tcga-site.
        label_map: labels to classes: 0=normal,1=tumor, a JSON file, or bracs-7, bracs-3, bracs-2, lbc-4.
        classes: names of the classes in order.
        encoding: of a text table; found out.
        max_rejects: share of unusable rows that is tolerated.

    Returns:
        The content of `split.json`: options, checksum of the table, and what is in each split of each fold.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    columns = (slide_column, patient_column, label_column, site_column, split_column)
    options = TableOptions(*columns, patients, patient_pattern, site_pattern, label_map, tuple(classes or ()), encoding)
    if not 0 <= max_rejects <= 1 or folds < 1 or (method == "lists") != bool(splits):
        raise ConfigError(
            f"max_rejects {max_rejects}, folds {folds}, method {method}, splits {splits!r}: give max_rejects from 0 to "
            "1, at least one fold, and splits together with method lists"
        )
    found = read_any_table(table, options)
    rule = SplitRule(splits, ratios, 0.0, seed, by_site, n_shot)
    told, unknown = list(found.told), list[str]()
    if method == "lists":
        assigned = assign_splits(found, rule)
        frames, unknown = [assigned.frame], assigned.unknown
        told += assigned.told
    else:
        fixed = replace(rule, splits=fixed_test) if fixed_test else None
        frames = make_folds(found, rule, folds, method, fixed)
        for fold, frame in enumerate(frames):
            lines = check_splits(frame, found, f"{table}: fold {fold}")
            told += [f"fold {fold}: {line}" for line in lines]
    source = table / NAME if table.is_dir() else table
    card = {
        "tool": {"name": "heptad medical split", "version": tool_version()},
        "command": {
            **{"method": method, "folds": folds, "ratios": list(rule.ratios), "seed": seed, "by_site": by_site},
            **{"n_shot": n_shot, "splits": splits, "fixed_test": fixed_test, **asdict(options)},
        },
        "table": {"path": source.name, "sha256": sha256_file(source)},
        "group": {"name": "patient", "kept_apart": True, "groups": found.frame["patient"].n_unique()},
        "classes": found.classes,
        "folds": [count_splits(frame, found.classes) for frame in frames],
        "in_lists_only": unknown,
        "rejects": {"count": len(found.rejects), "share": len(found.rejects) / max(found.records, 1)},
    }
    sys.stderr.write("".join(f"{line}\n" for line in told))
    _write(out, found, frames, card, max_rejects)
    print(_summary(out, card))
    return card


def read_any_table(path: Path, options: TableOptions) -> SlideTable:
    """Read a table of slides, or the slides (or images) of a prepared directory.

    Raises:
        PrepError: see `read_slide_table`; the directory is of another kind.
    """
    if not path.is_dir():
        return read_slide_table(path, options)
    card = read_manifest(path)
    entries = [card["all"]] if "all" in card else list(card.get("splits", {}).values())
    parts = [path / part["path"] for entry in entries for part in entry["parts"]]
    if card.get("domain") != "medical" or not parts or "classes" not in card:
        raise ManifestError(f"{path / NAME}: no bags or images with labels; give a table, or prepare them")
    if options != TableOptions():
        raise ConfigError(f"{path}: prepared data has its own columns, patients and labels; leave these options out")
    with translate_os_errors(path):
        frame = pl.concat([pl.read_parquet(part) for part in parts], how="diagonal_relaxed")
    site = next((name for name in ("site", "source") if name in frame.columns), None)
    slides = frame.select(
        pl.col("name").alias("slide"),
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("record"),
        "patient",
        pl.col("label").cast(pl.UInt32),
        (pl.col(site) if site else pl.lit(None)).cast(pl.String).alias("site"),
        pl.lit(None, dtype=pl.String).alias("split"),
    )
    check_classes(path, slides, card["classes"])
    told: list[str] = []
    if card.get("group", {}).get("name") == "patient":
        joined = join_spellings(slides["patient"])
        slides = slides.with_columns(pl.col("patient").replace(joined))
        told = say_joined(path.name, "patients", joined)
    # Names of bags and images keep what looks like an extension.
    names = frozenset(slides["slide"])

    def slide_of(text: str) -> str:
        return next((name for name in (text.strip(), file_name_of(text)) if name in names), clean_slide(text))

    return SlideTable(path, slides.sort("slide"), card["classes"], slides.height, told=told, slide_of=slide_of)


def make_folds(
    table: SlideTable, rule: SplitRule, folds: int, method: str, fixed: SplitRule | None = None
) -> list[pl.DataFrame]:
    """The table with the splits of each fold.

    Args:
        table: slides.
        rule: seed, ratios and sites.
        folds: how many.
        method: k-fold: every patient is tested once, `ratios[1]` of all patients validate; hold-out: divided anew by
            `ratios` for each fold.
        fixed: rule whose test slides are the test set of every fold; k-fold then goes over validation.

    Raises:
        ConfigError: a fold would be left without patients.
    """
    frame, kept = table.frame, dict[str, str]()
    if fixed is not None:
        given = assign_splits(table, replace(fixed, valid_share=0.0, n_shot=0)).frame
        kept = dict.fromkeys(given.filter(split="test")["slide"].to_list(), "test")
        frame = given.filter((pl.col("split") != "test").fill_null(value=False))
    if method == "hold-out":
        return [_hold_out(table, frame, kept, replace(rule, seed=_seed_of(rule.seed, fold))) for fold in range(folds)]
    patients = frame["patient"].n_unique()
    if folds < 2 or patients < folds:
        raise ConfigError(
            f"{table.path}: folds {folds} of {patients} patients: give at least 2, and at most {patients}"
        )
    parts = divide(frame, [1 / folds] * folds, rule, [str(fold) for fold in range(folds)])
    made = []
    for fold in range(folds):
        side = "valid" if kept else "test"
        sides = {slide: side if part == str(fold) else "train" for slide, part in parts.items()}
        one = with_splits(table.frame, {**kept, **sides})
        if not kept and rule.ratios[1]:
            # `ratios` are of all patients, and a fold's test patients are no candidates for validation.
            share = min(rule.ratios[1] / (1 - 1 / folds), 0.5)
            one = hold_out_valid(one, replace(rule, valid_share=share, seed=_seed_of(rule.seed, fold + 1)))
        made.append(keep_shots(one, rule))
    return made


def _hold_out(table: SlideTable, frame: pl.DataFrame, kept: dict[str, str], rule: SplitRule) -> pl.DataFrame:
    shares = rule.ratios
    if kept:
        shares = (shares[0] / (shares[0] + shares[1]), shares[1] / (shares[0] + shares[1]), 0.0)
    return keep_shots(with_splits(table.frame, {**kept, **divide(frame, shares, rule)}), rule)


def _seed_of(seed: int, fold: int) -> int:
    # 53 bits: JSON and every language keep them exactly. Fold 0 has the seed itself.
    return int(hash_numbers(np.array([fold], dtype=np.uint64), seed)[0] >> np.uint64(11)) if fold else seed


def _write(
    out: Path, table: SlideTable, frames: Sequence[pl.DataFrame], card: dict[str, Any], max_rejects: float
) -> None:
    """Write all files into a folder beside `out`, which then takes its place: all of them, or none."""
    files = {CARD: canonical_json(card)}
    for fold, frame in enumerate(frames):
        for ending, text in clam_files(frame, table.classes).items():
            files[f"splits_{fold}{ending}.csv"] = text.encode()
    rejects, stream = to_frame(table.rejects), io.BytesIO()
    rejects.write_parquet(stream, compression="zstd", statistics=False)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with translate_os_errors(out):
        stale = stale_temporaries(out, LEFT) if out.is_dir() else []
        held = {path.name for path in out.iterdir()} - {path.name for path in stale} if out.is_dir() else set()
        if CARD in held and (out / CARD).read_bytes() == files[CARD]:
            return
        strangers = sorted(held - LEFT)
        if strangers:
            raise ConfigError(f"{out}: holds {strangers[0]!r}, not of this division; choose an empty or new folder")
        make_folder(out)
        if rejects.height > max_rejects * table.records:
            write_atomic(out / REJECTS, stream.getvalue())
            check_rejects(rejects, table.records, max_rejects, out / REJECTS)
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, data in {**files, REJECTS: stream.getvalue()}.items():
                write_atomic(temporary / name, data)
            for path in [*(out / name for name in LEFT), *stale]:
                path.unlink(missing_ok=True)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _summary(out: Path, card: dict[str, Any]) -> str:
    lines = [f"{out}: folds {len(card['folds'])}, of {card['group']['groups']:,} patients, slides (patients)"]
    for fold, counted in enumerate(card["folds"]):
        cells = [f"{name} {counted[name]['slides']:,} ({counted[name]['patients']:,})" for name in SPLITS]
        lines.append(f"fold {fold}: {', '.join(cells)}")
    return "\n".join(lines)
