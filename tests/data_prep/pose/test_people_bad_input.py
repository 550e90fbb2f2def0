"""Damaged annotations and images: each is named, repaired where only one way is open, and never dropped silently."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.common.errors import ConfigError, CorruptRecordError, PrepError, RejectsExceededError
from tests.data.pose.make_people import crowd, document, pixels, write_image, write_images, write_json
from tests.data_prep.pose.people_helpers import notes, prepare_changed, run, table

Change = Callable[[dict[str, Any]], None]
NAN = float("nan")


def first(**values: Any) -> Change:
    """Change entries of the first annotation; None removes one."""

    def change(content: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is None:
                del content["annotations"][0][name]
            else:
                content["annotations"][0][name] = value

    return change


def keypoint(index: int, *values: float) -> Change:
    """Change one keypoint of the first annotation."""

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["keypoints"][3 * index : 3 * index + 3] = values

    return change


def nested(content: dict[str, Any]) -> None:
    points = content["annotations"][0]["keypoints"]
    content["annotations"][0]["keypoints"] = [points[at : at + 3] for at in range(0, 51, 3)]


REPAIRED = {
    "no area": (first(area=None), "area", "is missing, or no number: taken from the box"),
    "area no number": (first(area=NAN), "area", "is missing, or no number: taken from the box"),
    "area 0": (first(area=0), "area", "is no possible one: taken from the box"),
    "negative area": (first(area=-5), "area", "is no possible one: taken from the box"),
    "no iscrowd": (first(iscrowd=None), "iscrowd", "is missing: taken as 0, one person"),
    "wrong count": (first(num_keypoints=3), "num_keypoints", "disagrees with the flags: counted anew"),
    "flag 3": (keypoint(5, 9, 9, 3), "keypoints", "a flag that is none of 0, 1, 2"),
    "flag -1": (keypoint(5, 9, 9, -1), "keypoints", "a flag that is none of 0, 1, 2"),
    "flag 0.7": (keypoint(5, 9, 9, 0.7), "keypoints", "a flag that is none of 0, 1, 2"),
    "labelled at the origin": (keypoint(5, 0, 0, 1), "keypoints", "flagged as labelled at 0, 0"),
    "placed but not labelled": (keypoint(5, 9, 9, 0), "keypoints", "with a place but flag 0"),
    "coordinate no number": (keypoint(5, NAN, 9, 2), "keypoints", "no possible number"),
    "infinite coordinate": (keypoint(5, float("inf"), 9, 2), "keypoints", "no possible number"),
    "outside the image": (keypoint(5, 70, 9, 2), "keypoints", "labelled keypoints outside the image: kept"),
    "nested keypoints": (nested, "keypoints", "lists inside the list are joined"),
    "numbers as texts": (first(bbox=["3", "4", "20", "20"]), "annotations", "numbers written as texts"),
    "flat box": (first(bbox=[3, 4, 0, 20]), "bbox", "the box has no area: evaluated, but not trained on"),
    "box outside": (first(bbox=[300, 4, 10, 20]), "bbox", "the box is outside the image: not trained on"),
    "no id": (first(id=None), "id", "is missing: the annotation gets one"),
    "other person of the same id": (first(id=11), "id", "is that of another annotation, too: changed"),
    "other category": (first(category_id=7), "category_id", "the category is not in the file: taken as the only one"),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_annotations_that_are_repaired(tmp_path: Path, name: str) -> None:
    change, field, reason = REPAIRED[name]
    card = prepare_changed(tmp_path, change)
    found = notes(tmp_path / "out", "remarks")
    assert card["rejects"]["count"] == 0 and sum(card["counts"]["remarks"].values()) == len(found)
    if field == "keypoints":  # fewer are labelled than num_keypoints says
        found = [each for each in found if each[0] != "num_keypoints"]
    assert [(each[0], reason in each[1]) for each in found] == [(field, True)], found
    assert "annotation" in found[0][2] or "image_id" in found[0][2]
    persons = table(tmp_path / "out", "valid", "persons")
    assert len(persons) == 3 and persons["annotation_id"].n_unique() == 3
    points = persons["keypoints"].to_numpy().reshape(3, 17, 3)
    assert np.isfinite(points).all() and np.isin(points[:, :, 2], (0, 1, 2)).all()
    assert (persons["labelled"].to_numpy() == (points[:, :, 2] > 0).sum(1)).all() and (persons["area"] > 0).all()


REJECTED = {
    "unknown image": (first(image_id=99), "image_id", "its image is not in the file"),
    "no image": (first(image_id=None), "image_id", "its image is not in the file"),
    "too few numbers": (first(keypoints=[1, 2, 2]), "keypoints", "are not 51 numbers: x, y and flag of each of 17"),
    "no flags": (first(keypoints=[1] * 34), "keypoints", "are not 51 numbers"),
    "no keypoints": (first(keypoints=[]), "keypoints", "are missing, and num_keypoints is not 0"),
    "too deep": (first(keypoints=[[[1, 2, 2]]]), "annotations", "keypoints"),
    "text": (first(keypoints="all"), "annotations", "keypoints: expected `array | null`, got `str`"),
    "no box": (first(bbox=None), "bbox", "has no box"),
    "half a box": (first(bbox=[1, 2]), "bbox", "has a box of 2 numbers"),
    "negative box": (first(bbox=[20, 20, -5, 5]), "bbox", "negative width or height"),
    "box no number": (first(bbox=[NAN, 2, 3, 4]), "bbox", "a number that is none, or is impossible"),
    "no box and no area": (first(bbox=[1, 2, 0, 0], area=0), "bbox", "neither the box nor the area"),
    "strange crowd": (first(iscrowd=2), "iscrowd", "is neither 0 nor 1"),
    "no object": (lambda content: content["annotations"].__setitem__(0, 5), "annotations", "expected `object`"),
    "the same again": (lambda content: content["annotations"].append(content["annotations"][0]), "id", "repeats an"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_annotations_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    change, field, reason = REJECTED[name]
    card = prepare_changed(tmp_path, change)
    found = notes(tmp_path / "out", "rejects")
    assert [(each[0], reason in each[1]) for each in found] == [(field, True)], found
    assert card["rejects"]["count"] == 1 and card["counts"]["annotations"] == (3 if name == "the same again" else 2)


def image_entry(**values: Any) -> Change:
    return lambda content: content["images"][0].update(values)


@pytest.mark.parametrize(
    ("change", "reason", "rejects"),
    [
        (image_entry(file_name="gone.png"), "the image file is not there", 3),
        (image_entry(file_name="../../etc/passwd"), "the image file is not there", 3),
        (image_entry(file_name=" "), "has no file name", 3),
        (image_entry(file_name=7), "file_name: expected `str`", 3),
        (image_entry(id="one"), "id: expected `int`", 3),
        (image_entry(width=-3), "width is no number of pixels", 3),
        (image_entry(width=20.5), "width is no number of pixels", 3),
        (lambda content: content["images"].append(content["images"][0]), "repeats an image", 1),
        (lambda content: content["images"][2].update(id=1), "the id is that of another file, too", 4),
    ],
)
def test_images_that_cannot_be_used(tmp_path: Path, change: Change, reason: str, rejects: int) -> None:
    prepare_changed(tmp_path, change)
    found = notes(tmp_path / "out", "rejects")
    assert len(found) == rejects and any(reason in each[1] for each in found), found
    assert all(each[0] in ("images", "image_id") for each in found)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the image file is empty (0 bytes)"),
        (b"no image", "the file is no image, or a damaged one"),
        (None, "the file ends inside the image"),
    ],
)
def test_damaged_image_files(tmp_path: Path, data: bytes | None, reason: str) -> None:
    def damage(content: dict[str, Any]) -> None:
        path = tmp_path / "raw/000001.png"
        path.write_bytes(path.read_bytes()[:-200] if data is None else data)

    prepare_changed(tmp_path, damage)
    found = notes(tmp_path / "out", "rejects")
    assert found[0] == ("images", reason, "image 1, 000001.png")
    assert [each[1] for each in found[1:]] == [f"its image cannot be used: {reason}"] * 2
    assert table(tmp_path / "out", "valid")["image_id"].to_list() == [2, 3]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_cut_short_jpeg(tmp_path: Path, share: float) -> None:
    def cut(content: dict[str, Any]) -> None:
        path = tmp_path / "raw/000001.jpg"
        _tile().save(path, quality=95)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        content["images"][0]["file_name"] = path.name

    prepare_changed(tmp_path, cut)
    found = notes(tmp_path / "out", "rejects")
    assert found[0][0] == "images" and found[0][2] == "image 1, 000001.jpg"
    assert "ends inside" in found[0][1] or "damaged" in found[0][1]
    assert table(tmp_path / "out", "valid")["image_id"].to_list() == [2, 3]


def test_images_without_any_person_are_evaluated(tmp_path: Path) -> None:
    card = prepare_changed(tmp_path, lambda content: content["annotations"].clear())
    assert card["counts"]["persons"] == 0 and card["counts"]["images_without_persons"] == 3
    assert len(table(tmp_path / "out", "valid")) == 3


def test_frames_are_no_image(tmp_path: Path) -> None:
    def animate(content: dict[str, Any]) -> None:
        frames = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
        frames[0].save(tmp_path / "raw/000001.gif", save_all=True, append_images=frames[1:])
        content["images"][0]["file_name"] = "000001.gif"

    prepare_changed(tmp_path, animate)
    assert "has 2 frames or pages" in notes(tmp_path / "out", "rejects")[0][1]


def test_the_size_of_the_file_counts_if_annotations_lie_inside(tmp_path: Path) -> None:
    prepare_changed(tmp_path, image_entry(width=640, height=480))
    found = notes(tmp_path / "out", "remarks")
    assert found[0][1].startswith("has another size than the annotations say, and all lie inside")
    assert found[0][2] == "image 1, 000001.png: 64 x 48, not 640 x 480"
    assert table(tmp_path / "out", "valid").select("width", "height").row(0) == (64, 48)


def test_an_image_of_another_size_with_annotations_outside(tmp_path: Path) -> None:
    def shrink(content: dict[str, Any]) -> None:
        write_image(tmp_path / "raw/000001.png", 1, 16, 12)

    prepare_changed(tmp_path, shrink)
    found = notes(tmp_path / "out", "rejects")
    assert found[0][1] == "has another size than the annotations say, and some lie outside of it" and len(found) == 3


def test_no_size_is_that_of_the_file(tmp_path: Path) -> None:
    def remove(content: dict[str, Any]) -> None:
        del content["images"][0]["width"]

    prepare_changed(tmp_path, remove)
    assert notes(tmp_path / "out", "remarks")[0][1] == "the annotations say no size: taken from the file"


def _stored(image: Image.Image, path: Path, **options: Any) -> None:
    image.save(path, **options)


def _tile() -> Image.Image:
    return Image.fromarray(pixels(1))


KINDS: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "CMYK": ("jpg", lambda path: _stored(_tile().convert("CMYK"), path, quality=95), 12),
    "I;16": ("png", lambda path: _stored(Image.fromarray(pixels(1)[..., 0].astype(np.uint16) * 257), path), 1),
    "P": ("png", lambda path: _stored(_tile().quantize(256), path), 64),
    "RGBA": ("png", lambda path: _stored(_tile().convert("RGBA"), path), 0),
    "1": ("png", lambda path: _stored(_tile().convert("1"), path), 255),
}


@pytest.mark.parametrize("mode", KINDS)
def test_images_that_are_written_anew(tmp_path: Path, mode: str) -> None:
    suffix, save, tolerance = KINDS[mode]

    def change(content: dict[str, Any]) -> None:
        (tmp_path / "raw/000001.png").unlink()
        save(tmp_path / f"raw/000001.{suffix}")
        content["images"][0]["file_name"] = f"000001.{suffix}"

    card = prepare_changed(tmp_path, change)
    assert card["counts"]["images_written_anew"] == 1
    assert notes(tmp_path / "out", "remarks") == [
        ("images", f"stored as {mode}: written anew as 8-bit RGB", f"image 1, 000001.{suffix}")
    ]
    row = table(tmp_path / "out", "valid").row(0, named=True)
    assert row["stored"] and row["image"].startswith("images/")
    found = np.asarray(Image.open(tmp_path / "out" / row["image"])).astype(int)
    wanted = pixels(1).astype(int) if mode != "I;16" else np.repeat(pixels(1)[..., :1], 3, 2).astype(int)
    assert found.shape == (48, 64, 3) and np.abs(found - wanted).max() <= tolerance


def test_grey_images_stay(tmp_path: Path) -> None:
    card = prepare_changed(tmp_path, lambda content: _tile().convert("L").save(tmp_path / "raw/000001.png"))
    assert card["counts"]["grey_images"] == 1 and not notes(tmp_path / "out", "remarks")


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    _tile().save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("orientation", "width", "exif", "size", "told"),
    [
        (6, 64, "auto", (64, 48), "is ignored: the annotations are for the image of this size"),
        (6, 48, "auto", (48, 64), "is applied: the annotations are for the image of this size"),
        (3, 64, "auto", (64, 48), "is ignored: the size does not tell"),
        (6, 64, "ignore", (64, 48), "is ignored"),
        (3, 64, "apply", (64, 48), "is applied"),
        (1, 64, "auto", (64, 48), ""),
    ],
)
def test_orientation_of_cameras(
    tmp_path: Path, orientation: int, width: int, exif: str, size: tuple[int, int], told: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        (tmp_path / "raw/000001.jpg").write_bytes(_turned(orientation))
        content["images"][0] |= {"file_name": "000001.jpg", "width": width, "height": 112 - width}

    prepare_changed(tmp_path, change, exif=exif)
    row = table(tmp_path / "out", "valid").row(0, named=True)
    assert (row["width"], row["height"]) == size and row["stored"] == ("applied" in told)
    assert [told in each[1] for each in notes(tmp_path / "out", "remarks")] == [True] * bool(told)
    if row["stored"]:
        found = np.asarray(Image.open(tmp_path / "out" / row["image"])).astype(int)
        wanted = np.rot90(pixels(1), -1 if orientation == 6 else 2).astype(int)
        assert np.abs(found - wanted).mean() < 4


def test_a_crowd_is_kept_without_its_run_lengths(tmp_path: Path) -> None:
    card = prepare_changed(tmp_path, lambda content: content["annotations"].append(crowd(500, 3)))
    assert card["counts"]["crowds"] == 1 and card["counts"]["images_without_persons"] == 1
    assert table(tmp_path / "out", "valid", "persons").filter(crowd=True)["annotation_id"].to_list() == [500]


def test_an_annotation_without_keypoints_is_kept(tmp_path: Path) -> None:
    card = prepare_changed(tmp_path, first(keypoints=None, num_keypoints=0))
    assert card["counts"]["annotations_without_keypoints_entry"] == 1 and card["counts"]["persons"] == 2


def _damaged(tmp_path: Path, data: bytes) -> Path:
    write_images(tmp_path / "raw", document(2))
    path = tmp_path / "raw/person_keypoints_val2017.json"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "byte 0: the file is empty"),
        (lambda data: data[: len(data) // 2], "end: the file is cut short; download or export it again"),
        (lambda data: data.replace(b'"images"', b'\n"images\x00"', 1), "line 2, byte"),
        (lambda data: b"<html>not found</html>", "line 1, byte 0: is no JSON"),
        (lambda data: data + b"]", "is no JSON (trailing characters)"),
        (lambda data: b"[1, 2]", "document: expected `object`, got `array`"),
        (lambda data: b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}', "no image"),
        (lambda data: data.replace(b'"annotations"', b'"notes"'), "missing required field `annotations`"),
        (lambda data: data.replace(b'"categories"', b'"kinds"'), "$.categories: there is none"),
        (lambda data: data.replace(b'"left_eye"', b'"left_eyebrow"'), "the keypoints are not those of coco-17"),
        (lambda data: data.replace(b'"info": {', b'"info": {"x": ' + b"[" * 100_000, 1), "is nested too deeply"),
        (lambda data: b"\x1f\x8b" + data, "person_keypoints_val2017.json"),
    ],
)
def test_damaged_json(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path = _damaged(tmp_path, change(json.dumps(document(2)).encode()))
    with pytest.raises(PrepError) as error:
        run("coco", tmp_path / "raw", tmp_path / "out")
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, CorruptRecordError | ConfigError | PrepError)
    assert not (tmp_path / "out/dataset.json").exists()


def test_every_cut_of_the_json_gives_one_line(tmp_path: Path) -> None:
    data = json.dumps(document(2)).encode()
    for length in range(0, len(data) - 1, 97):
        _damaged(tmp_path, data[:length])
        with pytest.raises(PrepError, match="person_keypoints_val2017") as error:
            run("coco", tmp_path / "raw", tmp_path / "out")
        assert "\n" not in str(error.value)


def test_too_many_rejects_stop(tmp_path: Path) -> None:
    with pytest.raises(RejectsExceededError, match=r"person_keypoints_val2017\.json: record 0 field bbox: has no box"):
        prepare_changed(tmp_path, first(bbox=None), max_rejects=0.01)
    assert not (tmp_path / "out/dataset.json").exists()


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    _damaged(tmp_path, b"\xef\xbb\xbf" + json.dumps(document(2)).encode())
    assert run("coco", tmp_path / "raw", tmp_path / "out")["counts"]["images"] == 2


def test_header_alone_finds_no_damage_inside(tmp_path: Path) -> None:
    def damage(content: dict[str, Any]) -> None:
        path = tmp_path / "raw/000001.png"
        path.write_bytes(path.read_bytes()[:-200])

    assert prepare_changed(tmp_path, damage, verify="header")["rejects"]["count"] == 0


def test_other_keypoints_in_another_split(tmp_path: Path) -> None:
    for split, names in (("train", ["a", "b"]), ("test", ["a", "c"])):
        content = document(2, names)
        write_images(tmp_path / "raw" / split, content)
        write_json(tmp_path / f"raw/{split}/annotations.json", content)
    (tmp_path / "kind.yaml").write_text("sigmas: 0.1\n")
    with pytest.raises(ConfigError, match="other keypoints than in"):
        run("coco-json", tmp_path / "raw", tmp_path / "out", description=tmp_path / "kind.yaml")
