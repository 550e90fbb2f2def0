"""Features of patches: right ones, of every slide that can be read, with the others told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import timm
import torch

from data_prep.common.errors import ConfigError, IncompleteError, PrepError, RejectsExceededError
from data_prep.medical.wsi.features import extract, features
from data_prep.medical.wsi.features.encoders import Encoder, EncoderSpec, load_encoder
from data_prep.medical.wsi.features.layouts import find_features, read_features
from data_prep.medical.wsi.patches.coords import read_coords, write_coords
from data_prep.medical.wsi.slides import read_ahead
from data_prep.medical.wsi.slides.reader import open_slide
from tests.data.medical.make_slides import corrupt_tiles, truncate
from tests.data_prep.helpers import kill_and_continue, tree
from tests.data_prep.medical.wsi.encoding import SIZE, load_mean_colours, make_cohort, make_slide, run, tile_slide


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path]:
    return make_cohort(tmp_path)


@pytest.fixture
def encoder() -> Encoder:
    return load_encoder(EncoderSpec("test_resnet", "random", image_size=SIZE), "cpu")


def by_hand(slide: Path, coords: Path, encoder: Encoder) -> Any:
    with open_slide(slide) as opened:
        patches = [opened.read_patch(x, y, SIZE, SIZE) for x, y in read_coords(coords).coords.tolist()]
    return encoder(np.stack(patches))


def statuses(out: Path) -> dict[str, tuple[str, str]]:
    rows = pl.read_parquet(out / "slides.parquet")
    return {row["slide"]: (row["status"], row["reason"]) for row in rows.iter_rows(named=True)}


def test_features_are_those_of_the_patches_in_order(
    tmp_path: Path, cohort: tuple[Path, Path], encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    slides, patches = cohort
    card = run(patches, slides, tmp_path / "out", progress=True, dtype="float32")
    told = capsys.readouterr()
    assert "slides: 3 of 3; patches: 93, 96 features of each" in told.out
    assert "encoder test_resnet has RANDOM weights (seed 0)" in told.err
    found = find_features(tmp_path / "out")
    assert [(entry.slide, entry.rows, entry.dtype) for entry in found] == [
        ("a.1", 40, "float32"),
        ("b.2", 31, "float32"),
        ("c.3", 22, "float32"),
    ]
    for entry in found:
        values, coords, attributes = read_features(entry)
        wanted = by_hand(slides / f"{entry.slide}.tif", patches / f"{entry.slide}.h5", encoder)
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)
        assert np.array_equal(coords, read_coords(patches / f"{entry.slide}.h5").coords)  # type: ignore[arg-type]
        assert attributes == {
            **{"name": entry.slide, "encoder": "test_resnet", "patch_size_level0": SIZE, "patch_size": SIZE},
            **{"level0_width": 512, "level0_height": 512, "target_mpp": 0.5, "bad_rows": 0},
        }
    assert card["kind"] == "features" and card["feature_dim"] == 96 and card["mpp"] == 0.5
    assert card["encoder"]["weights"] == {"kind": "random", "seed": 0}
    assert [source["path"] for source in card["sources"]] == ["a.1.h5", "b.2.h5", "c.3.h5"]
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()


def test_threads_change_nothing(tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run(cohort[1], cohort[0], tmp_path / "one", threads=1)
    read = read_ahead.read_or_retry

    def dawdle(slide: Any, x: int, *rest: Any) -> Any:
        time.sleep(x % 5 / 1000)
        return read(slide, x, *rest)

    monkeypatch.setattr(read_ahead, "read_or_retry", dawdle)
    run(cohort[1], cohort[0], tmp_path / "many", threads=7)
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


def test_precisions_agree_roughly(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        run(cohort[1], cohort[0], tmp_path / precision, precision=precision, dtype="float32")
        found[precision] = read_features(find_features(tmp_path / precision)[0])[0]
    assert not np.array_equal(found["fp32"], found["bf16"])
    assert np.abs(found["fp32"] - found["bf16"]).max() < 0.05 * np.abs(found["fp32"]).max()


def test_larger_images_are_enlarged_patches_not_finer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = make_slide(tmp_path / "slides", "s", side=256, levels=(1, 2))
    coords = tile_slide(slide, tmp_path / "patches", rows=2)
    grid = read_coords(coords)
    asked: list[int] = []
    with read_ahead.Handles(slide) as handles:
        read = handles.get().read_patch
        monkeypatch.setattr(
            type(handles.get()), "read_patch", lambda self, *where: (asked.append(where[-1]), read(*where))[1]
        )
        for side in (SIZE // 2, SIZE * 2):
            (batch,) = read_ahead.read_batches(handles, grid, side, 8, 1)
            assert batch.images.shape == (2, side, side, 3)
    assert asked == [SIZE // 2] * 2 + [SIZE] * 2


def test_undecodable_region_is_read_from_the_next_level(tmp_path: Path, encoder: Encoder) -> None:
    slide = make_slide(tmp_path / "slides", "s")
    coords = tile_slide(slide, tmp_path / "patches")
    sound = by_hand(slide, coords, encoder)
    corrupt_tiles(slide, 0, [9, 10])  # of 8 x 8 tiles, row by row: row 1, columns 1 and 2
    card = run(tmp_path / "patches", slide, tmp_path / "out", dtype="float32")
    assert card["counts"]["retried_patches"] == 2 and card["counts"]["bad_patches"] == 0
    values = read_features(find_features(tmp_path / "out")[0])[0]
    other = np.flatnonzero(np.abs(values - sound).max(axis=1) > 1e-3)
    # column by column: x = 1, y = 1 is 9, x = 2, y = 1 is 17
    assert other.tolist() == [9, 17]
    with open_slide(slide) as opened:
        coarse = opened.read_region(SIZE, SIZE, 1, SIZE // 2, SIZE // 2)
    wanted = encoder(read_ahead.resample(coarse, SIZE, SIZE)[None])
    np.testing.assert_allclose(values[9], wanted[0], rtol=1e-4, atol=1e-5)


def test_region_that_cannot_be_decoded_at_all_is_left_out_and_listed(tmp_path: Path, encoder: Encoder) -> None:
    slide = make_slide(tmp_path / "slides", "s", levels=(1,))
    coords = tile_slide(slide, tmp_path / "patches")
    sound = by_hand(slide, coords, encoder)
    corrupt_tiles(slide, 0, [9])
    card = run(tmp_path / "patches", slide, tmp_path / "out", dtype="float32", max_bad=0.02)
    assert card["counts"] | {"bad_patches": 1, "patches": 63, "failed": 0} == card["counts"]
    values, places, _ = read_features(find_features(tmp_path / "out")[0])
    kept = [row for row in range(64) if row != 9]
    np.testing.assert_allclose(values, sound[kept], rtol=1e-4, atol=1e-5)
    assert places is not None and np.array_equal(places, read_coords(coords).coords[kept])
    (reject,) = pl.read_parquet(tmp_path / "out" / "rejects.parquet").iter_rows(named=True)
    assert (reject["source"], reject["record"], reject["field"], reject["excerpt"]) == (
        "s.tif",
        9,
        "patch",
        "x 64, y 64",
    )
    assert reject["reason"].startswith("s.tif: level 0: the region of 64 x 64 px at x 64, y 64 cannot be decoded")


def test_slide_with_too_many_bad_regions_is_given_up_and_the_others_are_finished(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slides, patches = cohort
    bad = make_slide(slides, "b.2", levels=(1,), seed=1)
    corrupt_tiles(bad, 0, list(range(64)))
    tries: list[int] = []
    read = read_ahead.read_or_retry
    monkeypatch.setattr(
        read_ahead, "read_or_retry", lambda slide, *rest: (tries.append(slide.path == bad), read(slide, *rest))[1]
    )
    with pytest.raises(
        RejectsExceededError, match=r"1 of 3 slides have no features: b.2.tif: patch 0 \(x 0, y 0\)"
    ) as error:
        run(patches, slides, tmp_path / "out")
    assert "10 of the first 10 of 31 patches are bad, more than max_bad 1.00%" in str(error.value)
    assert sum(tries) <= 31, "no patch is tried again and again"
    assert {slide: status for slide, (status, _) in statuses(tmp_path / "out").items()} == {
        "a.1": "done",
        "b.2": "failed",
        "c.3": "done",
    }
    assert [entry.slide for entry in find_features(tmp_path / "out")] == ["a.1", "c.3"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "features",
        "rejects.parquet",
        "slides.parquet",
    ]
    # The same command tells the same, and a larger share may be allowed.
    before = tree(tmp_path / "out")
    with pytest.raises(RejectsExceededError, match="1 of 3 slides"):
        run(patches, slides, tmp_path / "out")
    run(patches, slides, tmp_path / "out", max_rejects=0.4)
    assert tree(tmp_path / "out") == before


def test_every_kind_of_bad_slide_is_told_in_one_line(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    slides, patches = cohort
    for number, name in enumerate(("truncated", "no_slide", "no_coords", "empty", "smaller", "swapped", "torn")):
        tile_slide(make_slide(slides, name, seed=10 + number), patches, rows=0 if name == "empty" else 5)
    truncate(slides / "truncated.tif", 0.5)
    (slides / "no_slide.tif").write_bytes(b"<html>404 Not Found</html>" * 20)
    (patches / "no_coords.h5").unlink()
    (slides / "c.3.tif").unlink()
    make_slide(slides, "smaller", side=256)
    (patches / "b.2.h5").rename(patches / "swapped.h5")
    tile_slide(slides / "b.2.tif", patches, rows=3)
    truncate(patches / "torn.h5", 0.5)
    with pytest.raises(RejectsExceededError, match=r"8 of 10 slides have no features: .*; and 3 more") as error:
        run(patches, slides, tmp_path / "out")
    assert "\n" not in str(error.value) and len(statuses(tmp_path / "out")) == 10
    reasons = {slide: reason for slide, (status, reason) in statuses(tmp_path / "out").items() if status == "failed"}
    for slide, part in {
        "truncated": "truncated.tif: ",
        "no_slide": "no_slide.tif: ",
        "no_coords": "no_coords.tif: no coordinates of its patches",
        "c.3": "c.3.h5: there is no slide of this id",
        "empty": "empty.h5: coordinates: no patches to encode",
        "smaller": "made for a slide of 512 x 512 pixels, but smaller.tif has 256 x 256",
        "swapped": "swapped.h5: name: these coordinates were made for slide 'b.2', not 'swapped'",
        "torn": "torn.h5: ",
    }.items():
        assert part in reasons.pop(slide)
    assert not reasons
    assert not any(str(tmp_path) in reason for _, reason in statuses(tmp_path / "out").values())
    assert [entry.slide for entry in find_features(tmp_path / "out")] == ["a.1", "b.2"]


def test_finished_directory_takes_new_and_repaired_slides_on(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slides, patches = cohort
    run(patches, slides, tmp_path / "wanted")
    whole = (slides / "b.2.tif").read_bytes()
    truncate(slides / "b.2.tif", 0.5)
    third = (patches / "c.3.h5").read_bytes()
    (patches / "c.3.h5").unlink()
    with pytest.raises(RejectsExceededError, match="2 of 3"):
        run(patches, slides, tmp_path / "out")
    (slides / "b.2.tif").write_bytes(whole)
    (patches / "c.3.h5").write_bytes(third)
    encoded: list[str] = []
    original = extract.read_batches
    monkeypatch.setattr(
        extract, "read_batches", lambda handles, *rest: (encoded.append(handles.path.name), original(handles, *rest))[1]
    )
    run(patches, slides, tmp_path / "out")
    assert encoded == ["b.2.tif", "c.3.tif"]
    assert tree(tmp_path / "out") == tree(tmp_path / "wanted")
    # Nothing to do; then damage in the published directory, and a slide less.
    run(patches, slides, tmp_path / "out")
    assert len(encoded) == 2
    (slides / "c.3.tif").unlink()
    (patches / "c.3.h5").unlink()
    (tmp_path / "out" / "features" / "a.1.h5").write_bytes(b"damaged")
    run(patches, slides, tmp_path / "out")
    assert encoded[2:] == ["a.1.tif"]
    assert sorted(path.stem for path in (tmp_path / "out" / "features").iterdir()) == ["a.1", "b.2"]
    with pytest.raises(ConfigError, match="holds features made with other options; choose another"):
        run(patches, slides, tmp_path / "out", dtype="float32")


def test_rejected_patches_stay_listed_when_other_slides_come(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    slides, patches = cohort
    make_slide(slides, "a.1", levels=(1,))
    corrupt_tiles(slides / "a.1.tif", 0, [9])
    late = (patches / "b.2.h5").read_bytes()
    (patches / "b.2.h5").unlink()
    with pytest.raises(RejectsExceededError):
        run(patches, slides, tmp_path / "out", max_bad=0.05)
    (patches / "b.2.h5").write_bytes(late)
    run(patches, slides, tmp_path / "out", max_bad=0.05)
    run(patches, slides, tmp_path / "fresh", max_bad=0.05)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert pl.read_parquet(tmp_path / "out" / "rejects.parquet").height == 1


def test_two_shards_equal_one_run(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    slides, patches = cohort
    run(patches, slides, tmp_path / "one")
    waited = 0
    for _ in range(3):
        for index in range(2):
            try:
                run(patches, slides, tmp_path / "two", shard=f"{index}/2")
            except IncompleteError as error:
                assert "run the other shards" in str(error)
                waited += 1
    assert waited >= 1 and tree(tmp_path / "two") == tree(tmp_path / "one")
    # Also when a finished directory is gone on with.
    tile_slide(make_slide(slides, "d.4", seed=4), patches, rows=5)
    tile_slide(make_slide(slides, "e.5", seed=5), patches, rows=5)
    with pytest.raises(IncompleteError):
        run(patches, slides, tmp_path / "two", shard="0/2")
    run(patches, slides, tmp_path / "two", shard="1/2")
    run(patches, slides, tmp_path / "fresh")
    assert tree(tmp_path / "two") == tree(tmp_path / "fresh")


WORKER = """
import sys
from pathlib import Path
from tests.data_prep.medical.wsi.encoding import run, use_mean_colours
use_mean_colours()
if __name__ == "__main__":
    out, slides, patches, executor = sys.argv[1:]
    run(Path(patches), Path(slides), Path(out), executor=executor, workers=2)
