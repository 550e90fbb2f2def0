"""`heptad DOMAIN export`: a checkpoint for use elsewhere, checked against the network it came from."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.common.domain import Domain
from apps.common.options import from_run
from apps.common.run import build
from domains.common.errors import ConfigError, HeptadError, MissingExtraError
from domains.common.files import fill
from domains.common.hub import network_tensors, publish
from domains.common.module import HeptadModule
from domains.common.sharded import place_tables

TOLERANCE = 1e-4  # of the largest output; two runtimes of fifty layers differ by a few 1e-5 in float32


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Export; options other than `--format` and `--out` are those of `test`."""
    parser = argparse.ArgumentParser(prog=f"heptad {domain.name} {command}", epilog="further options: those of test")
    parser.add_argument("--format", choices=["hub", "torch", "onnx"], default="hub")
    parser.add_argument("--out", required=True, type=Path, help="directory (hub) or file to write")
    arguments, rest = parser.parse_known_args(options)
    cli = build(domain, "test", from_run(domain, rest), run=False, title=command)
    module = cli.model
    checkpoint = cli.config["test"].ckpt_path
    if checkpoint is not None:
        fill(module.net, network_tensors(checkpoint), str(checkpoint))
    place_tables(module)  # this one process has all rows
    module.net.eval()
    if arguments.format == "hub":
        publish(arguments.out, module.net, cli.card(), known=cli.known())
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        if arguments.format == "torch":
            export_torch(module, arguments.out)
        else:
            export_onnx(module, arguments.out, cli.known())
    print(f"exported: {arguments.out}")


def export_torch(module: HeptadModule, path: Path) -> None:
    """Write a `torch.export` program whose batch size and other free axes are free, and compare it with the network.

    Raises:
        HeptadError: the network cannot be exported, or the program disagrees with it.
    """
    if path.suffix != ".pt2":
        raise ConfigError(f"--out {path}: a torch.export program has the ending .pt2; rename it")
    partial = path.with_name(f".part-{path.name}")
    torch.export.save(_program(module, path), partial)
    _compare(module, torch.export.load(partial).module(), path)
    partial.replace(path)


def export_onnx(module: HeptadModule, path: Path, known: Mapping[str, Any] | None = None) -> None:
    """Write an ONNX model whose batch size and other free axes are free, and compare it with the network.

    Args:
        module: to export.
        path: of the file.
        known: what users must know besides, such as `classes`; each entry becomes metadata of the model, as JSON.

    Raises:
        MissingExtraError: onnx is not installed.
        HeptadError: the network cannot be exported, or the model disagrees with it.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it and says so less clearly)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "onnx") from None
    partial = path.with_name(f".part-{path.name}")
    names = list(module.output_names()) or None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # inputs that share an axis share its name
        torch.onnx.export(
            _program(module, path),
            (),
            partial,
            dynamo=True,
            external_data=False,
            verbose=False,
            output_names=names,
            dynamic_shapes=tuple(module.free_axes()),  # names of the axes
        )
    if known:
        model = onnx.load(str(partial))
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in known.items()})
        onnx.save(model, str(partial))
    session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
    inputs_of = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(inputs_of, (tensor.numpy() for tensor in inputs), strict=True))
        return tuple(torch.from_numpy(output) for output in session.run(None, given))

    _compare(module, run, path)
    partial.replace(path)


def _program(module: HeptadModule, path: Path) -> torch.export.ExportedProgram:
    example, axes = module.example_inputs(), module.free_axes()
    least = module.least_sizes()
    names = {name for free in axes for name in free.values()}
    dims = {name: torch.export.Dim(name, min=least.get(name)) for name in names}
    shapes = tuple({axis: dims[name] for axis, name in free.items()} for free in axes)
    try:
        return torch.export.export(module.exportable(), example, dynamic_shapes=shapes)
    except Exception as error:  # torch raises a dozen kinds, none of which a user can act on
        reason = str(error).strip().splitlines()[0]
        raise HeptadError(
            f"{path}: {type(module.net).__name__} cannot be exported with these options ({reason})"
        ) from error


@torch.no_grad()
def _compare(module: HeptadModule, exported: Callable[..., Any], path: Path) -> None:
    for size in (1, 5):
        inputs = module.example_inputs(rows=size, length=size + 1)
        wanted, given = (_outputs(network(*inputs)) for network in (module.exportable(), exported))
        errors = [
            float((want - got).abs().max()) / max(float(want.abs().max()), 1.0)
            for want, got in zip(wanted, given, strict=True)
        ]
        error = max(errors)
        if not error <= TOLERANCE:
            raise HeptadError(
                f"{path}: the exported program differs from the network by {error:.1e}; it was not written"
            )


def _outputs(found: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (found,) if isinstance(found, Tensor) else found
