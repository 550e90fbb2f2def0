"""What a prediction of persons leaves beside its table: tracks over the frames of videos, pictures, and videos.

Scores are of whole persons and not calibrated; the network says nothing of single keypoints, and nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from domains.common.errors import PreparedDataError
from domains.common.writing import clear_files, write_tables, write_whole
from domains.pose.drawing import Array, Pixels, draw_persons, png, video_file
from domains.pose.people import PeopleStore, read_rgb
from domains.pose.tracking import Tracker

TRACKS, OVERLAYS = "tracks.parquet", "overlays"
FORGOTTEN = 1.0  # seconds after which a person who is not seen is a new one
TIMED = ("video", "frame", "time_s", "fps", "step")  # columns of frames of videos


@dataclass(frozen=True)
class Keypoints:
    """What a preparation says of keypoints.

    Args:
        layout: name of their layout; empty where it has none.
        sigmas: tolerance of each.
        skeleton: pairs that are connected.
    """

    layout: str
    sigmas: Sequence[float]
    skeleton: Sequence[Sequence[int]]

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Keypoints:
        """Those of a `dataset.json`."""
        entry = card["keypoints"]
        return cls(str(entry.get("layout") or ""), entry["sigmas"], entry["skeleton"])


def write_people(
    predictions: pl.DataFrame, store: PeopleStore, keypoints: Keypoints, directory: Path, *, shown: float, pictures: int
) -> None:
    """Write `tracks.parquet` where there are videos, and `overlays`: images, and a video for each video.

    Args:
        predictions: a row for each detection, in the order of images.
        store: of the images.
        keypoints: of the persons.
        directory: where to write.
        shown: score from which a person is followed and drawn.
        pictures: images that are drawn at most, those of videos not counted; 0: neither images nor videos.
    """
    (directory / TRACKS).unlink(missing_ok=True)
    clear_files(directory / OVERLAYS, ".png", ".mp4")
    sure = predictions.filter(pl.col("score") >= shown)
    best = f", the best at {max(predictions['score'].to_list()):.2f}" if len(predictions) else ""
    print(f"{len(sure):,} of {len(predictions):,} detections have a score of {shown:g} or more{best}")
    timed = [name for name in TIMED if name in store.frame.columns]
    facts = store.frame.select("row", "file", *timed)
    if "video" in timed:
        sure = follow(sure, keypoints)
        if (store.frame["video"] != "").any():
            write_tables(directory / TRACKS, [tracks_table(sure, keypoints.layout)])
    if not pictures:
        return
    single = facts.filter(pl.col("video") == "") if "video" in timed else facts
    for row, file in single.head(pictures).select("row", "file").iter_rows():
        drawn = _drawn(store, int(row), sure.filter(pl.col("row") == row), keypoints)
        if drawn is not None:
            write_whole(directory / OVERLAYS / f"{int(row):06d}-{_plain(str(file))}.png", png(drawn))
    if "video" in timed:
        videos = facts.filter(pl.col("video") != "").group_by("video", maintain_order=True)
        for number, ((video,), frames) in enumerate(videos):
            path = directory / OVERLAYS / f"{number:03d}-{_plain(str(video))}.mp4"
            _write_video(str(video), frames, sure, store, keypoints, path)


def follow(sure: pl.DataFrame, keypoints: Keypoints) -> pl.DataFrame:
    """Add `track` to detections: the number of the person in the video; -1 where there is no video."""
    numbers = np.full(len(sure), -1, np.int64)
    places = sure.with_row_index("place").filter(pl.col("video") != "")
    for _, rows in places.group_by("video", maintain_order=True):
        rate = float(rows["fps"][0])
        tracker = Tracker(keypoints.sigmas, max(1, round(FORGOTTEN * rate * int(rows["step"][0]))))
        for (frame,), found in rows.sort("frame", maintain_order=True).group_by("frame", maintain_order=True):
            points, scores = _points(found), found["score"].to_numpy().astype(np.float64)
            numbers[found["place"].to_numpy()] = tracker.update(int(str(frame)), points, scores)
    return sure.with_columns(track=pl.Series(numbers, dtype=pl.Int64))


def tracks_table(followed: pl.DataFrame, layout: str) -> pl.DataFrame:
    """A row for each person and frame of videos, with what lifting to 3D must know.

    Args:
        followed: see `follow`.
        layout: name of the keypoints' layout.

    Returns:
        video, frame, time_s, fps (of the frames looked at), step (from one to the next), width, height, layout, track,
        score, and keypoints: x, y, x, y, ... in pixels.
    """
    rows = followed.filter(pl.col("video") != "").sort("video", "frame", "track")
    return rows.select(*TIMED, "width", "height", pl.lit(layout).alias("layout"), "track", "score", "keypoints")


def _write_video(
    video: str, frames: pl.DataFrame, sure: pl.DataFrame, store: PeopleStore, keypoints: Keypoints, path: Path
) -> None:
    """Draw the frames of a video into another, which lasts as long: what cannot be decoded repeats the frame before."""
    rows = sure.filter(pl.col("video") == video)
    found = {int(str(row)): part for (row,), part in rows.group_by("row", maintain_order=True)}
    rate, step, last = float(frames["fps"][0]), int(frames["step"][0]), -1
    before: Pixels | None = None
    with video_file(path, rate) as sink:
        for row, number in frames.select("row", "frame").iter_rows():
            drawn = _drawn(store, int(row), found.get(int(row), rows.clear()), keypoints)
            for _ in range(max(0, (number - last) // step - 1) if before is not None else 0):
                sink.add(before)  # type: ignore[arg-type]
            last = number
            if drawn is not None:
                before = drawn
                sink.add(drawn)


def _drawn(store: PeopleStore, row: int, found: pl.DataFrame, keypoints: Keypoints) -> Pixels | None:
    try:
        pixels = read_rgb(Path(store.locations([row])[0])).permute(1, 2, 0).numpy()
    except PreparedDataError:  # moved since it was predicted
        return None
    scores = [f"{score:.2f}" for score in found["score"].to_list()]
    if "track" in found.columns and len(found) and int(found["track"][0]) >= 0:
        numbers = found["track"].to_list()
        labels = [f"{number}: {score}" for number, score in zip(numbers, scores, strict=True)]
        return draw_persons(pixels, _points(found), keypoints.skeleton, numbers=numbers, labels=labels)
    return draw_persons(pixels, _points(found), keypoints.skeleton, labels=scores)


def _points(found: pl.DataFrame) -> Array:
    """Keypoints of some detections: (N, K, 2)."""
    if not len(found):
        return np.zeros((0, 1, 2))
    return np.stack(found["keypoints"].to_list()).astype(np.float64).reshape(len(found), -1, 2)


def _plain(name: str) -> str:
    """A path as the name of a file: without its suffix and what file systems do not like."""
    stem = name.rsplit(".", 1)[0] or "image"
    return "".join(mark if mark.isalnum() or mark in "-_" else "_" for mark in stem)[-80:]
