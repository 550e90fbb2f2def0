"""Files of 2D joints over time, without poses: tracks of a prediction, results of COCO's format, npz of VideoPose3D.

Which joints a file has is never guessed: it says so, or the user does; see `resolve`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.common.raw import walk
from data_prep.common.rejects import Reject
from data_prep.pose.detections import read_detections
from data_prep.pose.sequences.canonical import walk_positions
from data_prep.pose.sequences.checks import F64
from data_prep.pose.sequences.errors import LayoutError
from data_prep.pose.sequences.objects import read_npz
from data_prep.pose.sequences.skeletons import COCO_17, H36M_17, HUMANEVA_15, SKELETONS, Skeleton, from_coco

TRACKS = "tracks.parquet"
TRACK_COLUMNS = ("video", "frame", "time_s", "fps", "step", "width", "height", "layout", "track", "keypoints")
# what npz files of the field call layouts
NPZ_LAYOUTS = {"coco": COCO_17.name, "h36m": H36M_17.name, "humaneva15": HUMANEVA_15.name}
CONVERTED = (H36M_17.name, HUMANEVA_15.name)  # that COCO's joints can be made to
LARGEST_SIDE = 1 << 16  # pixels
MOST_FRAMES = 10_000_000  # from the first frame of a person to the last


@dataclass(frozen=True)
class Asked:
    """What a user says of keypoints.

    Args:
        layout: of their joints; empty: the files say it.
        size: width x height of the picture; empty: likewise.
        fps: frames a second; 0: as the files say it, or the training data.
    """

    layout: str = ""
    size: str = ""
    fps: float = 0.0

    def picture(self) -> tuple[int, int] | None:
        """Width and height in pixels; None: not given.

        Raises:
            ConfigError: it is no size.
        """
        if not self.size:
            return None
        sides = self.size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) <= LARGEST_SIDE for side in sides):
            raise ConfigError(f"size {self.size!r}: give width and height in pixels, as in 1920x1080")
        return int(sides[0]), int(sides[1])


@dataclass(frozen=True)
class Observed:
    """2D joints of one person.

    Args:
        source: file, for messages.
        video: name.
        person: number of the track, or name.
        layout: name of the joints' layout; empty: the file does not say it.
        size: width and height of the picture; None: likewise.
        fps: frames a second of what is here; 0: likewise.
        first: number of the first frame in the video.
        step: from one frame to the next.
        start: seconds of the first frame; negative: `first / fps`.
        points: pixels; NaN where the person is not found.
        names: of the frames, where they have names.

    Shape:
        points (T, K, 2 or 3).
    """

    source: str
    video: str
    person: str
    layout: str
    size: tuple[int, int] | None
    fps: float
    first: int
    step: int
    start: float
    points: F64
    names: tuple[str, ...] = ()


def find_keypoints(raw: Sequence[Path]) -> list[Path]:
    """Files of keypoints; of a folder with `tracks.parquet` that file alone.

    Raises:
        DatasetNotFoundError: there are none.
    """
    found: list[Path] = []
    for path in raw:
        if path.is_file():
            found.append(path)
        elif (path / TRACKS).is_file():
            found.append(path / TRACKS)
        else:
            found += [file for file in walk([path]) if kind_of(file) and file.name != "dataset.json"]
    if not found:
        raise DatasetNotFoundError(f"{raw[0]}: holds no {TRACKS}, no JSON and no npz file of 2D keypoints")
    unknown = next((path for path in found if not kind_of(path)), None)
    if unknown is not None:
        raise ConfigError(
            f"{unknown}: no file of 2D keypoints; give {TRACKS} (made by predicting persons in a video), JSON in the "
            "results format of COCO, or an npz file of VideoPose3D's form"
        )
    return list(dict.fromkeys(found))


def kind_of(path: Path) -> str:
    """tracks, json or npz; empty: none of them."""
    name = path.name.lower()
    return next((kind for kind, end in _ENDS.items() if name.endswith(end)), "")


_ENDS = {"tracks": (".parquet",), "json": (".json", ".json.gz"), "npz": (".npz",)}


def read_keypoints(path: Path, asked: Asked, max_rejects: float) -> tuple[list[Observed], list[Reject], int, list[str]]:
    """Read one file.

    Returns:
        Persons, detections that cannot be used, how many there are in all, and what the user should know.

    Raises:
        PrepError: it cannot be read.
    """
    kind = kind_of(path)
    if kind == "tracks":
        persons = list(_read_tracks(path))
        return persons, [], sum(len(person.points) for person in persons), []
    if kind == "npz":
        persons = list(_read_npz(path))
        return persons, [], sum(len(person.points) for person in persons), []
    return _read_json(path, asked, max_rejects)


def _read_tracks(path: Path) -> Iterator[Observed]:
    try:
        with translate_os_errors(path):
            table = pl.read_parquet(path, memory_map=False)
    except pl.exceptions.PolarsError as error:
        raise CorruptRecordError(path, "file", f"is no Parquet file ({str(error).splitlines()[0]})") from None
    missing = [name for name in TRACK_COLUMNS if name not in table.columns]
    if missing:
        raise CorruptRecordError(
            path, f"column {missing[0]}", f"is missing; give the {TRACKS} of a prediction of persons in a video"
        )
    if not len(table):
        reason = "there are none: nobody was sure enough to be followed; predict the video with a lower --model.shown"
        raise CorruptRecordError(path, "rows", reason)
    if any(table[name].null_count() > 0 for name in TRACK_COLUMNS):
        raise CorruptRecordError(path, "rows", "values are missing; predict the video again")
    for (video, track), rows in table.sort("video", "track", "frame").group_by("video", "track", maintain_order=True):
        first = rows.row(0, named=True)
        layout, step = str(first["layout"]), int(first["step"])
        frames = rows["frame"].to_numpy().astype(np.int64)
        places = (frames - frames[0]) // max(step, 1)
        lengths = rows["keypoints"].list.len().unique().to_list()
        if len(lengths) > 1 or lengths[0] % 2 or len(set(places.tolist())) < len(places) or places[-1] > MOST_FRAMES:
            raise CorruptRecordError(path, f"{video}, track {track}", "frames or keypoints are there twice, or partly")
        found = np.stack(rows["keypoints"].to_list()).astype(np.float64).reshape(len(rows), -1, 2)
        points = np.full((int(places[-1]) + 1, *found.shape[1:]), np.nan)
        points[places] = found
        size = int(first["width"]), int(first["height"])
        timing = float(first["fps"]), int(frames[0]), step, float(first["time_s"])
        yield Observed(path.name, str(video), str(track), layout, size, *timing, points)


def _read_npz(path: Path) -> Iterator[Observed]:
    content = read_npz(path)
    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = str(metadata.get("layout_name") or "")
    videos = metadata.get("video_metadata")
    for video, person, value in walk_positions(path, content, "positions_2d"):
        size = _size_of(videos.get(video)) if isinstance(videos, dict) else None
        for camera, points in enumerate(value if isinstance(value, list | np.ndarray) else [None]):
            where = f"{video}, {person}, camera {camera}"
            if not isinstance(points, np.ndarray) or points.dtype.kind not in "iuf" or points.ndim != 3:
                raise CorruptRecordError(path, where, "is no array (frames, joints, 2 or 3)")
            if points.shape[2] not in (2, 3) or not len(points):
                raise CorruptRecordError(path, where, f"has the shape {points.shape}: give (frames, joints, 2 or 3)")
            several = f"{person} camera {camera}" if len(value) > 1 else person
            yield Observed(
                path.name, video, several, NPZ_LAYOUTS.get(name, name), size, 0.0, 0, 1, -1.0, points.astype(np.float64)
            )


def _size_of(entry: Any) -> tuple[int, int] | None:
    try:
        width, height = int(entry["w"]), int(entry["h"])
    except (KeyError, TypeError, ValueError):
        return None
    return (width, height) if 0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE else None


def _read_json(path: Path, asked: Asked, max_rejects: float) -> tuple[list[Observed], list[Reject], int, list[str]]:
    joints = len(find_skeleton(asked.layout).joints) if asked.layout else len(COCO_17.joints)
    found, rejects = read_detections(path, asked.layout, joints, max_rejects=max_rejects)
    tracks: list[int | None] = [*found.tracks()]
    told = []
    if not tracks:
        tracks = [None]
        if len(found.frame) > len(found.frames):
            told = [f"{path.name}: says no track_id: the best detection of each image is taken for one person"]
    elif int((found.track < 0).sum()):
        told = [f"{path.name}: {int((found.track < 0).sum()):,} detections without track_id are left out"]
    persons = []
    for track in tracks:
        frames, points = found.sequence(track)
        names = () if isinstance(frames[0], int) else tuple(str(frame) for frame in frames)
        first = frames[0] if isinstance(frames[0], int) else 0
        person = "best" if track is None else str(track)
        persons.append(
            Observed(path.name, path.name.split(".")[0], person, "", None, 0.0, first, 1, -1.0, points, names)
        )
    return persons, rejects, len(found.frame) + found.left_out + len(rejects), told


def find_skeleton(name: str) -> Skeleton:
    """The layout of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SKELETONS:
        raise ConfigError(f"layout {name!r} is unknown; the layouts are {', '.join(SKELETONS)}")
    return SKELETONS[name]


