from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.medical.heatmap import attention_files, heatmap
from domains.common.errors import ConfigError, HeptadError, PreparedDataError
from domains.medical.heatmap import HEADER, blur, canvas_shape, draw_heat_map, patch_sheet, rasterise
from domains.medical.slide_attention import SlideAttention, read_attention, scale_attention, strongest, to_geojson


def attention(patches=60, side=256, step=256, columns=10, seed=0, width=4000, height=3000):
    """Patches in rows of `columns`, row by row, with random attention that sums to 1."""
    values = np.random.default_rng(seed).random(patches).astype(np.float32)
    index = np.arange(patches)
    coords = np.stack([index % columns * step, index // columns * step], axis=1)
    return SlideAttention("S.1", coords, np.full(patches, side, np.float32), values / values.sum(), width, height)


def write(folder, found, **columns):
    table = {"x": found.coords[:, 0], "y": found.coords[:, 1], "size": found.sizes, "attention": found.attention}
    frame = pl.DataFrame(table | columns).with_columns(width=pl.lit(found.width), height=pl.lit(found.height))
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / f"{found.slide}.parquet")
    return folder / f"{found.slide}.parquet"


def test_ranks_are_percentiles_and_ties_share_one():
    got = scale_attention(np.array([0.1, 0.7, 0.1, 0.1], np.float32), "rank")
    assert got.tolist() == [0.375, 0.875, 0.375, 0.375]
    peaked = np.r_[np.full(99, 1e-9), 1.0].astype(np.float32)
    assert scale_attention(peaked, "raw").max() == 1
    assert np.median(scale_attention(peaked, "raw")) < 1e-6, "cold all over"
    distinct = np.exp(-np.arange(100.0)).astype(np.float32)
    assert np.median(scale_attention(distinct, "rank")) == pytest.approx(0.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([40, 64, 100]), st.integers(30, 400))
def test_pixels_hold_the_mean_of_the_patches_over_them(seed, step, longest):
    """Any overlap and resolution, against patch after patch."""
    rng = np.random.default_rng(seed)
    found = attention(20, 64, step, 5, seed, 600, 500)
    found.coords[:] += rng.integers(-40, 40, found.coords.shape)  # some reach over the edge
    values = rng.random(20).astype(np.float32)
    shape = canvas_shape(600, 500, longest)
    total, count = np.zeros(shape), np.zeros(shape)
    for (x, y), value in zip(found.coords, values, strict=True):
        edges = [
            np.rint(edge * (shape[1 - axis] / (600, 500)[axis]))
            for axis, edge in ((0, x), (0, x + 64), (1, y), (1, y + 64))
        ]
        left, right, upper, lower = (int(edge) for edge in edges)
        right, lower = max(right, left + 1), max(lower, upper + 1)
        total[max(upper, 0) : max(lower, 0), max(left, 0) : max(right, 0)] += value
        count[max(upper, 0) : max(lower, 0), max(left, 0) : max(right, 0)] += 1
    got, covered = rasterise(found, values, shape)
    assert (covered == (count > 0)).all()
    np.testing.assert_allclose(got, total / np.maximum(count, 1), atol=1e-6)


def test_a_grid_without_overlap_has_neither_gaps_nor_seams():
    found = attention(100, 256, 256, 10, width=2560, height=2560)
    _, covered = rasterise(found, found.attention, (333, 333))
    assert covered.all()


def test_blur_stays_inside_the_tissue():
    found = attention(30, 256, 256, 5, width=2560, height=2560)
    values, covered = rasterise(found, np.ones(30, np.float32), (200, 200))
    smooth = blur(values, covered, 12.0)
    np.testing.assert_allclose(smooth[covered], 1, atol=1e-5)
    assert not smooth[~covered].any()


def test_the_picture_shows_the_slide_where_no_patch_is():
    found = attention(width=3000, height=2000)
    thumbnail = np.full((200, 300, 3), (10, 200, 30), dtype=np.uint8)
    page = draw_heat_map(found, thumbnail=thumbnail, max_side=600)
    body = page[HEADER : HEADER + 400, :600]
    assert (body[-1, -1] == (10, 200, 30)).all()
    hottest = found.coords[found.attention.argmax()] // 5 + 25
    pure = draw_heat_map(found, max_side=600, alpha=1.0)[HEADER + hottest[1], hottest[0]]
    assert pure[0] > 100 > pure[2], "the colour map's upper end is red"
    assert page.shape[1] > 700, "a colour bar stands beside it"
    again = draw_heat_map(found, thumbnail=thumbnail, max_side=600)
    assert (page == again).all()
    assert (
        draw_heat_map(found, thumbnail=thumbnail, max_side=600, alpha=0.0)[HEADER : HEADER + 400, :600]
        == thumbnail[0, 0]
    ).all()


@pytest.mark.parametrize(("width", "height"), [(997, 1503), (5001, 333), (97, 90), (30_000, 200)])
def test_slides_of_any_shape(width, height):
    found = attention(4, 32, 32, 2, width=width, height=height)
    page = draw_heat_map(found, max_side=1333, scale="raw", colours="viridis")
    assert page.dtype == np.uint8
    assert page.shape[0] > canvas_shape(width, height, 1333)[0]


def test_the_thumbnail_of_another_slide_is_refused():
    with pytest.raises(ConfigError, match=r"S\.1: the thumbnail of 300 x 300 px and the slide of 4000 x 3000"):
        draw_heat_map(attention(), thumbnail=np.zeros((300, 300, 3), np.uint8))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alpha": 1.5}, "alpha 1.5 is no opacity"),
        ({"smooth": -1}, "smooth -1 is no width"),
        ({"max_side": 5}, "max_side 5"),
        ({"colours": "rainbowish"}, "rainbowish"),
    ],
)
def test_options_out_of_range(option, message):
    with pytest.raises(ConfigError, match=message):
        draw_heat_map(attention(), **option)


