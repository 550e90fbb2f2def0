"""RICORD, RSNA, MedMNIST, folders and tables, each in its own layout."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from data_prep.common.errors import (
    ConfigError,
    CorruptRecordError,
    DatasetNotFoundError,
    LabelError,
    LeakError,
    RejectsExceededError,
)
from data_prep.medical.xray import medmnist as medmnist_reader
from data_prep.medical.xray import ricord as ricord_reader
from data_prep.medical.xray.records import Asked, normalise_view, order_classes, parse_labels, parse_views
from tests.data.medical.make_xrays import chest, dicom, folders, medmnist, png, ricord, rsna, stretched
from tests.data_prep.medical.xray.helpers import image, index, rejects, run


class TestRicord:
    def test_usable_images_cropped_inverted_and_grouped(self, tmp_path: Path) -> None:
        raw = ricord(tmp_path / "raw")
        card = run("ricord", raw, tmp_path / "out", ratios=(0.5, 0.25, 0.25), max_rejects=0.5)
        frame = index(tmp_path / "out")
        names = [f"MIDRC-RICORD-1C-419639-{end}.png" for end in ("000001-01123-0", "000001-01123-1", "000002-02123-0")]
        assert sorted(frame["name"]) == names
        values = chest(3000)
        values[:, :10] = 0
        assert np.array_equal(image(tmp_path / "out", names[0]), 255 - stretched(values)[:60, 10:])
        assert frame.filter(pl.col("patient") == "419639-000001")["split"].n_unique() == 1
        assert card["classes"] == ["negative", "positive"] and set(frame["label"]) == {1}
        # 8.270 is not in the usable list, 8.999 is there but not on the disk
        assert card["counts"]["images_not_usable"] == 1
        assert rejects(tmp_path / "out")[0]["excerpt"] == "MIDRC-RICORD-1C-SITE2-000009-8.999-0.png"

    def test_without_the_list_the_view_decides(self, tmp_path: Path) -> None:
        raw = ricord(tmp_path / "raw", views=("AP", "LL", "", "PA"))
        (raw / "ricord_data_set.txt").unlink()
        card = run("ricord", raw, tmp_path / "out", max_rejects=0.5)
        frame = index(tmp_path / "out")
        assert sorted(frame["view"]) == ["AP", "PA"] and card["counts"]["other_views"] == 1
        assert rejects(tmp_path / "out")[0]["reason"] == "the header does not say the view"

    def test_labels_of_a_table(self, tmp_path: Path) -> None:
        raw = ricord(tmp_path / "raw")
        table = tmp_path / "severity.csv"
        table.write_text("patient,label\nMIDRC-RICORD-1C-419639-000001,level2\n419639-000002,level1\n")
        card = run("ricord", raw, tmp_path / "out", table=table, ratios=(0.5, 0.5, 0), max_rejects=0.5)
        assert card["classes"] == ["level1", "level2"]
        table.write_text("study,label\n1,2\n")
        with pytest.raises(ConfigError, match="needs the columns label, and image or patient"):
            run("ricord", raw, tmp_path / "other", table=table)

    def test_studies_of_the_sheet_that_are_not_there(self, tmp_path: Path) -> None:
        raw = ricord(tmp_path / "raw")
        gone = raw / "MIDRC-RICORD-1C-SITE2-000000"
        gone.rename(tmp_path / "elsewhere")
        (tmp_path / "raw" / "MIDRC-RICORD-1C-777-1" / "x-99999" / "s").mkdir(parents=True)
        dicom(tmp_path / "raw" / "MIDRC-RICORD-1C-777-1" / "x-99999" / "s" / "1.dcm", chest(), 12)
        listing = ricord_reader.read([raw], Asked())
        assert listing.notes["studies_not_in_sheet"] == 1
        assert ("the study is not there", "SITE2-000000 8.270") in {(r.reason, r.excerpt) for r in listing.rejects}

    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match="no folder MIDRC-RICORD-1C"):
            run("ricord", folders(tmp_path / "folders"), tmp_path / "out")
        raw = ricord(tmp_path / "raw")
        (raw / "ricord_data_set.txt").write_text("a.png 3 4 1 9\n")
        with pytest.raises(CorruptRecordError, match=r"ricord_data_set\.txt: line 1"):
            run("ricord", raw, tmp_path / "out")
        (raw / "ricord_data_set.txt").unlink()
        sheet = next(raw.glob("*.xlsx"))
        sheet.write_bytes(b"PK no zip")
        with pytest.raises(CorruptRecordError, match="cannot be read as xlsx"):
            run("ricord", raw, tmp_path / "out")


class TestRsna:
    def test_without_a_mapping_the_split_is_by_image_and_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        card = run("rsna", rsna(tmp_path / "raw"), tmp_path / "out")
        assert card["group"]["kept_apart"] is False and card["group"]["images_of_unknown_patients"] == 30
        assert "exam, not a patient" in capsys.readouterr().err
        assert card["classes"] == ["no pneumonia", "pneumonia"]
        assert card["counts"]["exams"] == 30 and card["counts"]["boxes"] == 20
        assert card["counts"]["ages_above_120"] == 1
        assert card["tables"]["view"]["train"].keys() == {"AP", "PA"}
        frame = index(tmp_path / "out")
        assert sorted(set(frame["patient"])) == sorted(frame["name"])

    def test_the_mapping_keeps_patients_apart(self, tmp_path: Path) -> None:
        raw = rsna(tmp_path / "raw")
        mapping = raw / "pneumonia-challenge-dataset-mappings_2018.json"
        card = run("rsna", raw, tmp_path / "out", mapping=mapping)
        assert card["group"] == {
            **{"name": "patient", "kept_apart": True, "groups": 15, "images_of_unknown_patients": 0, "note": ""}
        }
        splits = index(tmp_path / "out").group_by("patient").agg(pl.col("split").n_unique(), pl.len())
        assert set(splits["split"]) == {1} and set(splits["len"]) == {2}
        assert {name for name in card["splits"] if card["splits"][name]["rows"]} == {"train", "valid", "test"}

    def test_detailed_classes_and_a_mapping_table(self, tmp_path: Path) -> None:
        raw = rsna(tmp_path / "raw")
        table = tmp_path / "mapping.csv"
        table.write_text("patientId,patient\n" + "".join(f"{n:08x}-aaaa,{n % 7}\n" for n in range(29)))
        card = run("rsna", raw, tmp_path / "out", mapping=table, targets="detailed", max_rejects=0.1)
        assert card["classes"] == ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"]
        assert card["group"]["groups"] == 7
        assert rejects(tmp_path / "out")[0]["reason"] == "the mapping has no patient for it"

    def test_missing_images_are_reported(self, tmp_path: Path) -> None:
        raw = rsna(tmp_path / "raw")
        (raw / "stage_2_train_images" / "00000004-aaaa.dcm").unlink()
        with pytest.raises(RejectsExceededError, match="the image file is not there"):
            run("rsna", raw, tmp_path / "out")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("stage_2_train_labels.csv", "patientId,Target\na,7\n", "Target '7' of 'a'"),
            ("stage_2_train_labels.csv", "patientId,Target\na,1\na,0\n", "0 in one row and 1 in another"),
            ("stage_2_train_labels.csv", "patient,Target\na,1\n", "no column 'patientid'"),
            ("stage_2_detailed_class_info.csv", "patientId,class\na,Opaque\n", "class 'Opaque' is unknown"),
        ],
    )
    def test_bad_tables(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        raw = rsna(tmp_path / "raw")
        (raw / name).write_text(text)
        with pytest.raises(CorruptRecordError, match=message):
            run("rsna", raw, tmp_path / "out", targets="detailed")

    def test_bad_mappings(self, tmp_path: Path) -> None:
        raw = rsna(tmp_path / "raw")
        for name, text, message in (
            ("a.json", "{", "not JSON"),
            ("a.json", "{}", "not a list of records"),
            ("a.csv", "exam,who\n1,2\n", "needs subset_img_id"),
        ):
            (tmp_path / name).write_text(text)
            with pytest.raises(CorruptRecordError, match=message):
                run("rsna", raw, tmp_path / "out", mapping=tmp_path / name)


class TestMedMnist:
    def test_pixels_labels_and_official_splits(self, tmp_path: Path) -> None:
        path = medmnist(tmp_path / "pneumoniamnist.npz")
        card = run("medmnist", path, tmp_path / "out")
        assert card["classes"] == ["normal", "pneumonia"] and card["name"] == "pneumoniamnist"
        assert {name: entry["rows"] for name, entry in card["splits"].items()} == {"train": 40, "valid": 10, "test": 20}
        arrays = np.load(path)
        for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
            frame = index(tmp_path / "out", split)
            assert frame["label"].to_list() == arrays[f"{name}_labels"][:, 0].tolist()
            stored = [cv2.imread(str(tmp_path / "out" / file), cv2.IMREAD_UNCHANGED) for file in frame["image"]]
            assert np.array_equal(stored, arrays[f"{name}_images"])
        assert card["group"]["kept_apart"] is False

    def test_colour_and_larger_sizes(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
        path = medmnist(tmp_path / "bloodmnist_64.npz", classes=8, rgb=True, train_images=images)
        card = run("medmnist", path, tmp_path / "out")
        assert card["channels"] == 3 and len(card["classes"]) == 8
        stored = cv2.imread(str(tmp_path / "out" / index(tmp_path / "out", "train")["image"][5]))
        assert np.array_equal(stored[..., ::-1], images[5])

    def test_breast_says_which_class_is_positive(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = medmnist(tmp_path / "breastmnist.npz")
        card = run("medmnist", path, tmp_path / "out")
        assert card["classes"] == ["malignant", "normal, benign"]
        assert "--positive malignant" in capsys.readouterr().err
        turned = run("medmnist", path, tmp_path / "turned", positive="malignant")
        assert turned["classes"] == ["normal, benign", "malignant"]
        one, other = (index(tmp_path / name)["label"] for name in ("out", "turned"))
        assert (one + other).to_list() == [1] * 70

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"14 labels for each image \(multi-label, as ChestMNIST\)"):
            run("medmnist", medmnist(tmp_path / "chestmnist.npz", labels=14), tmp_path / "out")
        cube = np.zeros((40, 28, 28, 28), np.uint8)
        with pytest.raises(ConfigError, match="three-dimensional sets are not"):
            run("medmnist", medmnist(tmp_path / "organmnist3d.npz", train_images=cube), tmp_path / "out")
        short = np.zeros((39, 1), np.uint8)
        with pytest.raises(CorruptRecordError, match="39 labels of 40 images"):
            run("medmnist", medmnist(tmp_path / "a" / "x.npz", train_labels=short), tmp_path / "out")
        with pytest.raises(DatasetNotFoundError, match="0 npz files"):
            run("medmnist", folders(tmp_path / "folders"), tmp_path / "out")
        with pytest.raises(ConfigError, match="ratios: the data come with a split"):
            run("medmnist", medmnist(tmp_path / "b" / "x.npz"), tmp_path / "out", ratios=(0.8, 0.1, 0.1))

    def test_hostile_files_are_never_unpickled(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, ...]:
                return (exec, (f"open({str(tmp_path / 'fired')!r}, 'w')",))

        for name in ("train_labels", "train_images"):
            path = medmnist(tmp_path / "x.npz", **{name: np.array([Bomb()] * 40, dtype=object)})
            with pytest.raises((CorruptRecordError, ConfigError)):
                run("medmnist", path, tmp_path / "out")
        with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
            archive.writestr("train_images.npy", pickle.dumps(Bomb()))
        with pytest.raises(CorruptRecordError, match="is this a MedMNIST file"):
            run("medmnist", tmp_path / "y.npz", tmp_path / "out")
        assert not (tmp_path / "fired").exists()

    def test_truncated_and_flipped_files(self, tmp_path: Path) -> None:
        path = medmnist(tmp_path / "x.npz")
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(CorruptRecordError, match="load it again"):
            run("medmnist", path, tmp_path / "out")
        with zipfile.ZipFile(medmnist(path)) as archive:
            place = archive.getinfo("test_images.npy").header_offset + 4000
        broken = bytearray(data)
        broken[place] ^= 0x55
        path.write_bytes(bytes(broken))
        with pytest.raises(CorruptRecordError, match="test_images: cannot be unpacked"):
            run("medmnist", path, tmp_path / "out")

    @pytest.mark.shared
    def test_pneumoniamnist_as_the_specification_counts_it(self, tmp_path: Path, shared: Path) -> None:
        card = run("medmnist", shared / "medical" / "pneumoniamnist.npz", tmp_path / "out")
        assert {name: entry["rows"] for name, entry in card["splits"].items()} == {
            **{"train": 4708, "valid": 524, "test": 624}
        }
        counts = {split: table["unknown"] for split, table in card["tables"]["source"].items()}
        assert counts["train"] == {"normal": 1214, "pneumonia": 3494}
        assert counts["valid"] == {"normal": 135, "pneumonia": 389}
        assert counts["test"] == {"normal": 234, "pneumonia": 390}
        assert card["duplicates"]["exact"] == {
            "repeats_within": {"train": 18, "valid": 0, "test": 3},
            "images_across": {"train-valid": {"train": 10, "valid": 8}},
        }
        assert card["duplicates"]["near_pairs"] == {} and card["duplicates"]["dropped"] == {}
        assert card["duplicates"]["groups_with_several_labels"] == 0

    def test_names_of_classes_are_complete(self) -> None:
        sizes = {name: len(classes) for name, classes in medmnist_reader.CLASSES.items()}
        assert sizes == {
            **{"pathmnist": 9, "dermamnist": 7, "octmnist": 4, "pneumoniamnist": 2, "retinamnist": 5, "breastmnist": 2},
            **{"bloodmnist": 8, "tissuemnist": 8, "organamnist": 11, "organcmnist": 11, "organsmnist": 11},
        }


class TestFolders:
    def test_a_folder_for_each_class(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        card = run("images", folders(tmp_path / "raw"), tmp_path / "out")
        assert card["classes"] == ["NORMAL", "PNEUMONIA"] and card["group"]["kept_apart"] is False
        assert "patient of 24 images is not known" in capsys.readouterr().err
        assert card["split_rule"]["ratios"] == [0.8, 0.1, 0.1]

    def test_patients_in_file_names(self, tmp_path: Path) -> None:
        raw = folders(tmp_path / "raw")
        card = run("images", raw, tmp_path / "out", patient_pattern=r"(person\d+)_")
        assert card["group"]["kept_apart"] and card["group"]["groups"] == 6
        assert set(index(tmp_path / "out")["patient"]) == {f"person{n}" for n in range(6)}
        for pattern in ("person", "(", "(a)(b)"):
            with pytest.raises(ConfigError, match="patient_pattern"):
                run("images", raw, tmp_path / "other", patient_pattern=pattern)

    def test_folders_of_splits(self, tmp_path: Path) -> None:
        for split, seed in (("train", 0), ("val", 100), ("test", 200)):
            for number in range(4):
                label = ("NORMAL", "PNEUMONIA")[number % 2]
                png(tmp_path / "raw" / split / label / f"{number}.png", chest(seed + number, bits=8))
        card = run("images", tmp_path / "raw", tmp_path / "out")
        assert [card["splits"][split]["rows"] for split in ("train", "valid", "test")] == [4, 4, 4]
        # equal file names are told apart by their folders
        assert "train/NORMAL/0.png" in set(index(tmp_path / "out", "train")["name"])
        png(tmp_path / "raw" / "NORMAL" / "9.png", chest(9, bits=8))
        with pytest.raises(ConfigError, match="neither in train, val nor test"):
            run("images", tmp_path / "raw", tmp_path / "other")

    def test_dicom_headers_group_patients_by_numbers(self, tmp_path: Path) -> None:
        for number in range(40):
            label = ("clear", "ill")[number % 2]
            path = tmp_path / "raw" / label / f"1.2.840.{number}"  # DICOM without a suffix
            dicom(path, chest(number), 12, PatientID=f"Mrs {number // 4}", ViewPosition="LL" if number == 5 else "AP")
        card = run("images", tmp_path / "raw", tmp_path / "out")
        frame = index(tmp_path / "out")
        assert card["group"]["kept_apart"] and card["group"]["groups"] == 10
        assert set(frame["patient"]) == {f"dicom-{number:06d}" for number in range(1, 11)}
        assert frame.group_by("patient").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 10
        assert card["counts"]["other_views"] == 1 and "LATERAL" not in set(frame["view"])

    def test_a_table_says_everything(self, tmp_path: Path) -> None:
        rows = ["Image;Label;Patient;Source;View;Split;Mask"]
        for number in range(12):
            png(tmp_path / "raw" / "deep" / f"{number}.png", chest(number, bits=8))
            split = ("train", "valid", "test")[number % 3]
            mask = ""
            if number == 4:
                mask = "masks/four.png"
                png(tmp_path / mask, np.where(chest(1, bits=8) > 120, 255, 0).astype(np.uint8))
            rows.append(f"deep/{number}.PNG;{'ab'[number // 3 % 2]};P {number};north;AP supine;{split};{mask}")
        table = tmp_path / "table.csv"
        table.write_text("\ufeff" + "\n".join(rows) + "\n")
        card = run("images", tmp_path / "raw", tmp_path / "out", table=table)
        frame = index(tmp_path / "out")
        assert card["split_rule"] == {"kind": "given"} and card["counts"]["masks"] == 1
        assert frame.filter(pl.col("name") == "4.png").select("patient", "source", "view", "split").row(0) == (
            *("P 4", "north", "AP", "valid"),
        )
        assert image(tmp_path / "out", "4.png", "mask").shape == (64, 64)

    def test_a_table_with_one_patient_in_two_splits_is_refused(self, tmp_path: Path) -> None:
        lines = ["image,label,patient,split"]
        for number in range(6):
            png(tmp_path / "raw" / f"{number}.png", chest(number, bits=8))
            lines.append(
                f"{number}.png,{'ab'[number % 2]},{'pP'[number == 4]}{number % 4},{['train', 'test'][number // 4]}"
            )
        (tmp_path / "t.csv").write_text("\n".join(lines))
        with pytest.raises(LeakError, match=r"t\.csv: patient 'p0' is in train .*0\.png.* and in test .*4\.png"):
            run("images", tmp_path / "raw", tmp_path / "out", table=tmp_path / "t.csv", valid_share=0)

    @pytest.mark.parametrize("headers", [False, True])
    def test_one_patient_under_two_sources_stays_on_one_side(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], headers: bool
    ) -> None:
        """A person who was in two hospitals is one person, unless ids are said to count per hospital."""
        lines = ["image,label,patient,source"]
        for number in range(40):
            patient, source = f"P{number % 20}", ("north", "South ")[number // 20]
            dicom(tmp_path / "raw" / f"{number}.dcm", chest(number), 12, PatientID=patient)
            lines.append(f"{number}.dcm,{'ab'[number % 2]},{'' if headers else patient.swapcase()},{source}")
        (tmp_path / "t.csv").write_text("\n".join(lines))
        card = run("images", tmp_path / "raw", tmp_path / "out", table=tmp_path / "t.csv", ratios=(0.5, 0.25, 0.25))
        assert (card["group"]["kept_apart"], card["group"]["groups"]) == (True, 20)
        sides = index(tmp_path / "out").group_by("patient").agg(pl.col("split").n_unique())
        assert sides["split"].to_list() == [1] * 20
        assert card["counts"]["patient_ids_under_several_sources"] == 20
        assert "20 patient ids occur under several sources: each is taken for one patient" in capsys.readouterr().err
        apart = run("images", tmp_path / "raw", tmp_path / "apart", table=tmp_path / "t.csv", patients_per_source=True)
        assert apart["group"]["groups"] == 40 and "one person may be on two sides" in apart["group"]["note"]

    def test_labels_that_differ_in_case_or_blanks_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A class of its own for each spelling would be learned without a word."""
        lines, labels = ["image,label,patient"], ("COVID 19", "none", "covid19", "COVID  19", "none")
        for number, label in enumerate(labels * 4):
            png(tmp_path / "raw" / f"{number}.png", chest(number, bits=8))
            lines.append(f"{number}.png,{label},{number % 5 % 4}")
        table = tmp_path / "t.csv"
        table.write_text("\n".join(lines))
        with pytest.raises(LabelError) as caught:
            run("images", tmp_path / "raw", tmp_path / "out", table=table)
        found = re.fullmatch(
            r".*t\.csv: row 2 \(2\.png\): label 'covid19', and 'COVID 19' in row 0 \(0\.png\), .*--labels '(.*)'",
            str(caught.value),
        )
        assert found
        capsys.readouterr()
        card = run("images", tmp_path / "raw", tmp_path / "out", table=table, labels=found[1])
        assert card["classes"] == ["COVID 19", "none"]
        assert card["counts"]["classes"]["COVID 19"] == {"images": 12, "patients": 3}
        said = capsys.readouterr().err
        assert "classes: COVID 19 12 images of 3 patients; none 8 images of 2 patients" in said
        assert "warning: class 'none' has 2 patients: too few" in said and "class 'COVID 19' has" not in said
        for name in ("Normal", "ill", "NORMAL"):
            png(tmp_path / "folders" / name / "a.png", chest(1, bits=8))
        with pytest.raises(LabelError, match=r"image Normal/a\.png: label 'Normal', and 'NORMAL'"):
            run("images", tmp_path / "folders", tmp_path / "other")

    def test_a_given_split_with_one_patient_of_two_sources_on_two_sides_is_refused(self, tmp_path: Path) -> None:
        lines = ["image,label,patient,source,split"]
        for number in range(8):
            png(tmp_path / "raw" / f"{number}.png", chest(number, bits=8))
            lines.append(
                f"{number}.png,{'ab'[number % 2]},{number % 4},{'NS'[number // 4]},{['train', 'test'][number // 4]}"
            )
        (tmp_path / "t.csv").write_text("\n".join(lines))
        options = {"table": tmp_path / "t.csv", "valid_share": 0}
        with pytest.raises(LeakError, match=r"patient '0' is in train .*use --patients-per-source true"):
            run("images", tmp_path / "raw", tmp_path / "out", **options)
        card = run("images", tmp_path / "raw", tmp_path / "out", patients_per_source=True, **options)
        assert card["group"]["groups"] == 8

    def test_bad_tables(self, tmp_path: Path) -> None:
        raw = folders(tmp_path / "raw")
        table = tmp_path / "t.csv"
        good = "NORMAL/person0_0.png"
        for text, kind, message in (
            ("file,label\na,b\n", ConfigError, "has no column 'image'"),
            ("image,label,Label\n", CorruptRecordError, "has column 'label' twice"),
            ("image,label\nfehlt.png,x\n", Exception, "the image file is not there"),
            (f"image,label\n{good},x\n{good},x\n", RejectsExceededError, "in the table twice"),
            (f"image,label\n{good},\n", Exception, "no label"),
            (f"image,label,split\n{good},x,later\n", Exception, "none of train, valid, test"),
            (f"image,label\n{good},x\nPNEUMONIA/person0_1.png,x\n", LabelError, "all images are of the class 'x'"),
        ):
            table.write_text(text)
            with pytest.raises(kind, match=message):
                run("images", raw, tmp_path / "out", table=table)
        table.write_bytes("image,label\nä.png,grün\n".encode("latin-1"))
        with pytest.raises(CorruptRecordError, match=r"line 2\): not UTF-8 text"):
            run("images", raw, tmp_path / "out", table=table)
        with pytest.raises(DatasetNotFoundError, match="no such"):
            run("images", raw, tmp_path / "out", table=tmp_path / "absent.csv")

    def test_links_to_folders_are_followed_once(self, tmp_path: Path) -> None:
        raw = folders(tmp_path / "real")
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "NORMAL").symlink_to(raw / "NORMAL", target_is_directory=True)
        (tmp_path / "raw" / "PNEUMONIA").symlink_to(raw / "PNEUMONIA", target_is_directory=True)
        (raw / "NORMAL" / "loop").symlink_to(raw / "NORMAL", target_is_directory=True)
        (raw / "NORMAL" / ".hidden.png").write_bytes(b"?")
        run("images", tmp_path / "raw", tmp_path / "out")
        assert len(index(tmp_path / "out")) == 24

    def test_output_inside_raw_is_refused(self, tmp_path: Path) -> None:
        raw = folders(tmp_path / "raw")
        with pytest.raises(ConfigError, match="lies inside the raw folder"):
            run("images", raw, raw / "prepared")

    def test_images_outside_class_folders(self, tmp_path: Path) -> None:
        png(tmp_path / "raw" / "a.png", chest(bits=8))
        with pytest.raises(ConfigError, match="is in no folder of a class"):
            run("images", tmp_path / "raw", tmp_path / "out")
        with pytest.raises(DatasetNotFoundError, match="no such file or folder"):
            run("images", tmp_path / "nowhere", tmp_path / "out")


def test_small_parsers() -> None:
    assert [normalise_view(text) for text in ("AP Supine", "AP semi erect", "L", "")] == ["AP", "AP", "LATERAL", ""]
    assert parse_views("all") is None and parse_views("pa, Lateral") == ("LATERAL", "PA")
    assert parse_labels("a=x, b=x") == {"a": "x", "b": "x"}
    assert order_classes(["b", "a"], (), "a") == ("b", "a")
    assert order_classes(["positive"], ("negative", "positive"), "") == ("negative", "positive")
    for bad in ("a", "a=", "a=x,a=y"):
        with pytest.raises(ConfigError, match="labels"):
            parse_labels(bad)
    with pytest.raises(ConfigError, match="no such class"):
        order_classes(["a"], (), "z")
