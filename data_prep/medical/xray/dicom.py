"""DICOM file -> 8-bit grey image, by the order that the standard prescribes (PS3.3 C.11, PS3.4 N.2).

    stored values -> modality LUT (rescale) -> VOI LUT or window -> minimum..maximum to 0..1 -> inverted if MONOCHROME1

Stored values of 8 bits are taken as they are, neither LUT nor stretched, as the scripts which made COVIDx do; a falling
rescale alone is carried out, by inversion, and what else would change the picture is remarked upon. What a header lacks
is filled in, what it gets wrong is put right where the pixels prove it, and both are remarked upon.
"""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, JPEGExtended12Bit

from data_prep.common.errors import MissingExtraError, PrepError
from data_prep.medical.xray.errors import (
    ConstantImageError,
    MultiFrameError,
    NoPixelDataError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
)
from data_prep.medical.xray.luts import (
    EIGHT_BITS,
    NOT_APPLIED,
    Values,
    apply_luts,
    falls,
    find_padding,
    find_unused,
    is_constant,
)
from data_prep.medical.xray.pixels import U8, Radiograph, check_size, read_bytes, scale_to_unit, to_bytes
from data_prep.medical.xray.records import normalise_view
from data_prep.medical.xray.stored import right_values
from data_prep.medical.xray.syntax import find_syntax, is_cut_short

# Images of other machines lie among radiographs in every archive. Unknown and missing modalities are let in.
OTHER_MACHINES = {"CT", "MR", "PT", "NM", "US", "ES", "GM", "OP", "OPT", "IVUS", "SM", "XC", "ECG"}
NO_IMAGES = {"SR", "PR", "KO", "SEG", "RTSTRUCT", "RTDOSE", "DOC"}
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # (7FE0,0010), both byte orders
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


