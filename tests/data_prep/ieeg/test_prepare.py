"""From raw files to the prepared directory: what is in it, what is refused, and what never gets out."""

from __future__ import annotations

import json

import h5py
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, LeakError, PrepError, RejectsExceededError
from data_prep.ieeg.planted_bids import write_edf, write_planted_bids
from tests.data_prep.ieeg.helpers import LOW, NAMES, RATE, run, signal, write_subjects


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_subjects(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, run(raw, out, events=raw / "events.csv")


def index(out):
    return pl.concat([pl.read_parquet(path) for path in sorted(out.glob("*/part-*.parquet"))])


def test_what_is_written(prepared):
    out, card = prepared
    assert (card["domain"], card["kind"], card["sampling_rate"], card["units"]) == ("ieeg", "recordings", 64.0, "uV")
    assert card["group"] == {"name": "subject", "kept_apart": True, "groups": 5, "note": ""}
    sizes = {split: entry["rows"] for split, entry in card["splits"].items()}
    assert (list(sizes), sum(sizes.values()), min(sizes.values())) == (["train", "valid", "test"], 5, 1)
    rows = index(out)
    assert rows["subject"].n_unique() == 5
    assert rows["annotated"].all()
    assert sorted(rows["seizures"]) == [0, 0, 1, 1, 1]
    for row in rows.iter_rows(named=True):
        assert row["duration"] == 70.0
        with h5py.File(out / row["files"][0]) as file:
            assert file["signal"].shape == (6, 70 * 64)
            assert file["signal"].dtype == np.float32
            assert file.attrs["sampling_rate"] == 64.0
            assert [name.decode() for name in file["channels"]] == list(NAMES)
            assert len(file["events"]) == row["seizures"]
            # a common average over all channels leaves a sum of nothing
            assert np.abs(file["signal"][:].sum(0)).max() < 0.05 or (doubted(out, row["name"]))
    events = pl.read_parquet(out / "events.parquet")
    assert events.select("onset", "offset").unique().rows() == [(20.0, 35.0)]
    channels = pl.read_parquet(out / "channels.parquet")
    assert len(channels) == 30
    assert channels.filter(pl.col("recording") == rows["name"][0])["position"].to_list() == list(range(6))
    assert channels["shaft"].unique().sort().to_list() == ["A", "B"]


def doubted(out, name):
    table = pl.read_parquet(out / "channels.parquet").filter(pl.col("recording") == name)
    return bool((table["status"] != "good").any())


def test_prepared_moments_are_those_of_the_files(prepared):
    out, _ = prepared
    row = index(out).row(0, named=True)
    with h5py.File(out / row["files"][0]) as file:
        values = file["signal"][:].astype(np.float64)
    table = pl.read_parquet(out / "channels.parquet").filter(pl.col("recording") == row["name"]).sort("position")
    np.testing.assert_allclose(table["variance"], values.var(1), rtol=1e-3)
    centred = values - values.mean(1, keepdims=True)
    np.testing.assert_allclose(table["kurtosis"], (centred**4).mean(1) / values.var(1) ** 2, rtol=1e-2)


def test_finished_data_is_found_again_and_other_options_are_refused(raw, prepared):
    out, card = prepared
    assert run(raw, out, events=raw / "events.csv") == card
    with pytest.raises(ConfigError, match="prepared data of other options"):
        run(raw, out, events=raw / "events.csv", reference="median")


def test_subjects_with_the_same_signal_stay_together(tmp_path):
    raw = write_subjects(tmp_path / "raw", 4)
    copy = signal(0)[:, 678 : 678 + 64 * 128] * 0.5
    (raw / "other").mkdir()
    write_edf(raw / "other" / "copy.edf", copy, RATE, NAMES)
    for seed in range(6):
        card = run(raw, tmp_path / f"out{seed}", seed=seed)
        rows = {row["subject"]: row for row in index(tmp_path / f"out{seed}").iter_rows(named=True)}
        side = {
            name: split
            for split in ("train", "valid", "test")
            for name in pl.read_parquet(tmp_path / f"out{seed}" / split / "part-00000.parquet")["subject"]
        }
        assert side["pat0"] == side["other"]
        assert card["group"]["groups"] == 4
        assert len(rows) == 5
    with pytest.raises(LeakError, match="hold the same signal"):
        run(raw, tmp_path / "refused", duplicates="refuse")
    table = tmp_path / "split.csv"
    table.write_text("subject,split\npat0,train\nother,test\npat1,train\npat2,valid\npat3,test\n")
    with pytest.raises(LeakError, match=r"is in train .* and in test"):
        run(raw, tmp_path / "given", split=table)


def test_a_given_split_is_kept(raw, tmp_path):
    table = tmp_path / "split.csv"
    sides = ("train", "test", "valid", "test", "train")
    table.write_text("subject,split\n" + "".join(f"pat{i},{side}\n" for i, side in enumerate(sides)))
    run(raw, tmp_path / "out", split=table)
    assert set(pl.read_parquet(tmp_path / "out" / "test" / "part-00000.parquet")["subject"]) == {"pat1", "pat3"}
    table.write_text("subject,split\npat0,train\n")
    with pytest.raises(PrepError, match="does not name subject"):
        run(raw, tmp_path / "other", split=table)
    with pytest.raises(PrepError, match=r"row 0: split 'tarin'"):
        table.write_text("subject,split\npat0,tarin\n")
        run(raw, tmp_path / "other", split=table)


def test_nothing_of_a_header_gets_out(tmp_path):
    raw = tmp_path / "raw"
    for number in range(3):
        (raw / f"p{number}").mkdir(parents=True)
        path = raw / f"p{number}" / "rec.edf"
        write_edf(path, signal(number), RATE, NAMES)
        data = bytearray(path.read_bytes())
        data[8:88] = b"MCH-0234567 F 02-MAY-1951 Doubtfire_Euphegenia".ljust(80)
        data[88:168] = b"Startdate 02-MAR-2002 EMG561 Dr_Strangelove Telemetry03".ljust(80)
        data[168:184] = b"17.04.0116.31.07"
        path.write_bytes(data)
    run(raw, tmp_path / "out")
    secrets = (b"Doubtfire", b"Euphegenia", b"0234567", b"1951", b"Strangelove", b"Telemetry03", b"EMG561", b"17.04.01")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found = [secret for secret in secrets if secret in content]
            assert not found, f"{path}: {found}"


def test_names_can_be_replaced(raw, tmp_path):
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    run(raw, tmp_path / "out", anonymise=key, events=raw / "events.csv")
    for path in (tmp_path / "out").rglob("*"):
        assert "pat" not in path.relative_to(tmp_path / "out").as_posix()
        if path.suffix == ".parquet":
            assert "pat0" not in str(pl.read_parquet(path).to_dicts())
    assert index(tmp_path / "out")["subject"].n_unique() == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 1e-6, "most likely volts"),
        (lambda x: np.zeros_like(x) + 5, "all channels are flat"),
    ],
)
def test_recordings_that_cannot_be_right_are_rejected(change, message, tmp_path):
    raw = write_subjects(tmp_path / "raw", 3)
    path = raw / "pat0" / "night.edf"
    path.unlink()
    broken = change(signal(0))
    import edfio

    top = float(np.abs(broken).max()) or 1.0
    parts = [
        edfio.EdfSignal(row.astype(np.float64), RATE, label=name, physical_dimension="uV", physical_range=(-top, top))
        for row, name in zip(broken, NAMES, strict=True)
    ]
    edfio.Edf(parts).write(path)
    with pytest.raises(RejectsExceededError, match=f"{message}.*rejects.csv"):
        run(raw, tmp_path / "out")
    card = run(raw, tmp_path / "out", max_rejects=0.5)
    assert card["rejects"]["count"] == 1
    assert pl.read_parquet(tmp_path / "out" / "rejects.parquet")["source"].to_list() == ["pat0/night.edf"]


