"""Features of the patches of one slide: encoded batch by batch, stored in a stream.

Memory is that of a few batches, whatever the number of patches. The same files and options give the same bytes on
the same kind of device; devices, and numbers of threads of torch, round sums differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, CorruptRecordError, DiskFullError, MissingExtraError, PrepError
from data_prep.common.files import link_or_copy
from data_prep.common.rejects import Reject, to_frame
from data_prep.medical.wsi.features.encoders import Encoder, EncoderSpec, load_encoder
from data_prep.medical.wsi.features.layouts import find_bad_rows
from data_prep.medical.wsi.features.native import Stored, count_overflow, write_features
from data_prep.medical.wsi.patches.coords import PatchGrid, read_coords
from data_prep.medical.wsi.slides.find import slide_id
from data_prep.medical.wsi.slides.read_ahead import Batch, Handles, read_batches
from data_prep.medical.wsi.slides.slide import Slide

FEATURES, REJECTS = "features.h5", "rejects.parquet"  # what a task leaves
RAW = "features.f32"  # what it writes first, whatever the number of bad patches and the type to store


@dataclass(frozen=True)
class Job:
    """How slides are encoded.

    Args:
        encoder: which.
        device: where.
        batch_size: patches that are encoded together.
        threads: which read patches.
        dtype: to store; what is beyond the range of float16 makes it float32 for that slide.
        max_bad: share of a slide's patches that may be unreadable.
    """

    encoder: EncoderSpec
    device: str
    batch_size: int
    threads: int
    dtype: Stored
    max_bad: float


def extract_slide(job: Job, slide: str, path: Path, coords: Path, folder: Path) -> dict[str, Any]:
    """Task: encode the patches of one slide into `features.h5`; a slide that cannot be is told, not raised.

    Args:
        job: how.
        slide: its id.
        path: the slide.
        coords: file of its coordinates.
        folder: to write into.
    """
    encoder = load_encoder(job.encoder, job.device)
    info: dict[str, Any] = {"status": "done", "reason": ""}
    rejects: list[Reject] = []
    try:
        found, rejects = _extract(job, encoder, slide, path, coords, folder)
        info |= found
    except (ConfigError, DiskFullError, MissingExtraError):  # not this slide's fault
        raise
    except PrepError as error:
        for name in (RAW, FEATURES):
            (folder / name).unlink(missing_ok=True)
        # Names without folders: the same slides give the same table wherever they lie.
        reason = str(error).replace(f"{path.parent}/", "").replace(f"{coords.parent}/", "")
        info |= {"status": "failed", "reason": reason, "patches": 0, "bad": 0, "retried": 0}
    to_frame(rejects).write_parquet(folder / REJECTS, compression="zstd", statistics=False)
    return info


def reuse_slide(source: Path, rejects: list[Reject], info: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Task: take what an earlier run with the same options and files found."""
    link_or_copy(source, folder / FEATURES)
    to_frame(rejects).write_parquet(folder / REJECTS, compression="zstd", statistics=False)
    return info


def _extract(
    job: Job, encoder: Encoder, slide: str, path: Path, coords: Path, folder: Path
) -> tuple[dict[str, Any], list[Reject]]:
    grid = read_coords(coords)
    if not len(grid.coords):
        raise CorruptRecordError(coords, "coordinates", "no patches to encode; see why patching found no tissue")
    with Handles(path) as handles, (folder / RAW).open("wb") as stream:
        attributes = _attributes(job, slide, grid, check_grid(grid, slide, coords, handles.get()))
        kept = _Kept(path, grid, job.max_bad)
        for batch in read_batches(handles, grid, encoder.image_size, job.batch_size, job.threads):
            stream.write(kept.take(batch, encoder(batch.images)).tobytes())
    rows = int(kept.rows.sum())
    if not rows:
        raise CorruptRecordError(path, "patches", "none of them can be read; copy the slide again")
    stored: Stored = "float32" if kept.overflow else job.dtype
    values = np.memmap(folder / RAW, dtype=np.float32, mode="r", shape=(rows, encoder.dim))
    write_features(folder / FEATURES, values, grid.coords[kept.rows], attributes, stored)
    (folder / RAW).unlink()
    counts = {"patches": rows, "bad": len(kept.rejects), "retried": kept.retried}
    return {**counts, "dim": encoder.dim, "dtype": stored, "patch_size": grid.size, "mpp": grid.mpp}, kept.rejects


