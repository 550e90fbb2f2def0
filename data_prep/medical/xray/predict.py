"""Images for prediction: read and indexed as a saved preparation does it, without labels and splits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError, PrepError, RejectsExceededError
from data_prep.common.files import sha256_file, write_atomic
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.names import unique_names
from data_prep.common.raw import check_raw
from data_prep.common.rejects import check_rejects, to_frame
from data_prep.common.run import Run, Settings, identify, is_large, open_run
from data_prep.medical.xray.card import number_images, to_parquet, write_index
from data_prep.medical.xray.encode import Rules
from data_prep.medical.xray.engine import PAYLOAD, TOOLS, find_finished_images, image_files, read_images, say
from data_prep.medical.xray.find import find_images
from data_prep.medical.xray.records import Item, Listing
from data_prep.medical.xray.telling import tell_eight_bits

PREDICT = "predict"


def make_images(
    preparation: Path,
    raw: tuple[Path, ...],
    out: Path,
    workers: int | None,
    executor: str,
    max_rejects: float,
    progress: bool,
) -> dict[str, Any]:
    """Do what `apply_images` says."""
    if not 0 <= max_rejects <= 1:
        raise ConfigError(f"max_rejects {max_rejects}: give a share from 0 to 1")
    manifest = read_manifest(preparation)
    saved = manifest.get("preparation")
    if not isinstance(saved, dict) or saved.get("kind") != "images":
        raise ManifestError(f"{preparation / NAME}: no preparation of X-rays; prepare the data again")
    check_raw(raw, out)
    files = find_images(raw)
    if not files:
        raise DatasetNotFoundError(f"{raw[0]}: holds no DICOM, PNG, JPEG, TIFF or BMP file")
    items = tuple(Item(name, path) for path, name in zip(files, unique_names(files, raw), strict=True))
    listing = Listing(items, licence=manifest["licence"], channels=saved["channels"])
    views = tuple(saved["views"]) if saved["views"] is not None else None
    eight_bit_lut = bool(saved.get("eight_bit_lut", False))
    rules = Rules(saved["max_side"], saved["percentile"], saved["channels"], views, eight_bit_lut=eight_bit_lut)
    command = {"dataset": manifest["name"], "apply": sha256_file(preparation / NAME)}
    finished = find_finished_images(out, command, listing)
    if finished is not None:
        return finished
    settings = Settings(executor, workers, None, progress, eager=is_large(files))
    with open_run(out, {"command": command, **identify(files, *TOOLS)}, settings, PAYLOAD) as run:
        return _apply(run, listing, rules, manifest, command, max_rejects)


def _apply(
    run: Run, listing: Listing, rules: Rules, manifest: dict[str, Any], command: dict[str, Any], max_rejects: float
) -> dict[str, Any]:
    images = read_images(run, listing, rules, None)
    rejects = run.scratch / "rejects.parquet"
    table = to_frame(images.rejects)
    write_atomic(rejects, to_parquet(table))
    total = len(listing.items)
    try:
        check_rejects(table, total, max_rejects, rejects)
    except RejectsExceededError as error:
        if table.height >= total:
            raise
        enough = math.ceil(100 * table.height / total) / 100
        raise RejectsExceededError(f"{error}; --max_rejects {enough:g} predicts the others") from None
    if images.counts["other_views"]:
        say(f"{images.counts['other_views']:,} images are of other views than the model knows: they get no row")
    tell_eight_bits(images.counts, "the training images were prepared in the same way")
    if not len(images.frame):
        raise PrepError(
            f"{listing.items[0].path}: no image is left of {total:,}: all are of other views than the preparation's; "
            "give frontal X-rays"
        )
    frame = number_images(images.frame.with_columns(split=pl.lit(PREDICT)))
    files, splits = write_index(frame, [PREDICT], run.scratch)
    files |= {**image_files(frame, images), "rejects.parquet": rejects}
    described = {
        "domain": "medical",
        "kind": "images",
        "name": manifest["name"],
        "version": tool_version(),
        "command": command,
        "licence": manifest["licence"],
        "sources": [images.image_source],
        "classes": manifest["classes"],
        "channels": listing.channels,
        "group": {"name": "patient", "kept_apart": False, "groups": frame["patient"].n_unique()},
        "split_rule": {"kind": PREDICT},
        "splits": splits,
        "counts": images.counts,
        "rejects": {"count": table.height, "share": table.height / total},
        "preparation": manifest["preparation"],
    }
    return run.publish(files, described)
