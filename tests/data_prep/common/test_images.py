"""Picture files: of any kind they become 8-bit pictures; damaged ones one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.images import encode_png, read_picture


def ramp(mode: str) -> Image.Image:
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind", "wanted"),
    [
        ("RGB", "PNG", "RGB"),
        ("L", "PNG", "L"),
        ("RGBA", "PNG", "RGB"),
        ("LA", "PNG", "RGB"),
        ("P", "PNG", "RGB"),
        ("CMYK", "TIFF", "RGB"),
        ("I;16", "PNG", "RGB"),
        ("1", "PNG", "RGB"),
    ],
)
def test_pictures_of_any_kind(tmp_path: Path, mode: str, kind: str, wanted: str) -> None:
    path = tmp_path / "picture"
    ramp(mode).save(path, kind)
    picture = read_picture(path)
    assert (picture.mode, picture.size) == (wanted, (32, 24))
    grey = np.asarray(picture.convert("L"), dtype=int)
    assert grey[0, 0] < 2 and grey[0, -1] > 240
    assert mode == "1" or (np.diff(grey[0]) >= 0).all()  # one bit is dithered
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(picture)))), np.asarray(picture))


def test_numbers_from_0_to_1_are_shares_of_white(tmp_path: Path) -> None:
    shares = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (24, 1))
    Image.fromarray(shares).save(tmp_path / "shares.tif")
    grey = np.asarray(read_picture(tmp_path / "shares.tif").convert("L"))
    assert (grey.min(), grey.max()) == (0, 255)


def test_the_orientation_that_a_camera_noted(tmp_path: Path) -> None:
    notes = Image.Exif()
    notes[0x0112] = 6
    ramp("RGB").save(tmp_path / "turned.jpg", exif=notes)
    assert read_picture(tmp_path / "turned.jpg").size == (24, 32)
    assert read_picture(tmp_path / "turned.jpg", upright=False).size == (32, 24)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    ramp("L").save(tmp_path / "many.gif", save_all=True, append_images=[ramp("L").rotate(90)])
    for name, reason in (("empty", "empty"), ("text", "no image"), ("many", "2 frames")):
        with pytest.raises(CorruptRecordError, match=reason):
            read_picture(next(tmp_path.glob(f"{name}.*")))
    with pytest.raises(DatasetNotFoundError, match=r"gone\.png"):
        read_picture(tmp_path / "gone.png")
    with pytest.raises(CorruptRecordError, match="more pixels"):
        ramp("L").save(tmp_path / "large.png")
        read_picture(tmp_path / "large.png", max_pixels=100)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"]), st.data())
def test_damaged_pictures_give_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    ramp("RGB").save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("damaged") / "picture"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_picture(path).mode in ("RGB", "L")
    except CorruptRecordError as error:
        assert "\n" not in str(error) and str(path) in str(error)
