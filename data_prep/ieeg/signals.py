"""Opening the signal of any recording: only the reader of its own format is imported."""

from __future__ import annotations

import importlib

from data_prep.common.errors import ConfigError
from data_prep.ieeg.records import Recording, SignalReader

# Each module has `open_recording`.
MODULES = {
    "edf": "edf_records",
    "brainvision": "brainvision_signal",
    "swec-h5": "swec_hdf5",
    "mat": "matlab",
    "bonn": "bonn",
}


def open_signal(recording: Recording) -> SignalReader:
    """Open a recording to read its samples in pieces.

    Args:
        recording: as a reader of this package listed it.

    Raises:
        ConfigError: no reader has this format.
        DatasetNotFoundError: a file is not there.
        CorruptRecordError: a file is damaged, or has changed since it was listed.
    """
    name = MODULES.get(recording.format)
    if name is None:
        raise ConfigError(f"{recording.path}: format {recording.format!r}: there are {', '.join(MODULES)}")
    reader: SignalReader = importlib.import_module(f"data_prep.ieeg.{name}").open_recording(recording)
    return reader
