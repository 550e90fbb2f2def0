"""CUB, Cars and Aircraft in their original layouts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from data_prep.common.errors import (
    CorruptRecordError,
    DatasetNotFoundError,
    LabelError,
    LeakError,
    RejectsExceededError,
)
from tests.data.finegrained import make
from tests.data_prep.finegrained.helpers import index, regions, rejects, rows, run


class TestCUB:
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_split_classes_and_whole_pictures(self, tmp_path, end):
        card = run("cub", make.write_cub(tmp_path / "raw", end=end), tmp_path / "out", valid_share=0.0)
        assert rows(card) == {"train": 9, "valid": 0, "test": 9}
        assert card["classes"] == list(make.CLASSES) and card["kind"] == "classes"
        table = index(tmp_path / "out")
        assert regions(table) == {(0, 0, *make.SIZE)} and not table["stored"].any()
        for name, code, split in table.select("name", "label", "split").iter_rows():
            assert make.CLASSES[code] in name and (Path(card["image_root"]) / name).is_file()
            assert (split == "train") == (int(Path(name).stem[-4:]) % 2 == 0)

    def test_boxes_with_margin(self, tmp_path):
        raw = make.write_cub(tmp_path / "raw")
        run("cub", raw, tmp_path / "out", crop="box")
        assert regions(index(tmp_path / "out")) == {(4, 6, 24, 6 + height) for height in (10, 11, 12)}
        card = run("cub", raw, tmp_path / "wide", crop="box", margin=0.5)
        assert regions(index(tmp_path / "wide")) == {
            (0, top, 34, bottom) for top, bottom in ((1, 21), (0, 23), (0, 24))
        }
        assert card["preparation"]["margin"] == 0.5

    def test_pictures_with_boxes_are_not_turned_unless_asked(self, tmp_path):
        raw = make.write_cub(tmp_path / "raw")
        turned = Image.fromarray(make.pixels(1))
        exif = turned.getexif()
        exif[0x0112] = 6
        name = f"{make.CLASSES[0]}/{make.CLASSES[0][4:]}_0000.jpg"
        turned.save(raw / "CUB_200_2011/images" / name, exif=exif, quality=95)
        card = run("cub", raw, tmp_path / "out")
        assert regions(index(tmp_path / "out")) == {(0, 0, *make.SIZE)} and not index(tmp_path / "out")["stored"].any()
        assert card["counts"]["remarks"] == {"EXIF orientation 6 is ignored: the data set has boxes": 1}
        run("cub", raw, tmp_path / "asked", exif="apply")
        assert (0, 0, *make.SIZE[::-1]) in regions(index(tmp_path / "asked"))

    def test_validation_pictures_are_spared_class_by_class(self, tmp_path):
        card = run("cub", make.write_cub(tmp_path / "raw", per_class=12), tmp_path / "out", valid_share=0.34)
        assert rows(card) == {"train": 12, "valid": 6, "test": 18}
        assert {count["valid"] for count in card["counts"]["classes"].values()} == {2}

    def test_missing_pictures_and_lines_are_rejected_with_file_and_line(self, tmp_path):
        raw = make.write_cub(tmp_path / "raw")
        top = raw / "CUB_200_2011"
        (top / "images" / make.CLASSES[0] / f"{make.CLASSES[0][4:]}_0002.jpg").unlink()
        for name, line in (("image_class_labels.txt", 4), ("train_test_split.txt", 6), ("bounding_boxes.txt", 8)):
            text = (top / name).read_text().splitlines()
            key = text[line].split()[0]
            value = {"image_class_labels.txt": "77", "train_test_split.txt": "2", "bounding_boxes.txt": "1 x 3 4"}[name]
            text[line] = f"{key} {value}"
            (top / name).write_text("\n".join(text))
        with pytest.raises(
            RejectsExceededError, match=r"images\.txt: record 6 field line 7: neither 0 nor 1 in .*; 4 of 18"
        ):
            run("cub", raw, tmp_path / "out", crop="box")
        run("cub", raw, tmp_path / "out", crop="box", max_rejects=0.3)
        assert [(source, record) for source, record, _ in rejects(tmp_path / "out")] == [
            ("images.txt", record) for record in (2, 4, 6, 8)
        ]

    @pytest.mark.parametrize("name", ["images.txt", "train_test_split.txt", "classes.txt", "image_class_labels.txt"])
    def test_a_missing_list_is_named(self, tmp_path, name):
        raw = make.write_cub(tmp_path / "raw")
        (raw / "CUB_200_2011" / name).unlink()
        with pytest.raises(DatasetNotFoundError, match=f"there is no {name}"):
            run("cub", raw, tmp_path / "out")

    def test_damaged_lists(self, tmp_path):
        raw = make.write_cub(tmp_path / "raw")
        path = raw / "CUB_200_2011" / "classes.txt"
        path.write_text("1 a\n1 b\n")
        with pytest.raises(CorruptRecordError, match=r"classes\.txt: line 2: id '1' is there twice"):
            run("cub", raw, tmp_path / "out")
        path.write_bytes(b"1 a\n2 \xff\xfe\n")
        with pytest.raises(CorruptRecordError, match=r"classes\.txt: line 2: is no UTF-8"):
            run("cub", raw, tmp_path / "out")
        path.write_text("1 same\n2 same\n3 c\n")
        with pytest.raises(LabelError, match="two classes are called 'same'"):
            run("cub", raw, tmp_path / "out")


class TestCars:
    @pytest.mark.parametrize("packed", [True, False])
    def test_one_file(self, tmp_path, packed):
        card = run("cars", make.write_cars(tmp_path / "raw", packed=packed), tmp_path / "out", crop="box")
        assert card["classes"] == list(make.CARS)
        assert rows(card)["test"] == 9 and rows(card)["train"] + rows(card)["valid"] == 9
        # MATLAB counts from 1 and includes the last pixel
        assert regions(index(tmp_path / "out")) == {(4, 6, 30, bottom) for bottom in (20, 21, 22)}
        for name, code, split in index(tmp_path / "out").select("name", "label", "split").iter_rows():
            assert (int(Path(name).stem) - 1) % 3 == code
            assert (split == "test") == bool(int(Path(name).stem) % 2)

    def test_devkit(self, tmp_path):
        card = run("cars", make.write_cars_devkit(tmp_path / "raw"), tmp_path / "out", valid_share=0.0)
        assert rows(card) == {"train": 12, "valid": 0, "test": 12}
        assert [Path(entry["path"]).name for entry in card["sources"][:3]] == [
            "cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
            "cars_meta.mat",
        ]

    def test_test_annotations_without_labels_are_told(self, tmp_path):
        raw = make.write_cars_devkit(tmp_path / "raw")
        (raw / "devkit/cars_test_annos_withlabels.mat").unlink()
        with pytest.raises(DatasetNotFoundError, match=r"withlabels\.mat \(cars_test_annos\.mat has no classes"):
            run("cars", raw, tmp_path / "out")

    def test_wrong_versions_are_told(self, tmp_path):
        raw = make.write_cars(tmp_path / "raw")
        path = raw / "cars_annos.mat"
        scipy.io.savemat(path, {"x": np.arange(40.0)}, format="4")
        with pytest.raises(CorruptRecordError, match=r"cars_annos\.mat: header: wrong \.mat version: 4"):
            run("cars", raw, tmp_path / "out")
        with h5py.File(path, "w", userblock_size=512) as file:
            file["annotations"] = np.zeros(3)
        data = bytearray(path.read_bytes())
        data[:128] = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
        path.write_bytes(data)
        with pytest.raises(CorruptRecordError, match=r"wrong \.mat version: 7\.3 \(HDF5\).*-v7"):
            run("cars", raw, tmp_path / "out")

    def test_odd_records_are_rejected(self, tmp_path):
        raw = make.write_cars(tmp_path / "raw")
        records = [
            {"relative_im_path": f"car_ims/{n:06d}.jpg", **make.car(n, "", (n - 1) % 3 + 1, test=float(n % 2))}
            for n in range(1, 19)
        ]
        records[1]["class"] = 9.0
        records[2]["bbox_x1"] = np.zeros((0, 0))
        records[3]["relative_im_path"] = "car_ims/000999.jpg"
        records[4]["bbox_x2"] = 2.0
        content = {"annotations": make.structure(records), "class_names": make.cell(make.CARS)}
        make.save_mat(raw / "cars_annos.mat", content)
        run("cars", raw, tmp_path / "out", crop="box", max_rejects=0.5)
        assert rejects(tmp_path / "out") == [
            ("cars_annos.mat", 1, "class 9 is none of 1 to 3"),
            ("cars_annos.mat", 2, "a field is no text, or no number, where one belongs"),
            ("cars_annos.mat", 3, "the image file is not there"),
            ("car_ims/000005.jpg", 0, "the box [4, 6, 2, 22] has no area"),
        ]


class TestAircraft:
    def test_banner_is_cut_off_and_levels(self, tmp_path):
        raw = make.write_aircraft(tmp_path / "raw")
        card = run("aircraft", raw, tmp_path / "out")
        assert rows(card) == {"train": 6, "valid": 6, "test": 6} and card["classes"] == list(make.VARIANTS)
        assert regions(index(tmp_path / "out")) == {(0, 0, *make.SIZE)}
        assert card["preparation"]["trim_bottom"] == 20
        whole = run("aircraft", raw, tmp_path / "whole", train_on_valid=True, valid_share=0.0)
        assert rows(whole) == {"train": 12, "valid": 0, "test": 6}
        family = run("aircraft", raw, tmp_path / "family", level="family")
        assert family["classes"] == ["A300", "Boeing 707", "Boeing 727"]
        assert family["name"] == "fgvc-aircraft-family"

    def test_boxes_end_above_the_banner(self, tmp_path):
        run("aircraft", make.write_aircraft(tmp_path / "raw"), tmp_path / "out", crop="box")
        assert regions(index(tmp_path / "out")) == {(2, 4, 40, make.SIZE[1])}

    def test_rejects_and_missing_lists(self, tmp_path):
        raw = make.write_aircraft(tmp_path / "raw")
        top = raw / "fgvc-aircraft-2013b/data"
        path = top / "images_variant_test.txt"
        path.write_text(path.read_text() + "9999999 707-320\n3000000 Zeppelin\n3000000\n")
        run("aircraft", raw, tmp_path / "out", max_rejects=0.5)
        assert [reason for *_, reason in rejects(tmp_path / "out")] == [
            "the image file is not there",
            "the class is not in the list of classes",
            "no class behind the number of the picture",
        ]
        path.unlink()
        with pytest.raises(DatasetNotFoundError, match=r"needs images_variant_test\.txt.*found images_variant_train"):
            run("aircraft", raw, tmp_path / "again")

    def test_a_picture_in_two_splits_is_refused(self, tmp_path):
        raw = make.write_aircraft(tmp_path / "raw")
        path = raw / "fgvc-aircraft-2013b/data/images_variant_test.txt"
        path.write_text(path.read_text() + "1000000 707-320\n")
        with pytest.raises(
            LeakError, match=r"images_variant_test\.txt: line 7: .*1000000\.jpg is in test and in train, too"
        ):
            run("aircraft", raw, tmp_path / "out")
