"""Slides of every kind and condition are read, or refused in one line."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, PrepError
from data_prep.medical.wsi.slides.find import find_slides, slide_id
from data_prep.medical.wsi.slides.formats import TiffSlide, open_tiff
from data_prep.medical.wsi.slides.reader import OpenSlideSlide, open_slide
from data_prep.medical.wsi.slides.slide import RegionError
from tests.data.medical import make_slides as make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def picture():
    return make.draw_tissue(1100, 800, seed=1)


@pytest.fixture(scope="module")
def pyramid(folder, picture):
    return make.write_slide(folder / "pyramid.tif", picture, compression="deflate")


@pytest.fixture(scope="module")
def corrupt(folder, picture):
    return make.corrupt_tiles(make.write_slide(folder / "corrupt.tif", picture), 0, [1])


def open_by_openslide(path):
    return OpenSlideSlide(path, openslide.OpenSlide(str(path)))


@pytest.fixture(params=[open_slide, open_by_openslide])
def opened(request):
    """Both readers of a plain pyramidal TIFF."""
    return request.param


class TestWhatIsASlide:
    def test_dots_in_the_name_belong_to_the_id(self):
        assert slide_id("x/TCGA-CR-7395.1F2A.b.svs") == "TCGA-CR-7395.1F2A.b"
        assert slide_id("B-12.3.TIFF") == "B-12.3"
        assert slide_id("B-12.3") == "B-12.3"

    def test_folders_are_searched_and_ordered_by_id(self, tmp_path):
        for name in ("b/two.svs", "a/three.ndpi", "one.png", "b/notes.txt", "._one.png", "c.svs/four.tif"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert [slide_id(path) for path in find_slides(tmp_path)] == ["four", "one", "three", "two"]
        assert find_slides([tmp_path / "b" / "notes.txt"]) == [tmp_path / "b" / "notes.txt"]

    def test_pictures_beside_a_vms_file_are_its_parts(self, tmp_path):
        for name in ("slide.vms", "slide.jpg", "slide(1,0).jpg"):
            (tmp_path / name).touch()
        assert [path.name for path in find_slides(tmp_path)] == ["slide.vms"]

    def test_two_slides_of_one_id_are_named(self, tmp_path):
        for name in ("a/s1.svs", "b/s1.tif"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=r"b/s1.tif: has the same slide id 's1' as .*a/s1.svs"):
            find_slides(tmp_path)

    def test_nothing_to_read(self, tmp_path):
        with pytest.raises(DatasetNotFoundError, match="holds no slide"):
            find_slides(tmp_path)
        with pytest.raises(DatasetNotFoundError, match="no such file or folder"):
            find_slides([tmp_path / "absent"])
        with pytest.raises(DatasetNotFoundError, match="no such file"):
            open_slide(tmp_path / "absent.svs")


class TestReading:
    def test_a_region_is_the_picture(self, opened, pyramid, picture):
        with opened(pyramid) as slide:
            assert (slide.width, slide.height) == (1100, 800) and slide.level_downsamples[0] == 1
            assert np.array_equal(slide.read_region(33, 210, 0, 500, 300), picture[210:510, 33:533])

    def test_beyond_the_slide_is_white(self, opened, pyramid, picture):
        with opened(pyramid) as slide:
            region = slide.read_region(-20, 790, 0, 60, 40)
        assert (region[:, :20] == 255).all() and (region[10:] == 255).all()
        assert np.array_equal(region[:10, 20:], picture[790:, :40])

    def test_a_patch_comes_from_the_best_level_averaged_by_area(self, opened, pyramid, picture):
        with opened(pyramid) as slide:
            assert [slide.best_level(downsample) for downsample in (0.5, 1, 3.9, 3.99, 4, 15, 40)] == [
                0,
                0,
                0,
                1,
                1,
                1,
                2,
            ]
            twice = slide.read_patch(256, 128, 512, 256)
            assert np.array_equal(
                twice, cv2.resize(picture[128:640, 256:768], (256, 256), interpolation=cv2.INTER_AREA)
            )
            level = slide.read_patch(256, 128, 512, 128)
            assert np.array_equal(level, slide.read_region(256, 128, 1, 128, 128))
            assert slide.read_patch(0, 0, 100, 200).shape == (200, 200, 3)

    def test_thumbnails_have_the_proportions_of_the_slide(self, opened, pyramid, picture):
        with opened(pyramid) as slide:
            small, large = slide.thumbnail(200), slide.thumbnail(5000)
        assert small.shape == (145, 200, 3) and np.array_equal(large, picture)
        reference = cv2.resize(picture, (200, 145), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - reference).mean() < 3

    def test_a_thumbnail_of_a_huge_level_is_made_in_bands(self, opened, pyramid, monkeypatch):
        with opened(pyramid) as slide:
            whole = slide.thumbnail(300)
            monkeypatch.setattr("data_prep.medical.wsi.slides.slide.BAND", 40_000)
            assert np.abs(slide.thumbnail(300).astype(int) - whole).mean() < 1

    @pytest.mark.parametrize("compression", ["jpeg", "deflate", None])
    def test_tiff_by_tiles_equals_openslide(self, tmp_path, picture, compression):
        path = make.write_slide(tmp_path / "s.tif", picture, compression=compression)
        with open_by_openslide(path) as one, open_slide(path) as other:
            assert isinstance(other, TiffSlide) and other.level_dimensions == one.level_dimensions
            for level, x, y in ((0, -31, 100), (1, 400, 400), (2, 0, 0)):
                got = other.read_region(x, y, level, 300, 290)
                assert np.abs(got.astype(int) - one.read_region(x, y, level, 300, 290)).max() <= 1

    @pytest.mark.parametrize(
        ("pixels", "options"),
        [
            ("rgb", {}),
            ("rgb", {"planarconfig": "separate"}),
            ("rgb", {"rowsperstrip": 7, "compression": "lzw"}),
            ("grey", {}),
            ("grey", {"photometric": "miniswhite"}),
            ("deep", {}),
            ("alpha", {"extrasamples": ["unassalpha"]}),
        ],
    )
    def test_plain_tiff_of_every_kind(self, tmp_path, picture, pixels, options):
        grey = picture[..., 1]
        stored = {
            "rgb": picture.transpose(2, 0, 1) if "planarconfig" in options else picture,
            "grey": grey,
            "deep": grey.astype(np.uint16) * 257,
            "alpha": np.dstack([picture, np.full_like(grey, 128)]),
        }[pixels]
        path = tmp_path / "plain.tif"
        tifffile.imwrite(path, stored, **{"photometric": "minisblack" if stored.ndim == 2 else "rgb", **options})
        wanted = np.dstack([grey] * 3) if pixels in ("grey", "deep") else picture
        wanted = 255 - wanted if options.get("photometric") == "miniswhite" else wanted
        wanted = (wanted.astype(int) + 255) // 2 if pixels == "alpha" else wanted
        with open_slide(path) as slide:
            assert isinstance(slide, TiffSlide) and len(slide.level_dimensions) == 1
            assert np.abs(slide.read_region(100, 50, 0, 600, 500).astype(int) - wanted[50:550, 100:700]).max() <= 1

    def test_ome_pyramids_keep_their_levels(self, tmp_path, picture):
        with open_slide(make.write_ome(tmp_path / "s.ome.tif", picture)) as slide:
            assert len(slide.level_dimensions) == 3 and slide.slide_id == "s.ome"
            assert np.array_equal(slide.read_region(10, 20, 0, 300, 200), picture[20:220, 10:310])

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_pictures_are_slides_of_one_level(self, tmp_path, picture, suffix):
        path = tmp_path / f"p.1{suffix}"
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 98])
        with open_slide(path) as slide:
            assert slide.slide_id == "p.1" and slide.level_dimensions == [(1100, 800)]
            difference = slide.read_region(-5, 700, 0, 100, 200)[:100, 5:].astype(int) - picture[700:, :95]
        assert np.abs(difference).mean() < 4

    def test_a_dicom_series_is_one_slide(self, tmp_path, picture):
        make.write_dicom(tmp_path / "case.7", picture)
        (tmp_path / "other.dcm").write_bytes(b"damaged")
        (found, other) = find_slides(tmp_path)
        assert found.name == "1.dcm" and other.name == "other.dcm"
        for path in (found, found.with_name("2.dcm")):
            with open_slide(path) as slide:
                assert slide.slide_id == "case.7" and slide.level_dimensions == [(1100, 800), (275, 200)]
                difference = slide.read_region(100, 100, 0, 300, 300).astype(int) - picture[100:400, 100:400]
                assert np.abs(difference).mean() < 6

    def test_a_palette_with_transparency_is_laid_on_white(self, tmp_path):
        rgba = np.zeros((40, 50, 4), np.uint8)
        rgba[:20] = (200, 10, 10, 255)
        cv2.imwrite(str(tmp_path / "p.png"), rgba[..., [2, 1, 0, 3]])
        with open_slide(tmp_path / "p.png") as slide:
            region = slide.read_region(0, 0, 0, 50, 40)
        assert (region[:20] == (200, 10, 10)).all() and (region[20:] == 255).all()


class TestDamage:
    def test_a_region_that_cannot_be_decoded_is_named_and_the_slide_stays_usable(self, opened, corrupt):
        with opened(corrupt) as slide:
            sound = slide.read_region(0, 512, 0, 256, 256)
            with pytest.raises(RegionError, match=r"corrupt.tif: level 0: the region of 64 x 64 px at x 300, y 20"):
                slide.read_region(300, 20, 0, 64, 64)
            assert np.array_equal(slide.read_region(0, 512, 0, 256, 256), sound)

    def test_the_next_level_stands_in(self, opened, corrupt):
        with opened(corrupt) as slide:
            patch = slide.read_patch(256, 0, 256, 256, retry=True)
            coarse = slide.read_region(256, 0, 1, 64, 64)
            assert np.array_equal(patch, cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_LINEAR))
            with pytest.raises(RegionError):
                slide.read_patch(256, 0, 256, 256)

    def test_damage_seen_by_one_thread_does_not_harm_others(self, opened, corrupt, picture):
        places = [(x, y) for x in range(0, 1000, 200) for y in range(0, 700, 200)] * 3

        def read(place):
            try:
                return slide.read_region(*place, 0, 100, 100)
            except RegionError:
                return None

        with opened(corrupt) as slide, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(read, places))
            alone = [read(place) for place in places]
        assert any(region is None for region in alone)
        for one, other in zip(found, alone, strict=True):
            assert (one is None) == (other is None) and (one is None or np.array_equal(one, other))

    def test_mrxs_without_its_folder(self, tmp_path):
        (tmp_path / "case.7.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
        with pytest.raises(DatasetNotFoundError, match=r"case.7.mrxs: its folder case.7/ is missing.*copy both"):
            open_slide(tmp_path / "case.7.mrxs")

    def test_a_damaged_mrxs_is_not_taken_for_its_picture(self, tmp_path, picture):
        (tmp_path / "case").mkdir()
        (tmp_path / "case" / "Slidedat.ini").write_text("[GENERAL]\n")
        (tmp_path / "case.mrxs").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
        with pytest.raises(CorruptRecordError, match=r"case.mrxs: header: not a slide"):
            open_slide(tmp_path / "case.mrxs")

    @pytest.mark.parametrize("name", ["page.svs", "page.tif", "page.png", "page.ndpi", "page.dcm"])
    def test_not_a_slide(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"<html>404 Not Found</html>" * 40)
        with pytest.raises(CorruptRecordError, match=f"{name}: header: not a slide"):
            open_slide(tmp_path / name)

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "empty.svs").touch()
        with pytest.raises(CorruptRecordError, match="not a slide"):
            open_slide(tmp_path / "empty.svs")

    def test_closed_formats_are_told(self, tmp_path):
        (tmp_path / "s.kfb").write_bytes(b"KFB")
        with pytest.raises(CorruptRecordError, match="closed format; export"):
            open_slide(tmp_path / "s.kfb")

    def test_tiff_without_colours(self, tmp_path):
        tifffile.imwrite(tmp_path / "f.tif", np.zeros((50, 60), np.float32))
        with pytest.raises(CorruptRecordError, match=r"not RGB or grey of 8 or 16 bits.*vips tiffsave"):
            open_slide(tmp_path / "f.tif")

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
    def test_truncated_pyramid(self, pyramid, tmp_path, share):
        path = make.truncate(shutil.copy(pyramid, tmp_path / "cut.tif"), share)
        with pytest.raises(
            CorruptRecordError, match=r"cut.tif: byte [\d,]+: truncated: the file ends here.*copy it again"
        ):
            open_slide(path)

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_truncated_picture(self, tmp_path, picture, suffix):
        path = tmp_path / f"cut{suffix}"
        cv2.imwrite(str(path), picture)
        with pytest.raises(CorruptRecordError, match="truncated or damaged"):
            open_slide(make.truncate(path, 0.5))

    @settings(deadline=None, max_examples=40)
    @given(st.data())
    def test_flipped_bytes_raise_nothing_but_what_a_user_can_read(self, pyramid, tmp_path_factory, data):
        content = bytearray(pyramid.read_bytes())
        for _ in range(data.draw(st.integers(1, 30))):
            near_the_end = data.draw(st.booleans())  # where the directories are
            low = len(content) - 4000 if near_the_end else 0
            content[data.draw(st.integers(low, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path = tmp_path_factory.mktemp("flipped") / "s.tif"
        path.write_bytes(content)
        try:
            with open_slide(path) as slide:
                if slide.width * slide.height < 1 << 24:
                    slide.read_patch(10, 10, 600, 256, retry=True)
        except PrepError as error:
            assert str(error).startswith(str(path))


@pytest.mark.shared
def test_real_slides_by_both_readers(shared):
    path = shared / "wsi" / "cmu_small_region.svs"
    with open_slide(path) as one, open_tiff(path) as other:
        assert one.properties["openslide.vendor"] == "aperio" and one.level_dimensions == [(2220, 2967)]
        assert np.array_equal(one.read_region(900, 1200, 0, 500, 400), other.read_region(900, 1200, 0, 500, 400))
    with pytest.raises(CorruptRecordError, match="not a slide"):
        open_slide(shared / "wsi" / "broken.svs")
