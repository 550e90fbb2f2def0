"""What can be wrong with one recording: each is a `CorruptRecordError` that names the file."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.errors import CorruptRecordError, PrepError


class EmptyFileError(CorruptRecordError):
    """A file of 0 bytes, or a placeholder of a version control system: the data were never fetched."""


class TruncatedRecordingError(CorruptRecordError):
    """The file ends before the signal that its header announces."""


class HeaderError(CorruptRecordError):
    """The header contradicts itself or the file, or is none of the format."""


class UnsupportedRecordingError(CorruptRecordError):
    """A recording in a format, or a variety of one, that is not read."""


class UnitError(CorruptRecordError):
    """No channel has a unit from which microvolts can be made."""


class RateError(CorruptRecordError):
    """The sampling rate is unknown, impossible, or none that most channels share."""


class GapError(CorruptRecordError):
    """The recording was interrupted: its samples do not follow each other in time."""


class NoChannelError(CorruptRecordError):
    """No channel is left that is to be prepared."""


class AnnotationError(CorruptRecordError):
    """A seizure is annotated in a way from which its beginning and end cannot be known."""


class SidecarError(CorruptRecordError):
    """A sidecar cannot be read, or contradicts the signal."""


class MissingFilterError(PrepError, ImportError):
    """An HDF5 file is compressed by a filter that is not installed.

    Args:
        path: the file.
        number: of the filter, as registered with the HDF Group.
        name: of the filter.
    """

    def __init__(self, path: Path | str, number: int, name: str) -> None:
        self.file, self.number, self.filter = str(path), number, name
        super().__init__(
            f"{path}: compressed by HDF5 filter {number} ({name or 'unnamed'}), which is not installed; "
            "install it with: pip install hdf5plugin"
        )

    def __reduce__(self) -> tuple[type[MissingFilterError], tuple[str, int, str]]:
        return type(self), (self.file, self.number, self.filter)
