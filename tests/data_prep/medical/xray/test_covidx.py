"""Lists of COVIDx: every version's lines, files matched however they are spelt, the traps of the official loader."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import JPEGLSLossless

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, RejectsExceededError
from data_prep.medical.xray import covidx
from data_prep.medical.xray.covidx import LABELS, parse_line
from data_prep.medical.xray.records import Asked
from tests.data.medical.make_xrays import TEST, TRAIN, ListLine, chest, compress, dataset, png, save, write_list
from tests.data.medical.make_xrays import covidx as make_covidx
from tests.data.medical.make_xrays import ricord as make_ricord
from tests.data_prep.medical.xray.helpers import index, rejects, run

WORD = st.text(st.characters(blacklist_categories=("Z", "C")), min_size=1, max_size=12).filter(
    lambda text: text.split()
)


RICORD = "MIDRC-RICORD-1C-S2-252-8.230-0.png"


@given(
    patient=st.lists(WORD, min_size=1, max_size=3),
    file=WORD,
    label=st.sampled_from(sorted(LABELS.values())),
    source=st.one_of(st.just(""), WORD.filter(lambda word: word.casefold() not in LABELS)),
    gap=st.sampled_from([" ", "  ", "\t"]),
)
def test_lines_are_read_from_their_end(patient: list[str], file: str, label: str, source: str, gap: str) -> None:
    words = [*patient, file, label, *([source] if source else [])]
    if source == "" and file.casefold() in LABELS:
        return  # `id normal positive` can be read in two ways
    found = parse_line(gap.join(words) + "\r")
    assert found[:3] == (" ".join(patient), file, label)
    assert found.source == {"rnsa": "rsna"}.get(source.casefold(), source.casefold())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("COVID 12 COVID(12).png positive sirm", ("COVID 12", "COVID(12).png", "positive", "sirm")),
        ("8 SARS-Fig5-day9.jpeg pneumonia", ("8", "SARS-Fig5-day9.jpeg", "pneumonia", "")),
        ("a1 a1.png normal rnsa", ("a1", "a1.png", "normal", "rsna")),
        ("3 x.JPG covid-19 Cohen", ("3", "x.JPG", "COVID-19", "cohen")),
        ("S2-252 MIDRC-RICORD-1C-S2-252-8.230-0.png level2 ricord", ("S2-252", RICORD, "level2", "ricord")),
    ],
)
def test_lines_of_every_version(line: str, wanted: tuple[str, ...]) -> None:
    assert tuple(parse_line(line)) == wanted


@pytest.mark.parametrize("line", ["a", "a b", "a.png positive", "1 a.png maybe rsna", "positive rsna"])
def test_lines_that_are_none(line: str) -> None:
    with pytest.raises(ValueError, match="label"):
        parse_line(line)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_covidx(tmp_path_factory.mktemp("covidx"))


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("covidx-out") / "out"
    run("covidx", raw, out, valid_share=0.2, max_side=64)
    return out


def test_the_test_list_is_touched_once(prepared: Path) -> None:
    frame = index(prepared)
    test = frame.filter(pl.col("split") == "test")
    assert sorted(test["name"]) == sorted(line.file for line in TEST)
    rest = frame.filter(pl.col("split") != "test")
    assert sorted(rest["name"]) == sorted(line.file for line in TRAIN)
    assert not rejects(prepared)


def test_validation_is_a_share_of_training_patients_and_holds_every_class(prepared: Path) -> None:
    frame = index(prepared)
    patients = {split: set(frame.filter(pl.col("split") == split)["patient"]) for split in ("train", "valid", "test")}
    assert not (patients["train"] & patients["valid"] or patients["train"] & patients["test"])
    share = len(patients["valid"]) / (len(patients["train"]) + len(patients["valid"]))
    assert 0.12 <= share <= 0.28
    valid = frame.filter(pl.col("split") == "valid")
    assert set(valid["label"]) == {0, 1}
    # "COVID 3" is one patient, and the time series of patient 77, which changes its label, stays together
    assert "sirm:COVID 3" in set(frame["patient"])
    assert frame.filter(pl.col("patient") == "actmed:77")["split"].n_unique() == 1
    assert set(frame.filter(pl.col("name") == "exam-1.png")["source"]) == {"rsna"}


def test_the_card_tells_what_the_lists_hide(prepared: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = run("covidx", raw, prepared.with_name("again"), max_side=64)
    assert card["name"] == "COVIDx 8B" and card["classes"] == ["negative", "positive"]
    assert card["group"]["kept_apart"] and "per source" in card["group"]["note"]
    assert card["tables"]["source"]["test"] == {"ricord": {"positive": 6}, "rsna": {"negative": 6}}
    assert card["counts"]["patients_with_several_labels"] == 1
    told = capsys.readouterr().err
    assert "test: the source alone tells the label (ricord: positive; rsna: negative)" in told
    assert "heptad medical source-control" in told


def test_another_seed_gives_another_validation(raw: Path, tmp_path: Path, prepared: Path) -> None:
    run("covidx", raw, tmp_path / "out", valid_share=0.2, max_side=64, seed=1)
    assert set(index(tmp_path / "out", "valid")["name"]) != set(index(prepared, "valid")["name"])
    card = run("covidx", raw, tmp_path / "none", valid_share=0, max_side=64)
    assert card["splits"]["valid"]["rows"] == 0


def test_missing_images_are_reported(tmp_path: Path, raw: Path) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / "data" / "train" / "COVID (3).png").unlink()
    (tmp_path / "raw" / "data" / "test" / "exam-7.png").unlink()
    with pytest.raises(RejectsExceededError, match=r"test_COVIDx8B\.txt: record 2 field image: the image file is not"):
        run("covidx", tmp_path / "raw", tmp_path / "out")
    run("covidx", tmp_path / "raw", tmp_path / "out", max_rejects=0.1)
    found = rejects(tmp_path / "out")
    assert {(row["source"], row["excerpt"]) for row in found} == {
        ("test_COVIDx8B.txt", "exam-7.png"),
        ("train_COVIDx8B.txt", "COVID(3).png"),
    }


def test_bad_lines_are_rejected_and_duplicates_told(tmp_path: Path) -> None:
    raw = make_covidx(tmp_path / "raw")
    path = raw / "labels" / "train_COVIDx8B.txt"
    path.write_text(path.read_text() + "nonsense\n\n77 series-day0.PNG positive actmed\n1 exam-5.png negative rsna\n")
    run("covidx", raw, tmp_path / "out", max_rejects=0.1)
    reasons = [row["reason"] for row in rejects(tmp_path / "out")]
    assert "neither the last" in reasons[0]
    assert "listed before with another label" in reasons and "listed before" in reasons


def test_a_patient_of_the_test_list_is_not_trained_on(tmp_path: Path) -> None:
    train = [*TRAIN, ListLine("exam-5", "again.png", "negative", "rsna")]
    raw = make_covidx(tmp_path / "raw", train)
    card = run("covidx", raw, tmp_path / "out")
    assert card["counts"]["training_images_of_held_out_patients"] == 1
    assert "again.png" not in set(index(tmp_path / "out")["name"])
    assert card["group"]["kept_apart"]


def test_lists_without_sources_count_equal_ids_as_one_patient(tmp_path: Path) -> None:
    train = [ListLine(line.patient, line.file, line.label, line.source) for line in TRAIN]
    test = [ListLine("77", "test-77.png", "positive"), ListLine("900", "test-900.png", "negative")]
    raw = make_covidx(tmp_path / "raw", train, test, version="7A")
    listing = covidx.read([raw], Asked())
    assert "77" not in {item.patient for item in listing.items if item.split == "train"}
    assert listing.notes["training_images_of_held_out_patients"] == 2
    assert "no sources" in listing.group_note


@pytest.mark.parametrize(
    ("labels", "version"),
    [(("normal", "pneumonia", "COVID-19"), "CXR-3A"), (("level1", "level2"), "Sev"), (("negative", "positive"), "9B")],
)
def test_versions_and_their_classes(tmp_path: Path, labels: tuple[str, ...], version: str) -> None:
    lines = [ListLine(f"p{n}", f"{n}.png", labels[n % len(labels)], "ricord") for n in range(30)]
    test = [line._replace(patient="t" + line.patient, file="t" + line.file) for line in lines[:6]]
    raw = make_covidx(tmp_path / "raw", lines, test, version=version)
    make_covidx(tmp_path / "raw")  # 8B, too
    with pytest.raises(ConfigError, match="choose one with --version"):
        covidx.read([tmp_path / "raw"], Asked())
    with pytest.raises(ConfigError, match="version '5': there are lists of"):
        covidx.read([tmp_path / "raw"], Asked(version="5"))
    listing = covidx.read([raw], Asked(version=version.lower()))
    assert listing.classes == labels and len(listing.items) == 36 and listing.name == f"COVIDx {version}"


def test_labels_can_be_joined(tmp_path: Path) -> None:
    labels = ("normal", "pneumonia", "COVID-19")
    lines = [ListLine(f"p{n}", f"{n}.png", labels[n % 3], "ricord") for n in range(30)]
    test = [line._replace(patient="t" + line.patient, file="t" + line.file) for line in lines[:6]]
    raw = make_covidx(tmp_path / "raw", lines, test, version="8A")
    joined = run("covidx", raw, tmp_path / "a", labels="normal=negative,pneumonia=negative,COVID-19=positive")
    assert joined["classes"] == ["negative", "positive"]
    assert joined["tables"]["source"]["test"]["ricord"] == {"negative": 4, "positive": 2}
    two = run("covidx", raw, tmp_path / "b", labels="COVID-19=COVID,pneumonia=other", positive="COVID")
    assert two["classes"] == ["other", "COVID"] and two["counts"]["labels_left_out"] == 12


def test_dicom_files_that_covidx_is_built_from_are_taken(tmp_path: Path) -> None:
    ricord = make_ricord(tmp_path / "ricord")
    values = chest(4, bits=12)
    save(tmp_path / "rsna" / "exam-1.dcm", compress(dataset(values, 12), values, JPEGLSLossless))
    name = "MIDRC-RICORD-1C-419639-000001-01123-0.png"
    train = [
        ListLine("exam-1", "exam-1.png", "negative", "rsna"),
        ListLine("419639-000001", name, "positive", "ricord"),
    ]
    test = [ListLine("SITE2-000000", "MIDRC-RICORD-1C-SITE2-000000-8.270-0.png", "positive", "ricord")]
    write_list(tmp_path / "labels" / "train_COVIDx8B.txt", train)
    write_list(tmp_path / "labels" / "test_COVIDx8B.txt", test)
    raw = [tmp_path / "labels", tmp_path / "rsna", ricord]
    listing = covidx.read(raw, Asked())
    assert not listing.rejects
    found = {item.name: item for item in listing.items}
    assert found["exam-1.png"].path.suffix == ".dcm" and found[name].crop == (10, 0, 64, 60)
    run("covidx", raw, tmp_path / "out", valid_share=0)
    sizes = index(tmp_path / "out").filter(pl.col("name") == name).select("width", "height")
    assert sizes.row(0) == (54, 60)


def test_bad_lists(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="no lists such as train_COVIDx8B"):
        run("covidx", png(tmp_path / "raw" / "a.png", chest(bits=8)).parent, tmp_path / "out")
    path = write_list(tmp_path / "raw" / "train_COVIDx8B.txt", TRAIN)
    with pytest.raises(DatasetNotFoundError, match="the test list of the same version is not there"):
        run("covidx", path.parent, tmp_path / "out")
    write_list(path.with_name("test_COVIDx8B.txt"), TEST)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptRecordError, match="not UTF-8"):
        run("covidx", path.parent, tmp_path / "out")
    write_list(path, [line._replace(label="normal") for line in TRAIN[:12]])
    with pytest.raises(CorruptRecordError, match="several versions are mixed"):
        covidx.read([path.parent], Asked())
    assert not (tmp_path / "out").exists()
