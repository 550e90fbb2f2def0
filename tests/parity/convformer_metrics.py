"""Replay errors of poses, their tables, and the geometry of preparation."""

from __future__ import annotations

import json
import re

import polars as pl
import torch
from torch import Tensor

from domains.pose import metrics3d as metrics
from domains.pose.camera import root_relative, to_screen, world_to_camera
from domains.pose.layouts import Layout, mirror
from domains.pose.lifting import flip_average, windows

TOLERANCE = {"output": 1e-6}


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    inputs = {
        name.removeprefix("input/"): tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in given.items()
    }
    config = json.loads(metadata["config"])
    result = {**errors(inputs), **tables(inputs), **geometry(inputs, config.get("root", 0))}
    for name in wanted:
        if found := re.fullmatch(r"output/pck(\d+)", name):
            mask, threshold = inputs["mask"], float(found[1])
            result[f"pck{found[1]}"] = metrics.pck(inputs["pred_mm"], inputs["target_mm"], mask, threshold=threshold)
        if found := re.fullmatch(r"output/windows_(\d+)", name):  # of the first, second and last frame
            result[f"windows_{found[1]}"] = windows(result["keypoints_norm"], int(found[1]))[[0, 1, -1]]
    return {name: result[name.removeprefix("output/")] for name in wanted}


def errors(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    prediction, target, mask = inputs["pred_mm"], inputs["target_mm"], inputs["mask"]
    frames = {
        "mpjpe": metrics.mpjpe(prediction, target),
        "p_mpjpe": metrics.p_mpjpe(prediction, target),
        "n_mpjpe": metrics.n_mpjpe(prediction, target),
    }
    return {
        **{f"per_frame_{name}": values for name, values in frames.items()},
        **{name: values.mean() for name, values in frames.items()},
        "aligned": metrics.procrustes(prediction, target),
        "mpjve": metrics.mpjve(prediction, target),
        "auc": metrics.auc(prediction, target, mask),
        "masked_mpjpe": metrics.masked_mpjpe(prediction, target, mask),
    }


def tables(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    actions = [f"{action:06d}" for action in inputs["clip_action"].tolist()]
    scores = metrics.score_clips(
        metrics.Clip(inputs[f"clip{i}_pred"], inputs[f"clip{i}_target"], action) for i, action in enumerate(actions)
    )
    means, average = metrics.per_action(scores), metrics.action_average(scores)
    result = {}
    for column in metrics.METRICS:
        name = column.removesuffix("_mm")
        result[f"per_action_{name}"] = torch.tensor(means[column].cast(pl.Float64).to_list(), dtype=torch.float64)
        result[f"avg_{name}"] = torch.tensor(average[column], dtype=torch.float64)
    return result


def geometry(inputs: dict[str, Tensor], root: int) -> dict[str, Tensor]:
    names = tuple(f"joint {i}" for i in range(inputs["keypoints_px"].shape[1]))
    sides = (tuple(inputs[f"joints_{side}"].tolist()) for side in ("left", "right"))
    layout = Layout("of the case", names, *sides)
    screen = to_screen(inputs["keypoints_px"], *inputs["screen_wh"].tolist())
    camera = world_to_camera(inputs["world_m"], inputs["cam_quaternion_wxyz"], inputs["cam_translation_m"])
    return {
        "keypoints_norm": screen,
        "keypoints_norm_flipped": mirror(screen, layout),
        "camera_m": camera,
        "root_relative_m": root_relative(camera, root),
        "tta_average": flip_average(inputs["tta_pred"], inputs["tta_pred_flipped"], layout),
    }
