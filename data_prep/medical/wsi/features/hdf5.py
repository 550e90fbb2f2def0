"""Reading HDF5 files of other programs: no locks, plain attributes, damage told in one line."""

from __future__ import annotations

import contextlib
import errno
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.common.errors import CorruptRecordError, PrepError
from data_prep.common.files import translate_os_errors


def open_h5(path: Path) -> h5py.File:
    """Open for reading without a lock, which read-only and network file systems refuse."""
    return h5py.File(path, "r", locking=False)


def plain_attributes(item: h5py.HLObject) -> dict[str, Any]:
    """Attributes of a dataset, group or file as plain Python values."""
    found: dict[str, Any] = {}
    for name, value in item.attrs.items():
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        found[name] = text.tolist() if isinstance(text, np.generic | np.ndarray) else text
    return found


@contextlib.contextmanager
def readable(path: Path, where: str) -> Iterator[None]:
    """Turn what h5py and torch raise over damaged files into one line.

    Args:
        path: the file that is read.
        where: part of it, for the message.

    Raises:
        CorruptRecordError: it is damaged, of another kind, or would have to be executed.
        PrepError: the file system refuses.
    """
    with translate_os_errors(path):
        try:
            yield
        except pickle.UnpicklingError as error:
            raise CorruptRecordError(
                path, where, "holds more than a tensor and was not executed; save the tensor alone, or use h5 files"
            ) from error
        except Exception as error:  # damage makes both libraries raise anything
            # What has an error number comes from the system, but for damage that sends a reader to impossible places.
            system = getattr(error, "errno", None) not in (None, errno.EINVAL)
            if system or isinstance(error, PrepError | ImportError):
                raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise CorruptRecordError(
                path, where, f"is damaged or no feature file ({reason}); make it again or leave it out"
            ) from error
