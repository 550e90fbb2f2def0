"""Persons in images, with keypoints (COCO, CrowdPose, JSON of COCO's form) -> prepared directory of the kind "people".

| stage | module | what it leaves |
|---|---|---|
| (first) | find, description, coco_json | files, splits, names of keypoints, sigmas |
| records | records, repair | per file: tables of images and persons, rejects, remarks |
| images | images | per 256 images: size, digest, and those that had to be written anew |
| (last) | dividing, job | splits, duplicates, index; then files under their final names, `dataset.json` |

Killed work continues; the bytes written depend on the input and the options alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from data_prep.common.extras import need


def prepare_people(
    dataset: Literal["coco", "crowdpose", "coco-json"],
    raw: list[Path] | Path,
    out: Path,
    *,
    annotations: list[Path] | None = None,
    description: Path | None = None,
    group: str = "",
    group_pattern: str = "",
    ratios: tuple[float, float, float] | None = None,
    valid_share: float | None = None,
    train_on_valid: bool = False,
    seed: int = 0,
    duplicates: Literal["auto", "report", "drop", "refuse"] = "auto",
    exif: Literal["auto", "apply", "ignore"] = "auto",
    verify: Literal["pixels", "header"] = "pixels",
    copy_images: bool = False,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare images of persons (or other objects) with keypoints, for Group Pose.

    Images stay where they are, and the index refers to them; those that are no plain 8-bit pictures (CMYK, 16 bits,
    palettes, transparency, an orientation that a camera noted) are written anew. What cannot be used is in
    `rejects.parquet`, what was repaired or looks wrong in `remarks.parquet`, each with file, record and ids.

    Args:
        dataset: coco (2017), crowdpose, or coco-json (JSON of COCO's form with keypoints of any kind).
        raw: folders of the data set, as it is downloaded.
        out: output directory; new, empty, or of the same preparation begun before.
        annotations: coco-json: the file of annotations, or one for each split, whose names (or folders) say train, val,
            test; else the JSON files in raw.
        description: coco-json: YAML with what the JSON does not say: keypoints, skeleton, flip (pairs of left and
            right), sigmas, category, licence, layout.
        group: coco-json: field of an image's entry, such as video_id; images of a group stay in one split.
        group_pattern: coco-json: regular expression whose bracket finds the group in a file name.
        ratios: coco-json: shares of train, valid, test where the data have no split; 0.8, 0.1, 0.1.
        valid_share: share of the training images that become the validation split. coco: 0, so that val2017 is used
            for validation and for test, as in publications; with a share it is used for test alone.
        train_on_valid: crowdpose: train on the validation split, too, as in publications; none is left for validation.
        seed: of splits that are drawn.
        duplicates: of images with the same pixels in two splits: auto (drop from the earlier split where the border was
            drawn here, else report), report, drop, or refuse.
        exif: orientation that a camera noted: auto (as the size in the annotations says), apply, or ignore.
        verify: pixels (decode each image, which finds damaged ones) or header (look at size and kind alone).
        copy_images: copy images into the output directory.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable images and annotations that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    need("pose", "preparation of images of persons", "PIL")
    from data_prep.pose.people.job import Options, run_preparation

    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    options = Options(
        dataset=dataset,
        annotations=tuple(annotations or ()),
        description=description,
        group=group,
        group_pattern=group_pattern,
        ratios=ratios,
        valid_share=valid_share,
        train_on_valid=train_on_valid,
        seed=seed,
        duplicates=duplicates,
        exif=exif,
        verify=verify,
        copy_images=copy_images,
        max_rejects=max_rejects,
    )
    return run_preparation(options, paths, out, workers, executor, shard, shard_patience, progress)
