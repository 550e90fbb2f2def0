"""What ConvFormer's poses rest on: attention between joints and between frames, and how branches are mixed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.common.attention import record
from domains.common.attention.convolutional import NAMES, DynamicConvolutionalAttention
from domains.common.figures import BLUE, GREY, ORANGE, Picture, plain
from domains.common.writing import write_tables
from domains.pose.camera import from_screen
from domains.pose.convformer import ConvFormer
from domains.pose.data3d import SequenceData
from domains.pose.figures3d import draw_pose, frame_poses
from domains.pose.layouts import Layout
from domains.pose.lifting import windows
from domains.pose.metrics3d import mpjpe
from domains.pose.module3d import MILLIMETRES, LiftModule
from domains.pose.sequences import ClipStore

SEEN = 20  # clips among which frames are chosen
LINES = 20  # pairs of joints that are drawn, the strongest
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One frame and what its pose rests on.

    Args:
        clip: name.
        frame: number in the clip.
        error: MPJPE, mm; NaN where the true pose is not known.
        points: 2D joints, pixels.
        pose: as predicted, mm.
        spatial: attention between the joints of the frame, of each block, mean over heads; rows add up to 1.
        temporal: attention between the frames of the window, likewise.

    Shape:
        points (J, 2), pose (J, 3), spatial (blocks, J, J), temporal (blocks, T, T).
    """

    clip: str
    frame: int
    error: float
    points: Array
    pose: Array
    spatial: Array
    temporal: Array


@torch.no_grad()
def explain_lift(module: LiftModule, data: SequenceData, directory: Path) -> list[Picture]:
    """Draw what the best and the worst frame rest on; write explain.parquet, attention between joints.

    Args:
        module: trained, in evaluation mode.
        data: its sequences; the beginning of the test split is looked at.
        directory: where the table goes.
    """
    layout = module.layout
    clips = data.clips("test")
    pictures, tables = [], []
    for title, (row, frame) in _choose(module, clips).items():
        case = look(module, clips, row, frame)
        heading = f"{title} of the first {min(SEEN, len(clips.frame))} clips"
        pictures += [_joints(case, heading, layout), _frames(case, heading)]
        joints = [name.replace("_", " ") for name in layout.joints]
        block, query, key = np.indices(case.spatial.shape).reshape(3, -1)
        tables.append(
            pl.DataFrame(
                {
                    **{"case": title, "clip": case.clip, "frame": case.frame, "mpjpe_mm": case.error, "block": block},
                    "joint": [joints[at] for at in query],
                    "attends_to": [joints[at] for at in key],
                    "attention": case.spatial.reshape(-1),
                }
            )
        )
    if tables:
        write_tables(directory / "explain.parquet", [pl.concat(tables)])
    return [*pictures, *mixing(module.net)]


