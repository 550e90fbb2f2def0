"""Pictures for prediction: looked at and indexed as a saved preparation does it, without labels and splits."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, ManifestError, PrepError, RejectsExceededError
from data_prep.common.files import sha256_file, write_atomic
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.parts import to_parquet
from data_prep.common.raw import check_raw
from data_prep.common.rejects import check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, identify, is_large, open_run
from data_prep.common.tables import read_table
from data_prep.common.telling import few, say, tell_rejects
from data_prep.finegrained.card import write_index
from data_prep.finegrained.csv_table import box_columns, parse_box, table_rows
from data_prep.finegrained.engine import PAYLOAD, TOOLS, find_finished, look_at_pictures
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.images import ImageRules
from data_prep.finegrained.records import CLASSES, GALLERY, IDENTITIES, QUERY, Box, Item, Listing, split_of

PREDICT = "predict"


def make_predict(
    preparation: Path,
    raw: tuple[Path, ...],
    out: Path,
    workers: int | None,
    executor: str,
    max_rejects: float,
    progress: bool,
) -> dict[str, Any]:
    """Do what `apply` says."""
    if not 0 <= max_rejects <= 1:
        raise ConfigError(f"max_rejects {max_rejects}: give a share from 0 to 1")
    manifest = read_manifest(preparation)
    saved = manifest.get("preparation")
    kinds = (CLASSES, IDENTITIES)
    if manifest.get("domain") != "finegrained" or not isinstance(saved, dict) or saved.get("kind") not in kinds:
        raise ManifestError(f"{preparation / NAME}: no preparation of fine-grained data; prepare the data again")
    check_raw(raw, out)
    files = RawFiles(raw)
    files.need_pictures()
    boxes, lists = _find_boxes(files) if saved["crop"] == "box" else ({}, [])
    identities = saved["kind"] == IDENTITIES
    items = tuple(Item(path, "", _role(path) if identities else "", box=boxes.get(path)) for path in files.pictures)
    listing = Listing(saved["kind"], items, lists=tuple(lists), licence=manifest["licence"], trim=saved["trim_bottom"])
    command = {"dataset": manifest["name"], "apply": sha256_file(preparation / NAME)}
    finished = find_finished(out, command, lists, items, files.root)
    if finished is not None:
        return finished
    sources = [*lists, *(files.root / item.path for item in items)]
    settings = Settings(executor, workers, None, progress, eager=is_large(sources))
    with open_run(out, {"command": command, **identify(sources, *TOOLS, str(files.root))}, settings, PAYLOAD) as run:
        return _apply(run, listing, manifest, command, files.root, max_rejects)


def _role(path: str) -> str:
    """`query` or `gallery`, where a folder of the picture says so."""
    named = (split_of(part) for part in PurePosixPath(path).parts[:-1])
    return next((name for name in named if name in (QUERY, GALLERY)), "")


def _find_boxes(files: RawFiles) -> tuple[dict[str, Box], list[Path]]:
    """Boxes of the pictures that tables (.csv) among the raw files name, and these tables."""
    found: dict[str, Box] = {}
    tables = [path for path in files.files if path.suffix.lower() == ".csv"]
    used = []
    for path in tables:
        table = read_table(path)
        columns = box_columns(table.columns)
        if "image" not in table.columns or not columns:
            continue
        used.append(path)
        strip = files.find_strip(table["image"].to_list(), path.parent)
        for _, line, row in table_rows(table):
            if not any(row[name] for name in columns):  # without a box, which is told
                continue
            image, reason = files.locate(row["image"], path.parent, strip)
            box = parse_box(row, columns)
            if reason or box is None:
                reason = reason or f"{', '.join(columns)} are no four numbers"
                raise PrepError(f"{path}: {line}: {row['image']!r}: {reason}; mend the table")
            if found.setdefault(image, box) != box:
                raise PrepError(f"{path}: {line}: {row['image']!r} has another box before; leave one of them")
    return found, used


def _apply(
    run: Run, listing: Listing, manifest: dict[str, Any], command: dict[str, Any], root: Path, max_rejects: float
) -> dict[str, Any]:
    saved = manifest["preparation"]
    looked = look_at_pictures(
        run,
        listing,
        root,
        ImageRules(saved["margin"], saved["trim_bottom"], saved["exif"]),
        crop=saved["crop"] == "box",
    )
    rejects = run.scratch / "rejects.parquet"
    table, total = to_frame(looked.rejects), len(listing.items)
    write_atomic(rejects, to_parquet(table))
    tell_rejects(looked.rejects)
    try:
        check_rejects(table, total, max_rejects, rejects)
    except RejectsExceededError as error:
        if table.height >= total:
            raise
        enough = math.ceil(100 * table.height / total) / 100
        raise RejectsExceededError(f"{error}; --max_rejects {enough:g} predicts the others") from None
    if not len(looked.frame):
        raise PrepError(f"{root}: no picture is left of {total:,}; the first: {looked.rejects[0].reason}")
    _tell(listing, saved)
    frame = looked.frame.with_columns(split=pl.lit(PREDICT))
    if listing.kind == IDENTITIES:
        frame = frame.with_columns(role=looked.frame["split"], camera=pl.lit(-1), identity=pl.lit(""))
    else:
        frame = frame.drop("camera", "extra")
    index, splits = write_index(frame, [PREDICT], run.scratch)
    own = ("classes",) if listing.kind == CLASSES else ("identities", "cameras", "evaluation")
    described = {
        **{"domain": "finegrained", "kind": listing.kind, "name": manifest["name"], "version": tool_version()},
        **{"command": command, "licence": manifest["licence"], "units": manifest["units"], "image_root": str(root)},
        **{name: manifest[name] for name in own},
        "sources": [*(describe_source(path) for path in listing.lists), looked.source],
        "group": {"name": "image", "kept_apart": False, "groups": len(frame), "note": "nothing is divided"},
        "split_rule": {"kind": PREDICT},
        "splits": splits,
        "counts": {**looked.counts, "roles": dict(sorted(Counter(looked.frame["split"].to_list()).items()))},
        "rejects": {"count": table.height, "share": table.height / total},
        "preparation": saved,
    }
    return run.publish({**index, **looked.files(frame), "rejects.parquet": rejects}, described)


def _tell(listing: Listing, saved: dict[str, Any]) -> None:
    _tell_roles(listing)
    if saved["crop"] == "box":
        missing = sum(item.box is None for item in listing.items)
        if missing:
            say(
                f"warning: {missing:,} pictures have no box, and the training pictures were cropped to theirs: they "
                "are taken whole; crop them, or give a table (.csv) with image, left, top, right, bottom beside them"
            )
    if listing.trim:
        say(f"the lowest {listing.trim} pixels of each picture are cut off, as they were of the training pictures")


def _tell_roles(listing: Listing) -> None:
    """Say which pictures have no part in the search, where folders say for which and in which others to search."""
    roles = Counter(item.split for item in listing.items)
    found = [name for name in (QUERY, GALLERY) if roles[name]]
    beside = [item.path for item in listing.items if not item.split]
    if len(found) == 1:
        missing = GALLERY if found == [QUERY] else QUERY
        say(
            f"warning: there are pictures in a folder {found[0]}, and none in a folder {missing}: every picture is "
            f"searched for among all others; for a search in a gallery give {QUERY} and {GALLERY} together"
        )
    elif found and beside:
        say(
            f"warning: {len(beside):,} of {len(listing.items):,} pictures are in neither of the folders {QUERY} and "
            f"{GALLERY} that hold the others: they are not searched for and cannot be found ({few(beside)}); move them "
            "into one of both, or prepare them by themselves"
        )
