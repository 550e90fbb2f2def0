"""New images, videos, or 2D keypoints -> prepared in the way of a saved preparation, for prediction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, ManifestError
from data_prep.common.manifest import NAME, read_manifest


def apply(
    preparation: Path,
    raw: list[Path] | Path,
    out: Path,
    *,
    layout: str = "",
    size: str = "",
    fps: float = 0.0,
    every: int = 1,
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare new data without annotations as a preparation did: the split "predict".

    Persons in images: images, folders of them, or videos, whose frames become images in their order. Lifting to 3D:
    2D keypoints over time, as `tracks.parquet` of a prediction of persons in videos, JSON in the results format of
    COCO, or npz files of VideoPose3D's form.

    Args:
        preparation: prepared directory of the training data.
        raw: files, or folders.
        out: output directory; new, empty, or holding the same files prepared before.
        layout: lifting: layout of the joints, such as coco-17; needed where files do not name it. COCO's joints are
            made those of the model only where this says coco-17.
        size: lifting: width and height of the picture in pixels, as in 1920x1080, where files do not say it.
        fps: frames a second: of JSON and npz files, by default that of the training data; of images in folders, which
            are then the frames of one video each.
        every: persons: look at each so-many-th frame of a video only.
        workers: processes; all cores by default.
        executor: as in `prepare`.
        max_rejects: share of unusable images, frames or detections that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    from data_prep.common.run import Settings

    manifest = read_manifest(preparation)
    kind = manifest.get("kind")
    if manifest.get("domain") != "pose" or kind not in ("people", "sequences"):
        raise ManifestError(f"{preparation / NAME}: no preparation of persons or of sequences; prepare the data again")
    if not 0 <= max_rejects <= 1:
        raise ConfigError(f"max_rejects {max_rejects}: give a share from 0 to 1")
    if not (math.isfinite(fps) and fps >= 0) or every < 1:
        raise ConfigError(f"fps {fps:g}, every {every}: give frames a second above 0, and each 1st, 2nd, ... frame")
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    settings = Settings(executor, workers, None, progress)
    if kind == "people":
        for name, value in (("layout", layout), ("size", size)):
            if value:
                raise ConfigError(f"{name}: is for keypoints that are lifted; images of persons have their own")
        from data_prep.pose.people.apply_images import apply_images

        options: dict[str, Any] = {"fps": fps, "every": every, "settings": settings, "max_rejects": max_rejects}
        return apply_images(preparation, manifest, paths, out, **options)
    if every != 1:
        raise ConfigError("every: is for videos in which persons are found; the lifting network needs each frame")
    from data_prep.pose.sequences.apply_keypoints import apply_keypoints
    from data_prep.pose.sequences.keypoint_files import Asked

    return apply_keypoints(preparation, manifest, paths, out, Asked(layout, size, fps), settings, max_rejects)
