"""What a prediction of poses in space leaves beside its table: a table of joints, a sheet of poses, moving pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from domains.common.figures import BLUE, GREY, ORANGE, plain
from domains.common.writing import clear_files, write_tables, write_whole
from domains.pose import camera
from domains.pose.evaluation3d import PREDICTED, poses_of
from domains.pose.figures3d import draw_pose, frame_poses
from domains.pose.layouts import Layout
from domains.pose.sequences import ClipStore

POSES, SHEET, MOVING = "poses_3d.parquet", "poses.png", "animations"
ROWS = 1 << 16  # of the table of joints that are made at a time, frames
SHEET_POSES = 6
MOST_MOVING = 120  # frames of an animation
RATE = 12.5  # of them a second
Array = NDArray[np.float64]


def write_lifted(
    predictions: pl.DataFrame, store: ClipStore, layout: Layout, directory: Path, *, pictures: int
) -> None:
    """Write `poses_3d.parquet`, `poses.png`, and `animations`, a GIF.

    Args:
        predictions: a row for each frame, clip by clip; PREDICTED in millimetres.
        store: of the clips.
        layout: of the joints.
        directory: where to write.
        pictures: clips on the sheet at most, the longest first, of which the first also moves; 0: nothing is drawn.
    """
    clear_files(directory / MOVING, ".gif")
    (directory / SHEET).unlink(missing_ok=True)
    write_tables(directory / POSES, joint_table(predictions, store, layout))
    clips = sorted(_clips(store), key=lambda clip: -int(clip["frames"]))
    if not clips or not pictures:
        return
    write_whole(directory / SHEET, _sheet(predictions, clips[:pictures], layout))
    longest = clips[0]
    name = "".join(mark if mark.isalnum() or mark in "-_" else "_" for mark in str(longest["name"]))[-80:]
    seen = store.read(int(longest["row"])).keypoints
    points = camera.from_screen(seen, int(longest["width"]), int(longest["height"])).double().numpy()
    moving = _moving(longest, points, _poses(predictions, longest), layout)
    write_whole(directory / MOVING / f"{name}.gif", moving)


def joint_table(predictions: pl.DataFrame, store: ClipStore, layout: Layout) -> Iterator[pl.DataFrame]:
    """Parts of a table with a row for each joint of each frame.

    Returns:
        clip, person, video, frame (number in the video), frame_name (where frames have names), time_s, joint, and x_mm,
        y_mm, z_mm: in the axes of the camera (x right, y down, z ahead), relative to the true root; where the network
        puts the root itself is near 0, not 0.
    """
    clips = pl.DataFrame(
        [
            {
                **{"clip": clip["name"], "person": str(clip.get("person") or clip["subject"])},
                **{"video": clip["recording"], "first": int(clip.get("first_frame") or 0)},
                **{"step": int(clip.get("step") or 1), "start": float(clip.get("start_s") or 0.0)},
                "fps": float(clip["fps"]),
            }
            for clip in _clips(store)
        ]
    )
    named = _frame_names(store)
    joints = len(layout.joints)
    names = pl.Series("joint", layout.joints, dtype=pl.String)
    for at in range(0, len(predictions), ROWS):
        part = predictions.slice(at, ROWS).with_columns(pl.col("frame").cast(pl.Int64))
        part = part.join(clips, on="clip", how="left", maintain_order="left")
        if named is not None:
            part = part.join(named, on=["clip", "frame"], how="left", maintain_order="left")
        facts = part.select(
            "clip",
            "person",
            "video",
            *(["frame_name"] if named is not None else []),
            frame=pl.col("first") + pl.col("frame") * pl.col("step"),
            time_s=pl.col("start") + pl.col("frame") / pl.col("fps"),
        )
        poses = poses_of(part[PREDICTED]).reshape(-1, 3)
        rows = np.repeat(np.arange(len(part)), joints)
        table = facts[rows].with_columns(joint=names[np.tile(np.arange(joints), len(part))])
        yield table.with_columns(
            **{f"{axis}_mm": pl.Series(poses[:, place], dtype=pl.Float32) for place, axis in enumerate("xyz")}
        )


def _frame_names(store: ClipStore) -> pl.DataFrame | None:
    """Names of the frames of clips; None: none has any."""
    if "frame_names" not in store.frame.columns or not store.frame["frame_names"].count():
        return None
    named = store.frame.select(clip="name", frame_name="frame_names").drop_nulls().explode("frame_name")
    return named.with_columns(frame=pl.int_range(pl.len()).over("clip"))


def _clips(store: ClipStore) -> list[dict[str, Any]]:
    first = store.first.tolist()
    return [{**clip, "first_row": first[at]} for at, clip in enumerate(store.frame.iter_rows(named=True))]


def _poses(predictions: pl.DataFrame, clip: Mapping[str, Any]) -> Array:
    """Poses of a clip (N, J, 3)."""
    begin = int(clip["first_row"])
    rows = predictions.filter(pl.col("row").is_between(begin, begin + int(clip["frames"]) - 1))
    return np.asarray(poses_of(rows[PREDICTED]), np.float64)


def _sheet(predictions: pl.DataFrame, clips: list[dict[str, Any]], layout: Layout) -> bytes:
    """Poses at even distances of the longest clips, a clip in each row, as a PNG."""
    figure = Figure(figsize=(2.1 * SHEET_POSES, 2.5 * len(clips)), layout="constrained")
    for line, clip in enumerate(clips):
        poses = _poses(predictions, clip)
        for place, frame in enumerate(np.unique(np.linspace(0, len(poses) - 1, SHEET_POSES).round().astype(int))):
            panel: Any = figure.add_subplot(len(clips), SHEET_POSES, line * SHEET_POSES + place + 1, projection="3d")
            draw_pose(panel, poses[frame], layout, colours=(GREY, ORANGE, BLUE), width=1.8)
            frame_poses(panel, poses.reshape(-1, 3))
            number = int(clip.get("first_frame") or 0) + int(frame) * int(clip.get("step") or 1)
            name = f"{plain(str(clip['name']), 24)}\n" if not place else "\n"
            panel.set_title(f"{name}frame {number}", fontsize=8)
    figure.text(0.5, -0.01, _SIDES, ha="center", va="top", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


_SIDES = "Left side orange, right side blue; relative to the root, as the camera sees it, a little from above."


def _moving(clip: Mapping[str, Any], points: Array, poses: Array, layout: Layout) -> bytes:
    """The beginning of a clip as a GIF: the 2D joints beside the pose that was made of them.

    Shape:
        points (N, J, 2) pixels, poses (N, J, 3).
    """
    step = max(1, round(float(clip["fps"]) / RATE))
    frames = range(0, len(poses), step)[:MOST_MOVING]
    figure = Figure(figsize=(7.0, 3.5))
    canvas: Any = FigureCanvasAgg(figure)
    flat: Any = figure.add_subplot(1, 2, 1)
    deep: Any = figure.add_subplot(1, 2, 2, projection="3d")
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.9, wspace=0.02)
    flat.set(xlim=(0, int(clip["width"])), ylim=(int(clip["height"]), 0), xticks=[], yticks=[])
    flat.set_aspect("equal")
    lines = [(flat.plot([], [])[0], deep.plot([], [], [])[0]) for _ in layout.edges]
    sides = dict.fromkeys(layout.left, ORANGE) | dict.fromkeys(layout.right, BLUE)
    for (start, end), pair in zip(layout.edges, lines, strict=True):
        for line in pair:
            line.set(color=sides.get(end, sides.get(start, GREY)), linewidth=2.0)
    frame_poses(deep, poses[frames[0] : frames[-1] + 1].reshape(-1, 3))
    pictures = []
    for frame in frames:
        pose = poses[frame]
        for (start, end), (line, bone) in zip(layout.edges, lines, strict=True):
            line.set_data(points[frame, [start, end], 0], points[frame, [start, end], 1])
            bone.set_data_3d(pose[[start, end], 0], pose[[start, end], 2], -pose[[start, end], 1])
        number = int(clip.get("first_frame") or 0) + frame * int(clip.get("step") or 1)
        flat.set_title(f"{plain(str(clip['name']), 30)}, frame {number}", fontsize=9)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("P", palette=Image.Palette.ADAPTIVE))
    buffer = io.BytesIO()
    milliseconds = round(1000 * step / float(clip["fps"]))
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()
