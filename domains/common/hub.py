"""Models in the Hugging Face Hub layout: model.safetensors, config.json and a model card."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.files import fill, local_path, read_checkpoint, read_options, read_tensors
from domains.common.writing import write_whole

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def plain(value: Any) -> Any:
    """Copy nested sequences and mappings as lists and dicts, which JSON and safe checkpoints can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def publish(
    directory: Path,
    network: nn.Module,
    card: str,
    weights: Mapping[str, Tensor] | None = None,
    known: Mapping[str, Any] | None = None,
) -> None:
    """Write a network in the layout of the Hugging Face Hub.

    Args:
        directory: where; made if absent.
        network: its class is recorded by name, its weights under its own names; its attribute `arguments` holds the
            keyword arguments that build it, as plain values.
        card: model card (Markdown with a YAML head).
        weights: what to write in the place of the network's own weights.
        known: what users must know besides, as plain values: `classes`, names in the order of the outputs, and `input`,
            how inputs are made.
    """
    weights = network.state_dict() if weights is None else weights
    described = {"class": f"{type(network).__module__}.{type(network).__qualname__}", "arguments": network.arguments}
    described |= plain(known or {})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_whole(directory / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_whole(directory / CONFIG, json.dumps(described, indent=2).encode() + b"\n")
    write_whole(directory / CARD, card.encode())


def load_published(directory: str | Path) -> nn.Module:
    """Build the network that `publish` wrote; its class must be one of this project.

    Raises:
        CheckpointNotFoundError: a file is missing.
        ConfigError: the configuration names no network of this project, or its arguments do not fit it.
        CheckpointMismatchError: the weights do not fit the configuration.
    """
    root = local_path(directory)
    config = read_options(root / CONFIG)
    module, _, name = str(config.get("class", "")).rpartition(".")
    if not module.startswith("domains.") or not name.isidentifier():
        raise ConfigError(f"{root / CONFIG}: class {config.get('class')!r} is no network of this project")
    try:
        network = getattr(importlib.import_module(module), name)(**config.get("arguments", {}))
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{root / CONFIG}: cannot build {config.get('class')} ({error}); check the arguments"
        ) from None
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{root / CONFIG}: {config.get('class')} is no network")
    fill(network, read_tensors(root / WEIGHTS), str(root / WEIGHTS))
    return network


def network_arguments(path: str | Path) -> dict[str, Any]:
    """Arguments that built a network, from a hub directory or a training checkpoint; of bare weights nothing is known.

    Raises:
        ConfigError: the configuration is no JSON object.
    """
    root = local_path(path)
    if root.is_dir() and (root / CONFIG).is_file():
        return dict(read_options(root / CONFIG).get("arguments", {}))
    if root.suffix == ".ckpt":
        return dict(read_checkpoint(root).get("hyper_parameters", {}))
    return {}


def published_classes(path: str | Path) -> list[str]:
    """Names of the classes of a hub directory or a training checkpoint, in order; none where they are not known."""
    root = local_path(path)
    described: Mapping[str, Any] = {}
    if root.is_dir() and (root / CONFIG).is_file():
        described = read_options(root / CONFIG)
    elif root.suffix == ".ckpt":
        described = network_arguments(root)
    return [str(name) for name in described.get("classes") or []]


def network_tensors(path: str | Path) -> dict[str, Any]:
    """Weights of a network alone, from a hub directory, a safetensors file or a training checkpoint.

    Raises:
        CheckpointMismatchError: a training checkpoint without a network inside.
    """
    tensors = read_tensors(path)
    inside = {name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")}
    if str(path).endswith(".ckpt"):
        if not inside:
            raise CheckpointMismatchError(str(path), missing=["net.*"])
        return inside
    return inside or tensors
