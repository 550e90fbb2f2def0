"""The transfer syntax of a DICOM data set that does not say it, and compressed images that have no end."""

from __future__ import annotations

import struct

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

_START, _END = b"\xff\xd8", b"\xff\xd9"  # of JPEG, JPEG-LS and (the end) JPEG 2000
_START_2000 = b"\xff\x4f\xff\x51"
# marker of the frame header -> syntax
_FRAMES = {0xC0: JPEGBaseline8Bit, 0xC1: JPEGExtended12Bit, 0xC3: JPEGLossless, 0xF7: JPEGLSLossless}


def find_syntax(dataset: Dataset) -> bool:
    """Fill in the transfer syntax from the data set itself.

    Returns:
        Whether it was missing.
    """
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID"):
        return False
    if meta is None:
        dataset.file_meta = meta = FileMetaDataset()
    implicit, little = dataset.original_encoding
    if dataset["PixelData"].is_undefined_length:
        found = guess_compressed(_frame(dataset))
    elif not little:
        found = ExplicitVRBigEndian
    else:
        found = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.TransferSyntaxUID = found
    return True


def guess_compressed(frame: bytes) -> UID:
    """The syntax of a compressed frame by its own markers.

    Raises:
        ValueError: none that is known.
    """
    if frame.startswith(_START_2000):
        return JPEG2000
    if frame.startswith(_START):
        place = 2
        while place + 4 <= len(frame) and frame[place] == 0xFF:
            if frame[place + 1] in _FRAMES:
                return _FRAMES[frame[place + 1]]
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    elif len(frame) >= 64:
        segments, first = struct.unpack("<II", frame[:8])
        if 1 <= segments <= 15 and first == 64:
            return RLELossless
    raise ValueError("no transfer syntax, and a compression that is not known")


def is_cut_short(dataset: Dataset, syntax: UID) -> bool:
    """Whether a compressed image lacks the marker that ends it: some decoders make up the rest."""
    if syntax not in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes):
        return False
    return not _frame(dataset).rstrip(b"\0").endswith(_END)


def _frame(dataset: Dataset) -> bytes:
    return get_frame(dataset.PixelData, 0, number_of_frames=1)
