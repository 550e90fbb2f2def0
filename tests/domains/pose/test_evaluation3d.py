"""Metrics of poses: those of `metrics3d`, gaps, intervals, tables and pictures."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from domains.common.errors import ConfigError, PreparedDataError
from domains.common.figures import WARNINGS
from domains.pose.evaluation3d import evaluate_poses, known_runs, report_tables, runs, score_predictions
from domains.pose.figures3d import figures
from domains.pose.metrics3d import METRICS, Clip, action_average, auc, mpjpe, p_mpjpe, pck, score_clips, summarise


def table(clips, frames=20, joints=17, layout="h36m-17", seed=0):
    """Predictions of clips, (subject, action) each, that are off by 50 mm or so."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, (subject, action) in enumerate(clips):
        count = frames + 3 * number
        target = rng.normal(0, 300, (count, joints, 3)).astype(np.float32)
        target[:, 0] = 0
        predicted = (target + rng.normal(0, 20 + 10 * number, target.shape)).astype(np.float32)
        columns = {"clip": [f"{subject}/{action} {number}"] * count, "subject": [subject] * count}
        columns |= {"action": [action] * count, "layout": [layout] * count, "frame": np.arange(count)}
        columns |= {"predicted_mm": predicted.reshape(count, -1), "target_mm": target.reshape(count, -1)}
        poses = torch.from_numpy(predicted), torch.from_numpy(target)
        columns |= {"counted": [True] * count, "mpjpe_mm": mpjpe(*poses).numpy(), "p_mpjpe_mm": p_mpjpe(*poses).numpy()}
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts).with_row_index("row")


CLIPS = [("S9", "Walk"), ("S9", "Sit"), ("S11", "Walk"), ("S11", "Sit"), ("S11", "Walk")]


def clips_of(frame):
    found = []
    for part in frame.partition_by("clip", maintain_order=True):
        sides = [torch.tensor(part[c].to_numpy()).reshape(len(part), -1, 3) for c in ("predicted_mm", "target_mm")]
        found.append(Clip(*sides, part["action"][0], part["subject"][0], part["clip"][0]))
    return found


def test_evaluate_equals_metrics3d():
    frame = table(CLIPS)
    found = evaluate_poses(frame.sample(fraction=1.0, shuffle=True, seed=3), replicates=100)
    clips = clips_of(frame)
    scores = score_clips(clips)
    for name, value in action_average(scores).items():
        assert found[name].value == pytest.approx(value, rel=1e-12)
    for name, value in summarise(scores).row(0, named=True).items():
        if name in METRICS:
            assert found[f"frame_mean_{name}"].value == pytest.approx(value, rel=1e-12)
    every = [torch.cat([getattr(clip, side) for clip in clips]).double() for side in ("prediction", "target")]
    assert found["pck_150mm"].value == pytest.approx(float(pck(*every)), rel=1e-12)
    assert found["auc_150mm"].value == pytest.approx(float(auc(*every)), rel=1e-12)
    assert {e.units for e in found.values()} == {2}
    assert all(e.low <= e.value <= e.high for e in found.values())


def test_intervals_are_over_subjects():
    """Of two subjects each resample is one, the other, or both."""
    frame = table(CLIPS)
    found = evaluate_poses(frame, replicates=400)["mpjpe_mm"]
    alone = [
        action_average(score_clips(clips_of(frame.filter(pl.col("subject") == name))))["mpjpe_mm"]
        for name in ("S9", "S11")
    ]
    assert (found.low, found.high) == (pytest.approx(min(alone)), pytest.approx(max(alone)))
    one = evaluate_poses(frame.filter(pl.col("subject") == "S9"), replicates=10)["mpjpe_mm"]
    assert one.value == one.value and one.low != one.low


def test_no_velocity_over_a_gap_and_none_of_a_single_frame():
    frame = table([("S9", "Walk")], frames=12)
    gap = frame.with_columns(counted=~pl.col("frame").is_in([3, 5, 6]))
    found = runs(gap)
    assert [len(clip.target) for clip in found] == [3, 1, 5]
    whole = clips_of(frame)[0]
    pieces = [Clip(whole.prediction[a:b], whole.target[a:b], "Walk", "S9") for a, b in ((0, 3), (4, 5), (7, 12))]
    assert evaluate_poses(gap, replicates=1)["mpjve_mm"].value == pytest.approx(
        action_average(score_clips(pieces))["mpjve_mm"]
    )
    assert score_predictions(gap)["mpjve_mm"].is_null().to_list() == [False, True, False]
    single = evaluate_poses(frame.filter(pl.col("frame") == 0), replicates=1)
    assert single["mpjve_mm"].value != single["mpjve_mm"].value and single["mpjpe_mm"].value > 0


def test_runs_of_known_frames():
    known = torch.ones(8, 3, dtype=torch.bool)
    assert known_runs(known) == [(0, 8)]
    known[2, 1], known[7] = False, False
    assert known_runs(known) == [(0, 2), (3, 7)]
    assert known_runs(known & False) == [] and known_runs(known[:0]) == []


def test_lists_read_back_are_the_same(tmp_path):
    frame = table(CLIPS)
    frame.write_parquet(tmp_path / "predictions.parquet")
    lists = pl.read_parquet(tmp_path / "predictions.parquet").with_columns(
        pl.col("predicted_mm").arr.to_list(), pl.col("target_mm").arr.to_list()
    )
    assert evaluate_poses(lists, replicates=10) == evaluate_poses(frame, replicates=10)


def test_what_cannot_be_measured_is_told():
    frame = table(CLIPS[:1])
    with pytest.raises(PreparedDataError, match="nothing can be measured"):
        evaluate_poses(frame.with_columns(counted=pl.lit(False)))
    with pytest.raises(PreparedDataError, match=r"S9/Walk 0: frame 4 is predicted twice"):
        evaluate_poses(pl.concat([frame, frame.filter(pl.col("frame") == 4)]))
    broken = np.array(frame["predicted_mm"].to_numpy())
    broken[7, 3] = np.nan
    with pytest.raises(ConfigError, match=r"the prediction of frame 7 is not finite"):
        evaluate_poses(frame.with_columns(predicted_mm=pl.Series(broken)))


def test_tables_by_action_and_by_subject():
    frame = table(CLIPS).with_columns(counted=pl.col("frame") != 2)
    tables = report_tables(frame, {})
    assert [row["action"] for row in tables["By action"]] == ["Sit", "Walk"]
    assert [row["subject"] for row in tables["By subject"]] == ["S11", "S9"]
    assert len(tables["By subject and action"]) == 4 and len(tables["By clip"]) == 5
    assert sum(row["frames"] for row in tables["By action"]) == int(frame["counted"].sum())
    told = " ".join(row["warning"] for row in tables[WARNINGS])
    assert "Only 2 subjects" in told and "5 of 130 frames" in told


def test_pictures_can_be_drawn(tmp_path):
    frame = table(CLIPS)
    pictures = figures(frame, evaluate_poses(frame, replicates=10))
    assert [p.title for p in pictures] == [
        "Best, median and worst frame",
        "Error by action",
        "Error by joint",
        "Correct joints by threshold",
    ]
    for number, picture in enumerate(pictures):
        picture.figure.savefig(tmp_path / f"{number}.png")
    assert figures(frame.with_columns(counted=pl.lit(False)), {}) == []
