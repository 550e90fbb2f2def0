"""What is said about a preparation when it ends: classes, patients, duplicates, sources that tell the label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import LabelError
from data_prep.common.image_duplicates import Duplicates, tell
from data_prep.common.splits import SPLITS
from data_prep.medical.xray.card import confounding
from data_prep.medical.xray.engine import say
from data_prep.medical.xray.luts import EIGHT_BITS, NOT_APPLIED
from data_prep.medical.xray.records import Listing

FEWEST_PATIENTS = 3  # of a class: one for each split


def count_classes(frame: pl.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images and patients of each class; an image whose patient is unknown counts as one."""
    found = frame.group_by("label").agg(pl.len(), pl.col("patient").n_unique())
    counts = {label: {"images": images, "patients": patients} for label, images, patients in found.iter_rows()}
    return {name: counts.get(name, {"images": 0, "patients": 0}) for name in classes}


def check_classes(frame: pl.DataFrame, counts: Mapping[str, Mapping[str, int]], listing: Listing, where: Path) -> None:
    """Say how many images each class has, and warn where those are too few.

    Args:
        frame: images that are kept, with the columns label and split.
        counts: `count_classes` of it.
        listing: what they come from.
        where: file or folder, for the message.

    Raises:
        LabelError: there is one class only.
    """
    present = [name for name, count in counts.items() if count["images"]]
    if len(counts) < 2:
        raise LabelError(f"{where}: all images are of the class {present[0]!r}; nothing can be learned from them")
    known = bool(frame["known"].any())
    said = [
        f"{name} {count['images']:,} image{'s' * (count['images'] != 1)}"
        + f" of {count['patients']:,} patient{'s' * (count['patients'] != 1)}" * known
        for name, count in counts.items()
    ]
    say(f"classes: {'; '.join(said)}")
    for name in present:
        patients = counts[name]["patients"]
        if patients < FEWEST_PATIENTS and len(present) > 1:
            say(
                f"warning: class {name!r} has {patients} patient{'s' * (patients != 1)}: too few for training, "
                "validation and test; join it with another class, or leave it out, with --labels"
            )
    for split in SPLITS:
        held = frame.filter(pl.col("split") == split)["label"].unique().to_list()
        absent = [name for name in counts if name not in held]
        if absent:
            say(f"split {split} has no image of {', '.join(absent)}" if held else f"split {split} is empty")
    if len(present) < 2 and listing.classes:
        say(f"all images are of the class {present[0]!r}: to measure a model with, not to train one")


def group_note(listing: Listing, shared: int) -> str:
    """What is to be known about the patients.

    Args:
        listing: of the images.
        shared: patient ids that occur under several sources.
    """
    one = shared == 1
    begin = f"{shared:,} patient id{' occurs' if one else 's occur'} under several sources: "
    if listing.patients_per_source:
        more = begin + "each is taken for one patient per source, and one person may be on two sides"
    else:
        more = begin + "each is taken for one patient; --patients-per-source true takes it for one patient per source"
    return "; ".join(part for part in (listing.group_note, more if shared else "") if part)


def tell_eight_bits(counts: Mapping[str, Any], hint: str) -> None:
    """Say in how many DICOM images of 8 bits tags that matter were left out.

    Args:
        counts: of the images, with `header_remarks`.
        hint: what to know about it.
    """
    for remark, files in counts["header_remarks"].items():
        if remark.startswith(EIGHT_BITS):
            more = f"; {hint}" if remark.endswith(NOT_APPLIED) else ""
            say(f"{remark} in {files:,} file{'s' * (files != 1)}{more}")


def tell_result(manifest: Mapping[str, Any], found: Duplicates) -> None:
    """Say what the user should know of patients, duplicates and sources."""
    group = manifest["group"]
    if group["note"] or not group["kept_apart"]:
        unknown = group["images_of_unknown_patients"]
        begin = (
            ""
            if group["kept_apart"]
            else f"the patient of {unknown:,} images is not known: patients may be on two sides"
        )
        say("; ".join(part for part in (begin, group["note"]) if part))
    for line in (tell(found.summary), *confounding(manifest["tables"]), str(manifest["counts"].get("about", ""))):
        if line:
            say(line)
