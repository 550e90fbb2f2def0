"""The demo: drawn people in images and generated sequences, from the raw files to the reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from apps.common.demo import Row, compare, interval, run_command, train_and_test
from data_prep.pose.planted_people import write_planted_people
from data_prep.pose.planted_sequences import write_planted_sequences
from domains.common.intervals import Estimate
from domains.pose.data import PeopleData
from domains.pose.keypoint_ap import Found, evaluate

PEOPLE = {"Group Pose": ("people", "demo")}
LIFT = {"ConvFormer, 9 frames": ("lift", "demo_lift")}
FRAME = {"ConvFormer, 1 frame": ("lift", "demo_frame")}
REPORTED = ("AP", "AP50", "AP75", "AR")


def demo(directory: Path) -> None:
    """Generate, prepare, train, test, explain and compare, by the commands that a user types.

    Args:
        directory: everything is written below it.
    """
    people(directory / "people")
    sequences(directory / "sequences")


def people(directory: Path) -> None:
    """Images of several drawn people: Group Pose beside the mean pose in the true boxes."""
    raw, prepared = directory / "raw", directory / "prepared"
    print("1. images of drawn people: COCO's annotations, JPEG")
    if not (prepared / "dataset.json").is_file():
        write_planted_people(raw, train=560, valid=100, persons=2)
        options = ["--valid-share", "0.1"]
        run_command("pose", "prep", "coco", "--raw", str(raw), "--out", str(prepared), *options)
    metrics = train_and_test("pose", PEOPLE, prepared, directory)
    print("3. what Group Pose attends to")
    run_command("pose", "explain", "--run", str(directory / "people"))
    rows = [_people_row(title, found) for title, found in metrics.items()]
    rows.append({"model": "mean pose, true boxes", **mean_pose(prepared), "95 % interval": "-"})
    compare(
        directory,
        "Heptad demo: drawn people",
        rows,
        "AP",
        "The mean pose is that of the training images, put into the annotated boxes of the test images, which Group"
        " Pose is not given: what is known of joints when people are found, but not how they stand.",
        "people",
    )


def sequences(directory: Path) -> None:
    """Generated sequences: ConvFormer of 9 frames beside one that sees single frames."""
    raw, prepared = directory / "raw", directory / "prepared"
    print("\n1. sequences of generated figures: 3D poses and noisy 2D joints, files of Human3.6M")
    if not (prepared / "dataset.json").is_file():
        write_planted_sequences(raw)
        options = ["--valid-subjects", "S8"]
        run_command("pose", "prep", "human36m", "--raw", str(raw), "--out", str(prepared), *options)
    metrics = train_and_test("pose", LIFT, prepared, directory)
    metrics |= train_and_test("pose", FRAME, prepared, directory / "frame")
    print("3. which joints and frames ConvFormer attends to")
    run_command("pose", "explain", "--run", str(directory / "lift"))
    compare(
        directory,
        "Heptad demo: generated sequences",
        [_lift_row(title, found) for title, found in metrics.items()],
        "MPJPE, mm",
        "Mean distance of joints of persons that were never trained on; the lower the better. The 2D joints are noisy,"
        " and frames around a frame tell what is noise.",
        "lift",
    )


def mean_pose(prepared: Path) -> dict[str, float]:
    """Precision and recall of the mean pose of the training images in the annotated boxes of the test images.

    Args:
        prepared: directory of images of persons.
    """
    data = PeopleData(str(prepared))
    known, _ = data.truth("train")
    truth, images = data.truth("test")
    whole = (known.labelled > 0) & (known.box[:, 2:] > 0).all(1)
    points, box, flags = known.keypoints[whole, :, :2], known.box[whole, None], known.keypoints[whole, :, 2:] > 0
    inside = (points - box[..., :2]) / box[..., 2:]
    mean = (inside * flags).sum(0) / np.maximum(flags.sum(0), 1)  # (K, 2), shares of the box
    asked = truth.labelled > 0
    placed = truth.box[asked, None, :2] + mean * truth.box[asked, None, 2:]
    found = Found(truth.image[asked], placed, np.ones(len(placed)))
    numbers = evaluate(truth, found, images["image_id"].to_numpy(), np.array(data.sigmas))
    return {name: numbers[name] for name in REPORTED}


def _people_row(title: str, metrics: Mapping[str, Estimate]) -> Row:
    values = {name: metrics[name].value for name in REPORTED}
    return {"model": title, **values, "95 % interval": interval(metrics["AP"])}


def _lift_row(title: str, metrics: Mapping[str, Estimate]) -> Row:
    names = {"MPJPE, mm": "mpjpe_mm", "P-MPJPE, mm": "p_mpjpe_mm", "MPJVE, mm": "mpjve_mm"}
    values = {column: metrics[name].value for column, name in names.items()}
    return {"model": title, **values, "95 % interval": interval(metrics["mpjpe_mm"])}