class _Kept:
    """Which patches of a slide have features.

    Args:
        path: the slide.
        grid: its patches.
        max_bad: share that may be bad.
    """

    def __init__(self, path: Path, grid: PatchGrid, max_bad: float) -> None:
        self.path, self.grid, self.max_bad = path, grid, max_bad
        self.rows = np.ones(len(grid.coords), dtype=bool)
        self.rejects: list[Reject] = []
        self.retried = self.overflow = 0

    def take(self, batch: Batch, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Sort out bad patches, and count.

        Args:
            batch: the patches.
            features: (B, D) of them.

        Returns:
            (good, D) features that are kept.

        Raises:
            CorruptRecordError: too many are bad.
        """
        for place in find_bad_rows(features).tolist():
            batch.bad.setdefault(place, "the encoder gives NaN or infinity for it")
        good = np.ones(len(features), dtype=bool)
        good[list(batch.bad)] = False
        self.rows[batch.start : batch.start + len(good)] = good
        for place, reason in sorted(batch.bad.items()):
            x, y = self.grid.coords[batch.start + place].tolist()
            self.rejects.append(Reject(self.path.name, batch.start + place, "patch", reason, f"x {x}, y {y}"))
        if len(self.rejects) > self.max_bad * len(self.rows):
            first, done = self.rejects[0], batch.start + len(good)
            raise CorruptRecordError(
                self.path,
                f"patch {first.record:,} ({first.excerpt})",
                f"{first.reason}; {len(self.rejects):,} of the first {done:,} of {len(self.rows):,} patches are bad, "
                f"more than max_bad {self.max_bad:.2%}; copy the slide again or raise max_bad",
            )
        self.retried += len(batch.retried - batch.bad.keys())
        self.overflow += count_overflow(features[good])
        return features[good]


def _attributes(job: Job, slide: str, grid: PatchGrid, level0: tuple[int, int]) -> dict[str, Any]:
    size = grid.size_level0
    return {
        "name": slide,
        "patch_size_level0": int(size) if float(size).is_integer() else size,
        "patch_size": grid.size,
        "level0_width": level0[0],
        "level0_height": level0[1],
        "target_mpp": grid.mpp,
        "encoder": job.encoder.name,
    }


def check_grid(grid: PatchGrid, slide: str, coords: Path, opened: Slide) -> tuple[int, int]:
    """Make sure that coordinates belong to a slide.

    Args:
        grid: the coordinates.
        slide: id of the slide.
        coords: where they are from.
        opened: the slide.

    Returns:
        Width and height of level 0.

    Raises:
        CorruptRecordError: they were made for another slide.
    """
    if slide not in (grid.slide, slide_id(grid.slide)):
        raise CorruptRecordError(
            coords,
            "name",
            f"these coordinates were made for slide {grid.slide!r}, not {slide!r}; patch this slide again",
        )
    known, real = (grid.width, grid.height), (opened.width, opened.height)
    # CLAM's files give the size of another level, from which level 0 is known within a few pixels only.
    other = all(known) and any(abs(one - two) > 64 + 0.005 * two for one, two in zip(known, real, strict=True))
    if other or (grid.coords < 0).any() or (grid.coords >= real).any():
        far = tuple(grid.coords.max(axis=0).tolist())
        made = f"a slide of {known[0]:,} x {known[1]:,} pixels" if other else f"patches up to {far}"
        raise CorruptRecordError(
            coords,
            "coordinates",
            f"made for {made}, but {opened.path.name} has {real[0]:,} x {real[1]:,}: coordinates of another slide, or "
            "the slide was exported again; patch it again",
        )
    return real
