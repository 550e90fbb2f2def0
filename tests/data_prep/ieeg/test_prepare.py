"""From raw files to the prepared directory: what is in it, what is refused, and what never gets out."""

from __future__ import annotations

import json

import h5py
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import ConfigError, LeakError, PrepError, RejectsExceededError
from data_prep.ieeg.planted_bids import write_edf, write_planted_bids
from tests.data.ieeg import make
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


CHANGED = "prepared data of other options or other files"


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [
        ("events.tsv", "12.017", "32.017"),
        ("channels.tsv", "\tSEEG\t", "\tECOG\t"),
        ("channels.tsv", "\tgood\tn/a", "\tbad \tn/a"),
        ("ieeg.json", '"PowerLineFrequency": 50', '"PowerLineFrequency": 60'),
    ],
)
def test_corrected_sidecars_of_one_length_are_seen(tmp_path, suffix, old, new):
    root = write_planted_bids(tmp_path / "raw", subjects=3, recordings=1, minutes=1.2, channels=6, rate=128.0).root
    (path,) = (root / "sub-01").rglob(f"*_{suffix}")
    if suffix == "events.tsv":
        path.write_text("onset\tduration\ttrial_type\n12.017\t9\tseizure\n")
    card = run(root, tmp_path / "out", "bids")
    assert run(root, tmp_path / "out", "bids") == card
    data, size = path.read_bytes(), path.stat().st_size
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode(), 1).ljust(size)[:size])
    with pytest.raises(ConfigError, match=CHANGED):
        run(root, tmp_path / "out", "bids")
    path.write_bytes(data)
    assert run(root, tmp_path / "out", "bids") == card


def test_changed_signals_of_one_length_are_seen(tmp_path):
    raw = write_notes(tmp_path / "raw")
    before = run(raw, tmp_path / "out", max_rejects=0.5)
    path = raw / "doe3" / "night_roe.edf"
    data = path.read_bytes()
    path.write_bytes(data)  # touched, and the same
    assert run(raw, tmp_path / "out", max_rejects=0.5) == before
    assert not (tmp_path / "out" / ".work").exists()
    changes = (
        data[:-40_000] + bytes(200) + data[-39_800:],  # samples
        data.replace(b"+30\x1520\x14", b"+31\x1520\x14"),  # an annotation inside of the signal file
        data.replace(b"2000    ", b"1000    "),  # its scale
    )
    for changed in changes:
        assert changed != data
        assert len(changed) == len(data)
        path.write_bytes(changed)
        with pytest.raises(ConfigError, match=CHANGED):
            run(raw, tmp_path / "out", max_rejects=0.5)
        assert not (tmp_path / "out" / ".work").exists()
    path.write_bytes(data)
    assert run(raw, tmp_path / "out", max_rejects=0.5) == before


def test_a_changed_split_is_seen(raw, tmp_path):
    table = tmp_path / "split.csv"
    text = "subject,split\npat0,train\npat1,train\npat2,valid\npat3,test\npat4,train\n"
    table.write_text(text)
    run(raw, tmp_path / "out", split=table)
    table.write_text(text.replace("pat4,train", "pat4,valid"))
    with pytest.raises(ConfigError, match=CHANGED):
        run(raw, tmp_path / "out", split=table)


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


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_text("0123456789abcdef0123456789abcdef")
    return path


def everything(out):
    """All bytes of all files, their paths, and all that compressed files hold."""
    found = []
    for path in sorted(out.rglob("*")):
        found.append(path.relative_to(out).as_posix())
        if not path.is_file():
            continue
        found.append(path.read_bytes().decode("latin-1"))
        if path.suffix == ".parquet":
            found.append(repr(pl.read_parquet(path).to_dicts()) + repr(pl.read_parquet_metadata(path)))
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                found.append(repr([*file.attrs.items()]))
                file.visititems(
                    lambda name, item: found.append(f"{name}{[*item.attrs.items()]}{item[()] if item.ndim < 2 else ''}")
                )
    return "\n".join(found)