"""


@pytest.fixture
def by_colours(tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a run nobody killed gives."""
    for module in (extract, features):
        monkeypatch.setattr(module, "load_encoder", load_mean_colours)
    run(cohort[1], cohort[0], tmp_path / "wanted")
    return tree(tmp_path / "wanted")


def test_killed_in_the_middle_of_a_slide_then_continued(
    tmp_path: Path, cohort: tuple[Path, Path], by_colours: dict[str, str]
) -> None:
    out = tmp_path / "out"
    assert kill_and_continue(tmp_path, WORKER, [out, *cohort, "serial"], out, [0, 2]) == by_colours


def test_processes_give_the_same_bytes(tmp_path: Path, cohort: tuple[Path, Path], by_colours: dict[str, str]) -> None:
    out = tmp_path / "out"
    assert kill_and_continue(tmp_path, WORKER, [out, *cohort, "local"], out, []) == by_colours


def test_features_beyond_float16_are_stored_in_float32_and_told(
    tmp_path: Path, cohort: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = scaled_weights(tmp_path, 1e7)
    card = run(cohort[1], cohort[0], tmp_path / "out", weights=str(weights), progress=True)
    assert card["counts"]["float32_slides"] == 3
    assert "stored in float32, because their features exceed float16: 3 slides" in capsys.readouterr().out
    values = read_features(find_features(tmp_path / "out")[0])[0]
    assert values.dtype == np.float32 and np.abs(values).max() > 65504


def test_weights_that_give_nan_do_not_give_features(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    weights = scaled_weights(tmp_path, float("nan"))
    with pytest.raises(RejectsExceededError, match=r"3 of 3 .*the encoder gives NaN or infinity for it"):
        run(cohort[1], cohort[0], tmp_path / "out", weights=str(weights))


def scaled_weights(folder: Path, factor: float) -> Path:
    network = timm.create_model("test_resnet", num_classes=0)
    state = network.state_dict()
    last = [name for name in state if name.endswith("bn2.weight") or name.endswith("bn3.weight")][-1]
    state[last] = torch.full_like(state[last], factor)
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def test_other_weights_under_the_same_name_are_other_features(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    weights = scaled_weights(tmp_path, 1.0)
    card = run(cohort[1], cohort[0], tmp_path / "out", weights=str(weights))
    assert card["encoder"]["weights"]["file"] == "weights.pth"
    scaled_weights(tmp_path, 2.0)
    with pytest.raises(ConfigError, match="made with other options"):
        run(cohort[1], cohort[0], tmp_path / "out", weights=str(weights))


def test_few_batches_are_in_memory_whatever_the_number_of_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = make_slide(tmp_path / "slides", "s", side=256)
    grid = read_coords(tile_slide(slide, tmp_path / "patches"))
    read: list[int] = []
    original = read_ahead.read_or_retry
    monkeypatch.setattr(read_ahead, "read_or_retry", lambda *rest: (read.append(1), original(*rest))[1])
    with read_ahead.Handles(slide) as handles:
        batches = read_ahead.read_batches(handles, grid, SIZE, 2, 2)
        assert next(batches).start == 0
        time.sleep(0.1)
        assert len(read) <= 2 * (read_ahead.AHEAD + 1) < len(grid.coords)
        assert [batch.start for batch in batches] == list(range(2, 16, 2))
        # One handle for each reading thread, not one for each patch.
        assert len(handles.opened) <= 3
    assert len(read) == len(grid.coords)


def test_nobody_waits_for_batches_that_nobody_wants(tmp_path: Path) -> None:
    slide = make_slide(tmp_path / "slides", "s", side=256)
    grid = read_coords(tile_slide(slide, tmp_path / "patches"))
    with read_ahead.Handles(slide) as handles:
        batches = read_ahead.read_batches(handles, grid, SIZE, 2, 1)
        next(batches)
        batches.close()  # type: ignore[attr-defined]


def test_clam_coordinates_are_encoded_as_they_are(tmp_path: Path) -> None:
    slide = make_slide(tmp_path / "slides", "x.y")
    grid = read_coords(tile_slide(slide, tmp_path / "ours", rows=6))
    (tmp_path / "clam" / "patches").mkdir(parents=True)
    (tmp_path / "clam" / "masks").mkdir()
    (tmp_path / "clam" / "dataset.json").write_text('{"of": "another program"}')
    write_coords(tmp_path / "clam" / "patches" / "x.y.h5", grid, layout="clam")
    run(tmp_path / "clam", slide, tmp_path / "out")
    run(tmp_path / "ours", slide, tmp_path / "same")
    one, other = (read_features(find_features(tmp_path / name)[0]) for name in ("out", "same"))
    assert np.array_equal(one[0], other[0]) and one[2]["patch_size_level0"] == SIZE
    with h5py.File(tmp_path / "clam" / "patches" / "x.y.h5", "a") as file:
        file["coords"][2] = (512, 0)
    with pytest.raises(PrepError, match=r"made for patches up to \(512, 320\), but x.y.tif has 512 x 512"):
        run(tmp_path / "clam", slide, tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"max_bad": 2.0}, "max_bad 2.0"),
        ({"mean": (0.5, 0.5, 0.5)}, "give both"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.0, 1.0, 1.0)}, "std above 0"),
        ({"mean": (0.5,), "std": (0.5,)}, "three numbers"),
        ({"image_size": 0}, "image_size 0"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"normalisation": "reinhard"}, "choose imagenet, lunit or model"),
        ({"encoder": "resnet81"}, "did you mean resnet18"),
        ({"shard": "2/2"}, "INDEX/COUNT"),
        ({"weights": "absent.pth"}, "no such file of weights"),
        ({"executor": "cloud"}, "executor"),
    ],
)
def test_mistakes_in_options_show_before_any_work(
    tmp_path: Path, cohort: tuple[Path, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrepError, match=message):
        run(cohort[1], cohort[0], tmp_path / "out", **options)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_importing_and_planning_leaves_torch_alone() -> None:
    import subprocess
    import sys

    code = (
        "import sys, data_prep.medical.wsi.features.features, data_prep.medical.wsi.prepare\n"
        "import data_prep.medical.wsi.features.repack\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "slurm:local"])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of the cluster library
def test_every_executor_encodes_alike(
    tmp_path: Path, cohort: tuple[Path, Path], executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(cohort[1], cohort[0], tmp_path / "serial")
    run(cohort[1], cohort[0], tmp_path / "out", executor=executor, workers=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")
