"""Images of persons from raw files to a prepared directory: layouts, splits, groups, descriptions."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from data_prep.common.errors import ConfigError, DatasetNotFoundError, LeakError, PrepError
from data_prep.pose.people.description import COCO, CROWDPOSE, complete, derive_flip
from tests.data.pose.make_people import DOG, document, write_coco, write_crowdpose, write_dogs, write_image, write_json
from tests.data_prep.helpers import tree
from tests.data_prep.pose.people_helpers import notes, run, table

SIGMAS = "sigmas: 0.05\n"


@pytest.fixture
def described(tmp_path: Path) -> Path:
    path = tmp_path / "dogs.yaml"
    path.write_text(SIGMAS)
    return path


def test_coco(tmp_path: Path) -> None:
    raw = write_coco(tmp_path / "raw")
    card = run("coco", raw, tmp_path / "out")
    assert card["domain"] == "pose" and card["kind"] == "people" and card["keypoints"] == COCO.entry()
    assert [card["splits"][split]["rows"] for split in ("train", "valid", "test")] == [6, 3, 3]
    assert card["counts"]["images"] == 9 and card["counts"]["persons"] == 9 and card["counts"]["crowds"] == 2
    assert card["rejects"] == {"count": 0, "share": 0.0} and not notes(tmp_path / "out", "remarks")
    index, persons = table(tmp_path / "out", "train"), table(tmp_path / "out", "train", "persons")
    assert index["image"][0] == "train2017/000001.png" and not index["stored"].any()
    assert (raw / index["image"][0]).is_file() and card["image_root"] == str(raw)
    assert not (tmp_path / "out/images").exists()
    assert index["persons"].to_list() == [2, 1, 0, 2, 1, 0] and index["crowds"].to_list() == [1, 0, 0, 0, 0, 0]
    content = json.loads((raw / "annotations/person_keypoints_train2017.json").read_text())
    assert persons["annotation_id"].to_list() == [10, 11, 9001, 20, 40, 41, 50]
    assert persons["keypoints"][0].to_list() == content["annotations"][0]["keypoints"]
    assert persons["area"][0] == content["annotations"][0]["area"] and persons["labelled"][0] == 16


def test_val_is_test_too_unless_training_images_are_spared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_coco(tmp_path / "raw", train=40)
    card = run("coco", raw, tmp_path / "out")
    assert card["splits"]["test"]["same_as"] == "valid" and "flatters" in capsys.readouterr().err
    card = run("coco", raw, tmp_path / "spared", valid_share=0.1)
    assert [card["splits"][split]["rows"] for split in ("train", "valid", "test")] == [36, 4, 3]
    assert table(tmp_path / "spared", "test")["image_id"].to_list() == [101, 102, 103]


def test_layouts_of_coco(tmp_path: Path) -> None:
    raw = write_coco(tmp_path / "raw")
    run("coco", raw, tmp_path / "one")
    (raw / "images").mkdir()
    for split in ("train2017", "val2017"):
        (raw / split).rename(raw / "images" / split)
    (raw / "annotations").rename(tmp_path / "elsewhere")
    path = tmp_path / "elsewhere/person_keypoints_val2017.json"
    path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    run("coco", [raw, tmp_path / "elsewhere"], tmp_path / "other")
    for split in ("train", "valid"):
        one, other = table(tmp_path / "one", split), table(tmp_path / "other", split)
        assert one.drop("image", "group").equals(other.drop("image", "group"))
        assert (tmp_path / other["image"][0]).is_file()


def test_images_of_one_name_are_those_of_the_split(tmp_path: Path) -> None:
    raw = write_coco(tmp_path / "raw", train=3, valid=3)
    for number in (101, 102, 103):
        write_image(raw / f"train2017/{number:06d}.png", 500 + number)
    run("coco", raw, tmp_path / "out")
    assert table(tmp_path / "out", "valid")["image"][0] == "val2017/000101.png"


def test_crowdpose(tmp_path: Path) -> None:
    raw = write_crowdpose(tmp_path / "raw")
    card = run("crowdpose", raw, tmp_path / "out")
    assert [card["splits"][split]["rows"] for split in ("train", "valid", "test")] == [4, 2, 3]
    assert card["keypoints"] == CROWDPOSE.entry() and card["area"] == "box" and card["protocol"] == "crowdpose"
    assert not notes(tmp_path / "out", "remarks") and card["splits"]["test"].get("same_as") is None
    assert table(tmp_path / "out", "test")["crowd_index"].to_list() == [0.0, 0.25, 0.5]
    persons = table(tmp_path / "out", "test", "persons")
    assert [box[2] * box[3] for box in persons["box"].to_list()] == persons["area"].to_list()
    card = run("crowdpose", raw, tmp_path / "merged", train_on_valid=True)
    assert [card["splits"][split]["rows"] for split in ("train", "valid", "test")] == [6, 0, 3]


def test_dogs(tmp_path: Path, described: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dogs(tmp_path / "raw", 30)
    card = run("coco-json", path.parent, tmp_path / "out", description=described)
    assert card["keypoints"] == {
        **{"layout": "", "names": DOG, "skeleton": [[0, 1], [1, 2]], "flip_pairs": [[1, 2]], "sigmas": [0.05] * 4}
    }
    assert card["licence"] == "Licence of the test" and "left_ear-right_ear" in capsys.readouterr().err
    assert sum(card["splits"][split]["rows"] for split in ("train", "valid", "test")) == 30
    assert card["splits"]["train"]["rows"] == 24
    assert all(not card["splits"][split].get("same_as") for split in ("train", "valid", "test"))


def test_a_file_for_each_split(tmp_path: Path, described: Path) -> None:
    files = []
    for at, split in enumerate(("train", "val", "test")):
        path = write_dogs(tmp_path / "raw" / split)
        files.append(path.rename(path.with_name(f"dogs_{split}.json")))
        for image in (path.parent / "images").iterdir():
            write_image(image, 100 * at + int(image.stem))
    card = run("coco-json", tmp_path / "raw", tmp_path / "out", description=described)
    assert [card["splits"][split]["rows"] for split in ("train", "valid", "test")] == [9, 9, 9]
    files[2].rename(tmp_path / "raw/more.json")
    with pytest.raises(ConfigError, match=r"more\.json: of several files each must say in its name"):
        run("coco-json", tmp_path / "raw", tmp_path / "other", description=described)
    card = run("coco-json", tmp_path / "raw", tmp_path / "two", description=described, annotations=files[:2])
    assert card["splits"]["test"]["same_as"] == "valid"


def test_groups_stay_on_one_side(tmp_path: Path, described: Path) -> None:
    path = write_dogs(tmp_path / "raw", 30)
    content = json.loads(path.read_text())
    for at, image in enumerate(content["images"]):
        image["video"] = at // 3
    write_json(path, content)
    card = run("coco-json", path.parent, tmp_path / "out", description=described, group="video")
    assert card["group"] == {"name": "video", "kept_apart": True, "groups": 10, "note": ""}
    sides = [set(table(tmp_path / "out", split)["group"].to_list()) for split in ("train", "valid", "test")]
    assert sum(map(len, sides)) == 10 and len(set.union(*sides)) == 10 and all(sides)
    run("coco-json", path.parent, tmp_path / "named", description=described, group_pattern=r"0000(\d)\d\.png")
    assert sorted(table(tmp_path / "named", "train")["group"].unique().to_list() or []) != []
    with pytest.raises(PrepError, match="has no scene, by which images are grouped"):
        run("coco-json", path.parent, tmp_path / "none", description=described, group="scene")


def test_a_group_on_two_given_sides_is_refused(tmp_path: Path, described: Path) -> None:
    for at, split in enumerate(("train", "test")):
        path = write_dogs(tmp_path / "raw" / split, 3)
        content = json.loads(path.read_text())
        for image in content["images"]:
            image["video"] = "v1" if image["id"] == 1 else f"{split}{image['id']}"
            write_image(path.parent / "images" / image["file_name"], 100 * at + image["id"])
        write_json(path.with_name(f"{split}.json"), content)
        path.unlink()
    with pytest.raises(LeakError, match=r"train\.json, test\.json: video 'v1' is in train .* and in test"):
        run("coco-json", tmp_path / "raw", tmp_path / "out", description=described, group="video")
    card = run("coco-json", tmp_path / "raw", tmp_path / "free", description=described, valid_share=0)
    assert card["splits"]["valid"]["rows"] == 0


def test_one_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    raw = write_coco(tmp_path / "raw")
    path = raw / "annotations/person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "train2017/000001.png"
    write_json(path, content)
    with pytest.raises(LeakError, match=r"train2017/000001\.png.* is in train .* and in valid"):
        run("coco", raw, tmp_path / "out")


def test_copies_across_splits_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_coco(tmp_path / "raw")
    shutil.copy(raw / "train2017/000001.png", raw / "val2017/000101.png")
    card = run("coco", raw, tmp_path / "told")
    assert card["duplicates"] == {"rule": "auto", "copies": 1, "across": {"train-valid": 1}, "dropped": {}}
    assert "same pixels in two splits: 1 train-valid; left out: none" in capsys.readouterr().err
    card = run("coco", raw, tmp_path / "dropped", duplicates="drop")
    assert card["duplicates"]["dropped"] == {"train": 1} and card["splits"]["train"]["rows"] == 5
    assert table(tmp_path / "dropped", "train", "persons")["row"].to_list() == [0, 2, 2, 3]
    with pytest.raises(LeakError, match="have the same pixels"):
        run("coco", raw, tmp_path / "refused", duplicates="refuse")


def test_finished_is_found_and_others_are_refused(tmp_path: Path) -> None:
    raw = write_coco(tmp_path / "raw")
    card = run("coco", raw, tmp_path / "out")
    before = tree(tmp_path / "out")
    assert run("coco", raw, tmp_path / "out") == card and tree(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="of other options or other files"):
        run("coco", raw, tmp_path / "out", valid_share=0.5)
    (raw / "val2017/000101.png").unlink()
    with pytest.raises(ConfigError, match="of other options or other files"):
        run("coco", raw, tmp_path / "out")


def test_copied_images_need_no_raw_folder(tmp_path: Path) -> None:
    raw = write_coco(tmp_path / "raw")
    run("coco", raw, tmp_path / "out", copy_images=True)
    index = table(tmp_path / "out", "valid")
    assert index["stored"].all()
    wanted = (raw / "val2017/000101.png").read_bytes()
    assert (tmp_path / "out" / index["image"][0]).read_bytes() == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mpii"}, "dataset 'mpii': there are coco, crowdpose, coco-json"),
        ({"ratios": (0.8, 0.1, 0.1)}, "ratios: is no option of coco"),
        ({"group": "video"}, "group: is no option of coco"),
        ({"train_on_valid": True}, "train_on_valid: is no option of coco"),
        ({"duplicates": "no"}, "duplicates 'no': choose auto, report, drop, refuse"),
        ({"exif": "yes"}, "exif 'yes': choose"),
        ({"valid_share": 1.0}, "valid_share 1.0"),
        ({"max_rejects": 2.0}, "max_rejects 2.0"),
        ({"dataset": "coco-json", "group_pattern": "("}, "no regular expression"),
        ({"dataset": "coco-json", "group_pattern": "x"}, "one pair of brackets"),
        ({"dataset": "coco-json", "group_pattern": "(x)", "group": "y"}, "goes without group"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, object], message: str) -> None:
    raw = write_coco(tmp_path / "raw")
    with pytest.raises(ConfigError) as error:
        run(**{"dataset": "coco", "raw": raw, "out": tmp_path / "out", **options})
    assert message in str(error.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="no such file or folder"):
        run("coco", tmp_path / "raw", tmp_path / "out")
    (tmp_path / "raw").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"no person_keypoints_train2017\.json"):
        run("coco", tmp_path / "raw", tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match=r"no crowdpose_train\.json"):
        run("crowdpose", tmp_path / "raw", tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match="no JSON file"):
        run("coco-json", tmp_path / "raw", tmp_path / "out")
    write_json(tmp_path / "raw/person_keypoints_val2017.json", document(2))
    with pytest.raises(PrepError, match="holds no image file"):
        run("coco", tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no description"),
        ("sigmas: [", "is no YAML"),
        ("sigma: 1", "field 'sigma' is unknown; the fields are layout"),
        ("licence: 3", "licence: give a text"),
        ("keypoints: [a, b]", "the description has 2, the category 4"),
        ("keypoints: [a, b, c, a]", "'a' is there twice"),
        ("flip: []", "sigmas of these 4 keypoints are not known; give `sigmas:`"),
        ("sigmas: [0.1]", "1 for 4 keypoints"),
        ("sigmas: 5", "5 of 'nose'; give a share"),
        ("sigmas: {nose: 0.1}", "'left_ear' has none"),
        ("sigmas: 0.1\nflip: [[left_ear, right_eye]]", "flip: 'right_eye' is no keypoint"),
        ("sigmas: 0.1\nflip: [[left_ear, right_ear], [left_ear, nose]]", "'left_ear' is in two pairs"),
        ("sigmas: 0.1\nskeleton: [nose]", "skeleton: give pairs"),
        ("sigmas: 0.1\ncategory: cat", "there is no category 'cat'; the categories are dog"),
        ("sigmas: 0.1\nkeypoints: [nose, left_ear, ear, tail]", "'left_ear' has no counterpart 'right_ear'"),
        ("sigmas: 0.1\nkeypoints: [nose, ear, right_ear, tail]", "'right_ear' has no counterpart on the left"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = write_dogs(tmp_path / "raw")
    (tmp_path / "dogs.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        run("coco-json", path.parent, tmp_path / "out", description=tmp_path / "dogs.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_descriptions_say_what_the_json_does_not(tmp_path: Path) -> None:
    path = write_dogs(tmp_path / "raw")
    content = json.loads(path.read_text())
    del content["categories"][0]["keypoints"]
    write_json(path, content)
    (tmp_path / "dogs.yaml").write_text(
        "layout: dog-4\nlicence: none\nkeypoints: [nose, ear_l, ear_r, tail]\nskeleton: [[nose, tail]]\n"
        "sigmas: {nose: 0.02, ear_l: 0.03, ear_r: 0.03, tail: 0.1}\n"
    )
    card = run("coco-json", path.parent, tmp_path / "out", description=tmp_path / "dogs.yaml")
    assert card["licence"] == "none"
    assert card["keypoints"] == {
        "layout": "dog-4",
        "names": ["nose", "ear_l", "ear_r", "tail"],
        "skeleton": [[0, 3]],
        "flip_pairs": [[1, 2]],
        "sigmas": [0.02, 0.03, 0.03, 0.1],
    }


def test_known_keypoints_need_no_description(tmp_path: Path) -> None:
    content = document(9)
    for image in content["images"]:
        write_image(tmp_path / "raw" / image["file_name"], image["id"])
    write_json(tmp_path / "raw/people.json", content)
    assert run("coco-json", tmp_path / "raw", tmp_path / "out")["keypoints"] == COCO.entry()


def test_pairs_by_names() -> None:
    assert derive_flip(["l_eye", "r_eye", "tail"], "") == ((0, 1),)
    assert derive_flip(["Eye.L", "Eye.R"], "") == ((0, 1),)
    assert derive_flip(["LeftHip", "RightHip", "head"], "") == ((0, 1),)
    assert derive_flip(["head", "heel"], "") == ()


@pytest.mark.parametrize(
    ("skeleton", "wanted"), [([[0, 1], [1, 2]], 2), ([[1, 2], [2, 3]], 2), ([[1, 9]], 0), ("x", 0)]
)
def test_skeletons_count_from_1_or_0(skeleton: object, wanted: int) -> None:
    found, _ = complete({"keypoints": ["a", "b", "c"], "skeleton": skeleton}, {"sigmas": 0.1}, "file")
    assert len(found.skeleton) == wanted
    assert not wanted or found.skeleton == ((0, 1), (1, 2))


def test_several_categories_with_keypoints(tmp_path: Path, described: Path) -> None:
    path = write_dogs(tmp_path / "raw")
    content = json.loads(path.read_text())
    content["categories"].append({"id": 2, "name": "cat", "keypoints": DOG})
    content["annotations"][0]["category_id"] = 2
    write_json(path, content)
    with pytest.raises(ConfigError, match=r"2 categories have keypoints \(of dog, cat\)"):
        run("coco-json", path.parent, tmp_path / "out", description=described)
    described.write_text(SIGMAS + "category: dog\n")
    card = run("coco-json", path.parent, tmp_path / "out", description=described)
    assert card["counts"]["annotations_of_other_categories"] == 1


@pytest.mark.shared
def test_real_images(tmp_path: Path, shared: Path) -> None:
    card = run("coco", shared / "pose/coco_mini", tmp_path / "out")
    assert [card["splits"][split]["rows"] for split in ("train", "valid")] == [28, 32]
    assert card["counts"]["persons"] == 154 and card["counts"]["annotations"] == 240 and card["counts"]["crowds"] == 6
    assert card["rejects"]["count"] == 0 and card["counts"]["remarks"] == {}


@pytest.mark.shared
def test_real_json_of_another_tool(tmp_path: Path, shared: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    content = json.loads((shared / "pose/h36m/h36m_coco.json").read_text())
    for image in content["images"]:
        write_image(raw / image["file_name"], image["id"], image["width"], image["height"])
    write_json(raw / "h36m.json", content)
    (tmp_path / "h36m.yaml").write_text("layout: h36m-17\nsigmas: 0.05\n")
    card = run("coco-json", raw, tmp_path / "out", description=tmp_path / "h36m.yaml")
    assert card["keypoints"]["skeleton"][0] == [0, 1] and len(card["keypoints"]["flip_pairs"]) == 6
    assert card["counts"]["persons"] == 4 and card["counts"]["remarks"] == {}
