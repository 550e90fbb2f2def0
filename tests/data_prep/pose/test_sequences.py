"""Sequences in, prepared directory out: what is written, how it is divided, and that it is the same every time."""

from __future__ import annotations

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from data_prep.common.errors import ConfigError, LeakError
from data_prep.common.manifest import read_manifest
from data_prep.pose.sequences import cameras, checks, skeletons
from data_prep.pose.sequences.human36m_cameras import CAMERAS
from data_prep.pose.sequences.prepare import prepare_sequences
from domains.pose import camera as learned
from domains.pose.layouts import LAYOUTS
from tests.data.pose import make_sequences as make
from tests.data_prep.helpers import kill_and_continue, tree

SCRIPT = """
import sys
from pathlib import Path
from data_prep.pose.sequences.prepare import prepare_sequences
if __name__ == "__main__":
    prepare_sequences("humaneva", Path(sys.argv[1]), Path(sys.argv[2]), executor="serial", progress=False)
"""


def run(dataset, raw, out, **options):
    return prepare_sequences(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def index(out, split):
    return pl.read_parquet(out / split / "part-00000.parquet")


def clips(out):
    """Name -> arrays, over all splits."""
    table = pl.concat([index(out, split) for split in ("train", "valid", "test")])
    return {row["name"]: load_file(out / row["files"][0]) for row in table.iter_rows(named=True)}


@pytest.fixture(scope="module")
def eva(tmp_path_factory):
    return make.write_eva(tmp_path_factory.mktemp("eva"), *make.eva_positions())


@pytest.fixture(scope="module")
def h36m(tmp_path_factory):
    return make.write_h36m(tmp_path_factory.mktemp("h36m"), *make.h36m_positions())


@pytest.fixture(scope="module")
def hp(tmp_path_factory):
    return make.write_3dhp(tmp_path_factory.mktemp("hp"))


class TestGeometry:
    @pytest.mark.parametrize("camera", [*CAMERAS["S1"], *make.hp_cameras(3)], ids=lambda camera: camera.name)
    def test_cameras_are_those_that_networks_use(self, camera):
        points = make.walk(skeletons.H36M_17, 5)
        twin = learned.Camera(
            camera.width, camera.height, camera.quaternion, camera.translation,
            *(camera.focal, camera.centre, camera.radial, camera.tangential),
        )  # fmt: skip
        seen = twin.from_world(torch.tensor(points))
        np.testing.assert_allclose(camera.from_world(points), seen.numpy(), atol=1e-12)
        np.testing.assert_allclose(camera.project(camera.from_world(points)), twin.project(seen).numpy(), atol=1e-8)

    def test_quaternions_come_back_from_matrices(self):
        for camera in CAMERAS["S11"]:
            found = np.array(cameras.quaternion_of(cameras.rotation(camera.quaternion)))
            assert abs(abs(found @ np.array(camera.quaternion)) - 1) < 1e-6

    @pytest.mark.parametrize("name", sorted(skeletons.SKELETONS))
    def test_layouts_are_those_that_networks_use(self, name):
        ours, theirs = skeletons.SKELETONS[name], LAYOUTS[name]
        assert ours.joints == theirs.joints
        assert ours.parents == theirs.parents
        assert sorted(ours.left) == sorted(theirs.left)
        assert ours.mirrored == theirs.mirrored()


class TestHumanEva:
    def test_clips_hold_keypoints_and_poses_of_each_camera(self, eva, tmp_path):
        card = run("humaneva", eva, tmp_path / "out")
        poses, points = make.eva_positions()
        found = clips(tmp_path / "out")
        assert len(found) == card["counts"]["clips"] == 4 * 3 * 3
        clip = found["Train/S2/Jog 1 chunk0/C2"]
        np.testing.assert_array_equal(clip["keypoints_2d"], points["Train/S2"]["Jog 1 chunk0"][1])
        world = poses["Train/S2"]["Jog 1 chunk0"].astype(np.float64)
        entry = card["cameras"]["S2"]["C2"]
        wanted = cameras.Camera.read("C2", entry).from_world(world)
        np.testing.assert_allclose(clip["pose_3d"], wanted, atol=1e-6)
        assert clip["valid_2d"].all()
        assert clip["valid_3d"].all()
        assert card["layout"]["name"] == "humaneva-15"
        assert card["units"]["pose_3d"].startswith("metres")
        assert card["counts"]["short_clips"] == 12
        assert card["counts"]["suspicions"] == card["counts"]["repairs"] == {}

    def test_index_says_what_a_clip_is(self, eva, tmp_path):
        run("humaneva", eva, tmp_path / "out")
        row = index(tmp_path / "out", "test").row(0, named=True)
        assert row["row"] == 0
        assert row["name"] == "Validate/S1/Jog 1 chunk0/C1"
        assert (row["subject"], row["action"], row["camera"]) == ("S1", "Jog", "C1")
        assert (row["frames"], row["fps"], row["width"], row["height"]) == (30, 60.0, 640, 480)
        assert len(row["quaternion"]) == 4
        assert row["focal"] is None
        assert row["reprojection_pixels"] < 0.1

    def test_published_split_says_that_subjects_are_on_both_sides(self, eva, tmp_path):
        card = run("humaneva", eva, tmp_path / "out")
        assert card["group"]["kept_apart"] is False
        assert "same three subjects" in card["group"]["note"]
        assert card["splits"]["train"]["rows"] == card["splits"]["test"]["rows"] == 18
        with pytest.raises(LeakError, match="'S1' would be in valid and in test"):
            run("humaneva", eva, tmp_path / "other", valid_subjects="S1")

    def test_named_subjects_are_kept_apart(self, eva, tmp_path):
        card = run("humaneva", eva, tmp_path / "out", test_subjects="S3", valid_subjects="S2")
        assert card["group"]["kept_apart"] is True
        found = {split: set(index(tmp_path / "out", split)["subject"]) for split in ("train", "valid", "test")}
        assert found == {"train": {"S1"}, "valid": {"S2"}, "test": {"S3"}}

    def test_actions_cameras_and_rate(self, eva, tmp_path):
        card = run("humaneva", eva, tmp_path / "out", actions="Jog", cameras="C3,C1", rate=30)
        found = clips(tmp_path / "out")
        assert {name.split("/")[2][:3] for name in found} == {"Jog"}
        assert {name.split("/")[-1] for name in found} == {"C1", "C3"}
        assert card["counts"]["recordings_of_other_actions"] == 4
        assert card["fps"] == [30.0]
        assert len(found["Train/S1/Jog 1 chunk0/C1"]["pose_3d"]) == 15
        assert card["counts"]["repairs"]["thinned"]["remarks"] == 8


class TestHuman36m:
    def test_canonical_files(self, h36m, tmp_path):
        card = run("human36m", h36m, tmp_path / "out")
        found = clips(tmp_path / "out")
        assert len(found) == 2 * 2 * 4
        clip = found["S9/Walking 1/58860488"]
        pose = make.walk(skeletons.H36M_17, 40, seed=10)
        np.testing.assert_allclose(clip["pose_3d"], CAMERAS["S9"][2].from_world(pose), atol=1e-6)
        assert set(index(tmp_path / "out", "train")["subject"]) == {"S1"}
        assert set(index(tmp_path / "out", "test")["subject"]) == {"S9"}
        assert card["group"] == {"name": "subject", "kept_apart": True, "groups": 2, "note": ""}
        assert card["counts"]["suspicions"]["missing_sequences"]["remarks"] == 7
        assert card["keypoints"] == "gt"

    def test_keypoints_are_projected_where_none_are_given(self, h36m, tmp_path):
        run("human36m", h36m, tmp_path / "given")
        card = run("human36m", h36m / "data_3d_h36m.npz", tmp_path / "made")
        assert card["keypoints"] == "projected"
        given, made = clips(tmp_path / "given"), clips(tmp_path / "made")
        assert set(given) == set(made)
        for name, clip in given.items():
            np.testing.assert_allclose(clip["keypoints_2d"], made[name]["keypoints_2d"], atol=1e-2)

    def test_raw_cdf_equals_canonical(self, h36m, tmp_path):
        pytest.importorskip("cdflib", reason="the extra pose is not installed")
        poses, _ = make.h36m_positions()
        for subject, sequences in poses.items():
            for name, pose in sequences.items():
                path = tmp_path / "raw" / subject / "MyPoseFeatures" / "D3_Positions" / f"{name}.cdf"
                make.write_cdf(path, pose * 1000)
        run("human36m", tmp_path / "raw", tmp_path / "out")
        run("human36m", h36m, tmp_path / "canonical", keypoints="projected")
        raw, canonical = clips(tmp_path / "out"), clips(tmp_path / "canonical")
        assert set(raw) == set(canonical)
        for name, clip in raw.items():
            np.testing.assert_allclose(clip["pose_3d"], canonical[name]["pose_3d"], atol=1e-5)

    def test_damaged_sequence_of_s11_is_left_out_and_told(self, tmp_path):
        poses, points = make.h36m_positions(("S1", "S11"), ("Directions", "Directions 1"))
        card = run("human36m", make.write_h36m(tmp_path / "raw", poses, points), tmp_path / "out")
        assert card["counts"]["repairs"]["left_out"]["remarks"] == 1
        assert card["counts"]["recordings"] == 3
        assert card["rejects"]["count"] == 0

    def test_longer_keypoints_are_cut_and_told(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"][2] = np.concatenate([points["S1"]["Eating"][2]] + 3 * [points["S1"]["Eating"][2][-1:]])
        card = run("human36m", make.write_h36m(tmp_path / "raw", poses, points), tmp_path / "out")
        assert card["counts"]["repairs"]["cut"] == {"remarks": 1, "frames": 3}
        told = pl.read_parquet(tmp_path / "out" / "remarks.parquet").filter(pl.col("kind") == "cut").row(0, named=True)
        assert (told["recording"], told["camera"]) == ("S1/Eating", "58860488")

    def test_missing_joints_are_filled_marked_and_told(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"][0][5:8, 3] = 0
        points["S1"]["Eating"][0][20, 4] = np.nan
        poses["S9"]["Eating"][7, 12] = np.nan
        poses["S9"]["Eating"][7, 13] = 1e30
        card = run("human36m", make.write_h36m(tmp_path / "raw", poses, points), tmp_path / "out")
        assert card["counts"]["repairs"]["filled_keypoints"] == {"remarks": 1, "frames": 4}
        assert card["counts"]["repairs"]["filled_poses"] == {"remarks": 1, "frames": 1}
        clip = clips(tmp_path / "out")["S1/Eating/54138969"]
        assert clip["valid_2d"].sum() == clip["valid_2d"].size - 4
        whole = make.h36m_positions()[1]["S1"]["Eating"][0]
        assert np.abs(clip["keypoints_2d"] - whole).max() < 20  # between its neighbours

    def test_confidence_of_a_detector_is_kept(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"] = [
            np.concatenate([p, np.full_like(p[..., :1], 0.7)], -1) for p in points["S1"]["Eating"]
        ]
        run("human36m", make.write_h36m(tmp_path / "raw", poses, points), tmp_path / "out")
        found = clips(tmp_path / "out")
        assert found["S1/Eating/54138969"]["confidence_2d"].shape == (41, 17)
        assert "confidence_2d" not in found["S9/Eating/54138969"]

    def test_keypoints_of_coco_are_converted_where_that_is_asked_for(self, tmp_path):
        poses, points = make.h36m_positions()
        parts = skeletons.from_coco(skeletons.H36M_17)
        named = dict(zip(skeletons.H36M_17.joints, parts, strict=True))
        for sequences in points.values():
            for name, cameras_ in sequences.items():
                coco = [np.repeat(each[:, 9:10], 17, axis=1) for each in cameras_]  # faces are near the nose
                for new, old in zip(coco, cameras_, strict=True):
                    for joint, places in named.items():
                        if len(places) == 1:
                            new[:, places[0]] = old[:, skeletons.H36M_17.joints.index(joint)]
                sequences[name] = coco
        meta = {"layout_name": "coco", "num_joints": 17}
        raw = make.write_h36m(tmp_path / "raw", poses, points, meta)
        card = run("human36m", raw, tmp_path / "out", convert=True)
        assert card["layout"]["name"] == "h36m-17"
        found, wanted = clips(tmp_path / "out"), make.h36m_positions()[1]["S1"]["Eating"][0]
        made = found["S1/Eating/54138969"]["keypoints_2d"]
        np.testing.assert_allclose(made[:, 1:7], wanted[:, 1:7], atol=1e-3)
        np.testing.assert_allclose(made[:, 0], wanted[:, [1, 4]].mean(axis=1), atol=1e-3)

    @pytest.mark.parametrize("name", ["h36m-17", "humaneva-15"])
    def test_conversions_are_those_of_networks(self, name):
        from domains.pose.layouts import sources

        assert list(skeletons.from_coco(skeletons.SKELETONS[name])) == sources("coco-17", name)

    def test_suspicions_are_told_and_nothing_is_changed(self, tmp_path):
        poses, points = make.h36m_positions()
        mirrored = skeletons.H36M_17.mirrored
        points["S1"]["Eating"][1][10:14] = points["S1"]["Eating"][1][10:14][:, mirrored]
        poses["S9"]["Walking 1"][20][[19, 27]] = poses["S9"]["Walking 1"][20][[27, 19]]  # wrists
        card = run("human36m", make.write_h36m(tmp_path / "raw", poses, points), tmp_path / "out")
        told = card["counts"]["suspicions"]
        assert told["exchanged_sides"] == {"remarks": 1, "frames": 4}
        assert told["crossed_limbs"]["frames"] == 1

    def test_missing_frames_are_told(self, tmp_path):
        poses, _ = make.h36m_positions()
        poses["S1"]["Eating"][20:] += np.float32(0.6)
        card = run("human36m", make.write_h36m(tmp_path / "raw", poses, None), tmp_path / "out")
        assert card["counts"]["suspicions"]["jumps"] == {"remarks": 1, "frames": 1}

    def test_exchanged_sides_of_a_whole_pose_are_told(self):
        pose = make.walk(skeletons.H36M_17, 50)
        assert checks.facing(pose, skeletons.H36M_17) > 0.8
        assert checks.facing(pose[:, skeletons.H36M_17.mirrored], skeletons.H36M_17) < -0.8


class TestMpiInf3dhp:
    def test_both_kinds_of_files(self, hp, tmp_path):
        card = run("mpi-inf-3dhp", hp, tmp_path / "out")
        found = clips(tmp_path / "out")
        assert len(found) == 2 * 8 + 2
        camera = make.hp_cameras()[4]
        pose = make.walk(skeletons.MPI_INF_3DHP_17, 30, seed=1)
        np.testing.assert_allclose(found["S3/Seq2/4"]["pose_3d"], camera.from_world(pose), atol=1e-5)
        np.testing.assert_allclose(
            found["S3/Seq2/4"]["keypoints_2d"], camera.project(camera.from_world(pose)), atol=1e-2
        )
        entry = cameras.Camera.read("4", card["cameras"]["S3"]["4"])
        np.testing.assert_allclose(entry.from_world(pose), camera.from_world(pose), atol=1e-5)
        assert not found["TS1/0"]["valid_3d"][:4].any()
        assert found["TS1/0"]["valid_3d"][4:].all()
        table = index(tmp_path / "out", "test")
        assert table["scored_frames"].to_list() == [20, 20]
        assert table["width"].to_list() == [2048, 1920]
        assert dict(index(tmp_path / "out", "train").select("subject", "fps").iter_rows()) == {"S1": 25.0, "S3": 50.0}

    def test_frames_that_are_not_scored_may_be_empty(self, tmp_path):
        path = tmp_path / "raw" / "TS1" / "annot_data.mat"
        make.write_annot_data(path)
        with h5py.File(path, "r+") as file:
            file["valid_frame"][:14] = 0
            for name in ("annot2", "annot3"):
                file[name][:14] = 0
        card = run("mpi-inf-3dhp", tmp_path / "raw", tmp_path / "out")
        assert card["counts"]["repairs"] == {}
        clip = clips(tmp_path / "out")["TS1/0"]
        assert clip["valid_3d"].any(axis=1).sum() == 10
        assert np.isfinite(clip["keypoints_2d"]).all()

    def test_universal_poses_and_other_cameras(self, hp, tmp_path):
        run("mpi-inf-3dhp", hp / "S1", tmp_path / "out", poses="universal", cameras="13")
        pose = make.hp_cameras()[13].from_world(make.walk(skeletons.MPI_INF_3DHP_17, 30, seed=0))
        np.testing.assert_allclose(clips(tmp_path / "out")["S1/Seq1/13"]["pose_3d"], pose * 0.9, atol=1e-5)

    def test_uncompressed_matlab_files(self, hp, tmp_path):
        make.write_annot(
            tmp_path / "S1" / "Seq1" / "annot.mat", make.hp_train(30, 0, make.hp_cameras()), compressed=False
        )
        (tmp_path / "S1" / "Seq1" / "camera.calibration").write_text(make.calibration(make.hp_cameras()))
        run("mpi-inf-3dhp", hp / "S1", tmp_path / "packed")
        run("mpi-inf-3dhp", tmp_path / "S1", tmp_path / "out")
        assert tree(tmp_path / "out" / "clips") == tree(tmp_path / "packed" / "clips")


class TestSplits:
    def test_valid_subjects_leave_training(self, tmp_path):
        poses, points = make.h36m_positions(("S1", "S8", "S9"))
        run("human36m", make.write_h36m(tmp_path / "raw", poses, points), tmp_path / "out", valid_subjects="S8")
        found = {split: set(index(tmp_path / "out", split)["subject"]) for split in ("train", "valid", "test")}
        assert found == {"train": {"S1"}, "valid": {"S8"}, "test": {"S9"}}

    def test_same_numbers_on_two_sides_are_refused_or_told(self, tmp_path):
        poses, _ = make.h36m_positions()
        poses["S9"]["Eating"] = poses["S1"]["Eating"]
        raw = make.write_h36m(tmp_path / "raw", poses, None)
        with pytest.raises(LeakError, match=r"S1/Eating \(train\) and S9/Eating \(test\) have the same pose"):
            run("human36m", raw, tmp_path / "out")
        card = run("human36m", raw, tmp_path / "told", duplicates="report")
        assert card["duplicates"] == {"pairs": 1, "in_two_splits": 1, "rule": "report"}
        assert pl.read_parquet(tmp_path / "told" / "duplicates.parquet").height == 1

    def test_unknown_subject(self, h36m, tmp_path):
        with pytest.raises(ConfigError, match=r"test_subjects: there is no subject 'S2'; there are S1, S9"):
            run("human36m", h36m, tmp_path / "out", test_subjects="S2")


class TestSameEveryTime:
    def test_two_processes_give_the_same_bytes(self, eva, tmp_path):
        run("humaneva", eva, tmp_path / "serial")
        run("humaneva", eva, tmp_path / "two", executor="local", workers=2)
        assert tree(tmp_path / "two") == tree(tmp_path / "serial")

    def test_killed_again_and_again_gives_the_same_bytes(self, eva, tmp_path):
        run("humaneva", eva, tmp_path / "whole")
        out = tmp_path / "killed"
        found = kill_and_continue(tmp_path, SCRIPT, (eva, out), out, finished=(0, 1, 2, 9))
        assert found == tree(tmp_path / "whole")

    def test_finished_preparation_is_recognised(self, eva, tmp_path, monkeypatch):
        first = run("humaneva", eva, tmp_path / "out")
        monkeypatch.setattr("data_prep.common.run.run_stage", None)  # no work is done again
        assert run("humaneva", eva, tmp_path / "out") == first == read_manifest(tmp_path / "out")
        with pytest.raises(ConfigError, match="other options or other files"):
            run("humaneva", eva, tmp_path / "out", rate=30)


@pytest.mark.shared
class TestRealData:
    def test_humaneva(self, shared, tmp_path):
        files = [shared / "pose" / f"data_{kind}_humaneva15{end}.npz" for kind, end in (("3d", ""), ("2d", "_gt"))]
        card = run("humaneva", files, tmp_path / "out", actions="Walking,Jog,Box")
        counts = card["counts"]
        assert counts["splits"]["train"]["frames"] == 3 * 3347
        assert counts["splits"]["test"]["frames"] == 3 * 3523
        assert card["rejects"]["count"] == card["duplicates"]["pairs"] == 0
        assert set(counts["suspicions"]) == {"unsteady_bones", "jumps"}
        told = pl.read_parquet(tmp_path / "out" / "remarks.parquet").filter(pl.col("kind") == "jumps")
        assert told["recording"].to_list() == ["Validate/S3/Walking 1 chunk4"]  # known for its wrong motion capture
        table = pl.concat([index(tmp_path / "out", split) for split in ("train", "test")])
        assert table["reprojection_pixels"].max() < 3

    def test_human36m_axes_and_lenses(self, shared):
        with np.load(shared / "pose" / "h36m" / "test_h36m_body3d.npz", allow_pickle=False) as file:
            names, parts, poses = file["imgname"], file["part"], file["S"]
        for name, part, pose in zip(names, parts, poses, strict=True):
            camera = next(c for c in CAMERAS[name.split("/")[0]] if f".{c.name}" in name)
            found = camera.project(pose[:, :3].astype(np.float64))
            assert np.median(np.linalg.norm(found - part[:, :2], axis=-1)) < 8
            lengths = skeletons.H36M_17.bone_lengths(pose[None, :, :3].astype(np.float64))
            assert 0.1 < np.median(lengths) < 0.5
