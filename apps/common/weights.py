"""`heptad DOMAIN import-weights`: weights of another program -> a model directory in the hub layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apps.common.domain import Domain, load

if TYPE_CHECKING:
    from torch import Tensor


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Import weights; nothing in the file is executed."""
    parser = argparse.ArgumentParser(prog=f"heptad {domain.name} {command}")
    parser.add_argument("source", choices=list(domain.importers), help="program the weights come from")
    parser.add_argument("--weights", required=True, help="safetensors file or torch state dict")
    parser.add_argument("--options", help="JSON file with that program's own model options, where shapes do not tell")
    parser.add_argument("--out", required=True, type=Path, help="model directory to write")
    arguments = parser.parse_args(options)
    from domains.common.files import read_options  # behind the parser: they import torch
    from domains.common.hub import publish

    weights = read_weights(arguments.weights)
    given = read_options(arguments.options) if arguments.options else {}
    network = load(domain.importers[arguments.source])(weights, given)
    card = f"# {type(network).__name__}\n\nImported from {arguments.source} weights ({Path(arguments.weights).name}).\n"
    publish(arguments.out, network, card)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{count:,} parameters imported to {arguments.out}; use it with --init_from {arguments.out}")


def read_weights(path: str) -> dict[str, Tensor]:
    """Read named tensors; of a checkpoint with pickled objects the tensors alone, the objects are never made.

    Raises:
        UnsafeFileError: it is a URL, or no readable file of weights.
        CheckpointNotFoundError: it does not exist.
    """
    from domains.common.files import local_path, read_tensors
    from domains.common.foreign import read_foreign_tensors

    if local_path(path).suffix == ".safetensors" or local_path(path).is_dir():
        return read_tensors(path)
    return read_foreign_tensors(path)
