"""The data set of the benchmark that learns by heart: its validation images are its training images."""

from __future__ import annotations

from benchmarks.pose_coco_mini import lay_out


def test_the_validation_images_are_the_training_images(tmp_path):
    raw = tmp_path / "raw"
    for split in ("train2017", "val2017"):
        (raw / split).mkdir(parents=True)
        (raw / split / f"{split}.jpg").write_bytes(b"")
        (raw / "annotations").mkdir(exist_ok=True)
        (raw / "annotations" / f"person_keypoints_{split}.json").write_text(split)
    for _ in range(2):  # a second time changes nothing
        made = lay_out(raw, tmp_path / "laid-out")
    for split in ("train2017", "val2017"):
        assert [path.name for path in (made / split).iterdir()] == ["train2017.jpg"]
        assert (made / "annotations" / f"person_keypoints_{split}.json").read_text() == "train2017"
