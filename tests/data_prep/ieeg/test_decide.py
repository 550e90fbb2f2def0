"""What becomes of recordings and channels: dead beginnings, wrong units, gaps, doubtful contacts, damaged channels."""

from __future__ import annotations

import h5py
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, RejectsExceededError
from data_prep.ieeg import tasks
from data_prep.ieeg.planted_bids import write_edf
from data_prep.ieeg.signal import filters
from tests.data.ieeg import make
from tests.data_prep.helpers import tree
from tests.data_prep.ieeg.helpers import NAMES, RATE, run, signal


def write(folder, changed, subjects=3, seconds=50):
    """EDF files of several subjects, of which the first has this signal."""
    for number in range(subjects):
        path = folder / f"p{number}" / "rec.edf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_edf(path, changed if number == 0 else signal(number, seconds), RATE, NAMES)
    return folder


def channels(out, name="p0_rec"):
    return pl.read_parquet(out / "channels.parquet").filter(pl.col("recording") == name)


def values(out, name="p0_rec"):
    parts = sorted((out / "recordings" / name).iterdir())
    return np.concatenate([h5py.File(path)["signal"][:] for path in parts], axis=1)


def test_a_recording_that_begins_with_zeros_is_prepared(tmp_path, capsys):
    late = signal(0, 50)
    late[:, : int(5 * RATE)] = 0
    late[1, : int(12 * RATE)] = 0
    run(write(tmp_path / "raw", late), tmp_path / "out")
    table = channels(tmp_path / "out")
    assert table["position"].to_list() == list(range(6))
    assert table["flat_share"].to_list() == pytest.approx([0.1, 0.24, 0.1, 0.1, 0.1, 0.1])
    assert "flat" not in capsys.readouterr().err


def test_a_silent_channel_is_told_as_left_out(tmp_path, capsys):
    dead = signal(0, 50)
    dead[1] = 100
    dead[2, 5:] = np.random.default_rng(0).normal(0, 5000, dead.shape[1] - 5)
    run(write(tmp_path / "raw", dead), tmp_path / "out")
    told = capsys.readouterr().err
    assert "doubtful channels, kept, but not in the average: A3 (" in told
    assert "doubtful channels, left out: A2 (flat for 100%)" in told
    assert channels(tmp_path / "out")["position"].to_list() == [0, None, 1, 2, 3, 4]


def test_microvolts_that_are_called_volts_are_refused(tmp_path, capsys):
    for number in range(3):
        unit = "V" if number == 0 else "uV"
        make.edf(tmp_path / "raw" / f"p{number}" / "rec.edf", make.signal(seed=number), units=unit)
    with pytest.raises(RejectsExceededError, match=r"channel \S+: the amplitude of numbers in V is .* none of a brain"):
        run(tmp_path / "raw", tmp_path / "out")
    told = capsys.readouterr().err
    assert "p0/rec.edf: channel" in told
    assert "--unit uV" in told
    run(tmp_path / "raw", tmp_path / "asked", unit="uV")
    assert "the unit of 5 channels is taken for uV, as asked" in capsys.readouterr().err
    assert np.abs(values(tmp_path / "asked")).max() < 1000


@pytest.mark.parametrize("binary", ["INT_16", "IEEE_FLOAT_32"])
def test_microvolts_that_are_called_volts_are_refused_in_brainvision(tmp_path, binary, capsys):
    for number in range(3):
        unit = "V" if number == 0 else "µV"
        make.brainvision(tmp_path / "raw" / f"p{number}", values=make.signal(seed=number), units=unit, binary=binary)
    with pytest.raises(RejectsExceededError, match=r"amplitude of numbers in V is .* none of a brain"):
        run(tmp_path / "raw", tmp_path / "out", "brainvision")
    if binary == "INT_16":  # floating-point numbers have no range
        assert "-3276.8 to 3276.8 V is none of an amplifier" in capsys.readouterr().err
        run(tmp_path / "raw", tmp_path / "asked", "brainvision", unit="uV")
        assert "the unit of 5 channels is taken for uV, as asked" in capsys.readouterr().err


