"""The prepared directory: its contract, no patient in it, masks, rejects, new images."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import (
    ConfigError,
    DatasetNotFoundError,
    ManifestError,
    MissingExtraError,
    PrepError,
    RejectsExceededError,
)
from data_prep.common.manifest import read_manifest
from data_prep.medical.xray import prepare as prepare_module
from data_prep.medical.xray.apply import apply_images
from data_prep.medical.xray.planted import Planted, write_planted_xrays
from tests.data.medical.make_xrays import (
    LOSSLESS,
    PRIVATE,
    chest,
    compress,
    dataset,
    dicom,
    folders,
    medmnist,
    png,
    save,
    stretched,
)
from tests.data_prep.helpers import tree
from tests.data_prep.medical.xray.helpers import image, index, rejects, run


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return write_planted_xrays(tmp_path_factory.mktemp("planted"), patients=40, size=64, seed=3)


@pytest.fixture(scope="module")
def prepared(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    run("images", planted.images, out, table=planted.table, masks=planted.masks, positive="opacity")
    return out


def test_the_contract(prepared: Path, planted: Planted) -> None:
    card = read_manifest(prepared)
    assert (card["domain"], card["kind"], card["channels"]) == ("medical", "images", 1)
    assert card["classes"] == ["clear", "opacity"]
    assert card["group"]["name"] == "patient" and card["group"]["kept_apart"] and card["group"]["groups"] == 40
    for split, entry in card["splits"].items():
        frame = index(prepared, split)
        assert frame.schema == {
            **{"row": pl.UInt64, "name": pl.String, "patient": pl.String, "label": pl.UInt32, "source": pl.String},
            **{"view": pl.String, "image": pl.String, "mask": pl.String, "width": pl.UInt32, "height": pl.UInt32},
        }
        assert frame["row"].to_list() == list(range(entry["rows"]))
        for part in entry["parts"]:
            assert hashlib.sha256((prepared / part["path"]).read_bytes()).hexdigest() == part["sha256"]
    frame = index(prepared)
    for file, mask, width, height in frame.select("image", "mask", "width", "height").iter_rows():
        pixels, lungs = (cv2.imread(str(prepared / name), cv2.IMREAD_UNCHANGED) for name in (file, mask))
        assert pixels.shape == lungs.shape == (height, width) and pixels.dtype == np.uint8
        assert set(np.unique(lungs)) == {0, 255}
    wanted = pl.read_csv(planted.table).sort("image")
    found = frame.sort("name")
    assert found["name"].to_list() == wanted["image"].to_list()
    assert [card["classes"][code] for code in found["label"]] == wanted["label"].to_list()
    assert found["view"].to_list() == wanted["view"].to_list()
    # nothing else lies about
    assert len(list(prepared.rglob("*.png"))) == 2 * len(frame)


def test_dicom_and_png_of_one_image_are_prepared_alike(tmp_path: Path) -> None:
    values = chest(1)
    dicom(tmp_path / "raw" / "a" / "one.dcm", 4095 - values, 12, PhotometricInterpretation="MONOCHROME1")
    png(tmp_path / "raw" / "b" / "two.png", stretched(values))
    card = run("images", tmp_path / "raw", tmp_path / "out", ratios=(1, 0, 0))
    assert np.array_equal(image(tmp_path / "out", "one.dcm"), image(tmp_path / "out", "two.png"))
    assert card["duplicates"]["exact"]["repeats_within"]["train"] == 1
    assert card["duplicates"]["groups_with_several_labels"] == 1


def test_images_shrink_to_max_side_and_masks_with_them(tmp_path: Path) -> None:
    for number in range(4):
        wide = np.tile(chest(number, bits=8), (1, 2))
        png(tmp_path / "raw" / "ab"[number % 2] / f"{number}.png", wide)
        mask = np.zeros((10, 20), np.uint8)
        mask[:, :10] = 1
        png(tmp_path / "masks" / f"{number}_mask.PNG", mask)
    run("images", tmp_path / "raw", tmp_path / "out", max_side=32, masks=tmp_path / "masks", ratios=(1, 0, 0))
    assert set(index(tmp_path / "out").select("width", "height").iter_rows()) == {(32, 16)}
    lungs = image(tmp_path / "out", "0.png", "mask")
    assert lungs.shape == (16, 32) and (lungs[:, :16] == 255).all() and (lungs[:, 16:] == 0).all()


def test_no_patient_tag_comes_out(tmp_path: Path) -> None:
    """Names planted in every header are in no byte of the output, packed or not, and in no scratch file either."""
    for number in range(12):
        values = chest(number)
        found = dataset(
            values, 12, PatientComments="Zwetschgenbaum again", **{"PatientID": f"MRN-7315508-{number // 2}"}
        )
        if number % 2:
            compress(found, values, LOSSLESS[number // 2 % 4])
        save(tmp_path / "raw" / "ab"[number // 2 % 2] / f"{number}.dcm", found)
    card = run("images", tmp_path / "raw", tmp_path / "out")
    assert card["group"]["groups"] == 6
    secrets = [word for text in PRIVATE.values() for word in text.split("^")] + ["1931", "Zwetschgenbaum"]
    written = b""
    for path in sorted((tmp_path / "out").rglob("*")):
        if path.is_file():
            written += path.read_bytes()
            if path.suffix == ".parquet":
                written += json.dumps(pl.read_parquet(path).to_dicts(), default=str).encode()
    for word in secrets:
        for text in (word, word.upper(), word.lower()):
            assert text.encode() not in written and text.encode("utf-16-le") not in written, word
            digest = hashlib.sha256(text.casefold().encode()).hexdigest()
            assert digest.encode() not in written and digest[:16].encode() not in written


class TestAnonymise:
    @pytest.fixture
    def key(self, tmp_path: Path) -> Path:
        (tmp_path / "key").write_text("9f86d081884c7d659a2feaa0c55ad015\n")
        return tmp_path / "key"

    def test_names_and_patients_become_pseudonyms(self, tmp_path: Path, key: Path, planted: Planted) -> None:
        options = {"table": planted.table, "masks": planted.masks}
        (planted.images / "Doe_Jane.png").write_bytes(b"broken")
        try:
            (tmp_path / "t.csv").write_text(planted.table.read_text() + "Doe_Jane.png,clear,Jane,south,PA\n")
            options["table"] = tmp_path / "t.csv"
            plain = run("images", planted.images, tmp_path / "plain", max_rejects=0.1, **options)
            card = run("images", planted.images, tmp_path / "out", max_rejects=0.1, anonymise=key, **options)
        finally:
            (planted.images / "Doe_Jane.png").unlink()
        one, other = index(tmp_path / "plain"), index(tmp_path / "out")
        assert card["group"]["groups"] == plain["group"]["groups"] and len(one) == len(other)
        written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        texts = json.dumps([*other.to_dicts(), *rejects(tmp_path / "out")])
        for word in [*one["name"], *one["patient"], "Doe_Jane", key.read_text().strip()]:
            assert word.encode() not in written and word not in texts
        assert len(rejects(tmp_path / "out")) == 1
        # who holds the key can name them again, in other data, too
        again = run("images", planted.images, tmp_path / "again", table=planted.table, anonymise=key)
        assert (
            set(index(tmp_path / "again")["name"]) == set(other["name"])
            and again["splits"].keys() == card["splits"].keys()
        )
        key.write_text("another secret that is long enough")
        run("images", planted.images, tmp_path / "third", table=planted.table, anonymise=key)
        assert not set(index(tmp_path / "third")["name"]) & set(other["name"])

    def test_keys_that_are_none(self, tmp_path: Path, key: Path, planted: Planted) -> None:
        key.write_text("short")
        with pytest.raises(ConfigError, match="5 bytes are no secret"):
            run("images", planted.images, tmp_path / "out", table=planted.table, anonymise=key)
        with pytest.raises(DatasetNotFoundError, match="openssl rand -hex 32"):
            run("images", planted.images, tmp_path / "out", table=planted.table, anonymise=tmp_path / "none")


def test_every_rejected_file_has_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = folders(tmp_path / "raw")
    data = dicom(raw / "NORMAL" / "cut.dcm", chest(), 12).read_bytes()
    (raw / "NORMAL" / "cut.dcm").write_bytes(data[:-500])
    dicom(raw / "NORMAL" / "film.dcm", chest(), 12, NumberOfFrames=9)
    dicom(raw / "PNEUMONIA" / "ct.dcm", chest(), 12, Modality="CT")
    png(raw / "PNEUMONIA" / "flat.png", chest(bits=8) * 0)
    with pytest.raises(RejectsExceededError, match="4 of 28 records are unusable"):
        run("images", raw, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    card = run("images", raw, tmp_path / "out", max_rejects=0.2)
    found = {row["source"]: f"{row['field']}: {row['reason']}" for row in rejects(tmp_path / "out")}
    assert found == {
        "cut.dcm": "pixel data: cut short: fewer bytes than rows and columns need",
        "film.dcm": "NumberOfFrames: 9 frames: one radiograph per file is read",
        "ct.dcm": "Modality: CT is no radiograph",
        "flat.png": "pixel data: all pixels have one value",
    }
    assert card["rejects"] == {"count": 4, "share": 4 / 28} and len(index(tmp_path / "out")) == 24
    assert "cut.dcm: cut short" in capsys.readouterr().err


def test_a_bad_mask_costs_the_mask_only(tmp_path: Path) -> None:
    raw = folders(tmp_path / "raw")
    for path in raw.rglob("*.png"):
        png(tmp_path / "masks" / path.name, np.where(chest(2, bits=8) > 100, 255, 0).astype(np.uint8))
    (tmp_path / "masks" / "person0_0.png").write_bytes(b"no mask")
    card = run("images", raw, tmp_path / "out", masks=tmp_path / "masks", max_rejects=0.1)
    assert card["counts"]["masks"] == 23 and len(index(tmp_path / "out")) == 24
    assert rejects(tmp_path / "out")[0]["reason"].startswith("mask: no PNG")
    with pytest.raises(ConfigError, match="no mask is called as an image is"):
        run("images", raw, tmp_path / "other", masks=png(tmp_path / "alone" / "x.png", chest(bits=8)).parent)


def test_views_on_request(tmp_path: Path) -> None:
    for number, view in enumerate(("PA", "AP", "LL", "", "PA", "AP", "LL", "")):
        dicom(tmp_path / "raw" / "ab"[number // 4] / f"{number}.dcm", chest(number), 12, ViewPosition=view)
    for views, wanted in (("frontal", 6), ("all", 8), ("PA", 4), ("lateral", 4)):
        run("images", tmp_path / "raw", tmp_path / views, views=views, ratios=(1, 0, 0))
        assert len(index(tmp_path / views)) == wanted


def test_percentiles_reach_the_images(tmp_path: Path) -> None:
    values = chest() // 4
    values[0, 0] = 4095
    for number in range(2):
        dicom(tmp_path / "raw" / "ab"[number] / f"{number}.dcm", values + number, 12)
    for name, percentile in (("plain", 0.0), ("clipped", 0.5)):
        run("images", tmp_path / "raw", tmp_path / name, percentile=percentile, ratios=(1, 0, 0))
    plain, clipped = (image(tmp_path / name, "0.dcm").astype(int) for name in ("plain", "clipped"))
    assert np.quantile(plain, 0.99) < 70 and np.quantile(clipped, 0.99) > 240


def test_windows_of_eight_bits_are_counted_told_and_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        window = {"WindowCenter": 100, "WindowWidth": 60} if number < 3 else {}
        dicom(tmp_path / "raw" / "ab"[number % 2] / f"{number}.dcm", chest(number, bits=8), **window)
    card = run("images", tmp_path / "raw", tmp_path / "out", ratios=(1, 0, 0))
    assert card["counts"]["header_remarks"] == {"8 bits: window not applied": 3}
    said = capsys.readouterr().err
    assert said.count("8 bits: window not applied in 3 files; --eight-bit-lut true applies it") == 1
    run("images", tmp_path / "raw", tmp_path / "lut", ratios=(1, 0, 0), eight_bit_lut=True)
    assert "8 bits" not in capsys.readouterr().err
    # new images are treated as those of the training data
    for name in ("out", "lut"):
        options = {"executor": "serial", "progress": False}
        apply_images(tmp_path / name, tmp_path / "raw", tmp_path / f"{name}-new", **options)
        new = index(tmp_path / f"{name}-new", "predict").filter(pl.col("name") == "0.dcm")["image"].item()
        pixels = cv2.imread(str(tmp_path / f"{name}-new" / new), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(pixels, image(tmp_path / name, "0.dcm"))
        assert (pixels == 0).mean() > 0.1 if name == "lut" else np.array_equal(pixels, chest(0, bits=8))


def test_finished_work_is_found_and_other_files_are_refused(prepared: Path, planted: Planted, tmp_path: Path) -> None:
    options = {"table": planted.table, "masks": planted.masks, "positive": "opacity"}
    before = tree(prepared)
    card = run("images", planted.images, prepared, **options)
    assert card == read_manifest(prepared) and tree(prepared) == before
    with pytest.raises(ConfigError, match="other options or other files"):
        run("images", planted.images, prepared, **{**options, "seed": 1})
    name = sorted(planted.images.glob("*.png"))[0]
    data = name.read_bytes()
    try:
        png(name, chest(9, bits=8, size=64))
        with pytest.raises(ConfigError, match="other options or other files"):
            run("images", planted.images, prepared, **options)
    finally:
        name.write_bytes(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "8B"}, "version: is no option of images"),
        ({"targets": "detailed"}, "targets: is no option of images"),
        ({"max_side": 4}, "max_side 4"),
        ({"percentile": 50}, "percentile 50"),
        ({"max_rejects": 2}, "max_rejects 2"),
        ({"duplicates": "all"}, "duplicates 'all'"),
        ({"views": ","}, "views ','"),
        ({"ratios": (0.5, 0.1, 0.1)}, "ratios"),
        ({"valid_share": 1.0}, "valid_share 1.0"),
        ({"valid_share": 0.2}, "valid_share: goes with data that have a split"),
        ({"labels": "x=y"}, "no image has the label 'x'"),
        ({"positive": "x"}, "positive 'x'"),
        ({"channels": 2}, "channels 2"),
        ({"shard": "3/2"}, "shard '3/2'"),
        ({"dataset": "mimic"}, "dataset 'mimic': there are covidx, ricord, rsna, medmnist, images"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, object], message: str) -> None:
    raw = folders(tmp_path / "raw")
    with pytest.raises(ConfigError, match=message):
        run(**{"dataset": "images", "raw": raw, "out": tmp_path / "out", **options})
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "LIBRARIES", ("cv2", "no_such_library"))
    with pytest.raises(MissingExtraError, match=r"pip install 'heptad\[medical\]'"):
        run("images", folders(tmp_path / "raw"), tmp_path / "out")


def test_preparation_does_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data_prep.medical.xray.prepare import prepare\n"
        "assert 'cv2' not in sys.modules and 'pydicom' not in sys.modules\n"
        f"prepare('images', Path({str(folders(tmp_path / 'raw'))!r}), Path({str(tmp_path / 'out')!r}), "
        "executor='serial', progress=False)\n"
        "assert not {'torch', 'timm', 'domains'} & {name for name in sys.modules}\n"
    )
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestApply:
    def test_new_files_become_rows_as_the_preparation_makes_them(self, tmp_path: Path, prepared: Path) -> None:
        for number in range(6):
            dicom(tmp_path / "new" / "a" / f"{number}.dcm", chest(number), 12, PatientID=f"X{number // 2}")
        png(tmp_path / "new" / "b.png", chest(7, bits=8))
        dicom(tmp_path / "new" / "side.dcm", chest(8), 12, ViewPosition="LL")
        card = apply_images(prepared, tmp_path / "new", tmp_path / "out", executor="serial", progress=False)
        frame = index(tmp_path / "out", "predict")
        assert "label" not in frame.columns and card["classes"] == ["clear", "opacity"]
        assert frame["name"].to_list() == [*(f"{number}.dcm" for number in range(6)), "b.png"]
        assert frame["patient"].to_list() == [f"dicom-00000{n // 2 + 1}" for n in range(6)] + ["b.png"]
        assert card["splits"]["predict"]["rows"] == 7 and card["counts"]["other_views"] == 1
        stored = cv2.imread(str(tmp_path / "out" / frame["image"][2]), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, stretched(chest(2)))
        again = apply_images(prepared, [tmp_path / "new"], tmp_path / "out", executor="serial", progress=False)
        assert again == card

    def test_refusals(self, tmp_path: Path, prepared: Path) -> None:
        options = {"executor": "serial", "progress": False}
        with pytest.raises(DatasetNotFoundError, match="no such file"):
            apply_images(prepared, tmp_path / "none", tmp_path / "out", **options)
        (tmp_path / "empty").mkdir()
        with pytest.raises(DatasetNotFoundError, match="holds no DICOM"):
            apply_images(prepared, tmp_path / "empty", tmp_path / "out", **options)
        dicom(tmp_path / "side" / "side.dcm", chest(8), 12, ViewPosition="LL")
        with pytest.raises(PrepError, match="give frontal X-rays"):
            apply_images(prepared, tmp_path / "side", tmp_path / "out", **options)
        (tmp_path / "side" / "bad.png").write_bytes(b"?")
        with pytest.raises(RejectsExceededError, match=r"bad\.png"):
            apply_images(prepared, tmp_path / "side", tmp_path / "out", **options)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "dataset.json").write_text('{"format": "heptad/1"}')
        with pytest.raises(ManifestError, match="no preparation of X-rays"):
            apply_images(tmp_path / "other", tmp_path / "side", tmp_path / "out", **options)

    def test_too_many_unusable_images_name_the_share_that_goes_on(self, tmp_path: Path, prepared: Path) -> None:
        options = {"executor": "serial", "progress": False}
        for number in range(32):
            png(tmp_path / "new" / f"{number}.png", chest(number, bits=8))
        (tmp_path / "new" / "bad.png").write_bytes(b"?")
        with pytest.raises(
            RejectsExceededError, match=r"bad\.png.* 1 of 33 .*; --max_rejects 0\.04 predicts the others$"
        ):
            apply_images(prepared, tmp_path / "new", tmp_path / "out", **options)
        card = apply_images(prepared, tmp_path / "new", tmp_path / "out", max_rejects=0.04, **options)
        assert card["splits"]["predict"]["rows"] == 32 and card["rejects"]["count"] == 1

    def test_a_colour_preparation_reads_new_images_in_colour(self, tmp_path: Path) -> None:
        run("medmnist", medmnist(tmp_path / "bloodmnist.npz", rgb=True), tmp_path / "prepared")
        png(tmp_path / "new" / "a.png", np.repeat(chest(bits=8)[..., None], 3, axis=2))
        dicom(tmp_path / "new" / "b.dcm", chest(3), 12)
        apply_images(tmp_path / "prepared", tmp_path / "new", tmp_path / "out", executor="serial", progress=False)
        for name in index(tmp_path / "out", "predict")["image"]:
            assert cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED).shape == (64, 64, 3)
