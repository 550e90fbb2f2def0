"""`.pt` files of features: tensors and nothing that can run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError

_HELD = ("float16", "float32", "float64")  # torch types that numpy has, too


def load_tensors(path: Path, names: tuple[str, ...], coords: str) -> tuple[Any, Any]:
    """Features and coordinates of a `.pt` file: a tensor alone, or tensors in a dictionary.

    The file is read by torch's restricted reader, which refuses everything else before it could run.

    Args:
        path: the file; mapped, so that of one which is only listed little more than its directory is read.
        names: keys that features may have in a dictionary, the first found counts.
        coords: key of the coordinates.

    Returns:
        Two tensors; the second is None when there are no coordinates.

    Raises:
        CorruptRecordError: there is no tensor of features.
        pickle.UnpicklingError: something would have to be executed (not executed).
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # the format of torch before 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True)
    places = None
    if isinstance(content, dict):
        places = content.get(coords)
        content = next((content[name] for name in names if name in content), None)
    if not isinstance(content, torch.Tensor) or content.layout != torch.strided or content.is_quantized:
        raise CorruptRecordError(path, "file", "holds no plain tensor of features; save one, or use h5 files")
    if places is not None and not isinstance(places, torch.Tensor):
        raise CorruptRecordError(path, coords, "is no tensor; save the coordinates as one")
    return content.detach(), places


def array_type(tensor: Any) -> str:
    """The numpy type of a tensor's values: bfloat16 and smaller floats, which numpy lacks, become float32 exactly."""
    name = str(tensor.dtype).removeprefix("torch.")
    return name if name in _HELD or not tensor.is_floating_point() else "float32"


def to_array(tensor: Any) -> npt.NDArray[np.floating[Any]]:
    """A copy of the values that does not depend on the file any more."""
    import torch

    found: npt.NDArray[np.floating[Any]] = tensor.to(getattr(torch, array_type(tensor))).numpy().copy()
    return found
