"""What became of each slide: `slides.parquet`, the process list `slides.csv`, `rejects.parquet`, and a summary."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.files import write_atomic
from data_prep.common.rejects import Reject, to_frame
from data_prep.medical.wsi.patches.job import Facts, Job
from data_prep.medical.wsi.patches.options import options_row

SCHEMA = {
    "slide": pl.String,
    "path": pl.String,
    "status": pl.String,  # processed, empty (no patch), failed, skipped
    "reason": pl.String,  # of empty and failed slides
    "patches": pl.Int64,
    "mpp": pl.Float64,  # um per level-0 pixel
    "mpp_source": pl.String,  # where the slide, or the user, says so
    "target_mpp": pl.Float64,  # of the patches
    "size_level0": pl.Int64,  # side of a patch in level-0 pixels
    "width": pl.Int64,
    "height": pl.Int64,
    "levels": pl.Int64,
    "seg_level": pl.Int64,  # that tissue was looked for at
    "threshold": pl.Float64,  # of its saturation
    "pieces": pl.Int64,  # of tissue
    "tissue": pl.Float64,  # share of the slide
    "white": pl.Int64,  # patches dropped as white, as black, as unreadable
    "black": pl.Int64,
    "bad": pl.Int64,
    "bad_regions": pl.Int64,  # pieces of the low level that are unreadable and count as glass
    "positive": pl.Int64,  # patches inside of an annotation
}
BAD = ("failed", "empty")
SHOWN = 5  # slides named in a message
# CLAM's words for it.
_CLAM = {"processed": "processed", "empty": "processed", "failed": "failed_seg", "skipped": "tbp"}


@dataclass(frozen=True)
class Outcome:
    """What became of one slide.

    Args:
        job: the slide.
        source: its entry of `sources` in `dataset.json`, without what became of it.
        row: of `slides.parquet`.
        rejects: of `rejects.parquet`.
        files: path inside the output directory -> finished file.
    """

    job: Job
    source: dict[str, Any]
    row: dict[str, Any]
    rejects: list[Reject] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """One of processed, empty, failed, skipped."""
        return str(self.row["status"])

    @property
    def entry(self) -> dict[str, Any]:
        """Its whole entry of `sources`; a default of the resolution counts only for slides that needed it."""
        needed = self.row["mpp_source"] == "default"
        return {**self.source, "default_mpp": self.job.default_mpp if needed else None, "status": self.status}


def gather(job: Job, source: dict[str, Any], parts: Sequence[Facts], files: dict[str, Path]) -> Outcome:
    """Put the answers of a slide's tasks together; later ones count.

    Args:
        job: the slide.
        source: its entry of `sources`.
        parts: answers, in order.
        files: path inside the output directory -> finished file.
    """
    facts: Facts = {}
    for part in parts:
        facts |= part
    reason = facts.get("error") or facts.get("empty") or ""
    status = "failed" if "error" in facts else "empty" if "empty" in facts else "processed"
    bad = facts.get("bad", [])
    row = {name: facts.get(name) for name in SCHEMA} | {
        "slide": job.slide,
        "path": str(job.path),
        "status": status,
        "reason": reason,
        "patches": facts.get("patches", 0) if status == "processed" else 0,
        "size_level0": facts["rules"]["size"][0] if "rules" in facts else None,
        "bad": len(bad),
    }
    rejects = [Reject(job.path.name, index, f"patch at {x}, {y}", reason, "") for index, x, y, reason in bad]
    if reason:
        rejects.insert(0, Reject(job.path.name, 0, "slide", reason, ""))
    return Outcome(job, source, row, rejects, {} if status == "failed" else files)


def skipped(job: Job, source: dict[str, Any]) -> Outcome:
    """A slide that the table of options leaves out."""
    row = dict.fromkeys(SCHEMA) | {"slide": job.slide, "path": str(job.path), "status": "skipped", "patches": 0}
    return Outcome(job, source, {**row, "reason": ""})


def tables(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """The three tables as JSON values."""
    return {
        "rows": [outcome.row for outcome in outcomes],
        "options": [
            options_row(outcome.job.path.name, _CLAM[outcome.status], outcome.job.options) for outcome in outcomes
        ],
        "rejects": [list(reject) for outcome in outcomes for reject in outcome.rejects],
    }


def write_tables(content: dict[str, list[Any]], folder: Path) -> dict[str, Any]:
    """Write `slides.parquet`, `slides.csv` and `rejects.parquet`."""
    slides = pl.DataFrame(content["rows"], schema=SCHEMA, orient="row")
    rejects = to_frame(Reject(*row) for row in content["rejects"])
    for name, frame in (("slides.parquet", slides), ("rejects.parquet", rejects)):
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd", statistics=False)
        write_atomic(folder / name, buffer.getvalue())
    write_atomic(folder / "slides.csv", pl.DataFrame(content["options"]).write_csv().encode())
    return {}


def count(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """The `counts` entry of `dataset.json`."""
    statuses = [outcome.status for outcome in outcomes]
    return {
        "slides": len(statuses),
        **{status: statuses.count(status) for status in ("processed", "empty", "failed", "skipped")},
        "patches": sum(outcome.row["patches"] for outcome in outcomes),
        "unreadable_patches": sum(outcome.row["bad"] or 0 for outcome in outcomes),
    }


def complain(card: dict[str, Any], out: Path) -> str:
    """One line that names the slides without patches, and why; empty when all have some.

    Args:
        card: content of `dataset.json`.
        out: its directory.
    """
    failures = card["failures"]
    if not failures:
        return ""
    total, shown = card["counts"]["slides"], failures[:SHOWN]
    more = f"; and {len(failures) - SHOWN} more, all in slides.parquet" if len(failures) > SHOWN else ""
    # A reason of a failed slide names the file itself.
    said = [f["reason"] if f["slide"] in f["reason"] else f"{f['slide']}: {f['reason']}" for f in shown]
    wrong = f"{len(failures)} of {total} slides have no patches: {'; '.join(said)}{more}"
    if not card["counts"]["processed"]:
        return f"{wrong}; nothing is left: repair these slides, or choose other options, and run again"
    done = f"{card['counts']['patches']:,} patches of the other {card['counts']['processed']:,} are in {out}"
    return (
        f"{wrong}; {done}: repair or leave out these slides, or give them options of their own (--options-table, "
        "--mpp-table), and run the same command again; or raise --max-rejects"
    )


def summary(card: dict[str, Any], out: Path) -> str:
    """A few lines for people."""
    counts = card["counts"]
    sides = card["patch"]
    at = f"{sides['mpp']:g} um/px" if sides["mpp"] else f"level {sides['level']}"
    lines = [
        f"patches: {counts['patches']:,} of {sides['size']} px at {at} on {counts['processed']:,} of "
        f"{counts['slides']:,} slides, in {out}",
        f"look at {out / 'thumbnails'}: tissue is outlined",
    ]
    if counts["unreadable_patches"]:
        lines.append(f"unreadable patches: {counts['unreadable_patches']:,}, listed in {out / 'rejects.parquet'}")
    return "\n".join(lines)