def test_names_can_be_replaced(raw, key, tmp_path):
    split = tmp_path / "split_pat.csv"
    split.write_text("subject,split\n" + "".join(f"pat{i},{('train', 'valid', 'test')[i % 3]}\n" for i in range(5)))
    events = tmp_path / "events_of_pat.csv"
    events.write_bytes((raw / "events.csv").read_bytes())
    card = run(raw, tmp_path / "out", anonymise=key, events=events)
    assert run(raw, tmp_path / "out", anonymise=key, events=events) == card
    written = everything(tmp_path / "out")
    assert not [word for word in ("pat0", "pat4", "night", "of_pat", key.read_text()) if word in written]
    assert index(tmp_path / "out")["subject"].n_unique() == 5
    # A split file would have to name the pseudonyms.
    with pytest.raises(PrepError, match="does not name subject"):
        run(raw, tmp_path / "split", anonymise=key, split=split)
    left = everything(tmp_path / "split")  # what the stopped run goes on from
    assert "sources" in left
    assert not [word for word in ("pat0", "pat4", "night", "of_pat") if word in left]
    split.write_text("subject,split\n" + "".join(f"{one},train\n" for one in index(tmp_path / "out")["subject"]))
    run(raw, tmp_path / "split", anonymise=key, split=split)
    assert "of_pat" not in everything(tmp_path / "split") and "split_pat" not in everything(tmp_path / "split")


def write_notes(folder):
    """Six EDF files with what was typed meanwhile; the last one is rejected, the first two are one patient."""
    for number in range(6):
        notes = [
            make.Annotation(3.0, None, "Mr Doe pressed button"),
            make.Annotation(30.0, 20.0, "sz of Mr Doe, 3rd bed"),
        ]
        notes += [make.Annotation(9.0, 1.0, "artefact: Mrs Roe waves")]
        notes += [make.Annotation(65.0, None, "seizure end of Roe")] if number == 5 else []
        patient = "4711 M X Doe" if number < 2 else f"{number} X X X"
        make.edf(
            folder / f"doe{number}" / "night_roe.edf", signal(number), 128, NAMES, span=2000, annotations=notes,
            patient=patient,
        )  # fmt: skip
    return folder


def test_labels_that_mean_nothing_are_counted_not_written(tmp_path, capsys):
    raw = write_notes(tmp_path / "raw")
    card = run(raw, tmp_path / "out", max_rejects=0.5)
    assert set(card["counts"]["labels"]) == {
        "sz of Mr Doe, 3rd bed", "artefact: Mrs Roe waves", "seizure end of Roe",
    }  # fmt: skip
    assert card["counts"]["annotations_without_meaning"] == 6
    assert "pressed button" not in everything(tmp_path / "out")
    assert "6 annotations mean nothing to the preparation ('Mr Doe pressed button')" in capsys.readouterr().err


def test_what_was_typed_can_be_withheld(key, tmp_path, capsys):
    raw = write_notes(tmp_path / "raw")
    card = run(raw, tmp_path / "out", max_rejects=0.5, anonymise=key)
    written = everything(tmp_path / "out")
    assert not [word for word in ("doe", "Doe", "roe", "Roe", "night", "button", "3rd bed", "waves") if word in written]
    assert card["counts"]["labels"] == {
        "(interval)": {"count": 6, "meaning": "interval"},
        "(offset)": {"count": 1, "meaning": "offset"},
        "(ignore)": {"count": 6, "meaning": "ignore"},
    }
    (group,) = card["counts"]["subjects_of_one_patient"]
    assert set(group) < set(index(tmp_path / "out")["subject"])
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet").to_dicts()
    assert [row["reason"][:9] for row in rejects] == ["withheld:"]
    assert "ends a seizure that nothing begins" in capsys.readouterr().err
    assert pl.read_parquet(tmp_path / "out" / "events.parquet")["label"].unique().to_list() == ["seizure"]


