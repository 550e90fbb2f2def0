"""Make small slides in the formats and conditions that real ones come in.

    python -m tests.data.medical.make_slides FOLDER

Tissue is blobs in the colours of haematoxylin and eosin on glass, with holes; nothing here is of a patient.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

Image = npt.NDArray[np.uint8]
GLASS, EOSIN, HAEMATOXYLIN = (244, 243, 245), (214, 120, 168), (112, 62, 140)
CENTIMETER = 3
SLIDE_IMAGE, SERIES = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.826.0.1.3680043.8.498.1"
HOLE = 0.45  # of the radius of a piece


def draw_tissue(width: int = 2048, height: int = 1536, seed: int = 0, pieces: int = 2) -> Image:
    """Glass with ragged pieces of tissue in a row, each with a hole in it.

    Shape:
        (height, width, 3) uint8, RGB.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    span = width / max(pieces, 1)
    for piece in range(pieces):
        centre = np.array([span * (piece + 0.5), height / 2])
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        rough = 1 + 0.12 * np.sin(angles * rng.integers(3, 7) + rng.uniform(0, 6)) + 0.03 * rng.standard_normal(48)
        circle = np.stack([np.cos(angles) * span * 0.38, np.sin(angles) * height * 0.38], 1)
        cv2.fillPoly(mask, [np.rint(centre + circle * rough[:, None]).astype(np.int32)], 1)
        hole = np.rint(centre + circle * HOLE).astype(np.int32)
        cv2.fillPoly(mask, [hole], 0)
    grain = rng.normal(0, 2.5, (height // 4 + 1, width // 4 + 1, 1)).astype(np.float32)
    grain = cv2.resize(grain, (width, height))[..., None]
    nuclei = cv2.resize(rng.random((height // 8 + 1, width // 8 + 1)).astype(np.float32), (width, height)) > 0.7
    picture = np.where(nuclei[..., None], HAEMATOXYLIN, EOSIN) * mask[..., None] + np.array(GLASS) * (
        1 - mask[..., None]
    )
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def write_slide(
    path: Path,
    picture: Image | None = None,
    *,
    downsamples: tuple[int, ...] = (1, 4, 16),
    mpp: float | None = 0.5,
    compression: str | None = "jpeg",
    tile: int = 256,
    description: str = "",
) -> Path:
    """A pyramidal tiled TIFF, which OpenSlide takes as `generic-tiff` or, by its description, as Aperio's.

    Args:
        path: file to write.
        picture: level 0; two pieces of tissue by default.
        downsamples: of the levels.
        mpp: written as resolution tags; None writes none.
        compression: "jpeg", "deflate" or None.
        tile: side of the tiles.
        description: of the first page.
    """
    picture = draw_tissue() if picture is None else picture
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tif:
        for number, downsample in enumerate(downsamples):
            size = (picture.shape[1] // downsample, picture.shape[0] // downsample)
            level = picture if downsample == 1 else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            tif.write(
                level,
                photometric="rgb",
                tile=(tile, tile),
                compression=compression,
                subfiletype=int(number > 0),
                resolution=None if mpp is None else (1e4 / mpp / downsample,) * 2,
                resolutionunit=None if mpp is None else CENTIMETER,
                description=description if number == 0 else None,
                metadata=None,
                software=False,
            )
    return path


def write_aperio(path: Path, picture: Image | None = None, *, mpp: float | None = 0.25, power: int | None = 40) -> Path:
    """A slide in Aperio's dialect: what it says of itself stands in the description."""
    said = "".join([f"|AppMag = {power}" if power else "", f"|MPP = {mpp}" if mpp else ""])
    return write_slide(path, picture, mpp=None, description=f"Aperio Image Library v12.0.0\n2048x1536 (256x256){said}")


def write_ome(path: Path, picture: Image | None = None, *, mpp: float | None = 0.5, levels: int = 3) -> Path:
    """An OME-TIFF with its pyramid in sub-directories, which OpenSlide takes for a single level."""
    picture = draw_tissue() if picture is None else picture
    size = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    about = {"axes": "YXS", "UUID": "urn:uuid:00000000-0000-0000-0000-000000000000", **(size if mpp else {})}
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(picture, subifds=levels - 1, metadata=about, **options)
        for number in range(1, levels):
            small = cv2.resize(picture, None, fx=4.0**-number, fy=4.0**-number, interpolation=cv2.INTER_AREA)
            tif.write(small, subfiletype=1, metadata=None, **options)
    return path


def write_dicom(
    folder: Path, picture: Image | None = None, *, mpp: float = 0.5, downsamples: tuple[int, ...] = (1, 4)
) -> Path:
    """A DICOM series of slide images, a file for each level; returns the first."""
    picture, tile = draw_tissue() if picture is None else picture, 256
    folder.mkdir(parents=True, exist_ok=True)
    for number, downsample in enumerate(downsamples):
        height, width = picture.shape[0] // downsample, picture.shape[1] // downsample
        level = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        padded = np.pad(level, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=255)
        corners = itertools.product(range(0, padded.shape[0], tile), range(0, padded.shape[1], tile))
        tiles = [np.ascontiguousarray(padded[y : y + tile, x : x + tile]) for y, x in corners]
        spacing, measures, path = Dataset(), Dataset(), Dataset()
        spacing.PixelSpacing, spacing.SliceThickness = [mpp * downsample / 1000] * 2, 1.0
        measures.PixelMeasuresSequence, path.OpticalPathIdentifier = [spacing], "1"
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        data.SOPClassUID, data.SOPInstanceUID = SLIDE_IMAGE, f"{SERIES}.{number + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = f"{SERIES}.0", SERIES, "SM"
        data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        data.Rows, data.Columns, data.NumberOfFrames = tile, tile, len(tiles)
        data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
        data.DimensionOrganizationType, data.LossyImageCompression = "TILED_FULL", "01"
        data.SharedFunctionalGroupsSequence, data.OpticalPathSequence = [measures], [path]
        data.PixelData = encapsulate([imagecodecs.jpeg_encode(frame, level=90) for frame in tiles])
        data.save_as(folder / f"{number + 1}.dcm", enforce_file_format=True)
    return folder / "1.dcm"


def corrupt_tiles(path: Path, level: int, indices: list[int]) -> Path:
    """Overwrite the bytes of some tiles with zeros, which no decoder takes for JPEG."""
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[level].keyframe
        spans = [(page.dataoffsets[index], page.databytecounts[index]) for index in indices]
    with path.open("r+b") as stream:
        for offset, count in spans:
            stream.seek(offset)
            stream.write(bytes(count))
    return path


def truncate(path: Path, share: float) -> Path:
    """Leave only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def write_huge(path: Path, side: int = 40_000, downsamples: tuple[int, ...] = (1, 4, 16, 64), tile: int = 512) -> Path:
    """A huge pyramidal slide without holding it: its tiles are a few, encoded once, tissue within an ellipse."""
    rng = np.random.default_rng(0)
    speckles = [cv2.resize(rng.random((16, 16)).astype(np.float32), (tile, tile))[..., None] > 0.6 for _ in range(8)]
    tissue = [np.where(speckle, HAEMATOXYLIN, EOSIN).astype(np.uint8) for speckle in speckles]
    encoded = [imagecodecs.jpeg_encode(picture, level=80) for picture in tissue]
    glass = imagecodecs.jpeg_encode(np.full((tile, tile, 3), GLASS, np.uint8), level=80)

    def tiles(length: int) -> Iterator[bytes]:
        count = -(-length // tile)
        if count <= 8:  # few tiles make no ellipse: draw it
            drawn = np.full((count * tile, count * tile, 3), GLASS, np.uint8)
            axes = (round(length * 0.42), round(length * 0.36))
            cv2.ellipse(drawn, (length // 2, length // 2), axes, 0, 0, 360, EOSIN, -1)
            for corner in itertools.product(range(0, count * tile, tile), repeat=2):
                y, x = corner
                yield imagecodecs.jpeg_encode(np.ascontiguousarray(drawn[y : y + tile, x : x + tile]), level=80)
            return
        for row, column in itertools.product(range(count), repeat=2):
            x, y = (column + 0.5) * tile / length - 0.5, (row + 0.5) * tile / length - 0.5
            inside = (x / 0.42) ** 2 + (y / 0.36) ** 2 < 1
            yield encoded[(row * 3 + column) % len(encoded)] if inside else glass

    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for number, downsample in enumerate(downsamples):
            length = side // downsample
            tif.write(
                tiles(length),
                shape=(length, length, 3),
                dtype=np.uint8,
                photometric="ycbcr",
                tile=(tile, tile),
                compression="jpeg",
                subfiletype=int(number > 0),
                resolution=(1e4 / 0.25 / downsample,) * 2,
                resolutionunit=CENTIMETER,
                metadata=None,
                software=False,
            )
    return path


def write_all(folder: Path) -> list[Path]:
    """One of each."""
    blank = np.full((1024, 1024, 3), GLASS, np.uint8)
    single = draw_tissue(900, 700, seed=3, pieces=1)
    cv2.imwrite(str(folder / "picture.png"), cv2.cvtColor(single, cv2.COLOR_RGB2BGR))
    (folder / "no_folder.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + bytes(600))
    (folder / "no_slide.svs").write_bytes(b"<html>404 Not Found</html>" * 20)
    return [
        write_slide(folder / "pyramid.tif"),
        write_aperio(folder / "TCGA-A1.B2.C3.svs"),
        write_slide(folder / "no_mpp.tif", mpp=None),
        write_slide(folder / "one_level.tif", single, downsamples=(1,)),
        write_ome(folder / "pyramid.ome.tif"),
        write_slide(folder / "no_tissue.tif", blank, downsamples=(1, 4)),
        corrupt_tiles(write_slide(folder / "damaged.tif"), 0, [9]),
        truncate(write_slide(folder / "truncated.tif"), 0.6),
        write_dicom(folder / "dicom"),
        *(folder / name for name in ("picture.png", "no_folder.mrxs", "no_slide.svs")),
    ]


if __name__ == "__main__":
    for made in write_all(Path(sys.argv[1])):
        print(made)