def _choose(module: LiftModule, clips: ClipStore) -> dict[str, tuple[int, int]]:
    """Clip and frame with the least and the largest error; without true poses the middle of the first clip."""
    found: list[tuple[float, int, int]] = []
    for row in range(min(SEEN, len(clips.frame))):
        clip = clips.read(row)
        errors = mpjpe(module.lift(clip.keypoints.to(module.device)).cpu(), clip.pose * MILLIMETRES)
        known = clip.known.all(1).nonzero().flatten().tolist()
        found += [(float(errors[frame]), row, frame) for frame in known]
    if found:
        best, worst = min(found), max(found)
        return {"Least error": best[1:], "Largest error": worst[1:]}
    return {"A frame": (0, int(clips.frames[0]) // 2)} if len(clips.frame) else {}


@torch.no_grad()
def look(module: LiftModule, clips: ClipStore, row: int, frame: int) -> Case:
    """Run the network on one window, and collect what its blocks attend to."""
    net = module.net
    clip, entry = clips.read(row), clips.frame.row(row, named=True)
    seen = windows(clip.keypoints, net.frames)[frame : frame + 1].to(module.device)
    with record(net) as maps:
        pose = net(seen)[0, 0].cpu() * MILLIMETRES
    spatial = [found[0][net.frames // 2].mean(0) for name, found in maps.items() if name.startswith("spatial.")]
    temporal = [found[0][0].mean(0) for name, found in maps.items() if name.startswith("temporal.")]
    error = float(mpjpe(pose, clip.pose[frame] * MILLIMETRES)) if bool(clip.known[frame].all()) else float("nan")
    points = from_screen(clip.keypoints[frame], entry["width"], entry["height"])
    return Case(
        str(entry["name"]),
        frame,
        error,
        points.double().numpy(),
        pose.double().numpy(),
        _stacked(spatial, net.joints),
        _stacked(temporal, net.frames),
    )


def _stacked(maps: list[torch.Tensor], size: int) -> Array:
    found = torch.stack(maps) if maps else torch.zeros(0, size, size)
    return np.asarray(found.double().cpu().numpy())


def _joints(case: Case, title: str, layout: Layout) -> Picture:
    """Strongest pairs of joints over the 2D skeleton for each block, the pose, and the matrix of the last block."""
    blocks = len(case.spatial)
    figure = Figure(figsize=(2.7 * blocks + 6.6, 3.7), layout="constrained")
    panels: Any = [figure.add_subplot(1, blocks + 2, 1 + at) for at in range(blocks)]
    for block, panel in enumerate(panels):
        for start, end in layout.edges:
            panel.plot(case.points[[start, end], 0], case.points[[start, end], 1], color=GREY, linewidth=1.0)
        shares = case.spatial[block].copy()
        np.fill_diagonal(shares, 0.0)
        top = max(float(shares.max()), 1e-9)
        for place in np.argsort(-shares, axis=None)[:LINES]:
            query, key = divmod(int(place), len(shares))
            begin, end = case.points[query], case.points[key]
            strength = float(shares[query, key]) / top
            style = {"arrowstyle": "-|>", "color": ORANGE, "alpha": 0.2 + 0.7 * strength, "linewidth": 2.5 * strength}
            panel.annotate("", xy=tuple(end), xytext=tuple(begin), arrowprops=style | {"shrinkA": 2, "shrinkB": 3})
        received = shares.sum(0)
        panel.scatter(*case.points.T, s=10 + 60 * received / max(float(received.max()), 1e-9), color=BLUE, zorder=3)
        panel.set_aspect("equal", adjustable="datalim")
        panel.margins(0.15)
        panel.invert_yaxis()
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"spatial block {block + 1}", fontsize=9)
    deep: Any = figure.add_subplot(1, blocks + 2, blocks + 1, projection="3d")
    draw_pose(deep, case.pose, layout, colours=(GREY, ORANGE, BLUE), width=1.8)
    frame_poses(deep, case.pose)
    deep.set_title("pose found" if np.isnan(case.error) else f"pose found, {case.error:.0f} mm off", fontsize=9)
    right: Any = figure.add_subplot(1, blocks + 2, blocks + 2)
    names = [name.replace("_", " ") for name in layout.joints]
    if blocks:
        image = right.imshow(case.spatial[-1], cmap="viridis", vmin=0)
        figure.colorbar(image, ax=right, label="attention, last spatial block", shrink=0.8)
    right.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    right.set_yticks(range(len(names)), names, fontsize=6)
    caption = (
        f"{plain(case.clip, 50)}, frame {case.frame}. Arrows lead from a joint to one that it attends to, the"
        f" {LINES} strongest pairs of each block, mean over heads; the larger the dot, the more attention a joint gets"
        " from others. Rows of the matrix are the joints that attend; each adds up to 1."
    )
    return Picture(f"{title}: attention between joints", caption, figure)


def _frames(case: Case, title: str) -> Picture:
    """Attention between the frames of the window, and what each frame gets."""
    blocks, frames = case.temporal.shape[:2]
    figure = Figure(figsize=(3.1 * blocks + 3.6, 3.2), layout="constrained")
    offsets = np.arange(frames) - frames // 2
    extent = (offsets[0] - 0.5, offsets[-1] + 0.5, offsets[-1] + 0.5, offsets[0] - 0.5)
    for block in range(blocks):
        panel = figure.add_subplot(1, blocks + 1, block + 1)
        image = panel.imshow(case.temporal[block], cmap="viridis", vmin=0, extent=extent)
        panel.set(xlabel="frame attended to", ylabel="frame that attends" if block == 0 else "")
        panel.set_title(f"temporal block {block + 1}", fontsize=9)
        figure.colorbar(image, ax=panel, shrink=0.75)
    panel = figure.add_subplot(1, blocks + 1, blocks + 1)
    for block, colour in zip(range(blocks), (GREY, BLUE, ORANGE, "#5b8c5a") * blocks, strict=False):
        panel.plot(offsets, case.temporal[block].mean(0), color=colour, marker="o", markersize=3, label=f"{block + 1}")
    panel.axhline(1 / frames, color=GREY, linewidth=0.8, linestyle="--")
    panel.spines[["top", "right"]].set_visible(False)
    panel.set(xlabel="frame, from the one that is lifted", ylabel="mean attention it gets")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, title="block", fontsize=8)
    caption = (
        f"{plain(case.clip, 50)}, frame {case.frame} in the middle. Mean over heads; the dashed line is what every"
        " frame would get if all got the same. Frames outside the clip repeat its first or last one."
    )
    return Picture(f"{title}: attention between frames", caption, figure)


def mixing(net: ConvFormer) -> list[Picture]:
    """Draw the learned weights of the branches of each block (eq. 6); nothing where there is one branch."""
    blocks = {
        f"{stage} {at + 1}": block.attn
        for stage, stack in (("spatial", net.spatial), ("temporal", net.temporal))
        for at, block in enumerate(stack)
        if isinstance(block.attn, DynamicConvolutionalAttention) and len(block.attn.kernels) > 1
    }
    if not blocks:
        return []
    figure = Figure(figsize=(2.6 * len(blocks) + 0.8, 3.0), layout="constrained")
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    for panel, (name, attention) in zip(panels, blocks.items(), strict=True):
        count = len(attention.kernels)
        for place, part in enumerate(NAMES):
            eta = attention.eta(part).detach().double().cpu().numpy().reshape(count, -1)
            centre = np.arange(count) + (place - 1) * 0.27
            spread = np.stack([eta.mean(1) - eta.min(1), eta.max(1) - eta.mean(1)])
            errors = spread if eta.shape[1] > 1 else None
            panel.bar(centre, eta.mean(1), 0.25, color=(BLUE, ORANGE, GREY)[place], yerr=errors, label=part.upper())
        panel.axhline(1 / count, color=GREY, linewidth=0.8, linestyle="--")
        panel.set_xticks(range(count), [f"{size}" for size in attention.kernels])
        panel.set_xlabel("size of the filters")
        panel.set_title(name, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("weight of the branch")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    caption = (
        "How queries, keys and values are mixed from parallel convolutions, learned and the same for every input; the"
        " dashed line is where training begins."
    )
    return [Picture("Weights of the kernels", caption, figure)]