def read_dicom(path: Path, percentile: float = 0.0, *, eight_bit_lut: bool = False) -> Radiograph:
    """Read one frontal or lateral radiograph.

    Args:
        path: DICOM file, with or without preamble and file meta information.
        percentile: per cent of pixels at either end that are clipped (0.5 is usual); 0 maps minimum..maximum.
        eight_bit_lut: treat 8 bits as more where LUT, window or padding would change the picture.

    Returns:
        The image, with view position, patient id and age of its header.

    Raises:
        CorruptRecordError: one of its kinds in `errors`, naming the file and what is wrong.
        MissingExtraError: the decoder of its transfer syntax is not installed.
    """
    data = read_bytes(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom tells of every departure from the standard, file by file
        try:
            dataset = _parse(data, path)
            return _read(dataset, data, path, percentile, eight_bit_lut=eight_bit_lut)
        except PrepError:
            raise
        except MemoryError:
            raise UnsupportedImageError(path, "pixel data", "asks for more memory than there is") from None
        except Exception as error:  # a damaged header can break the parser anywhere
            # Only the kind of error: its text may quote the header, and with it a patient.
            raise NotAnImageError(path, "header", f"damaged ({type(error).__name__})") from error


def _read(dataset: Dataset, data: bytes, path: Path, percentile: float, *, eight_bit_lut: bool) -> Radiograph:
    _check_kind(dataset, data, path)
    remarks = _fill_missing(dataset)
    values = _decode(dataset, path)
    grey, more = _render(dataset, values, path, percentile, eight_bit_lut=eight_bit_lut)
    view = normalise_view(str(dataset.get("ViewPosition") or ""))
    patient = " ".join(str(dataset.get("PatientID") or "").split())
    return Radiograph(grey, view, patient, _age(str(dataset.get("PatientAge") or "")), (*remarks, *more))


def _parse(data: bytes, path: Path) -> Dataset:
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
    except zlib.error:
        raise TruncatedImageError(path, "data set", "the deflated data set is cut short or damaged") from None
    if data[128:132] != b"DICM" and ("Rows" not in dataset or "Columns" not in dataset):
        raise NotAnImageError(path, "byte 128", "no DICOM file")
    return dataset


def _check_kind(dataset: Dataset, data: bytes, path: Path) -> None:
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality in OTHER_MACHINES | NO_IMAGES:
        raise UnsupportedImageError(path, "Modality", f"{modality} is no radiograph")
    if "PixelData" not in dataset:
        if any(name in dataset for name in _PIXELS):
            raise UnsupportedImageError(path, "pixel data", "floating-point pixel data is no radiograph")
        # pydicom drops what ends behind the end of the file, at times the whole data set with it.
        if any(tag in data for tag in _PIXEL_TAGS):
            raise TruncatedImageError(path, "pixel data", "cut short: the file ends inside it")
        raise NoPixelDataError(path, "pixel data", "there is none (a report, a header alone, or a file cut short)")
    frames = dataset.get("NumberOfFrames")
    if frames not in (None, "") and int(frames) > 1:
        raise MultiFrameError(path, "NumberOfFrames", f"{int(frames)} frames: one radiograph per file is read")
    check_size(path, int(dataset.Rows), int(dataset.Columns))


def _fill_missing(dataset: Dataset) -> list[str]:
    """What the decoders need and the header lacks."""
    remarks = []
    if find_syntax(dataset):
        remarks.append("transfer syntax missing")
    dataset.SamplesPerPixel = int(dataset.get("SamplesPerPixel") or 1)
    if dataset.SamplesPerPixel == 3 and dataset.get("PlanarConfiguration") is None:
        dataset.PlanarConfiguration = 0
    if not dataset.get("BitsAllocated"):
        size = len(dataset.PixelData) // (int(dataset.Rows) * int(dataset.Columns) * dataset.SamplesPerPixel)
        dataset.BitsAllocated = 8 if size < 2 else 16
    if not dataset.get("BitsStored") or dataset.BitsStored > dataset.BitsAllocated:
        dataset.BitsStored = dataset.BitsAllocated
    if dataset.get("PixelRepresentation") not in (0, 1):
        dataset.PixelRepresentation = 0
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if not photometric:
        remarks.append("photometric interpretation missing")
    dataset.PhotometricInterpretation = photometric or ("RGB" if dataset.SamplesPerPixel == 3 else "MONOCHROME2")
    return remarks


def _decode(dataset: Dataset, path: Path) -> Values:
    """Stored values of the one frame.

    Shape:
        -> (height, width), or (height, width, 3) RGB.
    """
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnsupportedImageError(path, "TransferSyntaxUID", f"{syntax.name} is no format of still images") from None
    if not decoder.is_available:
        raise MissingExtraError("medical", f"{path}: {syntax.name}")
    expected = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * (int(dataset.BitsAllocated) // 8)
    frames = len(dataset.PixelData) // max(expected, 1)
    if not syntax.is_encapsulated and frames > 1:
        raise MultiFrameError(path, "pixel data", f"{frames} frames, though the header does not say so")
    if is_cut_short(dataset, syntax):
        raise TruncatedImageError(path, "pixel data", "the compressed image has no end: it is cut short")
    options: dict[str, Any] = {} if dataset.SamplesPerPixel == 3 else {"correct_unused_bits": False}
    try:
        if syntax == JPEGExtended12Bit and dataset.BitsStored > 8:  # which no decoder of a permissive licence offers
            return np.asarray(imagecodecs.jpeg_decode(get_frame(dataset.PixelData, 0, number_of_frames=1)))
        values, _ = decoder.as_array(dataset, index=0, **options)
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # codecs raise what they like; those in Rust panic, which is no Exception
        reason = _first_line(error)
        if "less than expected" in reason:
            raise TruncatedImageError(
                path, "pixel data", "cut short: fewer bytes than rows and columns need"
            ) from error
        raise NotAnImageError(path, "pixel data", f"cannot be decoded as {syntax.name} ({reason})") from error
    return values


def _render(
    dataset: Dataset, values: Values, path: Path, percentile: float, *, eight_bit_lut: bool
) -> tuple[U8, list[str]]:
    """Stored values -> grey."""
    if dataset.BitsAllocated == 1:
        raise UnsupportedImageError(path, "BitsAllocated", "one bit per pixel is a mask, no radiograph")
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in _MONOCHROME:
        if photometric == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
            values = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
        if values.ndim != 3:
            raise UnsupportedImageError(path, "PhotometricInterpretation", f"{photometric} is no radiograph")
        return _finish(path, cv2.cvtColor(values[..., :3], cv2.COLOR_RGB2GRAY), None, percentile, False), ["colour"]
    inverted = photometric == "MONOCHROME1"
    if values.dtype == np.uint8:
        shown = inverted ^ falls(dataset)
        unused = find_unused(dataset, values, inverted=shown)
        if not (eight_bit_lut and unused):
            said = [f"{EIGHT_BITS}inverted by the rescale slope"] if shown != inverted else []
            said += [f"{EIGHT_BITS}{name}{NOT_APPLIED}" for name in unused]
            return _finish(path, values, None, percentile, shown), said
    stored, remarks = right_values(values, int(dataset.BitsStored), bool(dataset.PixelRepresentation))
    padding = find_padding(dataset, stored)
    if is_constant(stored, padding):
        raise ConstantImageError(path, "pixel data", "all pixels have one value")
    seen, more = apply_luts(dataset, stored, padding)
    return _finish(path, seen, padding, percentile, inverted), [*remarks, *more]


def _finish(path: Path, values: Values, padding: npt.NDArray[np.bool_] | None, percentile: float, inverted: bool) -> U8:
    if values.dtype == np.uint8 and not percentile:
        if is_constant(values, None):
            raise ConstantImageError(path, "pixel data", "all pixels have one value")
        return np.asarray(255 - values if inverted else values, dtype=np.uint8)
    unit = scale_to_unit(values, percentile, padding)
    if unit is None:
        raise ConstantImageError(path, "pixel data", "all pixels have one value")
    grey = to_bytes(1 - unit if inverted else unit)
    if padding is not None:
        grey[padding] = 0
    return grey


def _age(text: str) -> float | None:
    """`058Y`, `155` (years by custom), `011M`, `003W`, `010D` -> years."""
    text = text.strip().upper()
    years = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}.get(text[-1:])
    digits = text if years is None else text[:-1]
    return int(digits) * (1.0 if years is None else years) if digits.isdecimal() else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
