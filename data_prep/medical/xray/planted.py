"""Drawn chest X-rays with planted opacities, whose place is known: for demonstrations and tests, not for medicine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

F32 = npt.NDArray[np.float32]
SOURCES = ("north", "south")  # two hospitals: DICOM and PNG, lighter and darker, with a marker and without
PREVALENCE = {"north": 0.65, "south": 0.35}  # a network that recognises the hospital does better than chance
_WHITE = 4095  # 12 bits


class Planted(NamedTuple):
    """What was written.

    Args:
        images: folder of the images, PNG and DICOM.
        masks: folder of the lung masks.
        table: CSV with image, label, patient, source, view.
        lesions: CSV with image, and x, y, radius of each opacity in pixels.
    """

    images: Path
    masks: Path
    table: Path
    lesions: Path


class _Chest(NamedTuple):
    """Anatomy of a patient: centre, size and tilt of the lungs, size of the heart, phase of the ribs."""

    shift: F32
    scale: F32
    tilt: float
    heart: float
    ribs: float


def write_planted_xrays(
    directory: Path, patients: int = 120, size: int = 96, seed: int = 0, contrast: tuple[float, float] = (0.25, 0.45)
) -> Planted:
    """Write one to three frontal images of each patient, some with opacities in the lungs.

    Args:
        directory: made if absent.
        patients: how many; every second one is of either hospital.
        size: height and width in pixels.
        seed: of everything random.
        contrast: of an opacity, smallest and largest, where 1 is the way from black to white.
    """
    made = Planted(directory / "images", directory / "masks", directory / "images.csv", directory / "lesions.csv")
    for folder in made[:2]:
        folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows, lesions = [], []
    for number in range(patients):
        source = SOURCES[number % 2]
        chest = _draw_chest(rng)
        label = "opacity" if rng.random() < PREVALENCE[source] else "clear"
        for exam in range(int(rng.integers(1, 4))):
            view = "AP" if rng.random() < (0.6 if label == "opacity" else 0.4) else "PA"
            image, lungs = draw_xray(rng, chest, size, view)
            name = f"patient{number:04d}-{exam}"
            if label == "opacity":
                image, found = plant(rng, image, lungs, contrast)
                lesions += [(name, *spot) for spot in found]
            image = _of_source(image, source)
            file = f"{name}.dcm" if source == "north" else f"{name}.png"
            if source == "north":
                write_dicom(made.images / file, image, f"N{number:04d}", view)
            else:
                _write_png(made.images / file, np.rint(image * 255).astype(np.uint8))
            _write_png(made.masks / f"{name}.png", np.where(lungs, 255, 0).astype(np.uint8))
            rows.append((file, label, f"{source[0].upper()}{number:04d}", source, view))
    pl.DataFrame(rows, schema=["image", "label", "patient", "source", "view"], orient="row").write_csv(made.table)
    schema = {"image": pl.String, "x": pl.Float64, "y": pl.Float64, "radius": pl.Float64}
    pl.DataFrame(lesions, schema=schema, orient="row").write_csv(made.lesions, float_precision=1)
    return made


def _draw_chest(rng: np.random.Generator) -> _Chest:
    return _Chest(
        rng.uniform(-0.06, 0.06, 2).astype(np.float32),
        rng.uniform(0.9, 1.1, 2).astype(np.float32),
        float(rng.uniform(-0.06, 0.06)),
        float(rng.uniform(0.2, 0.28)),
        float(rng.uniform(0, 2 * np.pi)),
    )


def draw_xray(rng: np.random.Generator, chest: _Chest, size: int, view: str) -> tuple[F32, npt.NDArray[np.bool_]]:
    """A chest without findings, and its lungs; the heart is larger from the front (AP).

    Shape:
        -> (size, size) float32 in [0, 1], white = dense; (size, size) bool.
    """
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    shift = chest.shift + rng.uniform(-0.03, 0.03, 2).astype(np.float32)
    turned = x * np.cos(chest.tilt) - y * np.sin(chest.tilt), x * np.sin(chest.tilt) + y * np.cos(chest.tilt)
    x, y = (turned[0] - shift[0]) / chest.scale[0], (turned[1] - shift[1]) / chest.scale[1]
    body = (x / 0.92) ** 2 + (y / 1.3) ** 2 < 1
    lungs = (((np.abs(x) - 0.4) / 0.29) ** 2 + ((y + 0.05) / 0.62) ** 2) < 1
    heart_size = chest.heart * (1.25 if view == "AP" else 1.0)
    heart = ((x - 0.12) / heart_size) ** 2 + ((y - 0.25) / (heart_size * 1.1)) ** 2 < 1
    image = np.where(body, 0.62, 0.04) + np.where(body & (np.abs(x) < 0.09), 0.2, 0)
    image = np.where(lungs, 0.24 + 0.05 * np.cos(14 * y + 3 * np.abs(x) + chest.ribs), image)
    image = np.where(heart, 0.7, image).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), size / 60)
    image = image + rng.normal(0, 0.02, image.shape).astype(np.float32)
    return np.clip(image, 0, 1).astype(np.float32), np.asarray(lungs & ~heart)


def plant(
    rng: np.random.Generator, image: F32, lungs: npt.NDArray[np.bool_], contrast: tuple[float, float]
) -> tuple[F32, list[tuple[float, float, float]]]:
    """Add one to three opacities with their centres in the lungs.

    Returns:
        The image, and (x, y, radius) of each in pixels.
    """
    size = image.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    # Away from the borders of the lungs, where an opacity would hide.
    inner = cv2.erode(lungs.astype(np.uint8), np.ones((size // 16, size // 16), np.uint8)) > 0
    places = np.argwhere(inner)
    spots = []
    for _ in range(int(rng.integers(1, 4))):
        row, column = places[rng.integers(len(places))]
        radius = float(rng.uniform(0.05, 0.09) * size)
        cloud = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * (radius / 1.5) ** 2))
        image = image + np.float32(rng.uniform(*contrast)) * cloud
        spots.append((float(column), float(row), radius))
    return np.clip(image, 0, 1).astype(np.float32), spots


def _of_source(image: F32, source: str) -> F32:
    """What the machine of each hospital adds: brightness, and a letter in the corner."""
    if source == "south":
        return np.asarray(image**1.15 * 0.9, dtype=np.float32)
    size = image.shape[0]
    letter = np.zeros(image.shape, np.uint8)
    place = (size - size // 7, size // 7)
    cv2.putText(letter, "L", place, cv2.FONT_HERSHEY_SIMPLEX, size / 260, 255, max(1, size // 90))
    return np.maximum(image, letter.astype(np.float32) / 255)


def write_dicom(path: Path, image: F32, patient: str, view: str) -> None:
    """Write a computed radiograph: 12 bits, MONOCHROME1, with a header as hospitals fill it in.

    Args:
        path: the file.
        image: white = dense.
        patient: patient id.
        view: view position.

    Shape:
        image (height, width) float32 in [0, 1].
    """
    stored = np.rint((1 - image) * _WHITE).astype("<u2")
    # Of the name, so that the same images have the same bytes.
    uid = generate_uid(entropy_srcs=[path.name, patient])
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, uid
    dataset.Modality, dataset.ViewPosition = "CR", view
    dataset.PatientName, dataset.PatientID = f"Planted^{patient}", patient
    dataset.PatientBirthDate, dataset.PatientAge = "19600229", "064Y"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = stored.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path}: cannot be written")
