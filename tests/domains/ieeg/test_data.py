"""Windows: where they lie, what is read, how an epoch is dealt; bad directories are told in one line."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError, PreparedDataError
from domains.ieeg import windows
from domains.ieeg.data import RecordingData
from domains.ieeg.sampling import WindowSampling
from tests.domains.ieeg.helpers import RATE, write_prepared

CUT = {"segment": 1.0, "segments": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("ieeg") / "prepared", channels=(3, 2), parts=3)


def whole(root, name):
    return np.concatenate([h5py.File(path)["signal"][:] for path in sorted((root / "recordings" / name).iterdir())], 1)


def test_windows_are_cut_across_files(prepared):
    data = RecordingData(str(prepared), batch_size=4, workers=0, **CUT)
    length = int(4 * RATE)
    for batch in data.train_dataloader():
        counts = batch.get("counts", torch.full((len(batch["row"]),), batch["x"].shape[2]))
        for i, name in enumerate(batch["recording"]):
            signal = whole(prepared, name)
            stop = int((batch["onset"][i] + batch["duration"][i]) * RATE)
            want = signal[:, stop - length : stop].reshape(len(signal), 4, -1).swapaxes(0, 1)
            found = batch["x"][i, :, : counts[i]].numpy()
            np.testing.assert_array_equal(found, want)
            assert (batch["x"][i, :, counts[i] :] == 0).all()


def test_every_segment_is_decided_once_and_early_ones_see_a_mirrored_past(prepared):
    data = RecordingData(str(prepared), batch_size=4, workers=0, **CUT)
    batches = list(data.test_dataloader())
    onsets = {}
    for batch in batches:
        for name, onset in zip(batch["recording"], batch["onset"].tolist(), strict=True):
            onsets.setdefault(name, []).append(onset)
    assert all(found == list(range(60)) for found in onsets.values())
    signal = whole(prepared, batches[0]["recording"][0])
    first = batches[0]["x"][0, :, : len(signal)].transpose(0, 1).flatten(1).numpy()
    np.testing.assert_array_equal(first, np.pad(signal, ((0, 0), (192, 0)), mode="reflect")[:, :256])


def test_labels_touch_the_last_segment(prepared):
    store = RecordingData(str(prepared), **CUT).store("test")
    onset = store.onset(torch.arange(len(store.start)))
    # the seizure lasts from 36 to 51 s; both borders count
    assert store.label.tolist() == ((onset <= 51) & (onset + 1 >= 36)).long().tolist()


def test_overlapping_and_sparse_windows(prepared):
    dense = RecordingData(str(prepared), stride=0.25, **CUT).store("train")
    assert len(dense.start) == 3 * (4 * 56 + 1)
    sparse = RecordingData(str(prepared), decision_stride=10.0, **CUT).store("valid")
    assert len(sparse.start) == 2 * 6


def test_chosen_channels_have_the_largest_quality(prepared, tmp_path):
    root = shutil.copytree(prepared, tmp_path / "copy")
    table = pl.read_parquet(root / "channels.parquet")
    table = table.with_columns(variance=pl.when(pl.col("position") == 1).then(9e9).otherwise(1.0))
    table.write_parquet(root / "channels.parquet")
    data = RecordingData(str(root), channels=1, workers=0, **CUT)
    assert data.max_channels == 1
    store = data.store("train")
    batch = data.collate_for(store)({"row": torch.tensor([0])})
    assert batch["x"].shape[2] == 1
    name = batch["recording"][0]
    np.testing.assert_array_equal(batch["x"][0, 0, 0].numpy(), whole(root, name)[1, :64])
    assert data.channel_names(store, name) == ["A2"]


def test_mid_epoch_resume_and_two_processes_take_the_same_windows(prepared):
    def rows(**options):
        data = RecordingData(str(prepared), batch_size=4, seizure_share=0.5, epoch_windows=30, **CUT)
        loader = data.train_dataloader()
        for name, value in options.items():
            setattr(loader, name, value)
        loader.set_epoch(2)
        return [batch["row"].tolist() for batch in loader]

    every = rows()
    assert sum(map(len, every)) == 30
    assert rows(skip=3) == every[3:]
    halves = rows(rank=0, world=2), rows(rank=1, world=2)
    assert [a[::2] for a in every] == halves[0]
    assert [a[1::2] for a in every] == halves[1]


@settings(max_examples=40, deadline=None)
@given(
    seizures=st.integers(1, 20),
    others=st.integers(1, 200),
    share=st.floats(0, 1),
    epoch=st.integers(0, 5),
    size=st.integers(1, 100),
)
def test_an_epoch_has_its_share_and_nothing_twice_before_all(seizures, others, share, epoch, size):
    labels = torch.cat([torch.ones(seizures), torch.zeros(others)]).long()
    sampling = WindowSampling(
        labels, torch.ones_like(labels), 4, 0, seizure_share=share, epoch_windows=size, bucket=False
    )
    rows = sampling(epoch).rows(0)
    assert len(rows) == size
    assert int(labels[rows].sum()) == round(size * share)
    for label, count in ((1, seizures), (0, others)):
        times = torch.bincount(rows[labels[rows] == label], minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 2 if len(times) else True
        assert times.sum() <= count * (times.min() + 2)
    assert sampling(epoch).rows(0).equal(rows)


def test_buckets_hold_alike_recordings():
    channels = torch.randint(1, 100, (1000,))
    sampling = WindowSampling(torch.zeros(1000).long(), channels, 8, 0)
    rows = sampling(0).rows(0)
    assert rows.sort().values.equal(torch.arange(1000))
    spread = [int(channels[part].max() - channels[part].min()) for part in rows[:992].split(8)]
    assert np.mean(spread) < 10
    assert not sampling(1).rows(0).equal(rows)


def test_bad_directories_are_told(prepared, tmp_path):
    with pytest.raises(PreparedDataError, match=r"dataset.json: not found"):
        RecordingData(str(tmp_path / "none"), **CUT)
    root = shutil.copytree(prepared, tmp_path / "broken")
    data = RecordingData(str(root), batch_size=4, workers=0, **CUT)
    path = root / "recordings" / "sub-06" / "part-00000.h5"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(PreparedDataError, match=r"part-00000.h5: cannot be read .* prepare the data again"):
        list(data.test_dataloader())
    (root / "events.parquet").unlink()
    with pytest.raises(PreparedDataError, match=r"events.parquet: cannot be read"):
        data.store("train")
    card = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(card | {"kind": "series"}))
    with pytest.raises(PreparedDataError, match="holds series, this system needs kind 'recordings'"):
        RecordingData(str(root), **CUT)


def test_options_out_of_range_are_told(prepared):
    for options, message in (
        ({"segment": 0.001}, "that is no sample"),
        ({"segments": 0}, "at least 1"),
        ({"channels": 0}, "data.channels is 0"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            RecordingData(str(prepared), **{**CUT, **options})
    with pytest.raises(PreparedDataError, match="less than a segment of 100 s"):
        RecordingData(str(prepared), segment=100.0, segments=1).store("train")
    labels = torch.zeros(10).long()
    with pytest.raises(ConfigError, match="needs seizure windows"):
        WindowSampling(labels, labels, 2, 0, seizure_share=0.5)
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        WindowSampling(labels, labels, 2, 0, seizure_share=2.0)


def test_files_are_closed_again(prepared, monkeypatch):
    monkeypatch.setattr(windows, "OPEN_FILES", 2)
    data = RecordingData(str(prepared), batch_size=4, workers=0, **CUT)
    reader = data.collate_for(data.store("train"))
    for start in range(0, 150, 10):
        reader({"row": torch.arange(start, start + 10)})
    assert len(reader._open) == 2
