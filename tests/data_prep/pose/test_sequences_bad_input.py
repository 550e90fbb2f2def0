"""Every corruption that users meet ends with one line that says file, sequence and what to do."""

from __future__ import annotations

import sys

import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import (
    ConfigError,
    DatasetNotFoundError,
    MissingExtraError,
    PrepError,
    RejectsExceededError,
)
from data_prep.pose.sequences import checks, skeletons
from data_prep.pose.sequences.errors import LayoutError
from data_prep.pose.sequences.humaneva import cameras_of
from data_prep.pose.sequences.prepare import prepare_sequences
from tests.data.pose import make_sequences as make


def run(dataset, raw, out, **options):
    return prepare_sequences(dataset, raw, out, **{"executor": "serial", "progress": False, **options})


def refuse(tmp_path, poses, points, wanted, error=RejectsExceededError, *, write=make.write_h36m, **options):
    """Write a data set, prepare it, and look at the line that ends it."""
    meta = {"meta": options.pop("meta")} if "meta" in options else {}
    raw = write(tmp_path / "raw", poses, points, **meta)
    dataset = "human36m" if write is make.write_h36m else "humaneva"
    with pytest.raises(error, match=wanted) as caught:
        run(dataset, raw, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "dataset.json").exists()
    return str(caught.value)


