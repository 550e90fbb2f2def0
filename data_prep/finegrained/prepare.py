"""Fine-grained classes and identities -> prepared directory of the kind "classes" or "identities".

| stage | module | what it leaves |
|---|---|---|
| (first) | cub, cars, aircraft, market1501, msmt17, veri776, folder, csv_table | the listing: what to read |
| images | images | per 128 pictures: sizes, used part, digests, thumbnails, and those that had to be written anew |
| (last) | splitting, roles, card, telling | splits, queries, duplicates, index; then final names, `dataset.json` |

Killed work continues; the bytes written depend on the input and the options alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from data_prep.common.extras import need


def prepare(
    dataset: Literal["cub", "cars", "aircraft", "market1501", "msmt17", "veri776", "folder", "csv"],
    raw: list[Path] | Path,
    out: Path,
    *,
    kind: Literal["auto", "classes", "identities"] = "auto",
    table: Path | None = None,
    level: Literal["variant", "family", "manufacturer"] = "variant",
    version: str = "",
    train_on_valid: bool = False,
    identity_pattern: str = "",
    camera_pattern: str = "",
    class_level: int = 0,
    ignore_camera: bool = False,
    crop: Literal["none", "box"] = "none",
    margin: float = 0.0,
    exif: Literal["auto", "apply", "ignore"] = "auto",
    ratios: tuple[float, float, float] | None = None,
    valid_share: float | None = None,
    valid_identities: int | None = None,
    queries: int | None = None,
    seed: int = 0,
    duplicates: Literal["auto", "report", "drop", "refuse"] = "auto",
    copy_images: bool = False,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    r"""Prepare pictures of fine-grained classes, or of people and objects to be found again.

    Pictures stay where they are, and the index refers to them; those that are no plain 8-bit pictures (CMYK, 16 bits,
    palettes, transparency, an orientation that a camera noted) are written anew. Cropping is written down in the index.
    What cannot be used is in `rejects.parquet`, with file and record.

    Args:
        dataset: cub (CUB-200-2011), cars (Stanford Cars), aircraft (FGVC-Aircraft), market1501 (and what has its
            folders and names), msmt17, veri776, folder (a folder for each class or identity), or csv (a table).
        raw: folders of the data set, as it is downloaded.
        out: output directory; new, empty, or of the same preparation begun before.
        kind: folder, csv: classes, or identities that are to be found again; auto: identities where the table has such
            a column, or a pattern is given.
        table: csv: table with the columns image and label (or identity), and camera, split, group, and left, top,
            right, bottom (or x, y, width, height) where known; default the only one in raw.
        level: aircraft: which names are the classes.
        version: msmt17: V1 or V2 (masked faces), where both are there.
        train_on_valid: aircraft: train on trainval, as in publications; msmt17: train on the validation list, too.
        identity_pattern: folder: regular expression whose bracket finds the identity in a path, as in '(\d+)_c'.
        camera_pattern: folder: regular expression whose bracket finds the camera in a path, as in '_c(\d+)'.
        class_level: folder: of folders in folders, as train/audi/a3/1.jpg, which one is the class or identity, counted
            from the outermost (1) below those of splits; by default the one that holds the pictures, or the outermost
            if pictures lie unequally deep or, of identities, folders of one name come again (cameras, sessions).
        ignore_camera: identities: pictures of one camera count as matches, too; so it is anyhow where cameras are not
            known, or no identity is seen by two.
        crop: box cuts to the object, where the data set gives its box.
        margin: with crop: share of the sides of a box that is added on each side.
        exif: orientation that a camera noted: auto (applied unless there are boxes), apply, or ignore.
        ratios: shares of train, valid, test where the data have no split: of the pictures of each class (0.8, 0.1,
            0.1), or of the identities (0.5, 0, 0.5).
        valid_share: classes: share of the training pictures of each class that become the validation split where the
            data have a test split only; 0.1; published results are of 0.
        valid_identities: identities: so many training identities are held out for validation, as queries and gallery;
            a tenth, but of up to 100 a fifth up to 10; published results are of 0.
        queries: identities: queries of each identity and camera, where the data do not say which they are; 1, and in
            the validation half of the pictures of each identity where cameras play no part.
        seed: of what is drawn.
        duplicates: of pictures that are in two splits: auto (drop from the earlier split where the border was drawn
            here, else report), report, drop, or refuse.
        copy_images: copy pictures into the output directory.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable pictures that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    need("finegrained", "preparation of pictures", "PIL", "cv2")
    from data_prep.finegrained.job import Options, run_preparation

    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    options = Options(
        dataset=dataset,
        kind=kind,
        table=table,
        level=level,
        version=version,
        train_on_valid=train_on_valid,
        identity_pattern=identity_pattern,
        camera_pattern=camera_pattern,
        class_level=class_level,
        ignore_camera=ignore_camera,
        crop=crop,
        margin=margin,
        exif=exif,
        ratios=ratios,
        valid_share=valid_share,
        valid_identities=valid_identities,
        queries=queries,
        seed=seed,
        duplicates=duplicates,
        copy_images=copy_images,
        max_rejects=max_rejects,
    )
    return run_preparation(options, paths, out, workers, executor, shard, shard_patience, progress)
