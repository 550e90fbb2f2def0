"""New X-rays -> images as a saved preparation makes them, for prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.medical.xray.prepare import check_libraries


def apply_images(
    preparation: Path,
    raw: list[Path] | Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Make images of new DICOM or image files in the way of a preparation.

    Size, stretching and views are those of the preparation; each image becomes one row of the split "predict", called
    as its file is. Patients of DICOM headers become numbers; other images are patients of their own.

    Args:
        preparation: prepared directory of the training data.
        raw: files, or folders of them.
        out: output directory; new, empty, or holding the same files made by the same preparation.
        workers: processes; all cores by default.
        executor: as in `prepare`.
        max_rejects: share of unusable images that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    check_libraries()
    from data_prep.medical.xray.predict import make_images

    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    return make_images(preparation, paths, out, workers, executor, max_rejects, progress)
