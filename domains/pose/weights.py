"""Weights of other programs for the networks of this domain, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from domains.common.errors import CheckpointMismatchError
from domains.common.files import local_path
from domains.common.foreign import read_foreign_tensors
from domains.common.hub import network_tensors
from domains.common.imported import ImportReport
from domains.pose import convformer_weights, grouppose_weights
from domains.pose.convformer import ConvFormer
from domains.pose.grouppose import GroupPose

Network = GroupPose | ConvFormer
LIFTING = "pos_temporal"  # ends a name of ConvFormer's alone


def from_official(
    weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, report: ImportReport | None = None
) -> Network:
    """Build Group Pose or ConvFormer; the names of the weights tell which.

    Args:
        weights: the state dict.
        config: what shapes do not show, see `grouppose_weights` and `convformer_weights`.
        report: gets what became of each weight.

    Raises:
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
        ConfigError: an option contradicts the shapes.
    """
    if not any(name.endswith(LIFTING) for name in weights):
        return grouppose_weights.from_official(weights, config, report=report)
    net = convformer_weights.from_official(weights, config)
    if report is not None:
        report.loaded += sorted(weights)
    return net


def to_official(net: Network) -> dict[str, Tensor]:
    """Return the network's weights under the names that `from_official` reads."""
    if isinstance(net, ConvFormer):
        return convformer_weights.to_official(net)
    return grouppose_weights.to_official(net)


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> Network:
    """Import, and print what became of the weights."""
    report = ImportReport()
    net = from_official(weights, options, report=report)
    print("\n".join(report.lines()))
    return net


def start_from(net: GroupPose, source: str) -> ImportReport:
    """Load what fits by name and shape of a file or model directory, whatever program it is of, and say what.

    Args:
        net: the network.
        source: a model directory, checkpoint or safetensors file, or a torch file of another program, whose objects
            are never made; see `grouppose_weights.initialise` for what is understood.

    Raises:
        CheckpointMismatchError: nothing fits.
        UnsafeFileError: it is a URL, or no readable file of weights.
        CheckpointNotFoundError: it does not exist.
    """
    path = local_path(source)
    known = path.is_dir() or path.suffix in (".safetensors", ".ckpt")
    weights = network_tensors(path) if known else read_foreign_tensors(path)
    own = net.state_dict()
    if "level_embedding" not in weights:
        try:
            return grouppose_weights.initialise(net, weights)
        except CheckpointMismatchError as error:
            raise CheckpointMismatchError(source, error.missing, error.unexpected, error.wrong_shape) from None
    fitting = [name for name in own if name in weights and weights[name].shape == own[name].shape]
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(weights[name])
    return ImportReport(fitting, sorted(weights.keys() - set(fitting)), sorted(own.keys() - set(fitting)))
