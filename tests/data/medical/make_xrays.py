"""Makes miniature chest X-ray collections in the original layouts: DICOM, lists, tables, npz.

    python -m tests.data.medical.make_xrays FOLDER

All images are drawn from a seed; nothing is copied from the real collections.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import imagecodecs
import numpy as np
import openpyxl
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

PRIVATE = {  # planted in every header; no byte of it may come out
    "PatientName": "Zwetschgenbaum^Ottilie",
    "PatientID": "MRN-7315508",
    "PatientBirthDate": "19310417",
    "PatientAddress": "Quittengasse 8",
    "ReferringPhysicianName": "Holunder^Medea",
    "AccessionNumber": "ACC4711X",
    "InstitutionName": "Spital zum Seidelbast",
}
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless)
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000)


def chest(seed: int = 0, size: int = 64, bits: int = 12) -> np.ndarray:
    """A smooth image with noise that uses most of its bits, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    small = rng.random((5, 5)).astype(np.float32)
    image = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 0.01, (size, size))
    image = (image - image.min()) / (image.max() - image.min())
    return np.rint(image * ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def stretched(values: np.ndarray) -> np.ndarray:
    """Minimum to 0, maximum to 255: what a reader makes of values, inverted or not."""
    unit = (values.astype(np.float64) - values.min()) / (float(values.max()) - float(values.min()))
    return np.floor(unit * 255 + 0.5).astype(np.uint8)


def dataset(values: np.ndarray, bits: int | None = None, **header: Any) -> Dataset:
    """A computed radiograph; a header entry of None is left out."""
    allocated = values.dtype.itemsize * 8
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stored = bits or allocated
    entries: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.1",
        **{"Modality": "CR", "ViewPosition": "PA", "PatientAge": "061Y", **PRIVATE},
        **{"Rows": values.shape[-2], "Columns": values.shape[-1], "SamplesPerPixel": 1},
        **{"PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": allocated, "BitsStored": stored},
        **{"HighBit": stored - 1, "PixelRepresentation": int(np.issubdtype(values.dtype, np.signedinteger))},
        "PixelData": values.tobytes(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers are wrong on purpose
        for name, value in {**entries, **header}.items():
            if value is not None:
                setattr(found, name, value)
    if found.get("PixelData") is not None:
        found["PixelData"].VR = "OW"  # which follows from a header that may be incomplete
    return found


def compress(found: Dataset, values: np.ndarray, syntax: UID) -> Dataset:
    """Put the pixels of a data set into a transfer syntax."""
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1):
        if syntax == JPEGLosslessSV1:
            frame = imagecodecs.ljpeg_encode(values, bitspersample=found.BitsStored)
        else:
            frame = imagecodecs.jpeg_encode(values, level=98, bitspersample=found.BitsStored)
        found.PixelData = encapsulate([frame])
        found["PixelData"].is_undefined_length = True
    elif syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        options = {JPEGLSNearLossless: {"jls_error": 2}, JPEG2000: {"j2k_cr": [3]}}.get(syntax, {})
        found.compress(syntax, generate_instance_uid=False, **options)
    elif syntax == ExplicitVRBigEndian:
        found.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes()
        found["PixelData"].VR = "OB" if values.itemsize == 1 else "OW"
    found.file_meta.TransferSyntaxUID = syntax
    return found


def save(path: Path, found: Dataset, *, syntax_missing: bool = False) -> Path:
    """Write a data set; without its transfer syntax, as some old archives do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not syntax_missing:
            found.save_as(path, enforce_file_format=True)
            return path
        implicit = found.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        del found.file_meta
        buffer = io.BytesIO()
        dcmwrite(buffer, found, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    path.write_bytes(buffer.getvalue())
    return path


def dicom(path: Path, values: np.ndarray, bits: int | None = None, **header: Any) -> Path:
    """Write an uncompressed radiograph."""
    return save(path, dataset(values, bits, **header))


def png(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


class ListLine(NamedTuple):
    patient: str
    file: str
    label: str
    source: str = ""


TRAIN = [
    *(ListLine(str(n // 2), f"cohen-{n // 2}-{n % 2}.jpg", "negative", "cohen") for n in range(24)),
    *(ListLine(f"COVID {number}", f"COVID({number}).png", "positive", "sirm") for number in range(10)),
    *(
        ListLine(f"419639-{n:06d}", f"MIDRC-RICORD-1C-419639-{n:06d}-0{n}123-0.png", "positive", "ricord")
        for n in (1, 2)
    ),
    ListLine("77", "series-day0.PNG", "negative", "actmed"),
    ListLine("77", "series-day9.PNG", "positive", "actmed"),
    ListLine("exam-1", "exam-1.png", "negative", "rnsa"),
]
TEST = [
    *(ListLine(f"exam-{n}", f"exam-{n}.png", "negative", "rsna") for n in range(5, 11)),
    *(
        ListLine(f"SITE2-{n:06d}", f"MIDRC-RICORD-1C-SITE2-{n:06d}-8.27{n}-0.png", "positive", "ricord")
        for n in range(6)
    ),
]


def write_list(path: Path, lines: list[ListLine]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(line).rstrip() + "\n" for line in lines))
    return path


def covidx(folder: Path, train: list[ListLine] = TRAIN, test: list[ListLine] = TEST, version: str = "8B") -> Path:
    """Lists in `labels`, images in `data/train` and `data/test`; names on disk have blanks and another case."""
    for split, lines in (("train", train), ("test", test)):
        write_list(folder / "labels" / f"{split}_COVIDx{version}.txt", lines)
        for number, line in enumerate(lines):
            name = line.file.replace("COVID(", "COVID (").replace("cohen", "Cohen")
            image = chest(1000 * (split == "test") + number, bits=8)
            path = folder / "data" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, quality=95)
    return folder


RICORD_STUDIES = {("419639-000001", "01123"): 2, ("419639-000002", "02123"): 1, ("SITE2-000000", "8.270"): 1}


def ricord(folder: Path, views: tuple[str, ...] = ("AP",)) -> Path:
    """DICOM tree, xlsx and usable list; one image has a border of padding and the box that cuts it off."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "CR Pos - TCIA Submission"
    sheet.append(["Anon MRN", "Anon TCIA Study Date", "Anon Exam Description", "Anon Study UID"])
    usable, number = [], 0
    for (mrn, uid), images in RICORD_STUDIES.items():
        sheet.append([mrn, "2003-03-18", "XR CHEST 1 VIEW", f"1.2.826.0.1.3680043.10.474.{mrn[:6]}.{uid}"])
        study = folder / f"MIDRC-RICORD-1C-{mrn}" / f"03-18-2003-NA-XR CHEST 1 VIEW-{uid}"
        for index in range(images):
            values = chest(3000 + number)
            if number == 0:
                values[:, :10] = 0
            path = study / f"{index}.000000-NA-{index}" / "1-1.dcm"
            dicom(path, values, 12, ViewPosition=views[number % len(views)], PhotometricInterpretation="MONOCHROME1")
            name = f"MIDRC-RICORD-1C-{mrn}-{uid}-{index}.png"
            usable.append(f"{name} 10 0 64 60" if number == 0 else name)
            number += 1
    book.save(folder / "MIDRC-RICORD-1c Clinical Data Jan 13 2021 .xlsx")
    (folder / "ricord_data_set.txt").write_text("\n".join(usable[:-1]) + "\nMIDRC-RICORD-1C-SITE2-000009-8.999-0.png\n")
    return folder


def rsna(folder: Path, exams: int = 30) -> Path:
    """Tables, JPEG DICOM files and the mapping to NIH patients: two exams for each, old ages, both views."""
    labels, details, mapping = ["patientId,x,y,width,height,Target"], ["patientId,class"], []
    for number in range(exams):
        exam = f"{number:08x}-aaaa"
        sick = number // 2 % 3 == 0
        boxes = ["10.0,12.0,20.0,20.0,1", "40.0,12.0,20.0,20.0,1"] if sick else [",,,,0"]
        labels += [f"{exam},{box}" for box in boxes]
        name = "Lung Opacity" if sick else "Normal" if number % 2 else "No Lung Opacity / Not Normal"
        details += [f"{exam},{name}"] * len(boxes)
        values = chest(5000 + number, bits=8)
        header = {
            "ViewPosition": "AP" if sick else "PA",
            "PatientAge": "155" if number == 3 else "45",
            "PatientID": exam,
        }
        found = compress(dataset(values, **header), values, JPEGBaseline8Bit)
        save(folder / "stage_2_train_images" / f"{exam}.dcm", found)
        mapping.append({"subset_img_id": exam, "img_id": f"{number // 2:08d}_{number % 2:03d}.png"})
    (folder / "stage_2_train_labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "stage_2_detailed_class_info.csv").write_text("\n".join(details) + "\n")
    (folder / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    return folder


def medmnist(path: Path, *, classes: int = 2, rgb: bool = False, labels: int = 1, **arrays: np.ndarray) -> Path:
    """An npz file with 40 training, 10 validation and 20 test images."""
    rng = np.random.default_rng(7)
    found: dict[str, np.ndarray] = {}
    for split, count in (("train", 40), ("val", 10), ("test", 20)):
        shape = (count, 28, 28, 3) if rgb else (count, 28, 28)
        found[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        codes = np.arange(count * labels).reshape(count, labels) % classes
        found[f"{split}_labels"] = codes.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{**found, **arrays})
    return path


def folders(folder: Path, per_class: int = 12) -> Path:
    """A folder for each class."""
    for number in range(2 * per_class):
        label = ("NORMAL", "PNEUMONIA")[number % 2]
        png(folder / label / f"person{number // 4}_{number}.png", chest(7000 + number, bits=8))
    return folder


if __name__ == "__main__":
    top = Path(sys.argv[1])
    covidx(top / "covidx")
    ricord(top / "ricord")
    rsna(top / "rsna")
    medmnist(top / "medmnist" / "pneumoniamnist.npz")
    folders(top / "folders")
