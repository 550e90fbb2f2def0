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
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from data_prep.medical.wsi.planted_slides import CENTIMETER, EOSIN, GLASS, HAEMATOXYLIN, Image, draw_tissue, write_slide

SLIDE_IMAGE, SERIES = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.826.0.1.3680043.8.498.1"


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