def test_sidecars_can_be_withheld(key, tmp_path):
    root = write_planted_bids(tmp_path / "raw", subjects=4, recordings=1, minutes=1.2, channels=6, rate=128.0).root
    description = json.loads((root / "dataset_description.json").read_text())
    (root / "dataset_description.json").write_text(json.dumps({**description, "Name": "Doe clinic"}))
    folder = root / "sub-01" / "ses-01" / "ieeg"
    stem = "sub-01_ses-01_task-monitoring_run-01"
    table = (folder / f"{stem}_channels.tsv").read_text(encoding="utf-8")
    (folder / f"{stem}_channels.tsv").write_text(table.replace("loose contact", "Doe pulled it"), encoding="utf-8")
    (folder / f"{stem}_events.tsv").write_text("onset\tduration\ttrial_type\n30\t9\tsz, Doe\n40\t0\tDoe talks\n")
    (folder / "sub-01_ses-01_coordsystem.json").write_text(json.dumps({"iEEGCoordinateSystem": "head of Doe"}))
    broken = root / "sub-02" / "ses-01" / "ieeg" / "sub-02_ses-01_task-monitoring_run-01_events.tsv"
    broken.write_text("onset\tduration\ttrial_type\n30\t0\tsz of Doe\n")
    card = run(root, tmp_path / "out", "bids", anonymise=key, max_rejects=0.5)
    written = everything(tmp_path / "out")
    assert not [word for word in ("sub-0", "ses-0", "Doe", "monitoring", "events.tsv") if word in written]
    assert card["name"] == "bids"
    assert card["coordinate_systems"] == ["ACPC (mm)", "Other"]
    assert len({entry["path"] for entry in card["sources"]}) == len(card["sources"])
    channels = pl.read_parquet(tmp_path / "out" / "channels.parquet")
    assert channels.filter(pl.col("status") == "bad")["reason"].unique().to_list() == ["bad"]
    assert set(channels["type"]) == {"SEEG"}


def test_known_copies_are_a_number_under_pseudonyms(key, tmp_path):
    for number, other in ((1, 1), (20, 20), (41, 41), (42, 42)):
        make.swec_hdf5(tmp_path / "raw", number, 1, points_at=other, seed=number)
    options = {"rate": 256.0, "lowpass": 50.0, "anonymise": key, "max_rejects": 0.5}
    card = run(tmp_path / "raw", tmp_path / "out", "swec", **options)
    assert card["counts"]["known_copies"] == card["counts"]["known_copies_with_original"] == 1
    assert not [word for word in ("ID01", "ID20", "ID41", "total") if word in everything(tmp_path / "out")]


def write_nights(folder):
    """Five nights in one folder, each a subject by its name; the headers of three name one patient."""
    for number in range(5):
        patient = "MCH-0234567 F X Doubtfire" if number % 2 == 0 else "X X X X"
        make.edf(folder / f"night{number}.edf", signal(number), 128, NAMES, span=2000, patient=patient)
    return folder


def sides(out):
    return {
        name: split
        for split in ("train", "valid", "test")
        for name in pl.read_parquet(out / split / "part-00000.parquet")["subject"]
    }


def test_subjects_of_one_patient_stay_together(tmp_path):
    raw = write_nights(tmp_path / "raw")
    for seed in range(6):
        card = run(raw, tmp_path / f"out{seed}", seed=seed)
        found = sides(tmp_path / f"out{seed}")
        assert found["night0"] == found["night2"] == found["night4"]
        assert (card["group"]["groups"], card["group"]["kept_apart"]) == (3, True)
        assert card["duplicates"]["groups_of_one_patient"] == 1
        assert "Doubtfire" not in everything(tmp_path / f"out{seed}")
    with pytest.raises(LeakError, match="subjects night0 and night2: the headers of their files name the same patient"):
        run(raw, tmp_path / "refused", duplicates="refuse")
    table = tmp_path / "split.csv"
    table.write_text("subject,split\n" + "".join(f"night{i},{('train', 'valid', 'test')[i % 3]}\n" for i in range(5)))
    with pytest.raises(LeakError, match=r"is in train .* and in "):
        run(raw, tmp_path / "given", split=table)
    card = run(raw, tmp_path / "report", split=table, duplicates="report")
    assert (card["group"]["groups"], card["group"]["kept_apart"]) == (5, False)
    assert card["group"]["note"] == "1 groups of subjects are one patient by the headers of their files"


def test_recordings_that_nobody_looked_through_are_told(tmp_path, capsys):
    raw = write_subjects(tmp_path / "raw", 3)
    card = run(raw, tmp_path / "out")
    assert "3 of 3 recordings: nothing tells whether anybody looked for seizures" in capsys.readouterr().err
    assert card["counts"]["recordings_without_annotation"] == 3
    assert not index(tmp_path / "out")["annotated"].any()
    card = run(raw, tmp_path / "reviewed", reviewed=True)
    assert "nothing tells" not in capsys.readouterr().err
    assert card["counts"]["recordings_without_annotation"] == 0
    assert card["command"]["reviewed"] is True
    assert index(tmp_path / "reviewed")["annotated"].all()


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
