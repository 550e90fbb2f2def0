"""PNG, JPEG, TIFF and masks of every kind."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_prep.common.errors import CorruptRecordError
from data_prep.medical.xray.errors import ConstantImageError, MultiFrameError, NotAnImageError, TruncatedImageError
from data_prep.medical.xray.images import encode_png, read_image, read_mask, resize, resize_mask
from tests.data.medical.make_xrays import chest, stretched

GREY = chest(bits=8)
DEEP = chest(bits=12)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_eight_bits_are_taken_as_they_are(tmp_path: Path) -> None:
    dim = (GREY // 3 + 20).astype(np.uint8)
    for suffix in ("png", "tif", "bmp"):
        assert np.array_equal(read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(dim))).pixels, dim)
    close = read_image(save(tmp_path / "a.jpg", Image.fromarray(dim), quality=98)).pixels
    assert np.abs(close.astype(int) - dim).max() <= 3
    assert np.array_equal(read_image(tmp_path / "a.png", percentile=0.001).pixels, stretched(dim))


def test_sixteen_bits_are_stretched(tmp_path: Path) -> None:
    for suffix in ("png", "tif"):
        found = read_image(save(tmp_path / f"deep.{suffix}", Image.fromarray(DEEP)))
        assert np.array_equal(found.pixels, stretched(DEEP))
    for values in (DEEP.astype(np.int16) - 2048, DEEP.astype(np.float32), DEEP.astype(np.int32)):
        tifffile.imwrite(tmp_path / "other.tif", values)
        assert np.array_equal(read_image(tmp_path / "other.tif").pixels, stretched(DEEP))


def test_white_is_zero(tmp_path: Path) -> None:
    for values in (DEEP, GREY):
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        found = read_image(tmp_path / "a.tif").pixels
        wanted = 255 - (stretched(values) if values.itemsize == 2 else values)
        assert np.array_equal(found, wanted)


def test_palette_colour_and_transparency(tmp_path: Path) -> None:
    grey = Image.fromarray(GREY)
    palette = grey.quantize(256)
    assert palette.mode == "P"
    wanted = np.asarray(palette.convert("L"))
    assert np.array_equal(read_image(save(tmp_path / "p.png", palette)).pixels, wanted)
    rgb = Image.merge("RGB", [grey] * 3)
    assert np.array_equal(read_image(save(tmp_path / "rgb.png", rgb)).pixels, GREY)
    assert np.array_equal(read_image(tmp_path / "rgb.png", channels=3).pixels, np.repeat(GREY[..., None], 3, axis=2))
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :30] = 0
    layered = rgb.copy()
    layered.putalpha(Image.fromarray(alpha))
    found = read_image(save(tmp_path / "rgba.png", layered)).pixels
    assert np.array_equal(found[:, 30:], GREY[:, 30:]) and (found[:, :30] == 0).all()
    layered.putalpha(0)  # transparent everywhere: not meant
    assert np.array_equal(read_image(save(tmp_path / "clear.png", layered)).pixels, GREY)
    cmyk = read_image(save(tmp_path / "cmyk.jpg", rgb.convert("CMYK"), quality=98)).pixels
    assert np.abs(cmyk.astype(int) - GREY).max() <= 6


def test_deep_images_in_colour_channels(tmp_path: Path) -> None:
    found = read_image(save(tmp_path / "deep.png", Image.fromarray(DEEP)), channels=3)
    assert np.array_equal(found.pixels, np.repeat(stretched(DEEP)[..., None], 3, axis=2))


def test_orientation_of_a_camera_is_carried_out(tmp_path: Path) -> None:
    wide = Image.fromarray(GREY[:40])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = read_image(save(tmp_path / "turned.png", wide, exif=exif)).pixels
    assert np.array_equal(found, np.rot90(GREY[:40], -1))


def test_bad_files_say_what_they_are(tmp_path: Path) -> None:
    flat = save(tmp_path / "flat.png", Image.fromarray(GREY * 0 + 7))
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([GREY, GREY]), photometric="minisblack")
    tifffile.imwrite(tmp_path / "nan.tif", np.full((9, 9), np.nan, np.float32))
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"")
    cases = [
        (flat, ConstantImageError, "all pixels have one value"),
        (tmp_path / "pages.tif", MultiFrameError, "2 pages or frames"),
        (tmp_path / "nan.tif", NotAnImageError, "no numbers"),
        (text, NotAnImageError, "no PNG, JPEG"),
        (empty, NotAnImageError, "no PNG, JPEG"),
    ]
    for path, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            read_image(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_truncated_and_flipped_files_raise_only_our_errors(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(GREY))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedImageError, match="ends inside"):
        read_image(path)
    rng = random.Random(3)
    for _ in range(40):
        broken = bytearray(data)
        for place in (rng.randrange(60), rng.randrange(len(data))):
            broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(broken[: rng.randrange(1, len(broken))]))
        try:
            assert read_image(path).pixels.ndim == 2
        except CorruptRecordError as error:
            assert str(path) in str(error)


def test_masks_of_every_kind(tmp_path: Path) -> None:
    lung = np.zeros((40, 50), bool)
    lung[10:30, 5:20] = True
    wanted = np.where(lung, 255, 0)
    eight = Image.fromarray(wanted.astype(np.uint8))
    alpha = Image.merge("RGBA", [Image.new("L", (50, 40), 255)] * 3 + [eight])
    cases = {
        "one bit.png": Image.fromarray(lung),
        "eight bit.PNG": eight,
        "zero and one.png": Image.fromarray(lung.astype(np.uint8)),
        "rgba.png": Image.merge("RGBA", [eight] * 3 + [Image.new("L", (50, 40), 255)]),
        "in alpha.png": alpha,
        "palette.png": eight.convert("P"),
        "sixteen bit.png": Image.fromarray(lung.astype(np.uint16) * 65535),
        "lossy.jpg": eight,
    }
    for name, image in cases.items():
        assert np.array_equal(read_mask(save(tmp_path / name, image)), wanted), name


def test_masks_stay_masks_when_resized() -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[8:20, 5:25] = 255
    small, large = resize_mask(mask, 15, 15), resize_mask(mask, 97, 41)
    assert set(np.unique(small)) == set(np.unique(large)) == {0, 255}
    assert abs(large.mean() - mask.mean()) < 5
    assert large.shape == (97, 41)


def test_images_shrink_by_their_longest_side() -> None:
    wide = np.repeat(GREY, 3, axis=1)
    assert resize(wide, 96).shape == (32, 96)
    assert resize(wide, 192) is wide
    assert abs(resize(wide, 96).mean() - wide.mean()) < 1


def test_written_png_has_nothing_but_pixels() -> None:
    data = encode_png(GREY)
    chunks, place = [], 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append(data[place + 4 : place + 8])
        place += 12 + size
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
