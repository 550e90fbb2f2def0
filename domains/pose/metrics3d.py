"""Errors of 3D poses under their own names: "Protocol #3" is N-MPJPE in one paper and MPJVE in the next.

The formulas are those of facebookresearch/VideoPose3D @ 1afb1ca and of the MPI-INF-3DHP test program (D. Mehta et al.,
2017, arXiv 1611.09813). Lengths come out in the unit that goes in; the tables of clips are in millimetres. Poses are
relative to the root joint already, unless `root` asks for it: MPJPE moves the prediction with its root then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from domains.common.errors import ConfigError

PCK_MM = 150.0
AUC_MM = tuple(range(0, 151, 5))  # 31 thresholds
COINCIDENT = 1e-12  # joints whose extent is less than this of their distance from the origin lie in one point
METRICS = ("mpjpe_mm", "p_mpjpe_mm", "n_mpjpe_mm", "mpjve_mm")


def joint_distances(prediction: Tensor, target: Tensor, *, root: int | None = None) -> Tensor:
    """Distance of each joint from where it should be.

    Args:
        prediction: predicted joints.
        target: true joints.
        root: joint on which both are laid first; None: they are compared as they are.

    Shape:
        prediction (..., J, 3), target (..., J, 3) -> (..., J).

    Raises:
        ConfigError: shapes differ, or are none of joints in space.
    """
    if prediction.shape != target.shape or target.ndim < 2 or target.shape[-1] != 3:
        raise ConfigError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)}: both must be (..., joints, 3), of "
            "as many frames and joints"
        )
    if root is not None:
        prediction, target = (points - points[..., root : root + 1, :] for points in (prediction, target))
    distances: Tensor = (prediction - target).norm(dim=-1)
    return distances


def mpjpe(prediction: Tensor, target: Tensor, *, root: int | None = None) -> Tensor:
    """Mean per-joint position error of each frame; see `joint_distances`.

    Shape:
        (..., J, 3), (..., J, 3) -> (...).
    """
    return joint_distances(prediction, target, root=root).mean(dim=-1)


def masked_mpjpe(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean per-joint position error over the joints that count; NaN where none does.

    Shape:
        (..., J, 3), (..., J, 3), mask (..., J) True = counts -> ().
    """
    return joint_distances(prediction, target)[mask.bool()].mean()


def procrustes(prediction: Tensor, target: Tensor) -> Tensor:
    """The similarity transform (rotation, scale, translation) of each frame that lays it best on the target.

    By singular value decomposition (Schönemann, 1966; Umeyama, 1991) in float64, without reflections. Where all joints
    of a prediction coincide, so that it has neither scale nor orientation, they are put on the target's mean; where all
    of the target's do, the prediction shrinks to that point.

    Shape:
        prediction (..., J, 3), target (..., J, 3) -> (..., J, 3) float64.
    """
    joint_distances(prediction, target)  # shapes
    middle = target.double().mean(dim=-2, keepdim=True)
    (x, extent), (y, _) = (_centred(points.double()) for points in (target, prediction))
    u, s, vt = torch.linalg.svd(x.mT @ y)  # (..., 3, 3)
    sign = torch.linalg.det(vt.mT @ u.mT).sign()  # -1: the best map is a reflection, which turns the last direction
    last = torch.cat([torch.ones_like(s[..., :2]), sign[..., None]], dim=-1)
    rotation = (vt.mT * last[..., None, :]) @ u.mT
    scale = (s * last).sum(dim=-1)[..., None, None]  # of unit extents
    aligned: Tensor = scale * extent * (y @ rotation) + middle
    return aligned


