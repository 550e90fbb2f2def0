"""The size of a pixel: where it is found, and what users are told when it is not."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.medical.wsi.slides.formats import PictureSlide
from data_prep.medical.wsi.slides.reader import open_slide
from data_prep.medical.wsi.slides.resolution import (
    ResolutionError,
    find_mpp,
    find_resolution,
    read_mpp_table,
    to_magnification,
    to_mpp,
)
from tests.data.medical import make_slides as make


def slide_with(tmp_path, properties):
    slide = PictureSlide(tmp_path / "s.1.png", np.zeros((4, 5, 3), np.uint8))
    slide.properties = properties
    return slide


def test_magnification_is_another_word_for_it():
    assert to_mpp(40) == 0.25 and to_mpp(20) == 0.5 and to_magnification(1.0) == 10


@pytest.mark.parametrize(
    ("properties", "mpp", "source"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25", "aperio.MPP": "0.5"}, 0.25, "openslide.mpp-x"),
        ({"openslide.mpp-x": "0.250", "openslide.mpp-y": "0.254"}, 0.252, "openslide.mpp-x"),
        ({"aperio.MPP": "0.4990"}, 0.499, "aperio.MPP"),
        ({"openslide.mpp-x": "264.6", "openslide.mpp-y": "264.6", "aperio.MPP": "0.5"}, 0.5, "aperio.MPP"),
        ({"tiff.XResolution": "40000", "tiff.ResolutionUnit": "centimeter"}, 0.25, "tiff.XResolution"),
        ({"tiff.XResolution": "50800", "tiff.YResolution": "50800", "tiff.ResolutionUnit": "inch"}, 0.5, "tiff.X"),
        ({"tiff.ImageDescription": "Scanner | MPP = 0.2277|x"}, 0.2277, "MPP in tiff.ImageDescription"),
        ({"ome.PhysicalSizeX": "250", "ome.PhysicalSizeXUnit": "nm"}, 0.25, "ome.PhysicalSizeX"),
        ({"mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X": "0.23"}, 0.23, "mirax."),
        ({"philips.DICOM_PIXEL_SPACING": '"0.00025" "0.00025"'}, 0.25, "philips."),
        ({"ventana.ScanRes": "0.46"}, 0.46, "ventana."),
        (
            {
                f"dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[{i}]": "0.0005"
                for i in (0, 1)
            },
            0.5,
            "dicom.",
        ),
    ],
)
def test_every_place_is_looked_at_in_order(tmp_path, properties, mpp, source):
    slide = slide_with(tmp_path, properties)
    found = find_resolution(slide, None, None)
    assert found.mpp == pytest.approx(mpp) and found.source.startswith(source)


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({}, "openslide.mpp-x, aperio.MPP, tiff.XResolution with tiff.ResolutionUnit"),
        ({"tiff.XResolution": "96", "tiff.ResolutionUnit": "inch"}, r"is 264.6 um, not of a scanner"),
        ({"tiff.XResolution": "40000", "tiff.ResolutionUnit": "none"}, "tiff.XResolution"),
        ({"tiff.XResolution": "0", "tiff.ResolutionUnit": "inch"}, "tiff.XResolution"),
        ({"openslide.mpp-x": "nan", "openslide.mpp-y": "0.5"}, "openslide.mpp-x"),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.5"}, r"differs between the axes: 0.25 and 0.5"),
        ({"aperio.MPP": "unknown"}, "aperio.MPP"),
        ({"openslide.objective-power": "40"}, r"it says 40x, which would be 0.25"),
        ({"philips.DICOM_PIXEL_SPACING": "none"}, "philips.DICOM_PIXEL_SPACING"),
    ],
)
def test_no_mpp_names_the_keys_tried_and_what_to_do(tmp_path, properties, said):
    slide = slide_with(tmp_path, properties)
    with pytest.raises(ResolutionError, match=f"(?s)s.1.png: does not say.*{said}") as caught:
        find_mpp(slide)
    assert (
        "--mpp-table" in str(caught.value) and "--default-mpp" in str(caught.value) and "--level" in str(caught.value)
    )
    assert find_mpp(slide, default=0.3) == 0.3


def test_the_users_table_counts_before_the_slide_and_the_default_behind(tmp_path):
    slide = slide_with(tmp_path, {"openslide.mpp-x": "0.5"})
    assert find_resolution(slide, {"s.1": 0.25}, 0.9) == (0.25, "table")
    assert find_resolution(slide, {"other": 0.25}, 0.9) == (0.5, "openslide.mpp-x")


def test_written_slides_say_it(tmp_path):
    picture = make.draw_tissue(300, 200)
    for path, mpp in (
        (make.write_slide(tmp_path / "a.tif", picture, mpp=0.227), 0.227),
        (make.write_aperio(tmp_path / "b.svs", picture, mpp=0.2525), 0.2525),
        (make.write_ome(tmp_path / "c.ome.tif", picture, mpp=0.44), 0.44),
    ):
        with open_slide(path) as slide:
            assert find_mpp(slide) == pytest.approx(mpp, rel=1e-4)
    with open_slide(make.write_aperio(tmp_path / "d.svs", picture, mpp=None)) as slide, pytest.raises(ResolutionError):
        find_mpp(slide)


class TestTable:
    def test_ids_with_and_without_extension(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text("slide_id,mpp,note\nA.1.svs,0.25,x\nB, 0.5 ,\n\n")
        assert read_mpp_table(path) == {"A.1": 0.25, "B": 0.5}

    def test_not_utf8_and_semicolons(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_bytes("slide_id;mpp\nGewebe-ä.svs;0.25\n".encode("latin-1"))
        assert read_mpp_table(path) == {"Gewebe-ä": 0.25}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("slide_id,mpp\nA,\n", "line 2: give slide_id and mpp, a number; found ''"),
            ("slide_id,mpp\nA,0.5\nB,fine\n", "line 3: .* found 'fine'"),
            ("slide_id,mpp\nA,40\n", "line 2: 40 micrometres per pixel; give 0.05 to 10"),
            ("slide_id,mpp\nA,0.5\nA.svs,0.25\n", "line 3: slide 'A' has two resolutions"),
            ("slide,mpp\nA,0.5\n", "columns slide_id,mpp"),
            ("", "columns slide_id,mpp"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_line(self, tmp_path, text, said):
        path = tmp_path / "t.csv"
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"t.csv: .*{said}"):
            read_mpp_table(path)

    def test_absent(self, tmp_path):
        with pytest.raises(DatasetNotFoundError, match="no such file"):
            read_mpp_table(tmp_path / "t.csv")
