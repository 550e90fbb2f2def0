"""Slides to patches, as users run it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import cv2
import h5py
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, RejectsExceededError
from data_prep.medical.wsi.patches import tissue
from data_prep.medical.wsi.patches.coords import read_coords
from data_prep.medical.wsi.patches.patch import patch
from data_prep.medical.wsi.slides.reader import open_slide
from tests.data.medical import make_slides as make
from tests.data_prep.medical.wsi.slide_helpers import fail, run, status, tree

PICTURE = make.draw_tissue(1024, 768, seed=5)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two sound slides, of 20x and 40x."""
    folder = tmp_path_factory.mktemp("raw")
    make.write_slide(folder / "coarse.tif", PICTURE, mpp=0.5)
    make.write_aperio(folder / "TCGA-A1.B2.C3.svs", PICTURE, mpp=0.25)
    return folder


@pytest.fixture(scope="module")
def done(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    run(slides, out)
    return out


class TestResolution:
    def test_patches_cover_the_same_length_of_tissue_on_every_slide(self, done):
        coarse, fine = (read_coords(done / "patches" / f"{name}.h5") for name in ("coarse", "TCGA-A1.B2.C3"))
        assert (coarse.size, coarse.size_level0, coarse.mpp) == (64, 64.0, 0.5)
        assert (fine.size, fine.size_level0, fine.mpp) == (64, 128.0, 0.5)
        rows = status(done)
        assert rows["coarse"]["mpp"] == pytest.approx(0.5) and rows["TCGA-A1.B2.C3"]["mpp"] == 0.25
        assert rows["TCGA-A1.B2.C3"]["mpp_source"] == "openslide.mpp-x"
        assert rows["coarse"]["patches"] > 2 * rows["TCGA-A1.B2.C3"]["patches"] > 20

    def test_magnification_says_the_same(self, slides, done, tmp_path):
        run(slides, tmp_path / "out", magnification=20)
        assert tree(tmp_path / "out") == tree(done)

    def test_resolutions_between_levels_are_rounded_to_whole_level_0_pixels(self, slides, tmp_path):
        run(slides, tmp_path / "out", mpp=0.6, step=32)
        found = read_coords(tmp_path / "out" / "patches" / "coarse.h5")
        assert (found.size, found.size_level0) == (64, 77.0) and found.attributes["overlap"] == 32
        assert np.diff(np.unique(found.coords[:, 0])).min() == 38

    def test_by_level_as_clam(self, slides, tmp_path):
        run(slides / "coarse.tif", tmp_path / "out", level=1, layout="clam", patch_size=32)
        with h5py.File(tmp_path / "out" / "patches" / "coarse.h5") as file:
            about = dict(file["coords"].attrs)
        assert (about["patch_level"], about["patch_size"], about["name"]) == (1, 32, "coarse")
        assert about["downsample"].tolist() == [4, 4] and about["level_dim"].tolist() == [256, 192]
        assert read_coords(tmp_path / "out" / "patches" / "coarse.h5").size_level0 == 128

    def test_slides_coarser_than_asked_for_are_not_enlarged_unasked(self, slides, tmp_path):
        said = fail(slides, tmp_path / "out", mpp=0.25)
        assert "1 of 2 slides" in said and "coarse.tif: has 0.5 um per pixel at its finest" in said
        assert (tmp_path / "out" / "patches" / "TCGA-A1.B2.C3.h5").exists()
        card = run(slides, tmp_path / "large", mpp=0.25, enlarge=True)
        assert card["counts"]["processed"] == 2

    def test_no_mpp_is_an_error_that_names_the_keys_and_is_repaired_by_a_table_or_a_default(self, tmp_path):
        raw = make.write_slide(tmp_path / "a.1.tif", PICTURE, mpp=None)
        said = fail(raw, tmp_path / "out")
        assert "a.1.tif: does not say how many micrometres" in said and "openslide.mpp-x, aperio.MPP" in said
        assert status(tmp_path / "out")["a.1"]["status"] == "failed"
        run(raw, tmp_path / "out", default_mpp=0.25)
        assert status(tmp_path / "out")["a.1"]["mpp_source"] == "default"
        table = tmp_path / "mpp.csv"
        table.write_text("slide_id,mpp\na.1.tif,0.5\n")
        run(raw, tmp_path / "out", mpp_table=table)
        assert status(tmp_path / "out")["a.1"]["mpp_source"] == "table"
        assert read_coords(tmp_path / "out" / "patches" / "a.1.h5").size_level0 == 64
        run(raw, tmp_path / "level", level=0)

    def test_one_of_the_three(self, slides, tmp_path):
        with pytest.raises(ConfigError, match=r"--mpp 0\.5, --level 1: give one of"):
            run(slides, tmp_path / "out", mpp=0.5, level=1)
        with pytest.raises(ConfigError, match=r"--magnification 400: 0\.025 micrometres"):
            run(slides, tmp_path / "out", magnification=400)
        assert "coarse.tif: has levels 0 to 2, and not level 3" in fail(slides, tmp_path / "out", level=3)


class TestWhatIsLeft:
    def test_patches_are_on_tissue_and_nowhere_else(self, done):
        grid = read_coords(done / "patches" / "coarse.h5")
        saturation = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2HSV)[..., 1] > 30
        shares = [saturation[y : y + 64, x : x + 64].mean() for x, y in grid.coords]
        assert np.mean(shares) > 0.55 and np.mean(np.array(shares) < 0.05) < 0.1
        assert len(grid.coords) * 64 * 64 > 0.9 * saturation.sum()
        assert len(np.unique(grid.coords, axis=0)) == len(grid.coords)

    def test_manifest_status_and_process_list(self, slides, done):
        card = json.loads((done / "dataset.json").read_text())
        assert (card["domain"], card["kind"], card["counts"]["processed"]) == ("medical", "patches", 2)
        assert [source["path"] for source in card["sources"]] == ["TCGA-A1.B2.C3.svs", "coarse.tif"]
        assert all(len(source["sha256"]) == 64 for source in card["sources"])
        assert card["counts"]["patches"] == sum(row["patches"] for row in status(done).values())
        row = status(done)["coarse"]
        assert (row["width"], row["height"], row["levels"], row["status"]) == (1024, 768, 3, "processed")
        assert 0.2 < row["tissue"] < 0.5 and row["path"] == str(slides / "coarse.tif")
        listed = list(csv.DictReader((done / "slides.csv").read_text().splitlines()))
        assert [line["slide_id"] for line in listed] == ["TCGA-A1.B2.C3.svs", "coarse.tif"]
        assert (listed[0]["a_t"], listed[0]["use_padding"], listed[0]["keep_ids"]) == ("0.08", "true", "none")
        assert pl.read_parquet(done / "rejects.parquet").height == 0

    def test_thumbnails_show_contours(self, done):
        picture = cv2.imread(str(done / "thumbnails" / "coarse.jpg"))
        assert picture.shape == (768, 1024, 3)
        blue, green, red = (picture[..., i].astype(int) for i in range(3))
        assert ((green - red > 60) & (green - blue > 60)).sum() > 500

    def test_contours_are_geojson(self, done):
        content = json.loads((done / "contours" / "coarse.geojson").read_text())
        assert len(content["features"]) == 2
        assert len(content["features"][0]["geometry"]["coordinates"]) == 2  # an outline and a hole

    def test_no_pixel_of_label_or_macro_is_read(self, slides, tmp_path, monkeypatch):
        def refuse(*_):
            raise AssertionError("an associated image was opened")

        monkeypatch.setattr("openslide.OpenSlide.associated_images", property(refuse))
        run(slides, tmp_path / "out", images="png")


