"""Pictures of a test of poses in space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, bars, dots, plain
from domains.common.intervals import Estimate
from domains.pose.evaluation3d import (
    PREDICTED,
    TARGET,
    evaluate_scores,
    poses_of,
    scores_of,
)
from domains.pose.layouts import Layout, find_layout
from domains.pose.metrics3d import AUC_MM, PCK_MM

SHOWN_ACTIONS = 40
INTERVALS = 200


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: of a test, see `evaluate_poses`.
        metrics: of the same.
    """
    counted = predictions.filter(pl.col("counted"))
    if not len(counted):
        return []
    layout = find_layout(str(counted["layout"][0]))
    return [
        skeletons(counted, layout),
        by_action(predictions, metrics),
        by_joint(counted, layout),
        correct_joints(counted, metrics),
    ]


def skeletons(counted: pl.DataFrame, layout: Layout) -> Picture:
    """Draw the best frame, the median one and the worst, the true pose behind the predicted one."""
    order = np.argsort(counted["mpjpe_mm"].to_numpy(), kind="stable")
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for place, (name, at) in enumerate(chosen.items(), start=1):
        row = counted[int(at)]
        panel: Any = figure.add_subplot(1, 3, place, projection="3d")
        prediction, target = (poses_of(row[column])[0] for column in (PREDICTED, TARGET))
        draw_pose(panel, target, layout, colours=(GREY, GREY, GREY), width=3.0)
        draw_pose(panel, prediction, layout, colours=(BLUE, ORANGE, BLUE), width=1.5)
        frame_poses(panel, np.concatenate([prediction, target]))
        clip = plain(f"{row['clip'][0]} frame {row['frame'][0]}", 34)
        panel.set_title(f"{name}: {row['mpjpe_mm'][0]:.1f} mm\n{clip}", fontsize=9)
    caption = (
        "True poses in grey, predicted ones in blue, their left side in orange; as the camera sees them, a little from"
        " above. The number is the MPJPE of the frame."
    )
    return Picture("Best, median and worst frame", caption, figure)


def draw_pose(
    panel: Any, pose: NDArray[Any], layout: Layout, *, colours: tuple[str, str, str], width: float = 1.5
) -> None:
    """Draw the bones of a pose into axes in space.

    Args:
        panel: the axes.
        pose: in the axes of a camera (x right, y down, z ahead), any unit.
        layout: of the joints.
        colours: of the middle, the left and the right side.
        width: of the lines.

    Shape:
        pose (J, 3).
    """
    sides = dict.fromkeys(layout.left, 1) | dict.fromkeys(layout.right, 2)
    for start, end in layout.edges:
        bone = pose[[start, end]]
        colour = colours[sides.get(end, sides.get(start, 0))]
        panel.plot(bone[:, 0], bone[:, 2], -bone[:, 1], color=colour, linewidth=width, solid_capstyle="round")


def frame_poses(panel: Any, points: NDArray[Any]) -> None:
    """Make a unit as long on every axis, and put poses into the middle.

    Shape:
        points (N, 3), in the axes of a camera.
    """
    low, high = points.min(0), points.max(0)
    middle, reach = (low + high) / 2, max(float((high - low).max()) / 2, 1e-6) * 1.05
    panel.set_xlim(middle[0] - reach, middle[0] + reach)
    panel.set_ylim(middle[2] - reach, middle[2] + reach)
    panel.set_zlim(-middle[1] - reach, -middle[1] + reach)
    panel.set_box_aspect((1, 1, 1), zoom=1.2)
    panel.view_init(elev=12, azim=-75)
    for axis in (panel.xaxis, panel.yaxis, panel.zaxis):
        axis.set_ticklabels([])


def by_action(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> Picture:
    """Draw the MPJPE of each action with its interval over subjects, the largest on top."""
    scores = scores_of(predictions, metrics)
    parts = scores.partition_by("action", as_dict=True)
    found = [
        (f"{name} ({part['frames'].sum():,})", evaluate_scores(part, replicates=INTERVALS)["mpjpe_mm"])
        for (name,), part in parts.items()
    ]
    found.sort(key=lambda entry: -entry[1].value)
    overall = metrics["mpjpe_mm"].value if "mpjpe_mm" in metrics else None
    figure = dots(found[:SHOWN_ACTIONS], label="MPJPE, mm", overall=overall)
    caption = (
        "In brackets the frames; bars are 95 % intervals over subjects, where there are several. Dashed: the mean over"
        " actions."
    )
    return Picture("Error by action", caption, figure)


def by_joint(counted: pl.DataFrame, layout: Layout) -> Picture:
    """Draw the mean distance of each joint from where it should be."""
    distances = np.linalg.norm(poses_of(counted[PREDICTED]) - poses_of(counted[TARGET]), axis=-1)  # (N, J)
    names = [name.replace("_", " ") for name in layout.joints]
    figure = bars(distances.mean(0).tolist(), names, label="mean distance, mm")
    caption = f"Relative to the root ({names[layout.root]})."
    return Picture("Error by joint", caption, figure)


def correct_joints(counted: pl.DataFrame, metrics: Mapping[str, Estimate]) -> Picture:
    """Draw the share of joints that are nearer than a distance."""
    distances = np.linalg.norm(poses_of(counted[PREDICTED]) - poses_of(counted[TARGET]), axis=-1).ravel()
    figure, panel = axes(5.4, 3.4)
    shares = [100.0 * float((distances < limit).mean()) for limit in AUC_MM]
    panel.plot(AUC_MM, shares, color=BLUE, linewidth=1.4)
    panel.set_xlabel("distance, mm")
    panel.set_ylabel("joints nearer than that, %")
    panel.set_xlim(0, PCK_MM)
    panel.set_ylim(0, 102)
    told = [f"{text} {metrics[name].value:.1f}" for name, text in _SHARES.items() if name in metrics]
    return Picture("Correct joints by threshold", f"Of all joints of all frames. {', '.join(told)}.", figure)


_SHARES = {"pck_150mm": "PCK at 150 mm", "auc_150mm": "area under the curve"}