class TestUnits:
    def test_millimetres_where_metres_belong(self, tmp_path):
        poses, points = make.h36m_positions()
        poses["S1"]["Eating"] = poses["S1"]["Eating"] * 1000
        line = refuse(tmp_path, poses, points, "where metres are expected: these are millimetres; divide by 1000")
        assert line.startswith("data_3d_h36m.npz: record 0 field S1/Eating 54138969")

    def test_metres_where_millimetres_belong(self, tmp_path):
        raw = make.write_3dhp(tmp_path / "raw")
        content = make.hp_train(30, 0, make.hp_cameras())
        content["annot3"] = [cell / 1000 for cell in content["annot3"]]
        make.write_annot(raw / "S1" / "Seq1" / "annot.mat", content)
        with pytest.raises(
            RejectsExceededError, match=r"S1/Seq1/annot\.mat.*where millimetres are expected: these are me"
        ):
            run("mpi-inf-3dhp", raw, tmp_path / "out")

    def test_feet(self, tmp_path):
        poses, _ = make.h36m_positions()
        poses["S1"]["Eating"] = poses["S1"]["Eating"] * 5
        refuse(tmp_path, poses, None, "m long, which is none of a person's; check unit and joints")

    def test_screen_units(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"] = [each / 1000 * 2 - 1 for each in points["S1"]["Eating"]]
        refuse(tmp_path, poses, points, r"data_2d_h36m_gt\.npz.*these are screen units already; pixels are expected")

    def test_width_and_height_exchanged(self, tmp_path):
        poses, points = make.eva_positions()
        for name, cameras in points["Train/S1"].items():
            low, high = np.min(cameras, (1, 2))[:, None, None], np.max(cameras, (1, 2))[:, None, None]
            points["Train/S1"][name] = list((cameras - low) / (high - low) * [460, 330] + [10, 300])
        refuse(tmp_path, poses, points, "640 x 480: width and height seem to be exchanged", write=make.write_eva)

    def test_persons_who_leave_the_picture_are_no_such_case(self):
        points = np.random.default_rng(0).uniform([100, 200], [400, 520], (500, 2))
        assert checks.check_pixels(points, cameras_of("S1")[0]) == ""


class TestJoints:
    def test_layout_is_not_named(self, tmp_path):
        poses, points = make.h36m_positions()
        line = refuse(tmp_path, poses, points, "does not name the layout of the joints", LayoutError, meta=None)
        assert "COCO has 17, too" in line

    def test_coco_joints_by_name(self, tmp_path):
        poses, points = make.h36m_positions()
        meta = {**make.H36M_META, "layout_name": "coco"}
        refuse(
            tmp_path,
            poses,
            points,
            "layout_name is 'coco', the poses are h36m-17 .*--convert true makes",
            LayoutError,
            meta=meta,
        )

    def test_coco_joints_under_another_name(self, tmp_path):
        poses, points = make.h36m_positions()
        limbs, coco = skeletons.limb_joints(skeletons.H36M_17), skeletons.limb_joints(skeletons.COCO_17)
        for name, cameras in points["S1"].items():
            moved = [np.repeat(each[:, 10:11], 17, axis=1) for each in cameras]
            for new, old in zip(moved, cameras, strict=True):
                new[:, coco] = old[:, limbs]
            points["S1"][name] = moved
        refuse(tmp_path, poses, points, "they fit in the order of coco-17: convert them to h36m-17 first")

    def test_symmetry_of_another_order(self, tmp_path):
        poses, points = make.h36m_positions()
        meta = {**make.H36M_META, "keypoints_symmetry": [[1, 3, 5], [2, 4, 6]]}
        refuse(tmp_path, poses, points, "is not that of h36m-17", LayoutError, meta=meta)

    def test_left_and_right_exchanged_throughout(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"][1] = points["S1"]["Eating"][1][:, skeletons.H36M_17.mirrored]
        refuse(tmp_path, poses, points, "S1/Eating 55011271: keypoints .* they fit with left and right exchanged")
        told = pl.read_csv(tmp_path / "out" / ".work" / "rejects.csv")
        assert told.height == 1

    def test_selected_joints_instead_of_all(self, tmp_path):
        poses, points = make.h36m_positions()
        poses["S1"]["Eating"] = poses["S1"]["Eating"][:, :17]
        refuse(tmp_path, poses, points, "has 17 joints instead of 32")

    def test_other_number_of_keypoints(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"] = [each[:, :16] for each in points["S1"]["Eating"]]
        refuse(tmp_path, poses, points, "has 16 joints, h36m-17 has 17")

    def test_joint_that_is_never_there(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"][0][:, 3] = 0
        refuse(tmp_path, poses, points, r"joint right_foot of the keypoints is missing \(NaN or 0\) in every frame")

    def test_mostly_missing(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"][0][:30] = np.nan
        refuse(tmp_path, poses, points, r"73% of the joints of the keypoints are missing")

    def test_keypoints_of_another_camera(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"] = points["S1"]["Eating"][::-1]
        refuse(tmp_path, poses, points, "pixels.*from the projected pose: they may be of another camera")


class TestFrames:
    def test_fewer_keypoints_than_poses(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"][3] = points["S1"]["Eating"][3][:35]
        line = refuse(
            tmp_path, poses, points, "has 35 frames of keypoints for 41 of the pose: keypoints of every frame"
        )
        assert "S1/Eating 60457274" in line

    def test_poses_without_any_known_joint(self, tmp_path):
        poses, points = make.h36m_positions()
        poses["S1"]["Eating"] = np.full_like(poses["S1"]["Eating"], np.nan)
        line = refuse(tmp_path, poses, points, "data_3d_h36m.npz")
        assert "S1/Eating" in line

    def test_other_frame_rate(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"] = [np.repeat(each, 2, axis=0) for each in points["S1"]["Eating"]]
        refuse(tmp_path, poses, points, "has 82 frames of keypoints for 41 of the pose: the frame rates seem to differ")

    def test_rate_that_is_no_divisor(self, tmp_path):
        poses, points = make.h36m_positions()
        refuse(
            tmp_path, poses, points, "has 50 frames a second, which cannot be thinned to 30; ask for a divisor", rate=30
        )

    def test_no_frames(self, tmp_path):
        poses, points = make.h36m_positions()
        poses["S1"]["Eating"] = poses["S1"]["Eating"][:0]
        refuse(tmp_path, poses, points, "has no frames")


class TestParts:
    def test_missing_camera(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"] = points["S1"]["Eating"][:3]
        refuse(tmp_path, poses, points, "has keypoints of 3 cameras instead of 4: which is which is not known")

    def test_missing_sequence(self, tmp_path):
        poses, points = make.eva_positions()
        del points["Train/S1"]["Jog 1 chunk0"]
        refuse(tmp_path, poses, points, r"Train/S1/Jog 1 chunk0 C1: has no keypoints of this", write=make.write_eva)

    def test_some_rejects_are_tolerated_and_listed(self, tmp_path):
        poses, points = make.h36m_positions()
        points["S1"]["Eating"][3] = points["S1"]["Eating"][3][:35]
        raw = make.write_h36m(tmp_path / "raw", poses, points)
        card = run("human36m", raw, tmp_path / "out", max_rejects=0.1)
        assert card["rejects"] == {"count": 1, "share": 1 / 16}
        assert card["counts"]["clips"] == 15
        row = pl.read_parquet(tmp_path / "out" / "rejects.parquet").row(0, named=True)
        assert row["field"] == "S1/Eating 60457274"

    def test_unknown_subjects(self, tmp_path):
        poses, points = make.h36m_positions()
        poses["S2"], points["S2"] = poses["S1"], points["S1"]
        refuse(tmp_path, poses, points, "S2/Eating.*is none of the subjects S1, S5")

    def test_not_the_canonical_file(self, tmp_path):
        np.savez(tmp_path / "data_3d_h36m.npz", S=np.zeros((2, 17, 4)))
        with pytest.raises(PrepError, match=r"data_3d_h36m\.npz: positions_3d: is no dictionary .*the file has S"):
            run("human36m", tmp_path / "data_3d_h36m.npz", tmp_path / "out")

    def test_nothing_to_read(self, tmp_path):
        (tmp_path / "raw").mkdir()
        for dataset, what in (
            ("human36m", "D3_Positions"),
            ("humaneva", "data_3d_humaneva15"),
            ("mpi-inf-3dhp", "annot"),
        ):
            with pytest.raises(DatasetNotFoundError, match=f"{what}.*is not there; check the folder"):
                run(dataset, tmp_path / "raw", tmp_path / "out")

    def test_several_files_of_keypoints(self, tmp_path):
        poses, points = make.h36m_positions()
        raw = make.write_h36m(tmp_path / "raw", poses, points)
        make.write_h36m(raw, poses, points, name="cpn_ft_h36m_dbb")
        with pytest.raises(ConfigError, match=r"name one source of 2D keypoints .*cpn_ft_h36m_dbb, gt"):
            run("human36m", raw, tmp_path / "out")
        assert run("human36m", raw, tmp_path / "out", keypoints="gt")["keypoints"] == "gt"

    def test_same_sequence_twice(self, tmp_path):
        make.write_3dhp(tmp_path / "one")
        make.write_3dhp(tmp_path / "two")
        with pytest.raises(ConfigError, match=r"S1/Seq1/annot\.mat: S1/Seq1 is there 2 times; give one of them as raw"):
            run("mpi-inf-3dhp", [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
        card = run("mpi-inf-3dhp", [tmp_path / "one", tmp_path / "one" / "TS1"], tmp_path / "out")
        assert card["counts"]["recordings"] == 4

    def test_person_behind_the_camera(self, tmp_path):
        poses, _ = make.h36m_positions()
        poses["S1"]["Eating"] = poses["S1"]["Eating"] + np.float32([0, 20, 0])
        refuse(tmp_path, poses, None, r"of the projection is missing \(NaN or 0\) in every frame")

    def test_no_calibration(self, tmp_path):
        raw = make.write_3dhp(tmp_path / "raw")
        (raw / "S1" / "Seq1" / "camera.calibration").unlink()
        with pytest.raises(RejectsExceededError, match=r"camera\.calibration is not beside it; copy it there"):
            run("mpi-inf-3dhp", raw, tmp_path / "out")

    def test_damaged_calibration(self, tmp_path):
        raw = make.write_3dhp(tmp_path / "raw")
        path = raw / "S1" / "Seq1" / "camera.calibration"
        path.write_text(path.read_text().replace("extrinsic", "elsewhere", 1))
        with pytest.raises(RejectsExceededError, match=r"camera\.calibration: line 8: the camera before is incomplete"):
            run("mpi-inf-3dhp", raw, tmp_path / "out")

    def test_damaged_cdf_is_one_reject_of_many(self, tmp_path):
        pytest.importorskip("cdflib", reason="the extra pose is not installed")
        poses, _ = make.h36m_positions()
        folder = tmp_path / "raw" / "S1" / "MyPoseFeatures" / "D3_Positions"
        make.write_cdf(folder / "Walking 1.cdf", poses["S1"]["Walking 1"] * 1000)
        (folder / "TakingPhoto.cdf").write_bytes(b"not found" * 44)  # the 400 bytes of a download that failed
        with pytest.raises(RejectsExceededError, match=r"S1/Photo .*variable Pose|S1/Photo .*cannot be read"):
            run("human36m", tmp_path / "raw", tmp_path / "out")
        card = run("human36m", tmp_path / "raw", tmp_path / "out", max_rejects=0.6)
        assert card["counts"]["recordings"] == 1


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "wanted"),
        [
            ({"cameras": "C9"}, "cameras: humaneva has no camera 'C9'; it has C1, C2, C3"),
            ({"actions": "Swim"}, "actions: there is no action 'Swim'; there are Jog, Walking"),
            ({"keypoints": "cpn"}, "keypoints 'cpn': there is no such 2D file; those found are of gt"),
            ({"keypoints": "projected"}, "projection needs lenses that are not known"),
            ({"poses": "universal"}, "poses: humaneva has metric ones only"),
            ({"rate": -1}, "give a rate of 0"),
            ({"max_rejects": 2}, "max_rejects from 0 to 1"),
            ({"duplicates": "drop"}, "choose refuse or report"),
            ({"valid_subjects": "S2", "test_subjects": "S2"}, "both name 'S2'"),
        ],
    )
    def test_options_that_cannot_be(self, options, wanted, tmp_path):
        raw = make.write_eva(tmp_path / "raw", *make.eva_positions())
        with pytest.raises(ConfigError, match=wanted):
            run("humaneva", raw, tmp_path / "out", **options)

    def test_unknown_data_set(self, tmp_path):
        with pytest.raises(ConfigError, match="dataset 'coco': there are human36m, humaneva, mpi-inf-3dhp"):
            run("coco", tmp_path, tmp_path.parent / "elsewhere")

    def test_missing_library(self, tmp_path, monkeypatch):
        make.write_3dhp(tmp_path / "raw")
        monkeypatch.setattr("data_prep.common.extras.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"install it with: pip install 'heptad\[pose\]'"):
            run("mpi-inf-3dhp", tmp_path / "raw", tmp_path / "out")

    def test_torch_is_not_needed(self):
        import subprocess

        code = "import sys, data_prep.pose.sequences.job; assert not {'torch', 'h5py', 'scipy'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
