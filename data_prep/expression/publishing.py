"""What is done with faces that were read: splits, duplicates, index; then files under their final names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_prep.common.errors import LabelError
from data_prep.common.files import translate_os_errors, write_atomic
from data_prep.common.image_duplicates import Duplicates, find_duplicates, tell
from data_prep.common.manifest import tool_version
from data_prep.common.rejects import check_rejects, to_frame
from data_prep.common.run import Run, describe_source
from data_prep.common.splits import SPLITS
from data_prep.common.telling import few, say
from data_prep.expression.card import Payload, balance, common_side, count_classes, to_parquet, write_payload
from data_prep.expression.encode import Rules
from data_prep.expression.engine import ReadFaces, read_faces
from data_prep.expression.faces import STRETCHED
from data_prep.expression.records import Listing
from data_prep.expression.splitting import Folds, Split, SplitRule, divide, write_folds
from data_prep.expression.taxonomy import Classes

UNIT = "subject"


@dataclass(frozen=True)
class Described:
    """What is known before faces are read.

    Args:
        command: the `command` entry of `dataset.json`.
        rule: how to divide.
        where: file or folder that labels come from, for messages.
        classes: what labels became.
        max_rejects: share of unusable images that is tolerated.
    """

    command: dict[str, Any]
    rule: SplitRule
    where: str
    classes: Classes
    max_rejects: float


def publish_faces(run: Run, listing: Listing, rules: Rules, described: Described, key: bytes | None) -> dict[str, Any]:
    """Read, divide, look for duplicates, and publish."""
    faces = read_faces(run, listing, rules, key)
    table = to_frame(faces.rejects)
    rejects = run.scratch / "rejects.parquet"
    write_atomic(rejects, to_parquet(table))
    total = len(listing.rows) + len(listing.rejects)
    check_rejects(table, total, described.max_rejects, rejects)
    split = divide(faces.frame, described.rule, listing.group, described.where)
    frame = faces.frame.with_columns(split=pl.Series(split.splits, dtype=pl.String))
    found = _find_duplicates(frame, faces, listing, described.command["duplicates"], split)
    conflicting = _conflicting(frame) if described.command["conflicts"] == "drop" else np.zeros(len(frame), bool)
    frame = frame.filter(~pl.Series(found.dropped | conflicting))
    codes = {name: code for code, name in enumerate(described.classes.names)}
    frame = frame.with_columns(code=pl.col("label").replace_strict(codes, return_dtype=pl.UInt32))
    counts = count_classes(frame, described.classes.names, SPLITS)
    _check_classes(counts, described)
    count = int(described.command["folds"])
    payload = write_payload(frame, faces.blocks, SPLITS, run.scratch, channels=rules.channels, whole=bool(count))
    folds = write_folds(frame, found.table, count, described.rule, run.scratch) if count else Folds({}, [])
    files = payload.files | folds.files
    for name, rows in {"duplicates.parquet": found.table, "remarks.parquet": to_frame(faces.remarks)}.items():
        write_atomic(run.scratch / name, to_parquet(rows))
        files[name] = run.scratch / name
    files |= {"rejects.parquet": rejects, **_detector(rules, run.scratch)}
    manifest = {
        **_describe(listing, faces, rules, described, split, frame, payload),
        "counts": {**faces.counts, "conflicting_labels_dropped": int(conflicting.sum()), "classes": counts},
        "balance": balance(counts),
        "duplicates": {
            **found.summary,
            "near": "not looked for in videos" if listing.video else "looked for",
            "folds": folds.across,  # images with an exact copy on another side of the fold
        },
        "rejects": {"count": table.height, "share": table.height / max(total, 1)},
    }
    _tell(manifest, listing, faces, frame)
    return run.publish(files, manifest)


def _detector_name(rules: Rules) -> list[str]:
    return [f"detector{Path(rules.face.weights).suffix.lower()}"] if rules.face.weights else []


def _detector(rules: Rules, folder: Path) -> dict[str, Path]:
    """A copy of the detector: new pictures are cut by the same one, wherever the prepared data are moved."""
    files = {name: folder / name for name in _detector_name(rules)}
    for path in files.values():
        with translate_os_errors(path):
            write_atomic(path, Path(rules.face.weights).read_bytes())
    return files


def _find_duplicates(frame: pl.DataFrame, faces: ReadFaces, listing: Listing, rule: str, split: Split) -> Duplicates:
    if listing.video:
        # each frame is nearly the one before; a part of the digest for a hash leaves exact copies alone
        digests = np.frombuffer(b"".join(digest[:8] for digest in frame["digest"]), dtype="<u8")
        frame = frame.with_columns(hash=pl.Series(digests, dtype=pl.UInt64))
    return find_duplicates(frame, faces.thumbnails, rule, split.drawn, unit=UNIT)


def _conflicting(frame: pl.DataFrame) -> Any:
    """Training images of which an exact copy, in any split, has another label."""
    several = frame.group_by("digest").agg(pl.col("label").n_unique().alias("labels"))
    joined = frame.select("digest", "split").join(several, on="digest", how="left", maintain_order="left")
    return ((joined["labels"] > 1) & (joined["split"] == "train")).to_numpy()


def _check_classes(counts: Mapping[str, Mapping[str, int]], described: Described) -> None:
    """Refuse training images of one class, and tell classes that are nowhere in a split."""
    present = [name for name, images in counts["train"].items() if images]
    if len(present) < 2:
        elsewhere = [name for name in counts["train"] if name not in present and any(counts[s][name] for s in SPLITS)]
        what = f"all training images are of the class {present[0]!r}" if present else "no training image is left"
        if elsewhere:
            do = f"other splits have {few(elsewhere)}: mend the split, or draw another (--ratios, --seed)"
        elif described.classes.left_out:
            do = f"{few(list(described.classes.left_out))} lie outside the taxonomy: choose another one"
        else:
            do = "give a folder of each class, or a table of labels (--table)"
        raise LabelError(f"{described.where}: {what}; nothing can be learned from that: {do}")
    for split in SPLITS:
        absent = [name for name, images in counts[split].items() if not images]
        if absent:
            empty = len(absent) == len(counts[split])
            say(f"split {split} is empty" if empty else f"split {split} has no image of {', '.join(absent)}")


def _describe(
    listing: Listing,
    faces: ReadFaces,
    rules: Rules,
    described: Described,
    split: Split,
    frame: pl.DataFrame,
    payload: Payload,
) -> dict[str, Any]:
    known = frame.filter("known")
    unknown = len(frame) - len(known)
    sources = [describe_source(path) for path in listing.lists]
    return {
        "domain": "expression",
        "kind": "faces",
        "name": listing.name,
        "version": tool_version(),
        "licence": listing.licence,
        "sources": sources + ([faces.image_source] if faces.image_source else []),
        "command": described.command,
        "taxonomy": described.command["taxonomy"],
        "classes": list(described.classes.names),
        "label_map": dict(sorted(described.classes.of.items())),
        "targets": bool(frame["target"].is_not_null().any()),
        "channels": payload.channels,
        "side": common_side(frame),  # pixels; null: faces have several sizes
        "units": "pixels, from the left and the top edge of the raw picture; 8 bits for each channel, RGB",
        "storage": "packed" if rules.packed else "files",
        "splits": payload.splits,
        "folds": int(described.command["folds"]),
        "group": {
            "name": listing.group,
            # without subjects no border is known to keep them apart
            "kept_apart": not unknown and described.rule.by == UNIT,
            "groups": known["subject"].n_unique(),
            "images_of_unknown_subjects": unknown,
            "note": listing.note,
        },
        "split_rule": split.entry,
        "preparation": {
            "kind": "faces",
            "align": rules.face.align,
            "faces": rules.face.faces,
            "no_face": rules.face.no_face,
            "margin": rules.face.margin,
            "upright": rules.face.upright,
            "side": rules.face.side,
            "detector": described.command["detector_weights"],  # SHA-256 of its file
            "detector_name": Path(rules.face.weights).name if rules.face.weights else None,
            "detector_file": next(iter(_detector_name(rules)), None),
            "detector_score": rules.face.score,
            "channels": payload.channels,
            "packed": rules.packed,
        },
    }


def _tell(manifest: Mapping[str, Any], listing: Listing, faces: ReadFaces, frame: pl.DataFrame) -> None:
    counts = manifest["counts"]["classes"]
    for split in SPLITS:
        said = ", ".join(f"{name} {images:,}" for name, images in counts[split].items())
        say(f"{split}: {said}")
    group = manifest["group"]
    unknown = group["images_of_unknown_subjects"]
    lines: list[str] = []
    if unknown:
        lines.append(f"the {group['name']} of {unknown:,} images is not known: one person may be on two sides")
    elif not group["kept_apart"]:
        lines.append(
            "warning: faces of one subject are on two sides (--split-by image): results are those of known faces"
        )
    left = manifest["counts"]["labels_left_out"]
    if left:
        said = ", ".join(f"{label} {images:,}" for label, images in left.items())
        lines.append(f"labels outside {manifest['taxonomy']}, left out: {said}")
    lines += [listing.note, tell(manifest["duplicates"])]
    if faces.remarks:
        reasons = few(sorted({remark.reason for remark in faces.remarks}))
        lines.append(f"{len(faces.remarks):,} remarks on records, listed in remarks.parquet: {reasons}")
    stretched = sum(remark.reason == STRETCHED for remark in faces.remarks)
    if stretched:
        lines.append(
            f"{stretched:,} pictures are not square, and stretched to squares, as they are taken whole (--align none): "
            "--align center cuts the square in the middle, --align detector the face"
        )
    conflicts = manifest["duplicates"]["groups_with_several_labels"]
    if conflicts:
        lines.append(
            f"{conflicts:,} groups of equal images have several labels; --conflicts drop leaves exact ones out"
        )
    if _several_subjects(frame):
        lines.append("every class comes from one subject each: a model that recognises faces scores the same")
    for line in lines:
        if line:
            say(line)


def _several_subjects(frame: pl.DataFrame) -> bool:
    """Whether each class has one subject only, and there are several."""
    known = frame.filter("known")
    if not len(known) or known["label"].n_unique() < 2:
        return False
    subjects: Sequence[int] = known.group_by("label").agg(pl.col("subject").n_unique())["subject"].to_list()
    return max(subjects) == 1 and known["subject"].n_unique() > 1
