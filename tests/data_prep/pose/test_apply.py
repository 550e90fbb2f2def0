"""New images and videos are prepared for prediction: what cannot be read is named, the rest stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from data_prep.common.errors import ConfigError, DatasetNotFoundError, ManifestError, PrepError, RejectsExceededError
from data_prep.pose.apply import apply
from tests.data.pose.make_people import write_coco, write_image
from tests.data.pose.make_videos import break_frames, cut_after, picture, write_video
from tests.data_prep.pose.people_helpers import run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("people")
    run("coco", write_coco(top / "raw", train=4, valid=2), top / "out")
    return top / "out"


def encode(prepared: Path, raw: Path | list[Path], out: Path, **options: Any) -> tuple[dict[str, Any], pl.DataFrame]:
    card = apply(prepared, raw, out, **{"executor": "serial", "progress": False, **options})
    return card, pl.read_parquet(out / "predict" / "part-00000.parquet")


def test_images_stay_where_they_are(prepared, tmp_path):
    for name, seed in (("b/10.png", 1), ("b/9.png", 2), ("a/1.png", 3)):
        write_image(tmp_path / "raw" / name, seed)
    card, table = encode(prepared, tmp_path / "raw", tmp_path / "out")
    assert table["file"].to_list() == ["a/1.png", "b/9.png", "b/10.png"]
    assert table["image_id"].to_list() == [1, 9, 10]  # as the files are called
    assert (table["stored"].any(), table["video"].unique().to_list(), card["rejects"]["count"]) == (False, [""], 0)
    assert Path(card["image_root"]) == (tmp_path / "raw").resolve()
    assert card["keypoints"]["layout"] == "coco-17"
    assert apply(prepared, tmp_path / "raw", tmp_path / "out", progress=False) == card  # found finished
    write_image(tmp_path / "raw" / "more.png", 4)
    with pytest.raises(ConfigError, match="other options or other files"):
        encode(prepared, tmp_path / "raw", tmp_path / "out")


def test_orientation_that_a_camera_noted_counts(prepared, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("CMYK", (64, 48)).save(tmp_path / "print.jpg")
    _, table = encode(prepared, [tmp_path / "turned.jpg", tmp_path / "print.jpg"], tmp_path / "out")
    sizes = {row["file"]: (row["width"], row["height"], row["stored"]) for row in table.to_dicts()}
    assert sizes == {"turned.jpg": (48, 64, True), "print.jpg": (64, 48, True)}
    with Image.open(tmp_path / "out" / table.sort("file")["image"][0]) as image:
        assert image.mode == "RGB"


def test_ids_are_the_numbers_of_the_user_s_files(prepared, tmp_path):
    write_image(tmp_path / "raw" / "000000000139.png", 1)
    Image.new("CMYK", (64, 48)).save(tmp_path / "raw" / "000000109313.jpg")  # written anew under another name
    _, table = encode(prepared, tmp_path / "raw", tmp_path / "out")
    assert table["image_id"].to_list() == [139, 109313]


def test_a_damaged_image_is_named_and_the_others_stay(prepared, tmp_path):
    for number in range(3):
        write_image(tmp_path / "raw" / f"{number}.png", number)
    whole = (tmp_path / "raw" / "1.png").read_bytes()
    (tmp_path / "raw" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RejectsExceededError, match=r"1\.png: record 1 .*--max_rejects 0\.34 predicts the others"):
        encode(prepared, tmp_path / "raw", tmp_path / "out")
    card, table = encode(prepared, tmp_path / "raw", tmp_path / "out", max_rejects=0.34)
    assert table["file"].to_list() == ["0.png", "2.png"]
    assert card["rejects"]["count"] == 1
    assert pl.read_parquet(tmp_path / "out" / "rejects.parquet")["source"].to_list() == ["1.png"]


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_of_a_video_in_order_with_their_times(prepared, tmp_path, suffix):
    write_video(tmp_path / f"walk{suffix}", frames=12, fps=25.0)
    card, table = encode(prepared, tmp_path / f"walk{suffix}", tmp_path / "out")
    assert table["frame"].to_list() == list(range(12))
    np.testing.assert_allclose(table["time_s"], np.arange(12) / 25.0, atol=1e-3)
    assert table["video"].unique().to_list() == [f"walk{suffix}"]
    assert table["fps"].unique().to_list() == [25.0]
    for frame in (0, 7, 11):
        with Image.open(tmp_path / "out" / table["image"][frame]) as image:
            shown = np.asarray(image)
        assert np.abs(shown[..., ::-1].astype(int) - picture(frame)).mean() < 6
    assert card["videos"] == [
        {"file": f"walk{suffix}", "fps": 25.0, "frames": 12, "every": 1, "broken_frames": [], "missing_at_the_end": 0}
    ]


def test_each_third_frame(prepared, tmp_path):
    write_video(tmp_path / "walk.avi", frames=12)
    _, table = encode(prepared, tmp_path / "walk.avi", tmp_path / "out", every=3)
    assert table["frame"].to_list() == [0, 3, 6, 9]
    assert table.select("fps", "step").unique().rows() == [(25.0 / 3, 3)]


def test_a_broken_frame_is_named_with_its_time_and_the_others_stay(prepared, tmp_path, capfd):
    path = break_frames(write_video(tmp_path / "walk.avi"), [4, 5, 9])
    with pytest.raises(RejectsExceededError, match=r"walk\.avi: record 4 field frame 4 at 0\.160 s: cannot be"):
        encode(prepared, path, tmp_path / "out")
    card, table = encode(prepared, path, tmp_path / "out", max_rejects=0.3)
    assert table["frame"].to_list() == [0, 1, 2, 3, 6, 7, 8, 10, 11]
    np.testing.assert_allclose(table["time_s"], table["frame"] / 25.0, atol=1e-3)
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects["record"].to_list() == [4, 5, 9]
    assert rejects["field"][2] == "frame 9 at 0.360 s"
    assert (card["videos"][0]["broken_frames"], card["videos"][0]["missing_at_the_end"]) == ([4, 5, 9], 0)
    assert "ends" not in capfd.readouterr().err


def test_a_video_that_ends_early_is_told(prepared, tmp_path, capfd):
    path = cut_after(write_video(tmp_path / "walk.avi"), 8)
    card, table = encode(prepared, path, tmp_path / "out")
    assert len(table) == 8
    assert card["videos"][0]["missing_at_the_end"] == 4
    assert "walk.avi: ends 4 frames earlier than it says: it is cut off" in capfd.readouterr().err


def test_a_video_without_its_index_is_named(prepared, tmp_path):
    path = write_video(tmp_path / "walk.mp4")
    path.write_bytes(path.read_bytes()[:-400])
    (tmp_path / "none.avi").write_bytes(b"")
    with pytest.raises(PrepError, match=r"nothing is left of it; walk\.mp4: the video cannot be opened: it is damaged"):
        encode(prepared, path, tmp_path / "out")
    with pytest.raises(PrepError, match=r"none\.avi: the video file is empty"):
        encode(prepared, tmp_path / "none.avi", tmp_path / "out")


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_flipped_bytes_of_a_video_end_in_words(prepared, tmp_path, place):
    path = write_video(tmp_path / "walk.avi", frames=4)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(place)
    begin = len(data) * place // 100
    data[begin : begin + 60] = rng.integers(0, 256, len(data[begin : begin + 60]), np.uint8).tobytes()
    path.write_bytes(data)
    try:
        _, table = encode(prepared, path, tmp_path / "out", max_rejects=1.0)
        assert 0 < len(table) <= 8
    except PrepError:
        pass


def test_folders_are_videos_where_a_rate_is_given(prepared, tmp_path):
    for name in ("one/f2.png", "one/f10.png", "two/f1.png"):
        write_image(tmp_path / "raw" / name, len(name))
    _, table = encode(prepared, tmp_path / "raw", tmp_path / "out", fps=10.0)
    rows = table.select("file", "video", "frame", "time_s").rows()
    assert rows == [("one/f2.png", "one", 0, 0.0), ("one/f10.png", "one", 1, 0.1), ("two/f1.png", "two", 0, 0.0)]


def test_frames_of_folders_are_not_thinned(prepared, tmp_path):
    write_image(tmp_path / "raw" / "1.png", 1)
    with pytest.raises(ConfigError, match="every 2: is for videos"):
        encode(prepared, tmp_path / "raw", tmp_path / "out", fps=25.0, every=2)


def test_a_folder_below_one_of_its_name_is_another_video(prepared, tmp_path):
    for name in ("walk/1.png", "walk/2.png", "walk/walk/1.png"):
        write_image(tmp_path / name, 1)
    _, table = encode(prepared, tmp_path / "walk", tmp_path / "out", fps=25.0)
    assert sorted(table.group_by("video").len().rows()) == [(".", 2), ("walk", 1)]


def test_the_same_bytes_with_any_number_of_workers(prepared, tmp_path):
    write_video(tmp_path / "raw" / "walk.avi")
    write_video(tmp_path / "raw" / "other.mp4", frames=5)
    write_image(tmp_path / "raw" / "one.png", 1)
    encode(prepared, tmp_path / "raw", tmp_path / "first")
    encode(prepared, tmp_path / "raw", tmp_path / "second", executor="local", workers=2)
    names = sorted(str(path.relative_to(tmp_path / "first")) for path in (tmp_path / "first").rglob("*.*"))
    assert len(names) == 5 + 12 + 5 - 1
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "coco-17"}, "layout: is for keypoints that are lifted"),
        ({"size": "10x10"}, "size: is for keypoints"),
        ({"every": 0}, "every 0"),
        ({"fps": float("nan")}, "fps nan"),
        ({"max_rejects": 2.0}, "max_rejects 2"),
    ],
)
def test_options_that_cannot_be(prepared, tmp_path, options, words):
    write_image(tmp_path / "a.png", 1)
    with pytest.raises(ConfigError, match=words):
        encode(prepared, tmp_path / "a.png", tmp_path / "out", **options)


def test_what_is_no_preparation_or_holds_nothing(prepared, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match="holds no image and no video"):
        encode(prepared, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(PrepError, match="no prepared data here"):
        encode(tmp_path / "empty", tmp_path / "empty", tmp_path / "out")
    text = (prepared / "dataset.json").read_text().replace('"people"', '"crowds"')
    (tmp_path / "empty" / "dataset.json").write_text(text)
    with pytest.raises(ManifestError, match="no preparation of persons or of sequences"):
        encode(tmp_path / "empty", tmp_path / "empty", tmp_path / "out")
