"""How well poses are found in space: metrics under their own names, averaged over actions, intervals over subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.common.errors import PreparedDataError
from domains.common.figures import WARNINGS
from domains.common.intervals import Estimate, Floats, joint_bootstrap
from domains.pose.metrics3d import METRICS, Clip, auc, pck, per_action, per_subject, score_clips, summarise

PREDICTED, TARGET = "predicted_mm", "target_mm"
SHARES = ("pck_150mm", "auc_150mm")
FRAME_MEANS = tuple(f"frame_mean_{name}" for name in METRICS)
FEW_SUBJECTS = 5
SHOWN_CLIPS = 500


class PoseMetrics(dict[str, Estimate]):
    """Metrics, and the scores of clips that they are made of, which tables and pictures need again.

    Args:
        metrics: name -> estimate.
        scores: of `score_predictions`.
    """

    def __init__(self, metrics: Mapping[str, Estimate], scores: pl.DataFrame) -> None:
        super().__init__(metrics)
        self.scores = scores


def scores_of(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> pl.DataFrame:
    """The scores that metrics carry, or else those of the predictions."""
    return metrics.scores if isinstance(metrics, PoseMetrics) else score_predictions(predictions)


def evaluate_poses(predictions: pl.DataFrame, *, replicates: int = 1000, seed: int = 0) -> PoseMetrics:
    """Metrics with intervals over subjects.

    - `mpjpe_mm`, `p_mpjpe_mm`, `n_mpjpe_mm`, and `mpjve_mm` (mm a frame): the unweighted mean over actions, in each of
      which clips are weighted by their frames; as papers on Human3.6M report them.
    - `frame_mean_...`: the same with every frame of every action alike.
    - `pck_150mm`, `auc_150mm`: of all joints of all frames, in percent; as papers on MPI-INF-3DHP report them, but for
      means over groups of joints.

    Frames with a joint whose true place is not known (`counted` false) are left out; no difference of frames is taken
    over such a gap.

    Args:
        predictions: one row for each frame, in any order: columns clip, subject, action, frame, counted, predicted_mm
            and target_mm (lists of 3 J numbers: x, y, z of each joint).
        replicates: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        PreparedDataError: nothing can be measured, or predictions are broken.
        ConfigError: a pose is not finite.
    """
    scores = score_predictions(predictions)
    return PoseMetrics(evaluate_scores(scores, replicates=replicates, seed=seed), scores)


def evaluate_scores(scores: pl.DataFrame, *, replicates: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """See `evaluate_poses`; from the scores of clips.

    Args:
        scores: of `score_predictions`, or several of these below each other.
        replicates: bootstrap resamples.
        seed: of the bootstrap.
    """
    frames = scores["frames"].to_numpy().astype(np.float64)
    values = np.stack([scores[name].to_numpy().astype(np.float64) for name in METRICS])  # NaN: one frame, no velocity
    defined = np.isfinite(values)
    products, weights = np.where(defined, values, 0.0) * frames, defined * frames
    names, action = np.unique(scores["action"].to_numpy().astype(str), return_inverse=True)
    member = (action[:, None] == np.arange(len(names))).astype(np.float64)  # (clips, actions)
    shares = np.stack([scores[name].to_numpy() * frames for name in SHARES])

    def together(drawn: Floats) -> Floats:
        by_action = _ratio((products * drawn) @ member, (weights * drawn) @ member)
        return np.concatenate(
            [
                [row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in by_action],
                _ratio(products @ drawn, weights @ drawn),
                shares @ drawn / (frames @ drawn),
            ]
        )

    groups = scores["subject"].to_numpy()
    wanted = [*METRICS, *FRAME_MEANS, *SHARES]
    return joint_bootstrap(wanted, together, len(scores), groups, replicates=replicates, seed=seed)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def score_predictions(predictions: pl.DataFrame) -> pl.DataFrame:
    """Scores of each run of successive counted frames, see `score_clips`, and `pck_150mm` and `auc_150mm`.

    Args:
        predictions: see `evaluate_poses`.

    Raises:
        PreparedDataError: no frame counts.
    """
    clips = list(runs(predictions))
    if not clips:
        raise PreparedDataError("no frame has a known true pose, so that nothing can be measured; use predict")
    return score_all(clips)


def score_all(clips: Sequence[Clip]) -> pl.DataFrame:
    """`score_clips` with the shares of joints that are near enough, in percent."""
    pairs = [(clip.prediction.double(), clip.target.double()) for clip in clips]
    near = pl.Series([float(pck(*pair)) for pair in pairs], dtype=pl.Float64)
    area = pl.Series([float(auc(*pair)) for pair in pairs], dtype=pl.Float64)
    return score_clips(clips).with_columns(pck_150mm=near, auc_150mm=area)


def runs(predictions: pl.DataFrame) -> list[Clip]:
    """Stretches of successive frames that count, of every clip.

    Raises:
        PreparedDataError: a frame is there twice.
    """
    found = []
    counted = predictions.filter(pl.col("counted")).sort("clip", "frame")
    for (name,), part in counted.partition_by("clip", as_dict=True, maintain_order=True).items():
        frames = part["frame"].to_numpy().astype(np.int64)
        steps = np.diff(frames)
        if (steps == 0).any():
            raise PreparedDataError(f"{name}: frame {frames[int(np.argmin(steps))]} is predicted twice")
        sides = [torch.from_numpy(poses_of(part[column])) for column in (PREDICTED, TARGET)]
        action, subject = str(part["action"][0]), str(part["subject"][0])
        for run in np.split(np.arange(len(frames)), np.flatnonzero(steps > 1) + 1):
            prediction, target = (side[run[0] : run[-1] + 1] for side in sides)
            found.append(Clip(prediction, target, action, subject, str(name)))
    return found


def poses_of(column: pl.Series) -> NDArray[np.float32]:
    """Poses (N, J, 3) of a column of lists of 3 J numbers.

    Raises:
        PreparedDataError: lists differ in length, or are none of joints in space.
    """
    flat = column.explode().to_numpy().astype(np.float32)
    if not len(column) or len(flat) % (3 * len(column)):
        raise PreparedDataError(f"column {column.name}: its lists are no poses of x, y and z of each joint")
    return flat.reshape(len(column), -1, 3)


def known_runs(known: Tensor) -> list[tuple[int, int]]:
    """First frame and frame behind the last of each stretch of frames whose joints are all known.

    Shape:
        known (N, J) bool.
    """
    whole = torch.nn.functional.pad(known.all(1).to(torch.int8), (1, 1))
    edges = whole.diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def report_tables(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> dict[str, list[dict[str, Any]]]:
    """Tables of a test's report: heading -> rows; lengths in millimetres.

    Args:
        predictions: see `evaluate_poses`.
        metrics: as it returns them; they carry the scores of clips.
    """
    scores = scores_of(predictions, metrics)
    tables: dict[str, list[dict[str, Any]]] = {}
    warnings = cautions(predictions)
    if warnings:
        tables[WARNINGS] = [{"warning": text} for text in warnings]
    tables["By action"] = _rounded(per_action(scores))
    tables["By subject"] = _rounded(per_subject(scores))
    tables["By subject and action"] = _rounded(summarise(scores, "subject", "action"))
    clips = summarise(scores, "clip").sort("mpjpe_mm", descending=True)
    more = f" (the worst {SHOWN_CLIPS} of {len(clips)})" if len(clips) > SHOWN_CLIPS else ""
    tables[f"By clip{more}"] = _rounded(clips.head(SHOWN_CLIPS))
    return tables


def cautions(predictions: pl.DataFrame) -> list[str]:
    """Say why numbers of this test may mislead."""
    found = []
    subjects, left_out = predictions["subject"].n_unique(), int((~predictions["counted"]).sum())
    if subjects < 2:
        found.append("There is only one subject: intervals over subjects do not exist.")
    elif subjects < FEW_SUBJECTS:
        found.append(f"Only {subjects} subjects: bootstrap intervals over so few are too narrow.")
    if left_out:
        found.append(
            f"{left_out:,} of {len(predictions):,} frames have a joint whose true place is not known, or are not to be "
            "scored; they are in no number."
        )
    return found


def _rounded(table: pl.DataFrame) -> list[dict[str, Any]]:
    return table.with_columns(pl.col(METRICS).round(2)).to_dicts()
