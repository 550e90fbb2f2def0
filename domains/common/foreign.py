"""Checkpoints of other programs, which pickle objects of classes of their own beside the weights.

Nothing of such a file is executed: a restricted unpickler rebuilds tensors, containers and plain values, and puts an
inert record in the place of every object of any other class.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from domains.common.errors import UnsafeFileError
from domains.common.files import local_path

# what `torch.save` writes for tensors: rebuilding them runs no code of the file's author
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
# where programs keep the weights of the network, most wanted first
NETWORK_KEYS = ("model", "state_dict", "net", "network", "module", "params", "teacher")


class Inert:
    """Stands for an object of a class that is not loaded; keeps what was stored of it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Take any arguments, as the class in whose place it stands would."""
        made = super().__new__(cls)
        made.__dict__["arguments"] = args
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def append(self, value: Any) -> None:
        """Take an entry of a pickled list type."""
        self.__dict__.setdefault("entries", []).append(value)

    def extend(self, values: Any) -> None:
        """Take entries of a pickled list type."""
        self.__dict__.setdefault("entries", []).extend(values)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", []).append((key, value))

    def __hash__(self) -> int:
        return id(self)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return getattr(torch._utils, name)
        if module == "torch":
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype) or found in (torch.Size, torch.device):
                return found
            if name.endswith("Storage"):  # older files name the type of a storage by its class
                return found
        return type(name, (Inert,), {"__module__": f"foreign.{module}"})


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="restricted")


def read_foreign(path: str | Path) -> Any:
    """Read any file of `torch.save` without executing what it holds; objects of unknown classes become `Inert`.

    Raises:
        UnsafeFileError: it is a URL, or no readable torch file.
        CheckpointNotFoundError: it does not exist.
    """
    local = local_path(path)
    try:
        return torch.load(local, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    except Exception as error:  # a damaged or hostile file can raise anything while it is taken apart
        reason = str(error).split("\n")[0].strip()
        raise UnsafeFileError(f"{local}: is no readable torch file ({reason[:160]}); download it again") from None


def read_foreign_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the network's named tensors from another program's checkpoint, wherever it keeps them.

    Raises:
        UnsafeFileError: as `read_foreign`, or there are no named tensors.
    """
    content = read_foreign(path)
    found = find_tensors(content)
    if not found:
        raise UnsafeFileError(f"{path}: holds no named tensors; save the network's state dict")
    return found


def find_tensors(content: Any) -> dict[str, Tensor]:
    """Return the named tensors of a state dict, or of the network's entry in a checkpoint."""
    if not isinstance(content, Mapping):
        return {}
    for key in NETWORK_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