class TestBadSlides:
    @pytest.fixture(scope="class")
    @classmethod
    def bad(cls, tmp_path_factory):
        """What users have: one sound slide and one of each kind of damage."""
        folder = tmp_path_factory.mktemp("bad")
        make.write_slide(folder / "sound.tif", PICTURE)
        make.truncate(make.write_slide(folder / "truncated.tif", PICTURE), 0.6)
        (folder / "no_folder.mrxs").write_bytes(bytes(64))
        (folder / "no_slide.svs").write_bytes(b"<html>404</html>" * 40)
        make.write_slide(folder / "no_tissue.tif", np.full((512, 512, 3), make.GLASS, np.uint8), downsamples=(1, 4))
        make.write_slide(folder / "no_mpp.tif", PICTURE, mpp=None)
        make.corrupt_tiles(make.write_slide(folder / "rotten.tif", PICTURE), 2, [0])
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def said(cls, bad, tmp_path_factory):
        out = tmp_path_factory.mktemp("published") / "out"
        return fail(bad, out), out

    def test_all_are_named_when_everything_else_is_done(self, said):
        line, out = said
        assert line.startswith("6 of 7 slides have no patches: ") and "\n" not in line
        assert "and 1 more, all in slides.parquet" in line and "run the same command again" in line
        assert [path.name for path in (out / "patches").iterdir()] == ["sound.h5"]
        assert not (out / ".work").exists()

    @pytest.mark.parametrize(
        ("slide", "status_", "reason"),
        [
            ("truncated", "failed", "truncated: the file ends here"),
            ("no_folder", "failed", "its folder no_folder/ is missing"),
            ("no_slide", "failed", "not a slide"),
            ("no_tissue", "empty", "no tissue: nothing is more saturated than 15 of 255; look at the thumbnail"),
            ("no_mpp", "failed", "does not say how many micrometres"),
            ("rotten", "failed", "1 of 1 regions cannot be decoded"),
        ],
    )
    def test_damaged_truncated_and_empty_slides_say_why(self, said, slide, status_, reason):
        row = status(said[1])[slide]
        assert row["status"] == status_ and reason in row["reason"] and row["patches"] == 0
        rejects = pl.read_parquet(said[1] / "rejects.parquet")
        assert reason in rejects.filter(pl.col("source").str.starts_with(slide))["reason"][0]
        assert (said[1] / "thumbnails" / f"{slide}.jpg").exists() == (status_ == "empty")

    def test_the_same_again_without_changing_anything(self, bad, said):
        line, out = said
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        assert fail(bad, out) == line
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == {
            path: time for path, time in before.items() if path.is_file()
        }

    def test_some_can_be_tolerated(self, bad, tmp_path, capsys):
        card = run(bad, tmp_path / "out", max_rejects=0.9)
        assert card["counts"] == {
            **{"slides": 7, "processed": 1, "empty": 1, "failed": 5, "skipped": 0},
            **{"patches": card["counts"]["patches"], "unreadable_patches": 0},
        }
        printed = capsys.readouterr()
        assert "6 of 7 slides have no patches" in printed.err and "on 1 of 7 slides" in printed.out
        with pytest.raises(RejectsExceededError):
            run(bad, tmp_path / "out", max_rejects=0.5)

    def test_small_sections_under_the_default_preset_are_loud(self, slides, tmp_path, monkeypatch):
        said = fail(slides / "coarse.tif", tmp_path / "out", preset="default", a_t=None, a_h=None, mthresh=None)
        assert "no piece of tissue is large enough: the largest of 2 has 0.7" in said and "a_t is 100" in said
        # Neither preset nor number is proposed that would not help.
        assert "--preset" not in said and "lower --a-t, as to 0.3" in said
        proposed = float(said.partition("lower --a-t, as to ")[2].split(";")[0])
        assert run(slides / "coarse.tif", tmp_path / "small", preset="default", a_t=proposed)["counts"]["processed"]
        monkeypatch.setitem(tissue.PRESETS, "biopsy", replace(tissue.PRESETS["biopsy"], a_t=0.5))
        said = fail(slides / "coarse.tif", tmp_path / "other", preset="default", a_t=None, a_h=None, mthresh=None)
        assert "or take --preset biopsy for small sections" in said
        said = fail(slides / "coarse.tif", tmp_path / "third", a_t=0.9)
        assert "a_t is 0.9; lower --a-t, as to 0.3" in said

    def test_options_of_which_nothing_came_may_be_changed(self, slides, tmp_path):
        fail(slides, tmp_path / "out", seg_level=9)
        run(slides, tmp_path / "out")
        with pytest.raises(ConfigError, match="holds prepared data of other options"):
            run(slides, tmp_path / "out", patch_size=128)

    def test_patches_larger_than_the_tissue_are_told(self, slides, tmp_path):
        said = fail(slides / "coarse.tif", tmp_path / "out", patch_size=1000, contour_fn="four_pt_hard")
        assert "no two patches of 1000 level-0 px fit any of its 2 pieces of tissue" in said
        said = fail(slides / "coarse.tif", tmp_path / "strict", min_tissue=1.0, patch_size=200)
        assert "are less than 1 tissue; lower --min-tissue" in said

    def test_single_level_slides_and_pictures(self, tmp_path):
        make.write_slide(tmp_path / "raw" / "one.tif", PICTURE, downsamples=(1,))
        cv2.imwrite(str(tmp_path / "raw" / "two.png"), cv2.cvtColor(PICTURE, cv2.COLOR_RGB2BGR))
        run(tmp_path / "raw", tmp_path / "out", default_mpp=0.5)
        one, two = (read_coords(tmp_path / "out" / "patches" / f"{name}.h5") for name in ("one", "two"))
        assert abs(len(one.coords) - len(two.coords)) < 5 < len(one.coords)

    def test_a_huge_single_level_is_shrunk_first(self, slides, tmp_path, monkeypatch):
        whole = make.write_slide(tmp_path / "raw" / "one.tif", PICTURE, downsamples=(1,))
        run(whole, tmp_path / "whole")
        monkeypatch.setattr("data_prep.medical.wsi.patches.tissue.LARGEST", 100_000)
        monkeypatch.setattr("data_prep.medical.wsi.patches.tissue.DOWNSAMPLE", 4)
        monkeypatch.setattr("data_prep.medical.wsi.patches.tasks.BAND_TASK", 100_000)
        monkeypatch.setattr("data_prep.medical.wsi.patches.tasks.BAND", 30_000)
        run(whole, tmp_path / "shrunk")
        one, two = (read_coords(tmp_path / name / "patches" / "one.h5").coords for name in ("whole", "shrunk"))
        # The median window is four times as wide on the slide: the edges differ a little.
        assert abs(len(one) - len(two)) < 0.1 * len(one) and np.abs(one[0] - two[0]).max() <= 16

    def test_unreadable_patches_are_dropped_and_counted_until_they_are_too_many(self, tmp_path, monkeypatch):
        path = make.corrupt_tiles(make.write_slide(tmp_path / "s.tif", PICTURE, downsamples=(1,)), 0, [5])
        make_low_level_readable = {"contours": tmp_path / "areas"}
        (tmp_path / "areas").mkdir()
        square = [[0, 0], [1024, 0], [1024, 768], [0, 768], [0, 0]]
        (tmp_path / "areas" / "s.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
        options = {**make_low_level_readable, "max_white": 0.99}
        said = fail(path, tmp_path / "out", **options)
        assert "of 192 patches cannot be decoded, more than 1%, the first at x 256, y 256" in said
        monkeypatch.setattr("data_prep.medical.wsi.patches.tasks.TOLERATED", 0.5)
        card = run(path, tmp_path / "out", **options)
        assert card["counts"]["unreadable_patches"] == 16
        coords = read_coords(tmp_path / "out" / "patches" / "s.h5").coords
        assert not ((coords >= 256) & (coords < 512)).all(1).any()
        rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
        assert rejects.height == 16 and rejects["field"][0] == "patch at 256, 256"


class TestOptions:
    def test_white_and_black_patches_are_dropped(self, tmp_path):
        picture = PICTURE.copy()
        picture[:, 300:520] = 5  # a black border in the tissue
        raw = make.write_slide(tmp_path / "s.tif", picture)
        every, some = tmp_path / "every", tmp_path / "some"
        run(raw, every, sthresh=8)
        run(raw, some, sthresh=8, max_white=0.5, max_black=0.5)
        row = status(some)["s"]
        assert row["black"] > 0 and row["white"] > 0
        assert row["patches"] == status(every)["s"]["patches"] - row["black"] - row["white"]
        for x, y in read_coords(some / "patches" / "s.h5").coords:
            square = picture[y : y + 64, x : x + 64]
            assert (square > 222).all(-1).mean() <= 0.52 and (square < 18).all(-1).mean() <= 0.52

    def test_when_all_patches_are_dropped_it_says_so(self, tmp_path):
        raw = make.write_slide(tmp_path / "s.tif", np.full((512, 512, 3), make.GLASS, np.uint8), downsamples=(1,))
        square = [[0, 0], [512, 0], [512, 512], [0, 512], [0, 0]]
        (tmp_path / "s.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
        said = fail(raw, tmp_path / "out", max_white=0.5, contours=tmp_path)
        assert "s: all 64 patches are dropped: 64 white, 0 black, 0 unreadable; raise --max-white" in said
        assert not (tmp_path / "out" / "patches").exists() and (tmp_path / "out" / "thumbnails" / "s.jpg").exists()

    @pytest.mark.parametrize("images", ["png", "jpeg"])
    def test_patches_as_picture_files(self, slides, tmp_path, images):
        run(slides / "TCGA-A1.B2.C3.svs", tmp_path / "out", images=images)
        grid = read_coords(tmp_path / "out" / "patches" / "TCGA-A1.B2.C3.h5")
        files = sorted((tmp_path / "out" / "images" / "TCGA-A1.B2.C3").iterdir())
        assert len(files) == len(grid.coords)
        x, y = grid.coords[3].tolist()
        found = cv2.imread(str(files[0].parent / f"{x}_{y}{files[0].suffix}"))[..., ::-1]
        with open_slide(slides / "TCGA-A1.B2.C3.svs") as slide:
            wanted = slide.read_patch(x, y, 128, 64)
        assert found.shape == (64, 64, 3) and np.abs(found.astype(int) - wanted).max() <= (0 if images == "png" else 60)

    def test_one_grid_for_the_slide(self, slides, tmp_path):
        run(slides / "coarse.tif", tmp_path / "out", grid="slide")
        assert (read_coords(tmp_path / "out" / "patches" / "coarse.h5").coords % 64 == 0).all()

    def test_least_share_of_tissue(self, slides, done, tmp_path):
        run(slides, tmp_path / "out", min_tissue=0.7, seg_level=1)
        grid = read_coords(tmp_path / "out" / "patches" / "coarse.h5")
        saturation = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2HSV)[..., 1] > 30
        assert min(saturation[y : y + 64, x : x + 64].mean() for x, y in grid.coords) > 0.5
        assert 0 < len(grid.coords) < status(done)["coarse"]["patches"]

    def test_options_of_single_slides(self, slides, done, tmp_path):
        table = tmp_path / "options.csv"
        lines = list(csv.DictReader((done / "slides.csv").read_text().splitlines()))
        lines[0]["process"] = "0"
        lines[1] |= {"keep_ids": "1", "a_t": "", "contour_fn": "center"}
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        card = run(slides, tmp_path / "out", options_table=table)
        assert card["counts"]["skipped"] == 1 and status(tmp_path / "out")["TCGA-A1.B2.C3"]["status"] == "skipped"
        assert status(tmp_path / "out")["coarse"]["pieces"] == 1
        assert 0 < status(tmp_path / "out")["coarse"]["patches"] < status(done)["coarse"]["patches"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("slide_id,a_t\ncoarse,large\n", "line 2: column a_t: 'large' is not a number"),
            ("slide_id,mthresh\ncoarse,4\n", "line 2: mthresh 4"),
            ("slide_id,sthresh\ncoarse,7.5\n", "column sthresh: '7.5' is not a whole number"),
            ("slide_id,contour_fn\ncoarse,corner\n", "column contour_fn: 'corner' is not one of four_pt"),
            ("slide_id,process\ncoarse,perhaps\n", "column process: 'perhaps' is not true or false"),
            ("slide_id,a_t\ncoarse,1\ncoarse.tif,2\n", "line 3: slide 'coarse' is named twice"),
            ("slide_id,a_t\nother,1\n", "names none of the 2 slides, such as 'TCGA-A1.B2.C3'"),
            ("id,a_t\ncoarse,1\n", "column slide_id"),
        ],
    )
    def test_tables_of_options_are_checked(self, slides, tmp_path, text, said):
        (tmp_path / "o.csv").write_text(text)
        assert said in fail(slides, tmp_path / "out", options_table=tmp_path / "o.csv")

    def test_contours_corrected_by_hand(self, slides, done, tmp_path):
        areas = tmp_path / "contours"
        shutil.copytree(done / "contours", areas)
        content = json.loads((areas / "coarse.geojson").read_text())
        content["features"] = content["features"][:1]
        (areas / "coarse.geojson").write_text(json.dumps(content))
        run(slides, tmp_path / "out", contours=areas)
        every = read_coords(done / "patches" / "coarse.h5").coords.tolist()
        some = read_coords(tmp_path / "out" / "patches" / "coarse.h5").coords.tolist()
        assert 0 < len(some) < len(every) and all(corner in every for corner in some)
        name = "TCGA-A1.B2.C3.h5"
        assert np.array_equal(
            read_coords(tmp_path / "out" / "patches" / name).coords, read_coords(done / "patches" / name).coords
        )
        (areas / "coarse.geojson").write_text("{")
        assert "coarse.geojson: areas: cannot be read as GeoJSON" in fail(slides, tmp_path / "bad", contours=areas)

    def test_patches_inside_annotations_are_labelled(self, slides, tmp_path):
        (tmp_path / "coarse.xml").write_text(
            '<A><Annotation PartOfGroup="Tumor"><Coordinates>'
            + "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in ((0, 0), (512, 0), (512, 768), (0, 768)))
            + "</Coordinates></Annotation></A>"
        )
        run(slides, tmp_path / "out", annotations=tmp_path)
        grid = read_coords(tmp_path / "out" / "patches" / "coarse.h5")
        assert grid.labels.tolist() == (grid.coords[:, 0] + 32 <= 512).astype(int).tolist()
        assert status(tmp_path / "out")["coarse"]["positive"] == grid.labels.sum() > 0
        assert read_coords(tmp_path / "out" / "patches" / "TCGA-A1.B2.C3.h5").labels is None

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"patch_size": 0}, "patch_size 0"),
            ({"step": 0}, "step 0"),
            ({"min_tissue": 2.0}, "min_tissue 2: give a share from 0 to 1"),
            ({"max_rejects": -1.0}, "max_rejects -1"),
            ({"preset": "tiny"}, "preset 'tiny': choose default, biopsy, resection, tcga"),
            ({"contour_fn": "corner"}, "contour_fn 'corner'"),
            ({"grid": "none"}, "grid 'none'"),
            ({"mthresh": 2}, "mthresh 2"),
            ({"default_mpp": 40.0}, "--default-mpp: 40 micrometres"),
            ({"level": -1}, "--level -1"),
            ({"seg_level": 9}, "not seg_level 9"),
        ],
    )
    def test_impossible_options_are_refused(self, slides, tmp_path, options, said):
        assert said in fail(slides, tmp_path / "out", **options)


@pytest.mark.shared
def test_real_slides(shared, tmp_path):
    options = {"executor": "serial", "progress": False, "preset": "biopsy"}
    with pytest.raises(RejectsExceededError, match=r"2 of 3 slides.*broken.svs: header: not a.*tcga-cr.*mpp-table"):
        patch(shared / "wsi", tmp_path / "out", **options)
    with pytest.raises(RejectsExceededError, match="1 of 3 slides"):
        patch(shared / "wsi", tmp_path / "out", default_mpp=0.25, **options)
    rows = status(tmp_path / "out")
    assert rows["cmu_small_region"]["patches"] == 51 and rows["cmu_small_region"]["size_level0"] == 257
    assert rows["tcga-cr-7395-01a-01-ts1"]["size_level0"] == 512
