"""Matrices, and cells of matrices, in MATLAB files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError
from data_prep.common.mat5 import read_variables

Values = dict[str, npt.NDArray[Any] | list[npt.NDArray[Any]]]


def read_cells(path: Path, names: Collection[str]) -> Values:
    """Variables of a file: matrices, or lists of the matrices in cells, in the order of MATLAB.

    Args:
        path: the file.
        names: of the variables that are wanted; others are passed over, as are those of other kinds.

    Raises:
        CorruptRecordError: the file is damaged, of another version, or has cells of other kinds.
    """
    found: Values = {}
    for name, value in read_variables(path, names).items():
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, list) and value and not isinstance(value[0], str | dict):
            if not all(isinstance(cell, np.ndarray) for cell in value):
                raise CorruptRecordError(path, name, "has cells that are no matrices: the file is damaged")
            found[name] = value
    return found
