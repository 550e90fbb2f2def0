"""Pictures of faces with expressions -> prepared directory of the kind "faces".

| stage | module | what it leaves |
|---|---|---|
| (first) | a module for each data set | the listing: what to read, and what the data set says about it |
| read | encode, faces | per block: faces as rows of arrays or as files, facts, thumbnails |
| (last) | splitting, publishing, card | splits, folds, duplicates, index, `dataset.json` |

Killed work continues; the bytes written depend on the input and the options alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def prepare(
    dataset: Literal["raf-db", "fer2013", "ferplus", "ck+", "jaffe", "ferg-db", "aff-wild2", "folder"],
    raw: list[Path] | Path,
    out: Path,
    *,
    table: Path | None = None,
    subject_pattern: str = "",
    votes: Literal["majority", "probability", "crossentropy", "multi_target", "argmax"] = "majority",
    peak_frames: int = 3,
    neutral_frames: int = 1,
    per_video: int = 0,
    per_video_label: int = 0,
    taxonomy: Literal["native", "basic7", "basic8"] = "native",
    align: Literal["none", "center", "given", "detector"] = "none",
    faces: Literal["largest", "center", "score", "refuse"] = "largest",
    no_face: Literal["reject", "whole"] = "reject",
    detector_weights: Path | None = None,
    detector_score: float = 0.7,
    margin: float = 0.1,
    upright: bool = True,
    side: int = 0,
    channels: Literal[0, 1, 3] = 0,
    storage: Literal["auto", "packed", "files"] = "auto",
    ratios: tuple[float, float, float] | None = None,
    valid_share: float | None = None,
    split_by: Literal["subject", "image"] = "subject",
    folds: int = 0,
    seed: int = 0,
    duplicates: Literal["auto", "report", "drop", "refuse"] = "auto",
    conflicts: Literal["report", "drop"] = "report",
    anonymise: Path | None = None,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare pictures of faces with one expression each, for ARBEx.

    Subjects stay on one side of every split that is drawn; splits that come with the data are kept, and refused when a
    subject is on two sides. What cannot be used is in `rejects.parquet`, what is odd in `remarks.parquet`.

    Args:
        dataset: raf-db (basic), fer2013 (table or folders), ferplus (fer2013new.csv with fer2013.csv, or with images
            called fer0000000.png), ck+ (as published, CK+48, or ckextended.csv), jaffe, ferg-db, aff-wild2
            (expressions), or folder (a folder for each class, or a table).
        raw: folders or files of the data set, as it is downloaded.
        out: output directory; new, empty, or of the same preparation begun before.
        table: folder: CSV with the columns image and label (or emotion), and subject, split, source, and x, y, width,
            height of the face where known.
        subject_pattern: folder: regular expression whose bracket finds the subject in a file name.
        votes: ferplus: majority (more than half, as in publications), probability or crossentropy (shares),
            multi_target (classes with 30 %), or argmax (most votes of the eight classes).
        peak_frames: ck+: last frames of a sequence that show its expression.
        neutral_frames: ck+: first frames of a sequence that are neutral; 0 leaves the class out.
        per_video: aff-wild2: most training frames of a video, drawn; 0 takes all (the authors of ARBEx take 512).
        per_video_label: aff-wild2: most training frames of a video with one label, drawn before that; 0 takes all.
        taxonomy: classes: native (the data set's own, in its own order), basic7 (neutral, anger, disgust, fear,
            happiness, sadness, surprise) or basic8 (and contempt); images with other labels are left out, counted.
        align: none (whole pictures; those that are not square are stretched), center (largest square), given (box or
            eyes that come with the data: raf-db, table) or detector; raf-db is read from its originals unless it is
            none.
        faces: which of several faces: largest, center (nearest to the middle), score, or refuse (reject the picture).
        no_face: reject a picture without a face, or take the whole of it.
        detector_weights: file of the detector: YuNet (ONNX), or a Haar cascade (XML) where OpenCV has these.
        detector_score: of a face, at least (YuNet).
        margin: added around a face on each side, as a share of the longer side of its box.
        upright: turn pictures so that the eyes are level, where they are known.
        side: height and width of prepared faces in pixels; 0 keeps their sizes.
        channels: 1 grey, 3 RGB, 0 grey where all pictures are.
        storage: packed (one array for each split, which is loaded at once or mapped), files, or auto (packed where
            faces have one size of at most 112 pixels and take at most 2 GiB).
        ratios: shares of subjects in train, valid, test where the data have no split; 0.8, 0.1, 0.1.
        valid_share: share of the training subjects that become the validation split where the data have a test split
            only; 0.1.
        split_by: what stays on one side: subject, or image, which lets a model recognise faces.
        folds: write split files of so many folds, too, which keep subjects apart, and pictures that are duplicates of
            each other together; 10 is usual for ck+ and jaffe.
        seed: of what is drawn.
        duplicates: of images that are in two splits: auto (drop from the earlier split where the border was drawn here,
            else report), report, drop (from the earlier split, so that what is tested stays whole), or refuse.
        conflicts: report exact copies with several labels, or drop those among the training images.
        anonymise: file with a secret: names and subjects in the output are replaced by keyed hashes; faces stay faces.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable images that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    from data_prep.expression.job import Options, run_preparation

    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    options = Options(
        dataset=dataset,
        table=table,
        subject_pattern=subject_pattern,
        votes=votes,
        peak_frames=peak_frames,
        neutral_frames=neutral_frames,
        per_video=per_video,
        per_video_label=per_video_label,
        taxonomy=taxonomy,
        align=align,
        faces=faces,
        no_face=no_face,
        detector_weights=detector_weights,
        detector_score=detector_score,
        margin=margin,
        upright=upright,
        side=side,
        channels=channels,
        storage=storage,
        ratios=ratios,
        valid_share=valid_share,
        split_by=split_by,
        folds=folds,
        seed=seed,
        duplicates=duplicates,
        conflicts=conflicts,
        anonymise=anonymise,
        max_rejects=max_rejects,
    )
    return run_preparation(options, paths, out, workers, executor, shard, shard_patience, progress)
