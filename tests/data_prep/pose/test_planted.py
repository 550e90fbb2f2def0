"""Generated people and sequences: what is annotated is what is drawn, and the preparations take it as it is."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from data_prep.pose.people.description import COCO as KEYPOINTS
from data_prep.pose.planted_body import MOVEMENTS, Body, any_posture, in_layout, move
from data_prep.pose.planted_people import write_planted_people
from data_prep.pose.planted_sequences import write_planted_sequences
from data_prep.pose.sequences.checks import facing
from data_prep.pose.sequences.prepare import prepare_sequences
from data_prep.pose.sequences.skeletons import COCO_17, H36M_17
from tests.data_prep.pose.people_helpers import notes, run, table

SEEDS = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_planted_people(tmp_path_factory.mktemp("people"), train=60, valid=6)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    return write_planted_sequences(folder, subjects=("S1", "S8", "S9"), frames=30, noise=3.0)


def read(path):
    content = json.loads(path.read_text())
    return content["images"], content["annotations"]


class TestBody:
    @given(seed=SEEDS, movement=st.sampled_from(MOVEMENTS))
    @settings(max_examples=25, deadline=None)
    def test_bones_keep_their_lengths_and_a_foot_is_on_the_floor(self, seed, movement):
        rng = np.random.default_rng(seed)
        pose = in_layout(Body.draw(rng).joints(*move(rng, movement, 40)), H36M_17)
        lengths = H36M_17.bone_lengths(pose)
        hips = [place for place, (_, parent) in enumerate(H36M_17.bones) if parent < 8]  # the head turns on its neck
        np.testing.assert_allclose(lengths[:, hips], lengths[:1, hips].repeat(40, 0), atol=1e-9)
        feet = pose[:, [H36M_17.joints.index("left_foot"), H36M_17.joints.index("right_foot")], 2]
        np.testing.assert_allclose(feet.min(1), 0.0, atol=1e-9)
        # knees bend to where the body looks, so that left is left; those who wave stand nearly straight
        assert facing(pose, H36M_17) > (0.5 if movement != "Waving" else -1e-9)

    @given(seed=SEEDS)
    @settings(max_examples=25, deadline=None)
    def test_the_face_looks_ahead(self, seed):
        rng = np.random.default_rng(seed)
        joints = Body().joints(any_posture(rng, 5), np.zeros(5), np.zeros((5, 2)))
        assert (joints["nose"][:, 0] > joints["left_ear"][:, 0]).all()
        assert (joints["left_eye"][:, 1] > joints["right_eye"][:, 1]).all()
        assert (joints["left_shoulder"][:, 1] > joints["right_shoulder"][:, 1]).all()

    def test_joints_of_both_layouts_agree(self):
        joints = Body().joints(*move(np.random.default_rng(0), "Walking", 3))
        coco, h36m = in_layout(joints, COCO_17), in_layout(joints, H36M_17)
        np.testing.assert_array_equal(
            coco[:, COCO_17.joints.index("left_ankle")], h36m[:, H36M_17.joints.index("left_foot")]
        )
        hips = [COCO_17.joints.index(name) for name in ("left_hip", "right_hip")]
        np.testing.assert_allclose(coco[:, hips].mean(1), h36m[:, 0])


class TestPeople:
    def test_limbs_are_where_the_annotations_say(self, people):
        images, annotations = read(people.train)
        names = {image["id"]: image["file_name"] for image in images}
        redder = {"left": [], "right": []}
        for entry in annotations:
            pixels = np.asarray(Image.open(people.root / "train2017" / names[entry["image_id"]]), dtype=int)
            triples = np.array(entry["keypoints"]).reshape(-1, 3)
            for joint, side in ((9, "left"), (10, "right"), (15, "left"), (16, "right")):  # wrists and ankles
                x, y, flag = triples[joint]
                if flag == 2:
                    red, green, _ = pixels[int(y), int(x)]
                    redder[side].append(red > green)
        assert np.mean(redder["left"]) > 0.9  # red
        assert np.mean(redder["right"]) < 0.1  # green

    def test_hidden_and_missing_joints_crowds_and_nobody(self, people):
        images, annotations = read(people.train)
        flags = np.array([entry["keypoints"][2::3] for entry in annotations if not entry["iscrowd"]])
        assert set(np.unique(flags)) == {0, 1, 2}
        assert (flags == 2).mean() > 0.6
        crowds = [entry for entry in annotations if entry["iscrowd"]]
        assert crowds
        assert all(entry["num_keypoints"] == 0 for entry in crowds)
        counts = [sum(entry["image_id"] == image["id"] for entry in annotations) for image in images]
        assert min(counts) == 0
        assert max(counts) > 2

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools itself
    def test_the_official_reader_takes_it_and_masks_have_their_areas(self, people, capsys):
        official = COCO(str(people.train))
        capsys.readouterr()
        for entry in official.anns.values():
            area, whole = official.annToMask(entry).sum(), entry["area"]
            if entry["iscrowd"]:
                assert area == whole
            else:  # a hull
                assert area >= 0.97 * whole
            x, y, width, height = entry["bbox"]
            assert 0 < whole <= width * height
            assert 0 <= x <= x + width <= 256
            assert 0 <= y <= y + height <= 192

    def test_preparation_rejects_and_repairs_nothing(self, people, tmp_path):
        card = run("coco", people.root, tmp_path / "out", valid_share=0.2)
        assert card["rejects"]["count"] == 0
        assert notes(tmp_path / "out", "remarks") == []
        assert sum(len(table(tmp_path / "out", split)) for split in ("train", "valid", "test")) == 66
        assert card["keypoints"]["names"] == list(KEYPOINTS.names)

    def test_a_seed_gives_the_same_bytes_and_another_gives_others(self, tmp_path):
        folders = [tmp_path / name for name in ("first", "again", "other")]
        for folder, seed in zip(folders, (3, 3, 4), strict=True):
            write_planted_people(folder, train=3, valid=1, seed=seed)
        content = [
            {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.*"))} for folder in folders
        ]
        assert content[0] == content[1]
        assert all(content[0][name] != content[2][name] for name in content[0])


class TestSequences:
    def test_preparation_keeps_subjects_apart_and_measures_the_noise(self, sequences, tmp_path):
        raw, out = sequences.poses.parent, tmp_path / "out"
        card = prepare_sequences("human36m", raw, out, valid_subjects="S8", executor="serial", progress=False)
        assert card["rejects"]["count"] == 0
        assert card["layout"]["name"] == "h36m-17"
        index = {split: pl.read_parquet(out / split / "part-00000.parquet") for split in ("train", "valid", "test")}
        assert {split: set(rows["subject"]) for split, rows in index.items()} == {
            "train": {"S1"},
            "valid": {"S8"},
            "test": {"S9"},
        }
        rows = pl.concat(index.values())
        assert len(rows) == 3 * len(MOVEMENTS) * 4
        # median of the distance of two normal deviates of 3 pixels: 3 sqrt(2 ln 2)
        assert rows["reprojection_pixels"].median() == pytest.approx(3 * np.sqrt(2 * np.log(2)), rel=0.05)
        kinds = set(pl.read_parquet(out / "remarks.parquet")["kind"])
        assert kinds <= {"missing_sequences"}

    def test_a_seed_gives_the_same_bytes(self, sequences, tmp_path):
        again = write_planted_sequences(tmp_path, subjects=("S1", "S8", "S9"), frames=30, noise=3.0)
        assert again.poses.read_bytes() == sequences.poses.read_bytes()
        assert again.keypoints.read_bytes() == sequences.keypoints.read_bytes()

    def test_subjects_have_bodies_of_their_own(self, sequences):
        with np.load(sequences.poses, allow_pickle=True) as file:
            poses = file["positions_3d"].item()
        heights = [poses[subject]["Waving"][..., 2].max() for subject in ("S1", "S8", "S9")]
        assert len(np.unique(np.round(heights, 3))) == 3
