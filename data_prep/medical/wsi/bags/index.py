"""Index of a prepared directory of bags, and its card."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.manifest import tool_version
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import Reject, check_rejects, to_frame
from data_prep.common.run import Run
from data_prep.common.splits import SPLITS
from data_prep.medical.wsi.bags.assign import Assigned, count_splits
from data_prep.medical.wsi.bags.packing import PLACES, Bags

PREDICT, ALL, PART = "predict", "all", "part-00000.parquet"
PAYLOAD = frozenset({"bags", *SPLITS, ALL, PREDICT, "slides.parquet", "rejects.parquet"})
# Columns of an index, in order; the table of slides gives those between name and patches.
COLUMNS = ("name", "patient", "label", "site", *(name for name in PLACES if name != "name"))
SHOWN = 5  # rejects told by name
FEWEST = 3  # patients of a class: one for each split


@dataclass(frozen=True)
class Described:
    """What the card of a prepared directory says besides what is found in the data.

    Args:
        name: of the data.
        command: the `command` entry.
        licence: of the data.
        group: what is kept apart: patient or bag.
        preparation: what `apply` needs.
    """

    name: str
    command: dict[str, Any]
    licence: str
    group: str
    preparation: dict[str, Any]


def publish_bags(
    run: Run,
    bags: Bags,
    assigned: Assigned,
    classes: Sequence[str],
    described: Described,
    rejects: Path,
    total: int,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Write the index of labelled bags, and give everything its final name.

    Args:
        run: the preparation.
        bags: packed.
        assigned: slide, patient, label, site and split of each bag.
        classes: names of the labels.
        described: for the card.
        rejects: finished `rejects.parquet`.
        total: records that were looked at, rejects included.
        counts: for the card.

    Returns:
        The content of `dataset.json`.
    """
    known = assigned.frame.rename({"slide": "name"}).select("name", "patient", "label", "site", "split")
    rows = known.join(bags.frame, on="name", how="inner").sort("name").select(*COLUMNS, "split")
    status = rows.select("name", "patient", "label", "site", "split", "patches").with_columns(
        pl.Series("bad_rows", [bags.bad.get(name, 0) for name in rows["name"]], dtype=pl.UInt32)
    )
    written = run.stage("index", [Task("index", write_index, (rows, SPLITS, status))])[0]
    splits = {split: _entry(written, split) for split in SPLITS}
    files = {**bags.files, **{name: written.folder / name for name in written.files}, "rejects.parquet": rejects}
    manifest = _card(bags, described, rejects, total) | {
        "classes": list(classes),
        "group": {"name": described.group, "kept_apart": True, "groups": rows["patient"].n_unique()},
        "split_rule": assigned.entry,
        "splits": splits,
        "all": _entry(written, ALL),
        "counts": {
            **counts,
            "slides": rows.height,
            "patches": int(rows["patches"].sum()),
            "bad_rows": sum(bags.bad.values()),
            "splits": count_splits(assigned.frame, classes),
        },
    }
    card = run.publish(files, manifest)
    tell(describe_classes(assigned.frame, classes, described.group))
    return card


def publish_predict(
    run: Run,
    bags: Bags,
    patients: Sequence[str],
    classes: Sequence[str],
    described: Described,
    rejects: Path,
    total: int,
) -> dict[str, Any]:
    """The same for bags without labels: the split `predict`.

    Args:
        run: the preparation.
        bags: packed.
        patients: patient of each bag.
        classes: names of the labels of the training data.
        described: for the card.
        rejects: finished `rejects.parquet`.
        total: records that were looked at, rejects included.
    """
    rows = bags.frame.with_columns(
        pl.Series("patient", patients, dtype=pl.String), pl.lit(None, dtype=pl.String).alias("site")
    ).select(name for name in COLUMNS if name != "label")
    written = run.stage("index", [Task("index", write_index, (rows, (PREDICT,), None))])[0]
    files = {**bags.files, **{name: written.folder / name for name in written.files}, "rejects.parquet": rejects}
    manifest = _card(bags, described, rejects, total) | {
        "classes": list(classes),
        "group": {"name": described.group, "kept_apart": False, "groups": rows["patient"].n_unique()},
        "split_rule": {"kind": PREDICT},
        "splits": {PREDICT: _entry(written, PREDICT)},
        "counts": {"slides": rows.height, "patches": int(rows["patches"].sum()), "bad_rows": sum(bags.bad.values())},
    }
    return run.publish(files, manifest)