class TestStrongestPatches:
    def test_they_do_not_overlap(self):
        found = attention(100, 256, 64, 10)
        chosen = strongest(found, 6)
        assert chosen[0] == found.attention.argmax()
        assert (np.diff(found.attention[chosen]) <= 0).all()
        gaps = np.abs(found.coords[chosen][:, None] - found.coords[chosen][None]).max(axis=2)
        assert gaps[~np.eye(len(chosen), dtype=bool)].min() >= 256

    def test_the_sheet_shows_what_the_reader_cuts(self):
        found, asked = attention(), []

        def read(x, y, side, size):
            asked.append((x, y, side))
            return None if len(asked) == 2 else np.full((size, size, 3), (77, 7, 78), np.uint8)

        sheet = patch_sheet(found, read, count=3, size=64, columns=2)
        best = found.coords[found.attention.argmax()]
        assert asked[0] == (*best, 256)
        assert (sheet == (77, 7, 78)).all(axis=2).sum() == 2 * 64 * 64, "what cannot be decoded is left blank"


class TestGeoJSON:
    def test_objects_are_those_that_qupath_reads(self):
        found = attention(200, columns=15)
        content = json.loads(to_geojson(found, share=0.1))
        assert content["type"] == "FeatureCollection"
        assert len(content["features"]) == 20
        first = content["features"][0]
        x, y = found.coords[found.attention.argmax()].tolist()
        corners = [[x, y], [x + 256, y], [x + 256, y + 256], [x, y + 256], [x, y]]
        assert first["geometry"] == {"type": "Polygon", "coordinates": [corners]}, "closed, in level-0 pixels"
        properties = first["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"] == {"name": "Attention top 1 %", "color": [122, 4, 2]}
        assert properties["measurements"]["Attention"] == pytest.approx(found.attention.max(), rel=1e-5)
        assert properties["measurements"]["Attention rank"] == 1
        names = [feature["properties"]["classification"]["name"] for feature in content["features"]]
        assert [names.count(f"Attention top {share} %") for share in (1, 2, 5, 10)] == [2, 2, 6, 10]
        percentiles = [f["properties"]["measurements"]["Attention percentile"] for f in content["features"]]
        assert percentiles == sorted(percentiles, reverse=True)

    def test_large_slides_stay_loadable(self):
        content = json.loads(to_geojson(attention(500), share=1.0, limit=100))
        assert len(content["features"]) == 100
        assert len(json.loads(to_geojson(attention(3), share=0.01))["features"]) == 1


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path):
        found = attention()
        got = read_attention(write(tmp_path, found))
        assert got.slide == "S.1"
        np.testing.assert_array_equal(got.coords, found.coords)
        np.testing.assert_array_equal(got.attention, found.attention)
        assert (got.width, got.height) == (4000, 3000)

    def test_an_unknown_canvas_reaches_as_far_as_the_patches(self, tmp_path):
        got = read_attention(write(tmp_path, attention(width=0, height=0)))
        assert (got.width, got.height) == (2560, 1536)

    def test_patches_without_a_size_have_that_of_their_grid(self, tmp_path):
        """Feature files of CLAM hold coordinates alone; each contour has a grid of its own."""
        found = attention(60, 512, 512)
        coords = np.concatenate([found.coords[:40], found.coords[40:] + 7])
        unknown = SlideAttention("S", coords, np.zeros(60, np.float32), found.attention, 6000, 4000)
        assert set(read_attention(write(tmp_path, unknown)).sizes.tolist()) == {512}
        nowhere = SlideAttention("S", np.full((60, 2), -1), np.zeros(60, np.float32), found.attention, 0, 0)
        with pytest.raises(PreparedDataError, match="patches have no places"):
            read_attention(write(tmp_path, nowhere))
        one = SlideAttention("S", coords[:1], np.zeros(1, np.float32), found.attention[:1], 0, 0)
        with pytest.raises(PreparedDataError, match="the size of the patches is not known"):
            read_attention(write(tmp_path, one))

    def test_branches(self, tmp_path):
        found = attention()
        path = write(tmp_path, found, branch_1=found.attention[::-1].copy())
        np.testing.assert_array_equal(read_attention(path, "branch_1").attention, found.attention[::-1])
        with pytest.raises(PreparedDataError, match="no columns branch_7; it has x, y, size, attention, branch_1"):
            read_attention(path, "branch_7")

    def test_bad_files_are_named(self, tmp_path):
        broken = tmp_path / "broken.parquet"
        broken.write_bytes(b"PAR1 nothing")
        with pytest.raises(PreparedDataError, match=r"broken\.parquet: no readable Parquet"):
            read_attention(broken)
        found = attention()
        found.attention[3] = np.nan
        with pytest.raises(PreparedDataError, match="row 3 holds a value that is no number"):
            read_attention(write(tmp_path, found))
        empty = SlideAttention("E", found.coords[:0], found.sizes[:0], found.attention[:0], 1, 1)
        with pytest.raises(PreparedDataError, match="holds no patches"):
            read_attention(write(tmp_path, empty))
        with pytest.raises(PreparedDataError, match="predict"):
            read_attention(tmp_path / "absent.parquet")


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path) -> Path:
        """A run with the attention of two slides, and a folder `slides` with the first of them as a PNG."""
        picture = np.random.default_rng(0).integers(0, 255, (512, 768, 3), dtype=np.uint8)
        (tmp_path / "slides").mkdir()
        cv2.imwrite(str(tmp_path / "slides" / "one.x.png"), picture)
        index = np.arange(24)
        coords = np.stack([index % 6 * 128, index // 6 * 128], axis=1)
        values = np.random.default_rng(1).dirichlet(np.ones(24)).astype(np.float32)
        for name in ("one.x", "two"):
            found = SlideAttention(name, coords, np.full(24, 128, np.float32), values, 768, 512)
            write(tmp_path / "run" / "predict" / "attention", found)
        table = {
            "name": ["one.x", "two"],
            "predicted": [1, 0],
            "probability_0": [0.1, 0.8],
            "probability_1": [0.9, 0.2],
        }
        pl.DataFrame(table).write_parquet(tmp_path / "run" / "predict" / "predictions.parquet")
        return tmp_path / "run"

    def test_a_run_is_drawn_without_its_slides(self, run, tmp_path, capsys):
        assert heatmap(run, tmp_path / "maps", progress=False) == {"slides": 2, "out": str(tmp_path / "maps")}
        assert {path.name for path in (tmp_path / "maps").iterdir()} == {
            *("one.x.png", "one.x.geojson", "two.png", "two.geojson")
        }
        assert "2 slides" in capsys.readouterr().out

    def test_with_slides_there_are_patches(self, run, tmp_path):
        out = tmp_path / "maps"
        heatmap(run, out, slides=[tmp_path / "slides"], slide=["one.x"], top=4, patch_size=64, progress=False)
        assert (out / "one.x_top.png").is_file()
        page = cv2.imread(str(out / "one.x.png"))
        bare = heatmap(run, tmp_path / "bare", slide=["one.x"], progress=False)
        assert bare["slides"] == 1
        assert (page != cv2.imread(str(tmp_path / "bare" / "one.x.png"))).any(), "the slide shines through"

    def test_one_bad_slide_does_not_stop_the_others(self, run, tmp_path):
        with pytest.raises(HeptadError, match=r"1 of 2 slides could not be drawn: two: none is among --slides"):
            heatmap(run, tmp_path / "maps", slides=[tmp_path / "slides"], progress=False)
        assert (tmp_path / "maps" / "one.x.png").is_file()
        assert not (tmp_path / "maps" / "two.png").exists()

    def test_thumbnails_of_the_patch_command_lie_under_the_colours(self, run, tmp_path):
        folder = tmp_path / "patched" / "thumbnails"
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "two.jpg"), np.full((256, 384, 3), (0, 0, 255), np.uint8))
        heatmap(run, tmp_path / "maps", thumbnails=tmp_path / "patched", slide=["two"], alpha=0, progress=False)
        blue, _, red = cv2.imread(str(tmp_path / "maps" / "two.png"))[HEADER + 200, 300]
        assert red > 250 > 10 > blue
        with pytest.raises(HeptadError, match=r"no thumbnail one\.x\.jpg"):
            heatmap(run, tmp_path / "maps", thumbnails=tmp_path / "patched", slide=["one.x"], progress=False)

    def test_what_is_missing_is_named(self, run, tmp_path):
        with pytest.raises(PreparedDataError, match="no attention of slides"):
            heatmap(tmp_path / "slides", tmp_path / "maps", progress=False)
        with pytest.raises(PreparedDataError, match=r"no attention of three; there are one\.x, two"):
            attention_files(run, ["three"])
        with pytest.raises(ConfigError, match="share 7"):
            heatmap(run, tmp_path / "maps", share=7, progress=False)


def test_a_hundred_thousand_patches_take_no_seconds(tmp_path):
    found = attention(100_000, 256, 256, 400, width=400 * 256, height=250 * 256)
    path = write(tmp_path, found)
    start = time.process_time()
    heatmap(path, tmp_path / "maps", progress=False)
    assert time.process_time() - start < 5
    assert (tmp_path / "maps" / "S.1.geojson").stat().st_size < 5e6


@pytest.mark.shared
def test_a_real_slide(shared, tmp_path):
    index = np.arange(80)
    coords = np.stack([index % 8 * 256, index // 8 * 256], axis=1)
    values = np.random.default_rng(1).dirichlet(np.ones(80)).astype(np.float32)
    found = SlideAttention("cmu_small_region", coords, np.full(80, 256, np.float32), values, 2220, 2967)
    slide = shared / "wsi" / "cmu_small_region.svs"
    heatmap(write(tmp_path, found), tmp_path / "maps", slides=[slide], top=4, max_side=500, progress=False)
    sheet = cv2.imread(str(tmp_path / "maps" / "cmu_small_region_top.png"))
    assert sheet[HEADER + 20 : HEADER + 200, 20:200].std() > 10
