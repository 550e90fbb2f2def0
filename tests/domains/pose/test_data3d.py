"""Windows and clips of prepared sequences: where they lie, their mirror, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.pose.sequences.prepare import prepare_sequences
from domains.common.errors import ConfigError, PreparedDataError
from domains.pose.camera import to_screen
from domains.pose.data3d import SequenceData
from domains.pose.layouts import HUMANEVA_15, mirror
from domains.pose.lifting import windows
from tests.data.pose.make_sequences import eva_positions, write_eva
from tests.domains.pose.sequence_helpers import write_prepared


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("sequences") / "prepared")


def clip_of(root, name):
    """Screen units and poses relative to the root, straight from the file."""
    tensors = load_file(root / "clips" / f"{name}.safetensors")
    return to_screen(tensors["keypoints_2d"], 640, 480), tensors["pose_3d"] - tensors["pose_3d"][:, :1]


def change(root, name, **tensors):
    path = root / "clips" / f"{name}.safetensors"
    save_file({**load_file(path), **tensors}, path)


def edit_card(root, **entries):
    card = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(card | entries))


def whole(data, loader, epoch=0):
    parts = [data.finish(batch, epoch) for batch in loader]
    return {name: torch.cat([part[name] for part in parts]) for name in ("row", "keypoints", "pose", "known")}


@pytest.mark.parametrize("frames", [1, 9, 81])
def test_windows_are_those_of_each_clip_by_itself(root, frames):
    data = SequenceData(str(root), frames=frames, mirror="none", batch_size=64)
    store = data.store("train")
    names = ["S1-Walking", "S1-Jog", "S2-Walking", "S2-Jog"]
    clips = [clip_of(root, name) for name in names]
    assert [len(pose) for _, pose in clips] == [40, 41, 40, 3]
    batch = store({"row": torch.arange(store.sizes[0])})
    torch.testing.assert_close(batch["keypoints"], torch.cat([windows(points, frames) for points, _ in clips]))
    torch.testing.assert_close(batch["pose"], torch.cat([pose for _, pose in clips]))
    assert bool((batch["pose"][:, 0] == 0).all()) and bool(batch["known"].all())


def test_a_row_alone_as_in_any_batch(root):
    store = SequenceData(str(root), frames=9).store("train")
    every = store(store.load(0))
    for row in (0, 39, 40, 80, 123, 200):
        alone = store({"row": torch.tensor([row])})
        for name, values in alone.items():
            assert torch.equal(values[0], every[name][row])


def test_the_stride_counts_from_the_beginning_of_each_clip(root):
    store = SequenceData(str(root), stride=7, mirror="none").store("train")
    want = torch.cat([torch.arange(first, stop, 7) for first, stop in ((0, 40), (40, 81), (81, 121), (121, 124))])
    assert torch.equal(store.middle, want)


def test_each_window_and_its_mirror_are_in_an_epoch(root):
    data = SequenceData(str(root), frames=9, batch_size=50)
    found = whole(data, data.train_dataloader())
    count = data.store("train").windows
    assert Counter(found["row"].tolist()) == Counter(range(2 * count))
    order = torch.argsort(found["row"])
    for name in ("keypoints", "pose"):
        plain, mirrored = found[name][order].split(count)
        torch.testing.assert_close(mirrored, mirror(plain, HUMANEVA_15))
    assert not torch.equal(found["row"], found["row"].sort().values)


def test_a_random_mirror_is_a_function_of_seed_epoch_and_row(root):
    data = SequenceData(str(root), mirror="random", batch_size=16)
    plain = SequenceData(str(root), mirror="none").store("train")
    plain = plain(plain.load(0))["keypoints"]
    turns = []
    for epoch, batch_size in ((0, 16), (0, 5), (1, 16)):
        data.batch_size = batch_size
        found = whole(data, data.train_dataloader(), epoch)
        turned = (found["keypoints"] - plain[found["row"]]).abs().amax((1, 2, 3)) > 1e-6
        turns.append(turned[torch.argsort(found["row"])])
    assert torch.equal(turns[0], turns[1]) and not torch.equal(turns[0], turns[2])
    assert 0.3 < float(turns[0].float().mean()) < 0.7


def test_unknown_joints_teach_nothing_and_are_mirrored_with_their_side(tmp_path):
    root = write_prepared(tmp_path / "prepared")
    known = torch.ones(40, 15, dtype=torch.bool)
    known[3], known[5, HUMANEVA_15.index("left_wrist")] = False, False
    change(root, "S1-Walking", valid_3d=known)
    data = SequenceData(str(root), batch_size=1000)
    store = data.store("train")
    assert store.windows == 123 and 3 not in store.middle.tolist()
    found = whole(data, [store({"row": torch.tensor([4, 4 + store.windows])})])
    assert found["known"].sum(1).tolist() == [14, 14]
    assert not found["known"][0, HUMANEVA_15.index("left_wrist")]
    assert not found["known"][1, HUMANEVA_15.index("right_wrist")]


def test_a_test_is_of_whole_clips_in_order(root):
    data = SequenceData(str(root), batch_size=2)
    batches = list(data.test_dataloader())
    assert [len(batch["name"]) for batch in batches] == [4]
    (batch,) = batches
    assert batch["name"] == [f"{s}/{a} 1/C1" for s in ("S4", "S5") for a in ("Walking", "Jog")]
    assert batch["first"].tolist() == [0, 40, 81, 121]
    points, pose = clip_of(root, "S4-Jog")
    assert torch.equal(batch["keypoints"][1], points) and torch.equal(batch["pose"][1], pose)
    assert data.finish(batch, 0) is batch


def test_keypoints_of_another_name_and_projected_ones(tmp_path):
    root = write_prepared(tmp_path / "prepared")
    for path in (root / "clips").iterdir():
        tensors = load_file(path)
        save_file({**tensors, "detections": tensors["keypoints_2d"] + 3.0}, path)
    prepared, detected, projected = (
        SequenceData(str(root), keypoints=name).clips("test").read(0).keypoints
        for name in ("keypoints_2d", "detections", "projected")
    )
    torch.testing.assert_close(detected, prepared + 3.0 * 2 / 640)
    torch.testing.assert_close(projected, prepared, atol=1e-5, rtol=0)
    with pytest.raises(PreparedDataError, match=r"has no cpn, only detections, keypoints_2d"):
        SequenceData(str(root), keypoints="cpn").store("train")
    index = root / "test" / "part-00000.parquet"
    pl.read_parquet(index).with_columns(focal=pl.lit(None, dtype=pl.List(pl.Float64))).write_parquet(index)
    with pytest.raises(PreparedDataError, match="the lens of camera C1 is not known"):
        SequenceData(str(root), keypoints="projected").clips("test").read(0)


def test_what_the_preparation_writes_is_read(tmp_path):
    prepare_sequences(
        "humaneva", write_eva(tmp_path / "raw", *eva_positions()), tmp_path / "out", workers=1, progress=False
    )
    data = SequenceData(str(tmp_path / "out"), batch_size=32)
    assert (data.joints, data.layout) == (15, "humaneva-15")
    batch = data.finish(next(iter(data.train_dataloader())), 0)
    assert batch["keypoints"].shape == (32, 9, 15, 2) and bool(batch["keypoints"].isfinite().all())
    assert sum(len(batch["name"]) for batch in data.test_dataloader()) == 18


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"keypoints_2d": torch.rand(40, 15, 2)}, r"S1-Walking.*no coordinate is beyond 1.5"),
        ({"pose_3d": 1000 * torch.rand(40, 15, 3)}, r"S1-Walking.*these are millimetres"),
        ({"pose_3d": torch.rand(39, 15, 3)}, r"pose_3d is \(39, 15, 3\), the index says \(40, 15, 3\)"),
        ({"pose_3d": torch.rand(40, 17, 3)}, r"pose_3d is \(40, 17, 3\)"),
        ({"pose_3d": torch.full((40, 15, 3), float("nan"))}, "frame 0 is not finite"),
    ],
)
def test_clips_that_do_not_fit_are_told(tensors, message, tmp_path):
    root = write_prepared(tmp_path / "prepared")
    change(root, "S1-Walking", **tensors)
    with pytest.raises(PreparedDataError, match=message):
        SequenceData(str(root)).store("train")


def test_damaged_files_are_told(tmp_path):
    root = write_prepared(tmp_path / "prepared")
    path = root / "clips" / "S1-Jog.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PreparedDataError, match=r"S1-Jog.safetensors: cannot be read"):
        SequenceData(str(root)).store("train")
    path.unlink()
    with pytest.raises(PreparedDataError, match=r"S1-Jog.safetensors: not found"):
        SequenceData(str(root)).store("train")


def test_flipped_bits_are_told_or_harmless(tmp_path):
    root = write_prepared(tmp_path / "prepared")
    path = root / "clips" / "S4-Walking.safetensors"
    content, rng, told = path.read_bytes(), np.random.default_rng(0), 0
    store = SequenceData(str(root)).clips("test")
    for place in rng.integers(0, 700, 150):  # the header, and the first numbers
        broken = bytearray(content)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            clip = store.read(0)
        except PreparedDataError as error:
            told += 1
            assert "S4-Walking.safetensors" in str(error) and "\n" not in str(error)
        else:
            assert clip.keypoints.shape == (40, 15, 2) and bool(clip.pose.isfinite().all())
    assert told > 50


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_processes_see_the_batches_of_one(split, root):
    def rows(world):
        data = SequenceData(str(root), batch_size=64, mirror="random")
        ranks = []
        for rank in range(world):
            loader = data.loader(split, training=split == "train")
            loader.rank, loader.world = rank, world
            loader.batch_size = 64 if split == "train" else 2 * 4
            ranks.append([data.finish(batch, 0) for batch in loader])
        return ranks

    (one,), (first, second) = rows(1), rows(2)
    for whole_batch, *shares in zip(one, first, second, strict=True):
        assert sorted(whole_batch["row"].tolist()) == sorted(r for share in shares for r in share["row"].tolist())
        for share in shares:
            assert share["global_size"] == whole_batch["global_size"]
            for i, row in enumerate(share["row"].tolist()):
                at = whole_batch["row"].tolist().index(row)
                assert torch.equal(share["keypoints"][i], whole_batch["keypoints"][at])


def test_options_and_directories_that_cannot_be(root, tmp_path):
    for options, message in (
        ({"frames": 8}, "odd"),
        ({"stride": 0}, "at least 1"),
        ({"mirror": "left"}, "both, random or none"),
    ):
        with pytest.raises(ConfigError, match=message):
            SequenceData(str(root), **options)
    other = write_prepared(tmp_path / "other")
    layout = json.loads((other / "dataset.json").read_text())["layout"]
    edit_card(other, layout=layout | {"joints": layout["joints"][::-1]})
    with pytest.raises(PreparedDataError, match="has other joints than the one of that name"):
        SequenceData(str(other))
    edit_card(other, layout=layout | {"name": "mine"})
    with pytest.raises(PreparedDataError, match="layout 'mine' is unknown"):
        SequenceData(str(other))
    edit_card(other, layout={})
    with pytest.raises(PreparedDataError, match="layout"):
        SequenceData(str(other))
    edit_card(other, kind="people")
    with pytest.raises(PreparedDataError, match="holds 'people'"):
        SequenceData(str(other))


def test_another_layout_or_frame_rate_than_that_of_the_training(root, tmp_path, capsys):
    data = SequenceData(str(root))
    with pytest.raises(PreparedDataError, match="the model was trained on h36m-17"):
        data.load_state_dict({"sequences": {"layout": "h36m-17", "rates": [50.0]}})
    data.load_state_dict({"sequences": {"layout": "humaneva-15", "rates": [25.0]}})
    data.store("test")
    assert "50 frames a second, trained with 25" in capsys.readouterr().err
    fast = write_prepared(tmp_path / "fast", fps=200.0)
    data = SequenceData(str(root), predict_root=str(fast))
    capsys.readouterr()
    assert len(data.store("predict").frame) == 4
    assert "200 frames a second, trained with 50" in capsys.readouterr().err
