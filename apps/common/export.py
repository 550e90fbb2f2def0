"""`heptad DOMAIN export`: a checkpoint for use elsewhere, checked against the network it came from."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.common.domain import Domain
from apps.common.options import from_run
from apps.common.run import build
from domains.common.errors import HeptadError, MissingExtraError
from domains.common.files import fill
from domains.common.hub import network_tensors, publish
from domains.common.sharded import place_tables

TOLERANCE = 1e-5


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Export; options other than `--format` and `--out` are those of `test`."""
    parser = argparse.ArgumentParser(prog=f"heptad {domain.name} {command}", epilog="further options: those of test")
    parser.add_argument("--format", choices=["hub", "torch", "onnx"], default="hub")
    parser.add_argument("--out", required=True, type=Path, help="directory (hub) or file to write")
    arguments, rest = parser.parse_known_args(options)
    cli = build(domain, "test", from_run(domain, rest), run=False)
    module = cli.model
    checkpoint = cli.config["test"].ckpt_path
    if checkpoint is not None:
        fill(module.net, network_tensors(checkpoint), str(checkpoint))
    place_tables(module)  # this one process has all rows
    module.net.eval()
    if arguments.format == "hub":
        publish(arguments.out, module.net, f"# {type(module.net).__name__}\n")
    else:
        export = {"torch": export_torch, "onnx": export_onnx}[arguments.format]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        export(module.net, module.example_inputs(), arguments.out)
    print(f"exported: {arguments.out}")


def export_torch(network: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    """Write a `torch.export` program with a free batch size, and compare it with the network.

    Raises:
        HeptadError: the program disagrees with the network.
    """
    program = torch.export.export(network, example, dynamic_shapes=_dynamic(example))
    partial = path.with_name(f".{path.name}.part")
    torch.export.save(program, partial)
    _compare(network, torch.export.load(partial).module(), example, path)
    partial.replace(path)


def export_onnx(network: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    """Write an ONNX model with a free batch size, and compare it with the network.

    Raises:
        MissingExtraError: onnx is not installed.
        HeptadError: the model disagrees with the network.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it and says so less clearly)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "onnx") from None
    partial = path.with_name(f".{path.name}.part")
    program = torch.export.export(network, example, dynamic_shapes=_dynamic(example))
    torch.onnx.export(program, (), partial, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=False))
        return torch.from_numpy(session.run(None, given)[0])

    _compare(network, run, example, path)
    partial.replace(path)


def _dynamic(example: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1)
    rows = len(example[0])
    return tuple({0: batch} if len(tensor) == rows and tensor.ndim > 1 else {} for tensor in example)


@torch.no_grad()
def _compare(network: nn.Module, exported: Callable[..., Any], example: tuple[Tensor, ...], path: Path) -> None:
    rows = len(example[0])
    wider = tuple(torch.cat([t, t, t]) if len(t) == rows and t.ndim > 1 else t for t in example)
    want, got = network(*wider), exported(*wider)
    error = float((want - got).abs().max())
    if not error <= TOLERANCE:
        raise HeptadError(f"{path}: the exported program differs from the network by {error:.1e}; it was not written")
