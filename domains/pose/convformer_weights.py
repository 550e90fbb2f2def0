"""Weights of ConvFormer under the names that exchange files use; ours are the same, so only sizes are to be told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from domains.common.errors import CheckpointMismatchError
from domains.common.files import fill
from domains.pose.convformer import ConvFormer

PREFIX = re.compile(r"^(?:module\.|model\.|net\.|_orig_mod\.)+")
BRANCH = re.compile(r"spatial\.0\.attn\.q\.(\d+)\.weight")
NEEDED = ("embed.weight", "pos_temporal", "head.weight", "spatial.0.ffn.fc1.weight")
OPTIONS = {"layer_norm_eps": "norm_eps"}  # other names of our options in a configuration


def from_official(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ConvFormer:
    """Build ConvFormer from a state dict.

    Sizes are told by the shapes.

    Args:
        weights: the state dict.
        config: what shapes do not show: `heads` (8), `activation`, `mixing`, `centring`, dropouts, `layer_norm_eps`;
            see `ConvFormer`. Names that mean nothing to it are left alone.

    Raises:
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
        ConfigError: an option contradicts the shapes.
    """
    named = {PREFIX.sub("", name): tensor for name, tensor in weights.items()}
    lacking = [name for name in NEEDED if name not in named]
    if lacking:
        raise CheckpointMismatchError("weights of ConvFormer", missing=lacking)
    known = ConvFormer().arguments
    given = {OPTIONS.get(name, name): value for name, value in (config or {}).items()}
    given = {name: value for name, value in given.items() if name in known}
    if "activation" in given:
        given["activation"] = str(given["activation"]).split()[0].lower()  # "gelu (erf)"
    net = ConvFormer(**{**given, **_sizes(named)})
    fill(net, named, "weights of ConvFormer")
    return net


def to_official(net: ConvFormer) -> dict[str, Tensor]:
    """The network's weights, under the names that `from_official` reads."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def _sizes(named: Mapping[str, Tensor]) -> dict[str, Any]:
    merged = "spatial.0.attn.qkv.weight" in named
    if merged:
        kernels = [named["spatial.0.attn.qkv.weight"].shape[-1]]
    else:
        sizes = {int(hit[1]): tensor.shape[-1] for name, tensor in named.items() if (hit := BRANCH.fullmatch(name))}
        kernels = [sizes[i] for i in sorted(sizes)]
    eta = named.get("spatial.0.attn.eta_q")
    dim = len(named["embed.weight"])
    return {
        "frames": len(named["pos_temporal"]),
        "joints": len(named["head.weight"]) // 3,
        "dim": dim,
        "spatial_blocks": _depth(named, "spatial"),
        "temporal_blocks": _depth(named, "temporal"),
        "kernels": kernels,
        "mixing_per_head": eta is not None and eta.ndim == 2,
        "ratio": len(named["spatial.0.ffn.fc1.weight"]) // dim,
        "final_norms": "norm_spatial.weight" in named,
        "reparameterised": merged,
    }


def _depth(named: Mapping[str, Tensor], stage: str) -> int:
    return len({name.split(".")[1] for name in named if name.startswith(f"{stage}.")})
