"""Prepared sequences on disk, as whole clips or as windows: the only place that knows how they lie there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from domains.common.card import read_card
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.indexed import IndexStore, read_index
from domains.common.loader import Batch
from domains.pose import camera
from domains.pose.layouts import Layout, check_metres, find_layout

INDEX = (
    *("row", "name", "subject", "action", "recording", "camera", "frames", "fps", "width", "height", "focal"),
    *("centre", "radial", "tangential", "files"),
)
NAMES = ("name", "recording", "camera", "subject", "action")
PREPARED, PROJECTED = "keypoints_2d", "projected"


@dataclass(frozen=True)
class ClipData:
    """One clip as a network takes it.

    Args:
        keypoints: screen units.
        pose: relative to the root, metres, in the axes of the camera.
        known: joints whose true place is known and counts.

    Shape:
        keypoints (N, J, 2), pose (N, J, 3) float32, known (N, J) bool.
    """

    keypoints: Tensor
    pose: Tensor
    known: Tensor


def read_sequences(root: Path) -> dict[str, Any]:
    """Read `dataset.json` of prepared sequences.

    Raises:
        PreparedDataError: it is missing, or holds something else.
    """
    card = read_card(root, "pose")
    if card.get("kind") != "sequences":
        raise PreparedDataError(
            f"{root}: holds {card.get('kind')!r}, ConvFormer needs kind 'sequences'; choose --system or --data.root"
        )
    return card


def layout_of(card: Mapping[str, Any], root: Path) -> Layout:
    """The layout of prepared sequences.

    Raises:
        PreparedDataError: the card names none, one that is unknown, or other joints under a known name.
    """
    told = card.get("layout") or {}
    try:
        layout = find_layout(str(told.get("name")))
        joints, parents = tuple(told["joints"]), tuple(told["parents"])
    except (ConfigError, KeyError, TypeError) as error:
        raise PreparedDataError(f"{root}/dataset.json: layout: {error}; prepare the sequences again") from None
    if (joints, parents) != (layout.joints, layout.parents):
        raise PreparedDataError(
            f"{root}/dataset.json: its layout {layout.name} has other joints than the one of that name here; prepare "
            "the sequences with this version"
        )
    return layout


class ClipStore(IndexStore):
    """Whole clips of a split, one in each row; files are read when batches are made.

    Args:
        root: prepared directory.
        card: its `dataset.json`.
        split: name of the split.
        keypoints: tensor of the files that holds the 2D joints, in pixels; or projected: made of the 3D poses.

    Raises:
        PreparedDataError: the index cannot be read.
    """

    def __init__(self, root: Path, card: Mapping[str, Any], split: str, keypoints: str = PREPARED) -> None:
        super().__init__(root, read_index(root, card, split, INDEX), split)
        self.layout, self.keypoints = layout_of(card, root), keypoints
        self.poses = bool(card.get("poses", True))  # else there are keypoints alone, to be lifted
        frames = self.frame["frames"].to_numpy().astype(np.int64) if len(self.frame) else np.zeros(0, np.int64)
        self.frames = torch.from_numpy(frames)
        self.first = torch.from_numpy(np.cumsum(frames) - frames)  # row of each clip's first frame

    def read(self, row: int) -> ClipData:
        """Read one clip.

        Raises:
            PreparedDataError: the file is missing, damaged, or does not fit the index.
        """
        entry = self.frame.row(row, named=True)
        path = self.path(entry["files"][0])
        tensors = _tensors(path)
        name = PREPARED if self.keypoints == PROJECTED else self.keypoints
        joints = len(self.layout.joints)
        if not self.poses:
            blank = {"pose_3d": torch.zeros(entry["frames"], joints, 3)}
            tensors |= blank | {"valid_3d": torch.zeros(entry["frames"], joints, dtype=torch.bool)}
        wanted = {name: (joints, 2), "pose_3d": (joints, 3), "valid_3d": (joints,)}
        for each, shape in wanted.items():
            if each not in tensors:
                there = ", ".join(sorted(tensors))
                raise PreparedDataError(f"{path}: has no {each}, only {there}; choose data.keypoints, or prepare again")
            if tuple(tensors[each].shape) != (entry["frames"], *shape):
                raise PreparedDataError(
                    f"{path}: {each} is {tuple(tensors[each].shape)}, the index says {(entry['frames'], *shape)}; "
                    "prepare the sequences again"
                )
        pose, known = tensors["pose_3d"].float(), tensors["valid_3d"].bool()
        points = _projected(pose, entry, path) if self.keypoints == PROJECTED else tensors[name].float()
        finite = points.isfinite().all(-1).all(-1) & pose.isfinite().all(-1).all(-1)
        if not bool(finite.all()):
            frame = int((~finite).nonzero()[0])
            raise PreparedDataError(f"{path}: frame {frame} is not finite; prepare the sequences again")
        try:
            camera.check_pixels(points, entry["width"], entry["height"], f"{path}: {self.keypoints}")
            check_metres(pose, self.layout, f"{path}: pose_3d")
        except ConfigError as error:
            raise PreparedDataError(str(error)) from None
        screen = camera.to_screen(points, entry["width"], entry["height"])
        return ClipData(screen, camera.root_relative(pose, self.layout.root), known)

    def batch(self, batch: Batch) -> Batch:
        """Read the clips of a batch; several threads may call this at the same time.

        Shape:
            row (C,) -> also first (C,) int64, the number of each clip's first frame in the split; keypoints, pose and
            known: lists of what `read` gives; name, recording, camera, subject, action, layout: lists of strings.
        """
        rows: list[int] = batch["row"].tolist()
        clips = [self.read(row) for row in rows]
        table = self.at(batch["row"])
        return {
            "row": batch["row"],
            "first": self.first[batch["row"]],
            "keypoints": [clip.keypoints for clip in clips],
            "pose": [clip.pose for clip in clips],
            "known": [clip.known for clip in clips],
            **{name: table[name].to_list() for name in NAMES},
            "layout": [self.layout.name] * len(rows),
        }


class WindowStore:
    """Windows of all clips of a split in memory, with every `stride`-th frame of each clip in the middle.

    A window that leaves its clip repeats the first or last frame. Middle frames of which no joint is known are left
    out, as nothing can be learned of them; as neighbours they are seen.

    Args:
        clips: the clips.
        frames: T of a window, odd.
        stride: frames between two middle frames.
        copies: 2: each window is there twice, the second one to be mirrored; 1: once.

    Shape:
        `load` gives row (n,) int64; those from `windows` on are the second copies.
    """

    def __init__(self, clips: ClipStore, frames: int, stride: int, copies: int) -> None:
        self.layout, self.around = clips.layout, torch.arange(-(frames // 2), frames // 2 + 1)
        joints = len(clips.layout.joints)
        total = int(clips.frames.sum())
        self.keypoints, self.pose = torch.empty(total, joints, 2), torch.empty(total, joints, 3)
        self.known = torch.empty(total, joints, dtype=torch.bool)
        middles = []
        for row, (first, count) in enumerate(zip(clips.first.tolist(), clips.frames.tolist(), strict=True)):
            clip, place = clips.read(row), slice(first, first + count)
            self.keypoints[place], self.pose[place], self.known[place] = clip.keypoints, clip.pose, clip.known
            middles.append(torch.arange(first, first + count, stride))
        middle = torch.cat(middles) if middles else torch.zeros(0, dtype=torch.int64)
        self.middle = middle[self.known[middle].any(1)]
        clip_of = torch.searchsorted(clips.first, self.middle, right=True) - 1
        # bounds of the clip of each window
        self.low = clips.first[clip_of] if len(middle) else self.middle
        self.high = self.low + clips.frames[clip_of] - 1 if len(middle) else self.middle
        self.windows = len(self.middle)
        self.sizes = [copies * self.windows]

    def load(self, block: int) -> Batch:
        """Return the rows of all windows."""
        del block
        return {"row": torch.arange(self.sizes[0])}

    def __call__(self, batch: Batch) -> Batch:
        """Cut the windows of a batch.

        Shape:
            row (B,) -> also keypoints (B, T, J, 2), pose (B, J, 3) of the middle frame, known (B, J) bool, and mirrored
            (B,) bool, true for second copies.
        """
        row = batch["row"]
        window = row % max(self.windows, 1)
        middle = self.middle[window]
        seen = (middle[:, None] + self.around).clamp(self.low[window, None], self.high[window, None])
        return {
            "row": row,
            "keypoints": self.keypoints[seen],
            "pose": self.pose[middle],
            "known": self.known[middle],
            "mirrored": row >= self.windows,
        }


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise PreparedDataError(f"{path}: not found; prepare the sequences again") from None
    except (OSError, SafetensorError) as error:
        raise PreparedDataError(f"{path}: cannot be read ({error}); prepare the sequences again") from None


def _projected(pose: Tensor, entry: Mapping[str, Any], path: Path) -> Tensor:
    if entry["focal"] is None or entry["centre"] is None:
        raise PreparedDataError(
            f"{path}: the lens of camera {entry['camera']} is not known, so data.keypoints cannot be projected; use "
            f"{PREPARED}"
        )
    lens = [None if entry[name] is None else pose.new_tensor(entry[name]) for name in ("radial", "tangential")]
    return camera.project(pose, pose.new_tensor(entry["focal"]), pose.new_tensor(entry["centre"]), *lens)


def index_rates(frame: pl.DataFrame) -> list[float]:
    """Frames a second of the clips of an index, each once."""
    return sorted({float(rate) for rate in frame["fps"]}) if len(frame) else []