def _centred(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points around their mean, of unit extent, and the extent; zeros where they coincide but for rounding."""
    centred = points - points.mean(dim=-2, keepdim=True)
    extent, size = (p.square().sum(dim=(-2, -1), keepdim=True).sqrt() for p in (centred, points))
    extended = extent > COINCIDENT * size
    return centred * extended / extent.where(extended, 1.0), extent * extended


def p_mpjpe(prediction: Tensor, target: Tensor) -> Tensor:
    """MPJPE of each frame after `procrustes`; float64.

    Shape:
        (..., J, 3), (..., J, 3) -> (...).
    """
    return mpjpe(procrustes(prediction, target), target.double())


def n_mpjpe(prediction: Tensor, target: Tensor) -> Tensor:
    """MPJPE of each frame after the scale that fits best: `s = sum(target prediction) / sum(prediction²)`.

    A prediction of nothing but zeros has no scale, and keeps the error it has.

    Shape:
        (..., J, 3), (..., J, 3) -> (...).
    """
    joint_distances(prediction, target)  # shapes
    square = prediction.square().sum(dim=(-2, -1), keepdim=True)
    scale = (target * prediction).sum(dim=(-2, -1), keepdim=True) / square.where(square > 0, 1.0)
    return mpjpe(scale * prediction, target)


def mpjve(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean per-joint velocity error of one clip, in lengths a frame: MPJPE of the differences of successive frames.

    Args:
        prediction: of successive frames of one clip; over the border of two clips a difference means nothing.
        target: likewise.

    Shape:
        (..., N, J, 3), (..., N, J, 3) -> (...); NaN where there is only one frame.
    """
    joint_distances(prediction, target)  # shapes
    return joint_distances(prediction.diff(dim=-3), target.diff(dim=-3)).mean(dim=(-2, -1))


def pck(prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, threshold: float = PCK_MM) -> Tensor:
    """Percentage of correct keypoints: joints nearer than the threshold, of all joints of all frames that count.

    A mean over groups of joints, as some papers print, is another number.

    Args:
        prediction: predicted joints, millimetres.
        target: true joints.
        mask: True where a joint counts; None: all do.
        threshold: a distance that equals it is too far.

    Shape:
        (..., J, 3), (..., J, 3), mask (..., J) -> (), 0 to 100; NaN where no joint counts.
    """
    return _shares(prediction, target, mask, [threshold])[0]


def auc(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, thresholds: Iterable[float] = AUC_MM
) -> Tensor:
    """Area under the curve of `pck`: its mean over thresholds, by default 0, 5, .. 150 mm.

    Shape:
        (..., J, 3), (..., J, 3), mask (..., J) -> (), 0 to 100.
    """
    return _shares(prediction, target, mask, thresholds).mean()


def _shares(prediction: Tensor, target: Tensor, mask: Tensor | None, thresholds: Iterable[float]) -> Tensor:
    distances = joint_distances(prediction, target)
    distances = distances.flatten() if mask is None else distances[mask.bool()]
    limits = torch.tensor(list(thresholds), dtype=distances.dtype, device=distances.device)
    return 100.0 * (distances < limits[:, None]).to(distances.dtype).mean(dim=1)


@dataclass(frozen=True)
class Clip:
    """Poses of successive frames of one person in one camera.

    Args:
        prediction: relative to the root, millimetres.
        target: likewise.
        action: what the person does.
        subject: who it is.
        name: which clip it is, for messages and tables.

    Shape:
        prediction (N, J, 3), target (N, J, 3).
    """

    prediction: Tensor
    target: Tensor
    action: str
    subject: str = ""
    name: str = ""


def score_clips(clips: Iterable[Clip]) -> pl.DataFrame:
    """One row for each clip: subject, action, clip, frames, and the metrics of METRICS, in millimetres.

    mpjve_mm is in millimetres a frame, null for a clip of one frame.

    Raises:
        ConfigError: a clip is empty, not finite, or of another shape than its target; the message names it.
    """
    rows = []
    for i, clip in enumerate(clips):
        name = clip.name or f"clip {i} ({clip.subject} {clip.action})".replace("( ", "(")
        prediction, target = clip.prediction.double(), clip.target.double()
        if target.ndim != 3 or prediction.shape != target.shape or not len(target):
            raise ConfigError(
                f"{name}: prediction {tuple(prediction.shape)}, target {tuple(target.shape)}; both must be (frames, "
                "joints, 3) with as many frames, at least one"
            )
        for what, points in (("prediction", prediction), ("target", target)):
            if not bool(points.isfinite().all()):
                frame = int((~points.isfinite()).nonzero()[0, 0])
                raise ConfigError(f"{name}: the {what} of frame {frame} is not finite; leave such frames out")
        values = [
            mpjpe(prediction, target).mean(),
            p_mpjpe(prediction, target).mean(),
            n_mpjpe(prediction, target).mean(),
            mpjve(prediction, target) if len(target) > 1 else None,
        ]
        described = {"subject": clip.subject, "action": clip.action, "clip": name, "frames": len(target)}
        numbers = (None if value is None else float(value) for value in values)
        rows.append({**described, **dict(zip(METRICS, numbers, strict=True))})
    schema = {"subject": pl.String, "action": pl.String, "clip": pl.String, "frames": pl.Int64}
    return pl.DataFrame(rows, schema={**schema, **dict.fromkeys(METRICS, pl.Float64)})


def summarise(scores: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Means of the metrics over clips weighted by their frames, for each value of the keys, in order.

    Args:
        scores: of `score_clips`.
        keys: columns, such as action, or subject and action.
    """

    def mean(metric: str) -> pl.Expr:
        weight = pl.col("frames").filter(pl.col(metric).is_not_null())
        value = (pl.col(metric) * pl.col("frames")).sum() / weight.sum()
        return pl.when(weight.sum() > 0).then(value).alias(metric)

    groups = scores.group_by(*keys) if keys else scores.group_by(pl.lit("all").alias("part"))
    means = groups.agg(pl.col("frames").sum(), *(mean(metric) for metric in METRICS))
    return means.sort(keys) if keys else means.drop("part")


def per_action(scores: pl.DataFrame) -> pl.DataFrame:
    """Metrics of each action, its clips weighted by their frames."""
    return summarise(scores, "action")


def per_subject(scores: pl.DataFrame) -> pl.DataFrame:
    """Metrics of each subject, its clips weighted by their frames."""
    return summarise(scores, "subject")


def action_average(scores: pl.DataFrame) -> dict[str, float]:
    """The reported averages: unweighted means over the actions of `per_action`."""
    return {metric: _number(per_action(scores)[metric].mean()) for metric in METRICS}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
