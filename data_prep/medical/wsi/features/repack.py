"""Feature files of any tool -> the fast layout, or the layout of another tool: behind `heptad medical repack`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError, PrepError
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Done, Shard, Task
from data_prep.common.run import Run, Settings, find_finished, identify, is_large, open_run
from data_prep.medical.wsi.bags.table import TableOptions, read_slide_table
from data_prep.medical.wsi.features.hdf5 import open_h5, plain_attributes, readable
from data_prep.medical.wsi.features.layouts import FeatureEntry, file_slide_id, find_features
from data_prep.medical.wsi.features.plan import find_coords
from data_prep.medical.wsi.features.repack_tasks import STATUS, Wanted, describe, merge, repack_slide, write_tables
from data_prep.medical.wsi.features.run import check_failures, one_value

LAYOUTS = ("native", "clam", "trident", "acmil")
TYPES = ("stored", "float16", "float32")
PAYLOAD = frozenset({"slides.parquet", "rejects.parquet"})


@dataclass(frozen=True)
class Found:
    """What there is to repack.

    Args:
        entries: features.
        problems: damaged files.
        coords: coordinate file of each slide.
        labels: of each slide.
        files: all files that are read.
    """

    entries: list[FeatureEntry]
    problems: list[CorruptRecordError]
    coords: dict[str, Path]
    labels: dict[str, int]
    files: list[Path]


def repack(
    raw: list[Path] | Path,
    out: Path,
    *,
    layout: Literal["native", "clam", "trident", "acmil"] = "native",
    dtype: Literal["stored", "float16", "float32"] | None = None,
    patches: Path | None = None,
    table: Path | None = None,
    encoder: str = "",
    max_bad: float = 0.1,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Rewrite features: contiguous for fast reading, or in the layout of another program.

    Each slide is checked: rows and coordinates of equal number, no NaN, coordinates of this slide. A damaged one does
    not stop the others: they are finished and published, then the command fails and names it.

    Args:
        raw: features as CLAM, TRIDENT, ACMIL or `heptad medical features` write them: files or folders.
        out: output directory; new, empty, or of the same command begun before.
        layout: native (read fastest), clam (h5_files and pt_files), trident, or acmil (one file for all slides).
        dtype: stored (float16 stays, all else becomes float32), float16 or float32. By default float32 for clam,
            float16 for acmil, else stored. A slide that exceeds float16 is stored in float32.
        patches: coordinate files of the same slides, for features without coordinates, or without the size of patches.
        table: slide table with labels, which ACMIL's layout holds, too.
        encoder: name of what made the features, where the files do not tell.
        max_bad: share of a slide's rows that may hold NaN or infinity; such rows are left out and counted.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of slides that may fail without the command failing.
        progress: show progress bars and a summary.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    usual = {"clam": "float32", "acmil": "float16"}.get(layout, "stored")
    if layout not in LAYOUTS or dtype not in (*TYPES, None) or not 0 <= max_bad < 1 or not 0 <= max_rejects <= 1:
        raise ConfigError(
            f"layout {layout!r}, dtype {dtype!r}, max_bad {max_bad}, max_rejects {max_rejects}: choose one of "
            f"{', '.join(LAYOUTS)}, one of {', '.join(TYPES)}, and shares from 0 to 1"
        )
    found = _find(raw, patches, table)
    wanted = Wanted(layout, dtype or usual, max_bad, encoder or _encoder_of(found.entries))
    command = {**asdict(wanted), "patches": patches is not None, "table": table is not None}
    card = find_finished(out, {"kind": "features", "command": command}, found.files)
    if card is None:
        share = Shard.parse(shard, shard_patience) if shard else None
        settings = Settings(executor, workers, share, progress, eager=is_large(found.files))
        fingerprint = {"command": command, **identify(found.files, h5py.__version__)}
        try:
            with open_run(out, fingerprint, settings, PAYLOAD | wanted.place) as run:
                card = _repack(run, wanted, found, command)
        except (PrepError, OSError):
            # Another shard may have finished, and removed the scratch folder, while this one looked at it.
            if share is None or not (out / NAME).exists():
                raise
            card = read_manifest(out)
    if progress:
        counts = card["counts"]
        done = counts["slides"] - counts["failed"]
        print(f"features: {out} ({layout})\nslides: {done:,} of {counts['slides']:,}; patches: {counts['patches']:,}")
    check_failures(out, card, max_rejects)
    return card


def _find(raw: list[Path] | Path, patches: Path | None, table: Path | None) -> Found:
    problems: list[CorruptRecordError] = []
    entries = find_features(raw, problems)
    coords = find_coords(patches) if patches else {}
    labels = {entry.slide: entry.label for entry in entries if entry.label is not None}
    if table:
        frame = read_slide_table(table, TableOptions(patients="slide")).frame
        labels |= dict(frame.filter(pl.col("label").is_not_null()).select("slide", "label").iter_rows())
    files = sorted({entry.path for entry in entries} | {Path(error.path) for error in problems})
    files += [coords[entry.slide] for entry in entries if entry.slide in coords] + ([table] if table else [])
    return Found(entries, problems, coords, labels, files)


def _encoder_of(entries: list[FeatureEntry]) -> str:
    """What the first file says."""
    if not entries or not entries[0].dataset:
        return ""
    with readable(entries[0].path, "attributes"), open_h5(entries[0].path) as file:
        return str(plain_attributes(file[entries[0].dataset]).get("encoder") or "")


def _repack(run: Run, wanted: Wanted, found: Found, command: dict[str, Any]) -> dict[str, Any]:
    tasks = [
        Task(
            f"{index:06d}",
            repack_slide,
            (entry, wanted, found.coords.get(entry.slide), found.labels.get(entry.slide)),
        )
        for index, entry in enumerate(found.entries)
    ]
    done = run.stage("repack", tasks)
    sources = run.stage("sources", [Task(f"{i:06d}", describe, (path,)) for i, path in enumerate(found.files)])
    pairs = list(zip(found.entries, done, strict=True))
    rows = [{"slide": entry.slide, "file": entry.path.name, **item.info} for entry, item in pairs]
    rows += [_damaged(error) for error in found.problems]
    rows = [{name: row.get(name) for name in STATUS} for row in rows]
    tables = run.stage("tables", [Task("tables", write_tables, (rows,))])[0]
    good = [(entry, item) for entry, item in pairs if item.info["status"] == "done"]
    failures = [{"slide": row["slide"], "reason": row["reason"]} for row in rows if row["status"] != "done"]
    manifest = {
        **{"domain": "medical", "kind": "features", "layout": wanted.layout, "name": "features"},
        "version": tool_version(),
        "command": command,
        "licence": "not stated",
        "sources": [item.info["source"] for item in sources],
        "encoder": {"name": wanted.encoder} if wanted.encoder else None,
        "feature_dim": one_value(entry.dim for entry, _ in good),
        **{name: one_value(item.info[name] for _, item in good) for name in ("mpp", "patch_size")},
        "counts": {
            "slides": len(rows),
            "failed": len(failures),
            "patches": sum(row["patches"] for row in rows),
            "bad_rows": sum(row["bad"] for row in rows),
        },
        "failures": failures,
        "rejects": {"count": len(failures), "share": len(failures) / len(rows)},
    }
    files = {name: tables.folder / name for name in ("slides.parquet", "rejects.parquet")}
    return run.publish(files | _gather(run, wanted, good, found.labels), manifest)


def _gather(run: Run, wanted: Wanted, good: list[tuple[FeatureEntry, Done]], labels: dict[str, int]) -> dict[str, Path]:
    """Path inside the output directory -> finished file."""
    if wanted.layout != "acmil":
        return {name: item.folder / name for _, item in good for name in item.files}
    if not good:
        return {}
    name = next(iter(wanted.place))
    slides = [
        (entry.slide, item.folder / "features" / f"{entry.slide}.h5", labels.get(entry.slide)) for entry, item in good
    ]
    merged = run.stage("merge", [Task("merge", merge, (slides, name))])[0]
    return {name: merged.folder / name}


def _damaged(error: CorruptRecordError) -> dict[str, Any]:
    path = Path(error.path)
    reason = str(error).replace(f"{path.parent}/", "")
    return {
        **{"slide": file_slide_id(path), "file": path.name, "status": "failed", "reason": reason},
        **{"patches": 0, "bad": 0},
    }