def write_index(rows: pl.DataFrame, splits: Sequence[str], status: pl.DataFrame | None, folder: Path) -> dict[str, Any]:
    """Task: write a part per split, one of all rows, and the table of slides.

    Args:
        rows: columns of the index; with labels also `split`.
        splits: to write.
        status: content of `slides.parquet`, if there is one.
        folder: to write into.
    """
    parts = {name: rows.filter(split=name).drop("split") if "split" in rows.columns else rows for name in splits}
    if "split" in rows.columns:
        parts[ALL] = rows
    for name, part in parts.items():
        (folder / name).mkdir()
        numbered = part.with_row_index("row").with_columns(pl.col("row").cast(pl.UInt64))
        numbered.write_parquet(folder / name / PART, compression="zstd", statistics=False)
    if status is not None:
        status.write_parquet(folder / "slides.parquet", compression="zstd", statistics=False)
    return {"rows": {name: part.height for name, part in parts.items()}}


def describe_classes(frame: pl.DataFrame, classes: Sequence[str], group: str) -> list[str]:
    """Lines that say how many slides and patients each class has, and warn where a split must go without.

    Args:
        frame: slides with the columns patient and label.
        classes: names of the labels.
        group: what a patient is: patient, slide or bag.
    """
    what, lines, said = "bag" if group == "bag" else "slide", [], []
    for code, name in enumerate(classes):
        part = frame.filter(label=code)
        rows, groups = part.height, part["patient"].n_unique()
        held = f" of {groups:,} patient{'s' * (groups != 1)}" if group == "patient" else ""
        said.append(f"{name} {rows:,} {what}{'s' * (rows != 1)}{held}")
        if groups < FEWEST:
            few = f"{groups} {group}{'s' * (groups != 1)}"
            lines.append(
                f"warning: class {name!r} has {few}: too few for training, validation and test; join it with another "
                "class, or leave it out, with --label-map"
            )
    return [f"classes: {'; '.join(said)}", *lines]


def finish_rejects(run: Run, rejects: Sequence[Reject], total: int, max_rejects: float) -> Path:
    """Write `rejects.parquet`, tell the first of them, and refuse when there are too many.

    Raises:
        RejectsExceededError: naming the commonest reason.
    """
    target, frame = run.scratch / "rejects.parquet", to_frame(rejects)
    frame.write_parquet(target, compression="zstd", statistics=False)
    check_rejects(frame, total, max_rejects, target)
    lines = [f"left out: {item.excerpt} ({item.source}): {item.reason}" for item in rejects[:SHOWN]]
    if len(rejects) > SHOWN:
        lines.append(f"left out: {len(rejects) - SHOWN:,} more, see rejects.parquet")
    tell(lines)
    return target


def tell(lines: Sequence[str]) -> None:
    """Say something to the user."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _entry(written: Done, split: str) -> dict[str, Any]:
    path, rows = f"{split}/{PART}", written.info["rows"][split]
    return {"rows": rows, "parts": [{"path": path, "rows": rows, "sha256": written.files[path][1]}]}


def _card(bags: Bags, described: Described, rejects: Path, total: int) -> dict[str, Any]:
    count = pl.read_parquet(rejects, memory_map=False).height
    return {
        "domain": "medical",
        "kind": "bags",
        "name": described.name,
        "version": tool_version(),
        "command": described.command,
        "licence": described.licence,
        "sources": bags.sources,
        **bags.facts,
        "rejects": {"count": count, "share": count / max(total, 1)},
        "preparation": described.preparation,
    }
