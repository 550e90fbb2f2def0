"""Prepared pictures: as they lie, of one size, read once where they are kept."""

from __future__ import annotations

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore
from domains.common.pictures import PictureReader, draw_numbers, read_picture, resize


def test_colours_come_in_the_order_red_green_blue(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((9, 9, 3), (0, 0, 200), np.uint8))  # OpenCV writes blue first
    assert read_picture(tmp_path / "red.png")[0, 0].tolist() == [200, 0, 0]
    assert read_picture(tmp_path / "red.png", 1).shape == (9, 9)


def test_orientation_was_dealt_with_before(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (4, 8, 3)


def test_resizing_averages_where_it_shrinks():
    stripes = np.tile(np.array([0, 100], np.uint8), (8, 4))
    assert (resize(stripes, (4, 4)) == 50).all()
    assert resize(stripes, (20, 10)).shape == (20, 10)


def test_missing_and_damaged_pictures_are_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").touch()
    for name in ("gone.png", "bad.png", "empty.png"):
        with pytest.raises(PreparedDataError, match=rf"{name}: .*; prepare the data again"):
            read_picture(tmp_path / name)


class Counted(PictureReader):
    decoded = 0

    def decode(self, row):
        self.decoded += 1
        return {"image": np.full((1, 2), row, np.uint8)}


@pytest.mark.parametrize(("cache_mb", "decoded"), [(1, 2), (0, 4)])
def test_rows_are_decoded_once_where_they_are_kept(tmp_path, cache_mb, decoded):
    reader = Counted(IndexStore(tmp_path, pl.DataFrame({"row": range(5)})), {"image": (1, 2), "mask": (1,)}, cache_mb)
    for _ in range(2):
        found = reader.read(torch.tensor([3, 0]))
    assert found["image"].tolist() == [[[3, 3]], [[0, 0]]]
    assert not found["mask"].any()
    assert reader.decoded == decoded


def test_changes_of_a_row_that_comes_again_are_others():
    rows = torch.tensor([1, 4, 1])
    assert draw_numbers({"row": rows}, 5).tolist() == [1, 4, 1]
    assert draw_numbers({"row": rows, "position": torch.tensor([0, 1, 2])}, 5).tolist() == [1, 9, 11]