def test_a_pair_has_the_doubts_of_both_contacts(tmp_path):
    loud = signal(0, 50)
    loud[1] = np.random.default_rng(9).normal(0, 3000, loud.shape[1])
    run(write(tmp_path / "raw", loud), tmp_path / "out", reference="bipolar")
    rows = {row["name"]: row for row in channels(tmp_path / "out").iter_rows(named=True)}
    assert {name: rows[name]["status"] for name in ("A1-A2", "A2-A3", "B1-B2", "B2-B3")} == {
        "A1-A2": "doubtful",
        "A2-A3": "doubtful",
        "B1-B2": "good",
        "B2-B3": "good",
    }
    assert rows["A1-A2"]["reason"].startswith("A2: deviation")
    assert (rows["A2"]["status"], rows["A2"]["position"]) == ("doubtful", None)


def write_gaps(folder):
    """BrainVision files with an offset of 5,000 uV, and gaps at the beginning, in the middle, and in one channel."""
    for number in range(3):
        plain = signal(number, 70)[:5] + 5000
        plain[:, : int(3 * RATE)] = np.nan
        plain[:, int(20 * RATE) : int(45 * RATE)] = np.nan
        plain[2, int(52 * RATE) : int(54 * RATE)] = np.nan
        make.brainvision(folder / f"p{number}", values=plain, rate=RATE, binary="IEEE_FLOAT_32")
    return folder


@pytest.mark.parametrize("reference", ["none", "bipolar", "common-average"])
def test_gaps_are_silence_and_nothing_rings_beside_them(tmp_path, reference, monkeypatch):
    raw = write_gaps(tmp_path / "raw")
    run(raw, tmp_path / "out", "brainvision", reference=reference)
    found = values(tmp_path / "out")
    for begin, end in ((0, 3), (20, 45)):
        assert not found[:, begin * 64 : end * 64].any()
    silent = [not row.any() for row in found[:, 52 * 64 : 54 * 64]]
    # A3 is the third contact: part of the pair A2-A3, which is the second one
    assert silent == ([False, True, False] if reference == "bipolar" else [False, False, True, False, False])
    assert np.abs(found).max() < 1000
    monkeypatch.setattr(filters, "HOP_SECONDS", 16.0)
    monkeypatch.setattr(tasks, "PART_SECONDS", 16.0)
    run(raw, tmp_path / "many", "brainvision", reference=reference)
    assert len(list((tmp_path / "many" / "recordings" / "p0_rec").iterdir())) > 1
    other = values(tmp_path / "many")
    assert np.abs(found - other).max() < 1e-4 * 5000
    np.testing.assert_array_equal(found == 0, other == 0)


def test_gaps_give_the_same_bytes_again(tmp_path):
    raw = write_gaps(tmp_path / "raw")
    run(raw, tmp_path / "one", "brainvision")
    run(raw, tmp_path / "two", "brainvision")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_channels_without_a_scale_are_told(tmp_path, capsys):
    for number in range(3):
        spans = [(-500, 500), (0, 0), (-500, 500), (-500, 500), (0, 0)] if number == 0 else 500.0
        names = ("A1", "A2", "A3", "A4", "ECG")
        make.edf(tmp_path / "raw" / f"p{number}" / "rec.edf", make.signal(seed=number), names=names, span=spans)
    run(tmp_path / "raw", tmp_path / "out")
    told = "1 intracranial channels are left out (its physical minimum and maximum are both 0: no scale): A2\n"
    assert told in capsys.readouterr().err
    run(tmp_path / "raw", tmp_path / "asked", exclude="A2")
    assert "no scale" not in capsys.readouterr().err, "nobody asked for it"


def test_a_notch_whose_harmonics_are_too_close_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="too close"):
        run(write(tmp_path / "raw", signal(0, 50)), tmp_path / "out", notch="2")
