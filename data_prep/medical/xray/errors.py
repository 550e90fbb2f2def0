"""What can be wrong with one image: each is a `CorruptRecordError` that names the file."""

from __future__ import annotations

from data_prep.common.errors import CorruptRecordError


class NotAnImageError(CorruptRecordError):
    """The file is no image of any format that is read."""


class TruncatedImageError(CorruptRecordError):
    """The file, or its pixel data, ends before the image does."""


class NoPixelDataError(CorruptRecordError):
    """A DICOM file without pixel data: a report, a directory, a header alone."""


class MultiFrameError(CorruptRecordError):
    """Several frames or pages in one file: which of them is the radiograph cannot be known."""


class ConstantImageError(CorruptRecordError):
    """All pixels have one value: nothing is seen."""


class UnsupportedImageError(CorruptRecordError):
    """A readable file that is no radiograph, or larger than any."""
