"""Sequences of 2D keypoints and 3D poses of persons -> prepared directory, for networks that lift 2D to 3D.

| stage | module | what it leaves |
|---|---|---|
| (first) | human36m, humaneva, mpi_inf_3dhp | which files there are |
| unpack | objects, matlab_cells, the readers | arrays of each file, as files of their own |
| (between) | the readers | recordings: which arrays belong together, and which cameras saw them |
| make | clips, checks | of each recording and camera a file of keypoints and poses, checked and repaired |
| (last) | splitting | splits, duplicates, index; then files under their final names, `dataset.json` |

Killed work continues; the bytes written depend on the input and the options alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def prepare_sequences(
    dataset: Literal["human36m", "humaneva", "mpi-inf-3dhp"],
    raw: list[Path] | Path,
    out: Path,
    *,
    keypoints: str = "",
    cameras: str = "",
    actions: str = "",
    poses: Literal["metric", "universal"] = "metric",
    convert: bool = False,
    rate: float = 0.0,
    valid_subjects: str = "",
    test_subjects: str = "",
    duplicates: Literal["refuse", "report"] = "refuse",
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare sequences of 2D keypoints with their 3D poses.

    What is written are pixels, and metres in the axes of each camera. Missing joints are filled from the frames around
    and marked; keypoints that do not belong to their pose, are in another unit or in another order of joints are
    refused. Subjects stay on one side of the split, but for HumanEva's published one, which says so.

    Args:
        dataset: human36m (canonical npz files or cdf), humaneva (canonical npz files), or mpi-inf-3dhp (annot.mat,
            camera.calibration, annot_data.mat).
        raw: folders or files of the data set, as it is downloaded.
        out: output directory; new, empty, or of the same preparation begun before.
        keypoints: which 2D file, by the end of its name, as in gt or cpn_ft_h36m_dbb; projected: made from the 3D
            poses; default the only one there is, for human36m else projected.
        cameras: names of cameras, as in C1,C2; default all of human36m and humaneva, and the eight usual of
            mpi-inf-3dhp.
        actions: names of actions, as in Walking,Jog; default all.
        poses: mpi-inf-3dhp: metric, or universal (all persons as if of one size).
        convert: make the keypoints of COCO's joints, where the 2D file says that it has those (hips, shoulders and
            heads become means of the joints around them); without it such a file is refused.
        rate: frames a second of the prepared sequences, a divisor of that recorded; 0: as recorded.
        valid_subjects: subjects of the validation split, as in S8; default none, as published.
        test_subjects: subjects of the test split, in the place of the published one; all others are trained on.
        duplicates: of the same numbers in two splits: refuse, or report.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable clips (one recording, one camera) that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    # behind the docstring: the help needs no library
    from data_prep.pose.sequences.job import Options, run_preparation
    from data_prep.pose.sequences.records import Asked
    from data_prep.pose.sequences.splitting import parse_names

    options = Options(
        dataset=dataset,
        asked=Asked(keypoints, parse_names(cameras), parse_names(actions), poses, convert),
        rate=rate,
        valid_subjects=parse_names(valid_subjects),
        test_subjects=parse_names(test_subjects),
        duplicates=duplicates,
        max_rejects=max_rejects,
    )
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    return run_preparation(options, paths, out, workers, executor, shard, shard_patience, progress)
