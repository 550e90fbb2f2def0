"""Reading weights without ever executing what the file holds."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from domains.common.errors import CheckpointMismatchError, CheckpointNotFoundError, UnsafeFileError
from domains.common.sharded import state_shapes


def local_path(path: str | Path) -> Path:
    """Return the path of an existing local file or directory.

    Raises:
        UnsafeFileError: it is a URL.
        CheckpointNotFoundError: nothing is there.
    """
    text = str(path)
    if "://" in text or text.startswith(("http:/", "https:/", "s3:/", "gs:/", "hf:/")):
        raise UnsafeFileError(f"{text}: URLs are refused; download the file, check it, and give its local path")
    local = Path(text)
    if not local.exists():
        raise CheckpointNotFoundError(f"{text}: no such file or directory; check the path")
    return local


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a torch file that holds tensors and plain values only.

    Raises:
        UnsafeFileError: it is a URL, holds objects that would run code when unpickled, or is damaged.
        CheckpointNotFoundError: it does not exist.
    """
    local = local_path(path)
    try:
        content = torch.load(local, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].strip()
        raise UnsafeFileError(
            f"{local}: holds more than tensors and plain values and was not executed ({reason[:160]});"
            " ask its author for a safetensors file"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0].strip()
        raise UnsafeFileError(f"{local}: is no readable torch file ({reason[:160]}); download it again") from None
    if not isinstance(content, dict):
        raise UnsafeFileError(f"{local}: holds a {type(content).__name__}, not named tensors; save a state dict")
    return content


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors from a `.safetensors` file, a torch state dict, or a training checkpoint of this project.

    Raises:
        UnsafeFileError: see `read_checkpoint`.
        CheckpointNotFoundError: the file does not exist.
    """
    local = local_path(path)
    if local.is_dir():
        local = local_path(local / "model.safetensors")
    if local.suffix == ".safetensors":
        try:
            return load_file(local)
        except (SafetensorError, OSError) as error:
            raise UnsafeFileError(f"{local}: is no readable safetensors file ({error}); download it again") from None
    content = read_checkpoint(local)
    state = content.get("state_dict", content)
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def read_options(path: str | Path) -> dict[str, Any]:
    """Read a JSON object, such as the options that belong to foreign weights.

    Raises:
        UnsafeFileError: it is a URL or no JSON object.
        CheckpointNotFoundError: the file does not exist.
    """
    local = local_path(path)
    try:
        content = json.loads(local.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsafeFileError(f"{local}: is no JSON ({error}); write the options as one JSON object") from None
    if not isinstance(content, dict):
        raise UnsafeFileError(f"{local}: holds a {type(content).__name__}; write the options as one JSON object")
    return content


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a network, all of them or none.

    Raises:
        CheckpointMismatchError: names or shapes differ.
    """
    check_fit(network, tensors, source)
    network.load_state_dict(dict(tensors))


def fill_views(views: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Copy foreign weights into a network through views of its own, all of them or none.

    Args:
        views: foreign name -> view of the parameter that takes it; as many elements as the foreign tensor has.
        weights: foreign name -> tensor.
        source: what the weights are, for the message.

    Raises:
        CheckpointMismatchError: names differ, or numbers of elements.
    """
    missing, unexpected = sorted(views.keys() - weights.keys()), sorted(weights.keys() - views.keys())
    wrong = [
        f"{name}: {tuple(weights[name].shape)} != {tuple(view.shape)}"
        for name, view in views.items()
        if name in weights and weights[name].numel() != view.numel()
    ]
    if missing or unexpected or wrong:
        raise CheckpointMismatchError(source, missing, unexpected, wrong)
    with torch.no_grad():
        for name, view in views.items():
            view.copy_(weights[name].reshape(view.shape))


def check_fit(module: nn.Module, tensors: Mapping[str, Any], source: str) -> None:
    """Compare names and shapes of tensors with those of a module's full state.

    Raises:
        CheckpointMismatchError: they differ.
    """
    own = state_shapes(module)
    wrong = [
        f"{name}: {tuple(tensor.shape)} != {tuple(own[name])}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name]
    ]
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if wrong or missing or unexpected:
        raise CheckpointMismatchError(source, missing, unexpected, wrong)
