"""The data set of the benchmark that learns by heart: its validation images are its training images."""

from __future__ import annotations

import json

import pytest

from benchmarks.pose_coco_mini import lay_out


@pytest.mark.parametrize(("images", "kept"), [(None, ["1.jpg", "2.jpg", "3.jpg"]), (1, ["2.jpg"])])
def test_the_validation_images_are_the_training_images(tmp_path, images, kept):
    raw = tmp_path / "raw"
    (raw / "train2017").mkdir(parents=True)
    (raw / "annotations").mkdir()
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2, 3)],
        "annotations": [{"image_id": number, "num_keypoints": number - 1} for number in (3, 2, 1)],
    }
    for entry in content["images"]:
        (raw / "train2017" / entry["file_name"]).write_bytes(b"")
    (raw / "annotations" / "person_keypoints_train2017.json").write_text(json.dumps(content))
    for _ in range(2):  # a second time changes nothing
        made = lay_out(raw, tmp_path / "laid-out", images)
    for split in ("train2017", "val2017"):
        assert sorted(path.name for path in (made / split).iterdir()) == kept
        written = json.loads((made / "annotations" / f"person_keypoints_{split}.json").read_text())
        assert [entry["file_name"] for entry in written["images"]] == kept
        assert {entry["image_id"] for entry in written["annotations"]} == {int(name[0]) for name in kept}