def resolve(person: Observed, asked: str, wanted: Skeleton) -> tuple[tuple[int, ...], ...]:
    """How the joints of the model are made of those that are there.

    Args:
        person: the keypoints.
        asked: layout as the user says it; empty: not said.
        wanted: layout of the model.

    Returns:
        For each joint, the joints whose mean it is; empty: they are the model's.

    Raises:
        ConfigError: the layout is unknown.
        LayoutError: nobody says it, or the model's joints cannot be made of it, or only if that is asked for.
    """

    def fail(reason: str) -> LayoutError:
        return LayoutError(person.source, f"{person.video}, person {person.person}", reason)

    if asked:
        find_skeleton(asked)
        if person.layout and asked != person.layout:
            raise fail(f"its joints are {person.layout}, not {asked} as --layout says; leave the option out")
    name, joints = person.layout or asked, person.points.shape[1]
    if not name:
        raise fail(f"{joints} joints do not say which they are: name them, as in --layout {wanted.name} or coco-17")
    if name in SKELETONS and len(SKELETONS[name].joints) != joints:
        raise fail(f"has {joints} joints, {name} has {len(SKELETONS[name].joints)}")
    if name == wanted.name:
        return ()
    if name != COCO_17.name or wanted.name not in CONVERTED:
        raise fail(f"its joints are {name}, the model's {wanted.name}, and no conversion is defined")
    if not asked:
        raise fail(
            f"its joints are {name}, the model's {wanted.name}: --layout {name} makes them of the former (hips, "
            "shoulders and head become means of the joints around them)"
        )
    return from_coco(wanted)