def test_one_channel_needs_no_reference(tmp_path):
    for number in range(3):
        path = tmp_path / "raw" / f"p{number}" / "rec.edf"
        path.parent.mkdir(parents=True)
        write_edf(path, signal(number, channels=1), RATE, ["A1"])
    with pytest.raises(RejectsExceededError, match="use --reference none"):
        run(tmp_path / "raw", tmp_path / "out")
    assert run(tmp_path / "raw", tmp_path / "none", reference="none")["splits"]["train"]["rows"] == 1


def test_doubtful_channels_are_reported_or_dropped(tmp_path, capsys):
    raw = write_subjects(tmp_path / "raw", 3)
    loud = signal(0)
    loud[2] = np.random.default_rng(9).normal(0, 3000, loud.shape[1])
    write_edf(raw / "pat0" / "night.edf", loud, RATE, NAMES)
    run(raw, tmp_path / "report")
    assert "doubtful channels, kept, but not in the average: A3" in capsys.readouterr().err
    row = index(tmp_path / "report").filter(pl.col("subject") == "pat0")
    assert row["channels"].item() == 6
    run(raw, tmp_path / "drop", bad_channels="drop")
    assert index(tmp_path / "drop").filter(pl.col("subject") == "pat0")["channels"].item() == 5
    table = pl.read_parquet(tmp_path / "drop" / "channels.parquet").filter(pl.col("status") == "doubtful")
    assert (table["name"].to_list(), table["position"].to_list()) == (["A3"], [None])
    assert "far from the others'" in table["reason"][0]


def test_bids_keeps_what_its_sidecars_say(tmp_path):
    planted = write_planted_bids(tmp_path / "raw", subjects=4, recordings=1, minutes=1.2, channels=8, rate=128.0)
    card = run(planted.root, tmp_path / "out", "bids", mains=0.0, reference="bipolar")
    rows = index(tmp_path / "out")
    assert rows["annotated"].all()
    assert rows["session"].to_list() == ["ses-01"] * 4
    events = pl.read_parquet(tmp_path / "out" / "events.parquet").sort("recording")
    truth = [seizure for _, found in sorted(planted.seizures.items()) for seizure in found]
    assert events["onset"].to_list() == pytest.approx([seizure.onset for seizure in truth], abs=1e-3)
    channels = pl.read_parquet(tmp_path / "out" / "channels.parquet")
    assert channels.filter(pl.col("status") == "bad").height == 4
    assert "A1-A2" in channels.filter(pl.col("position").is_not_null())["name"].to_list()
    assert card["coordinate_systems"] == ["ACPC (mm)"] or card["coordinate_systems"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["preparation"]["reference"] == "bipolar"


def test_impossible_options_are_told(raw, tmp_path):
    for options, message in (
        ({"highpass": 30.0, "lowpass": 20.0}, "nothing is left between"),
        ({"notch": "always"}, "notch 'always'"),
        ({"rate": -1.0}, "give a rate above 0"),
        ({"max_rejects": 2.0}, "max_rejects"),
        ({"ratios": (0.5, 0.6, 0.1)}, "ratios"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(raw, tmp_path / "out", **options)
    assert LOW["rate"] == 64.0
