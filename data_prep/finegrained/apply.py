"""New pictures -> prepared in the way of a saved preparation, for prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.common.extras import need


def apply(
    preparation: Path,
    raw: list[Path] | Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare new pictures as a preparation did: the split "predict", without labels.

    Cropping is that of the preparation: boxes come from a table (.csv) beside the pictures with the columns image, and
    left, top, right, bottom (or x, y, width, height); without one, pictures are taken whole, which is told. Of
    identities, pictures in folders query and gallery have these roles; others beside them have none, which is told.

    Args:
        preparation: prepared directory of the training data.
        raw: files, or folders of them.
        out: output directory; new, empty, or holding the same files prepared before.
        workers: processes; all cores by default.
        executor: as in `prepare`.
        max_rejects: share of unusable pictures that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    need("finegrained", "preparation of pictures", "PIL", "cv2")
    from data_prep.finegrained.predict import make_predict

    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    return make_predict(preparation, paths, out, workers, executor, max_rejects, progress)
