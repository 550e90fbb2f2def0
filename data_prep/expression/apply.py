"""New photographs and videos -> faces as a saved preparation takes them, for prediction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError, PrepError, RejectsExceededError
from data_prep.common.files import sha256_file, write_atomic
from data_prep.common.images import SUFFIXES
from data_prep.common.manifest import NAME, read_manifest, tool_version, verify_files
from data_prep.common.mapping import Done, Task
from data_prep.common.names import unique_names
from data_prep.common.raw import check_raw, walk
from data_prep.common.rejects import EXCERPT, Reject, check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, find_finished, identify, is_large, open_run
from data_prep.common.telling import say
from data_prep.common.video import SUFFIXES as VIDEOS
from data_prep.expression.card import common_side, to_parquet, write_payload
from data_prep.expression.encode import BLOCK_FILES, Rules, encode_block, encode_video
from data_prep.expression.engine import PAYLOAD, TOOLS, gather
from data_prep.expression.faces import FaceRules, open_detector
from data_prep.expression.records import refuse_archives, to_rows

PREDICT = "predict"
_ROUNDED = 2  # frames that a container may promise more than it holds, as it rounds its length


class Found(NamedTuple):
    """Raw files.

    Args:
        images: photographs.
        names: what these are called.
        videos: videos.
        titles: what those are called.
    """

    images: list[Path]
    names: list[str]
    videos: list[Path]
    titles: list[str]


def apply(
    preparation: Path,
    raw: list[Path] | Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    every: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Take faces of new photographs and videos in the way of a preparation: alignment, size and channels are its own.

    Each photograph, and each frame of a video, becomes one row of the split "predict"; videos are read frame by frame.

    Args:
        preparation: prepared directory of the training data.
        raw: image and video files, or folders of them.
        out: output directory; new, empty, or holding the same files prepared before.
        workers: processes; all cores by default.
        executor: as in `prepare`.
        max_rejects: share of pictures that cannot be used (without a face, too) that is tolerated; frames of videos do
            not count, they are listed.
        every: take each `every`-th frame of a video.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    manifest = read_manifest(preparation)
    saved = manifest.get("preparation")
    if manifest.get("domain") != "expression" or not isinstance(saved, dict) or saved.get("kind") != "faces":
        raise ManifestError(f"{preparation / NAME}: no preparation of faces; prepare the data again")
    if not 0 <= max_rejects <= 1 or every < 1:
        raise ConfigError(f"max_rejects {max_rejects}, every {every}: give a share from 0 to 1, and 1 or more frames")
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    check_raw(paths, out)
    refuse_archives(paths)
    rules = read_rules(preparation, manifest)
    found = _find(paths)
    files = [*found.images, *found.videos]
    command = {"dataset": manifest["name"], "apply": sha256_file(preparation / NAME), "every": every}
    finished = find_finished(out, {"command": command}, files)
    if finished is not None:
        return finished
    settings = Settings(executor, workers, None, progress, eager=is_large(files))
    with open_run(out, {"command": command, **identify(files, *TOOLS)}, settings, PAYLOAD) as run:
        return _apply(run, found, rules, manifest, command, max_rejects)


def read_rules(preparation: Path, manifest: dict[str, Any]) -> Rules:
    """The rules of a saved preparation, with the detector that it used.

    Args:
        preparation: prepared directory.
        manifest: its `dataset.json`.

    Raises:
        ManifestError: the detector is gone, or another one.
    """
    saved = manifest["preparation"]
    path = None
    if saved["align"] == "detector":
        path = preparation / str(saved["detector_file"])
        verify_files(preparation, {path.name: saved["detector"]})
        open_detector(path, saved["detector_score"])
    # nothing comes with new pictures: where training had boxes, the middle is taken, and this is told
    align = "center" if saved["align"] == "given" else saved["align"]
    if align != saved["align"]:
        say("the boxes of the training data's faces came with it; of new pictures the middle is taken: give cut faces")
    named: dict[str, Any] = {name: saved[name] for name in ("faces", "no_face", "margin", "upright", "side")}
    face = FaceRules(align=align, weights=str(path or ""), score=saved["detector_score"], **named)
    return Rules(face, int(saved["channels"]), bool(saved["packed"]))


def _find(raw: Sequence[Path]) -> Found:
    files = list(dict.fromkeys(walk(raw)))
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    videos = [path for path in files if path.suffix.lower() in VIDEOS]
    if not images and not videos:
        known = ", ".join(sorted(SUFFIXES | VIDEOS))
        raise DatasetNotFoundError(f"{raw[0]}: holds no image and no video; looked for {known}")
    names = unique_names([*images, *videos], raw)
    return Found(images, names[: len(images)], videos, names[len(images) :])


def _apply(
    run: Run, found: Found, rules: Rules, manifest: dict[str, Any], command: dict[str, Any], max_rejects: float
) -> dict[str, Any]:
    rows = to_rows([{"name": name, "path": str(path)} for name, path in zip(found.names, found.images, strict=True)])
    starts = range(0, len(rows), BLOCK_FILES)
    tasks = [Task(f"{at:08d}", encode_block, (rows.slice(at, BLOCK_FILES), at, rules)) for at in starts]
    every = command["every"]
    tasks += [
        Task(f"video-{number:05d}", encode_video, (str(path), every, rules)) for number, path in enumerate(found.videos)
    ]
    blocks = run.stage("read", tasks)
    frame, rejects = _name(found, gather(blocks), len(starts))
    of_videos, cut, videos = _describe_videos(found, blocks[len(starts) :])
    counted = [reject for reject in rejects if not reject.field.startswith("frame ")] + of_videos
    table = to_frame([*rejects, *of_videos, *cut])
    path = run.scratch / "rejects.parquet"
    write_atomic(path, to_parquet(table))
    _check(to_frame(counted), len(found.images) + len(found.videos), max_rejects, path)
    if not len(frame):
        reasons = table["reason"].unique().sort().to_list()
        first = found.images[0] if found.images else found.videos[0]
        raise PrepError(f"{first}: no face is left of {len(table):,} pictures: {reasons[0] if reasons else ''}")
    remarks = Counter(frame["remarks"].explode().drop_nulls().to_list())
    for remark, pictures in sorted(remarks.items()):
        say(f"{pictures:,} pictures or frames: {remark}")
    payload = write_payload(frame, blocks, [PREDICT], run.scratch, channels=rules.channels)
    described = {
        **{"domain": "expression", "kind": "faces", "name": manifest["name"], "version": tool_version()},
        **{"command": command, "licence": manifest["licence"], "classes": manifest["classes"]},
        "sources": [describe_source(each) for each in [*found.images, *found.videos]],
        **{"channels": payload.channels, "side": common_side(frame), "storage": manifest["storage"]},
        "group": {"name": manifest["group"]["name"], "kept_apart": False, "groups": frame["subject"].n_unique()},
        "split_rule": {"kind": PREDICT},
        "splits": payload.splits,
        "videos": videos,
        "counts": {
            **{"images": len(found.images), "videos": len(videos), "faces": len(frame)},
            "remarks": dict(sorted(remarks.items())),
        },
        "rejects": {"count": table.height, "share": table.height / max(table.height + len(frame), 1)},
        "preparation": manifest["preparation"],
    }
    return run.publish({**payload.files, "rejects.parquet": path}, described)


def _name(found: Found, facts: pl.DataFrame, blocks: int) -> tuple[pl.DataFrame, list[Reject]]:
    """Faces with their names, and what cannot be used."""
    of_images = facts.filter(pl.col("block") < blocks)
    of_videos = facts.filter(pl.col("block") >= blocks)
    titles = [found.titles[block - blocks] for block in of_videos["block"]]
    numbers = of_videos["frame"].to_list()
    frames = [f"{title}#{number:08d}" for title, number in zip(titles, numbers, strict=True)]
    joined = pl.concat([of_images, of_videos]).with_columns(
        name=pl.Series([*found.names, *frames], dtype=pl.String),
        subject=pl.Series([*found.names, *titles], dtype=pl.String),
        source=pl.Series([*([""] * len(found.names)), *titles], dtype=pl.String),
        split=pl.lit(PREDICT),
    )
    rejects = []
    for row in joined.filter(pl.col("reason") != "").iter_rows(named=True):
        of_video = row["frame"] is not None
        place = f"frame {row['frame']} ({row['time_s']:.3f} s)" if of_video else row["field"][:EXCERPT]
        rejects.append(Reject(row["source"] or row["name"], row["frame"] or 0, place, row["reason"], ""))
    return joined.filter(pl.col("reason") == ""), rejects


def _describe_videos(found: Found, blocks: Sequence[Done]) -> tuple[list[Reject], list[Reject], list[dict[str, Any]]]:
    """Videos that cannot be used, those that end early, and what is known of all that are used."""
    rejects: list[Reject] = []
    cut: list[Reject] = []
    videos: list[dict[str, Any]] = []
    for title, done in zip(found.titles, blocks, strict=True):
        info = done.info
        if info["reason"]:
            rejects.append(Reject(title, 0, "video", info["reason"], ""))
            say(f"{title}: {info['reason']}")
            continue
        for number, seconds in info["broken"]:
            say(f"{title}: frame {number:,} ({seconds:.3f} s) cannot be decoded; the others are used")
        if info["missing"] > _ROUNDED:
            reason = (
                f"the video ends early: its container promises {info['said']:,} frames, and {info['decoded']:,} came, "
                "which are used; copy it again, unless its rate varies"
            )
            cut.append(Reject(title, info["said"] - info["missing"], "frames", reason, ""))
            say(f"{title}: {reason}")
        entry = {name: info[name] for name in ("fps", "decoded", "said", "missing", "broken")}
        videos.append({"name": title, **entry})
    return rejects, cut, videos


def _check(rejects: pl.DataFrame, total: int, max_rejects: float, path: Path) -> None:
    try:
        check_rejects(rejects, total, max_rejects, path)
    except RejectsExceededError as error:
        if rejects.height >= total:
            raise
        enough = math.ceil(100 * rejects.height / total) / 100
        raise RejectsExceededError(f"{error}; --max_rejects {enough:g} predicts the others") from None
