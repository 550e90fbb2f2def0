"""What is checked and said when a preparation ends: classes, identities, cameras, duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from data_prep.common.errors import LabelError
from data_prep.common.image_duplicates import tell
from data_prep.common.splits import SPLITS
from data_prep.common.telling import few, say
from data_prep.finegrained.card import FEW
from data_prep.finegrained.records import DISTRACTOR, GALLERY, JUNK, QUERY, Item
from data_prep.finegrained.splitting import Split

_FEW_IDENTITIES, _FEW_QUERIES = 4, 20  # fewer than so many are hardly a validation
_OWN_CAMERA = 0.9  # cameras for each picture of an identity, above which they are numbers of pictures


def check_classes(counts: Mapping[str, Mapping[str, int]], where: str) -> None:
    """Say how many pictures classes have, and warn where those are too few.

    Args:
        counts: class -> split -> pictures.
        where: file or folder, for the message.

    Raises:
        LabelError: fewer than two classes are trained on.
    """
    trained = [name for name, count in counts.items() if count["train"]]
    if len(trained) < 2:
        shown = f"of the class {trained[0]!r}" if trained else "left out"
        raise LabelError(
            f"{where}: all training pictures are {shown}; nothing can be learned from them; give several classes"
        )
    totals = [_total(count) for count in counts.values()]
    say(
        f"{len(counts):,} classes of {min(totals):,} to {max(totals):,} pictures; "
        + ", ".join(f"{split} {sum(count[split] for count in counts.values()):,}" for split in SPLITS)
    )
    _warn(
        "with one picture: it cannot be trained and tested",
        [name for name in counts if _total(counts[name]) == 1],
    )
    _warn("without any picture", [name for name in counts if not _total(counts[name])])
    untrained = [name for name, count in counts.items() if not count["train"] and _total(count)]
    _warn("with no training picture: those of validation and test can only be wrong", untrained)
    _warn("with no test picture", [name for name, count in counts.items() if count["train"] and not count["test"]])


def _total(count: Mapping[str, int]) -> int:
    return sum(count.values())


def _warn(what: str, names: Sequence[str]) -> None:
    if names:
        say(f"warning: {len(names):,} class{'es' * (len(names) != 1)} {what} ({few(names)})")


def check_identities(frame: pl.DataFrame, counts: Mapping[str, Any], split: Split, where: str) -> None:
    """Say how many identities and pictures there are, and which cannot be tested with.

    Args:
        frame: as `code_identities` gives it.
        counts: `count_identities` of it.
        split: how it was divided.
        where: file or folder, for the message.

    Raises:
        LabelError: one identity is trained on, or none of the test can ever be found.
    """
    identities = counts["identities"]
    if identities["train"] == 1:
        raise LabelError(
            f"{where}: only one identity is left in training; nothing can be learned from it; give several"
        )
    said = ", ".join(f"{name} {identities[name]:,}" for name in SPLITS)
    say(f"identities: {said}; pictures: {', '.join(f'{name} {count:,}' for name, count in counts['images'].items())}")
    if not identities["train"]:
        say("there is nothing to train on: these are data to measure a model with")
    extras = [f"{counts[name]:,} {name}" for name in (JUNK, DISTRACTOR) if counts[name]]
    if extras:
        say(f"in the gallery besides: {', '.join(extras)}")
    if split.ignore_camera:
        say(
            f"cameras are ignored in the test ({split.ignore_camera}): pictures of one camera match, which is easier "
            "than the usual rule; the scorer is told so in dataset.json"
        )
    _warn_identities(frame, "with one picture", pl.len() == 1)
    if not split.ignore_camera:
        _warn_identities(
            frame, "seen by one camera only: their queries would have no match", pl.col("camera").n_unique() == 1
        )
    scarce = counts[f"training_identities_with_fewer_than_{FEW}_images"]
    if scarce:
        say(f"{scarce:,} training identities have fewer than {FEW} pictures: samplers take some of them twice")
    for name, count in counts["queries_without_match"].items():
        if count:
            say(f"warning: {count:,} queries of {name} have no match in the gallery: the scorer passes over them")
    _warn_measured(frame, counts, ignore_camera=bool(split.ignore_camera))
    queries = counts["images"].get("test_query", 0)
    if identities["test"] and counts["queries_without_match"]["test"] == queries:
        raise LabelError(
            f"{where}: no query of the test has a match in the gallery "
            f"({identities['test']:,} identities, {queries:,} queries, {len(counts['cameras']):,} cameras); give "
            "identities with pictures of two cameras, or --ignore_camera true"
        )


def _warn_measured(frame: pl.DataFrame, counts: Mapping[str, Any], *, ignore_camera: bool) -> None:
    """Warn of queries and galleries that measure little: hardly any of them, or cameras that are none."""
    images, identities = counts["images"], counts["identities"]
    sides = {split: (images.get(f"{split}_{QUERY}", 0), images.get(f"{split}_{GALLERY}", 0)) for split in SPLITS}
    queries = sides["valid"][0]
    if identities["valid"] and (identities["valid"] < _FEW_IDENTITIES or queries < _FEW_QUERIES):
        say(
            f"warning: validation has {identities['valid']:,} identities and {queries:,} queries: its scores soon are "
            "1 and then tell no epoch from another; --valid_identities and --queries give it more"
        )
    for split, (asked, searched) in sides.items():
        if asked > searched:
            say(
                f"warning: {split} has {asked:,} queries and only {searched:,} pictures of the same identities in the "
                "gallery, so that scores are of few matches; see --queries, and the cameras"
            )
    each = frame.filter((pl.col("extra") == "") & (pl.col("camera") >= 0)).group_by("identity", "split")
    found = each.agg(pl.len(), pl.col("camera").n_unique().alias("cameras")).filter(pl.col("len") > 2)
    pictures, cameras = int(found["len"].sum()), int(found["cameras"].sum())
    if not ignore_camera and cameras > _OWN_CAMERA * pictures:
        say(
            "warning: nearly every picture of an identity has a camera of its own (on average "
            f"{cameras / len(found):.1f} cameras for {pictures / len(found):.1f} pictures): if what is taken for the "
            "camera is the number of the picture, leave camera_pattern, or the column camera, out"
        )


def _warn_identities(frame: pl.DataFrame, what: str, fault: pl.Expr) -> None:
    own = frame.filter(pl.col("extra") == "")
    found = own.group_by("split", "identity").agg(fault.alias("fault")).filter("fault")
    names = sorted(found["identity"].to_list())
    if names:
        by_split = [f"{split} {count:,}" for split in SPLITS if (count := int((found["split"] == split).sum()))]
        say(f"warning: {len(names):,} identities {what} ({', '.join(by_split)}: {few(names)})")


def tell_unboxed(items: Sequence[Item]) -> None:
    """Say which pictures are taken whole though others are cropped to their boxes."""
    names = [item.path for item in items if item.box is None]
    if names:
        say(f"warning: {len(names):,} pictures have no box and are taken whole ({few(names)}); give their boxes, too")


def tell_pictures(counts: Mapping[str, Any]) -> None:
    """Say what was done with the pictures."""
    for remark, count in counts["remarks"].items():
        say(f"{count:,} picture{'s' * (count != 1)}: {remark}")
    for name in ("pictures_not_listed", "pictures_in_other_folders"):
        if counts.get(name):
            say(f"{counts[name]:,} {name.replace('_', ' ')}: not used")


def tell_duplicates(summary: Mapping[str, Any], what: str) -> None:
    """Say which pictures are there several times.

    Args:
        summary: the `duplicates` entry of `dataset.json`.
        what: what labels are: classes or identities.
    """
    line = tell(dict(summary))
    if line:
        say(line)
    if summary["groups_with_several_labels"]:
        say(
            f"warning: {summary['groups_with_several_labels']:,} groups of equal pictures are of several {what}; see "
            "duplicates.parquet"
        )
    if summary.get("queries_in_gallery"):
        say(f"{summary['queries_in_gallery']:,} queries are in the gallery as well; see duplicates.parquet")
