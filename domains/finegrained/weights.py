"""Weights of a DCAL under the names that timm gives a vision transformer, and back.

Nobody has published weights of DCAL. The layout is timm's for the transformer (`blocks.0.attn.qkv.weight`, ...,
`head`), so that a checkpoint of timm or DeiT is one of it without GLCA, and beside it `glca.*`, `glca_norm`,
`glca_head`, `uncertainty_w`; for re-identification `bottleneck`, `classifier`, `glca_bottleneck`, `glca_classifier`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.files import fill
from domains.finegrained.dcal import DCAL

SOURCE = "weights of DCAL"


def from_official(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> DCAL:
    """Build DCAL from named tensors; their shapes say its sizes.

    Args:
        weights: of the whole network, GLCA included; `uncertainty_w` may be absent and is 0 then.
        config: what shapes do not show: `heads` (default D / 64), `img` or `image_size` (height and width; default
            square), and further options of `DCAL`, such as `ratio`, `distractor` and `drop_path`.

    Raises:
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
        ConfigError: an option that cannot work.
    """
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    task = "reid" if "classifier.weight" in weights else "fgvc"
    head = "classifier.weight" if task == "reid" else "head.weight"
    needed = ("pos_embed", "patch_embed.proj.weight", "glca.mlp.fc1.weight", head)
    if lacking := [name for name in needed if name not in weights]:
        raise CheckpointMismatchError(SOURCE, missing=lacking)
    config = dict(config or {})
    dim, _, *patch = weights["patch_embed.proj.weight"].shape
    places = weights["pos_embed"].shape[1] - 1
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    side = round(places**0.5)
    options = {
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "embed_dim": dim,
        "depth": depth,
        "num_heads": _number(config, "heads", max(dim // 64, 1)),
        "mlp_ratio": len(weights["glca.mlp.fc1.weight"]) / dim,
        "qkv_bias": "glca.attn.qkv.bias" in weights,
    }
    if "glca.ls1.gamma" in weights:
        options["init_values"] = 1e-5
    chosen: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "drop_path": 0.0, "task": task}
    chosen["image_size"] = config.get("img", config.get("image_size", (side * patch[0], side * patch[1])))
    known = ("ratio", "distractor", "fusion", "glca_start", "drop_path")
    chosen |= {name: config[name] for name in known if name in config}
    net = DCAL(n_classes=len(weights[head]), backbone_options=options, **chosen)
    fill(net, {"uncertainty_w": torch.zeros(3), **_renamed(weights, {v: k for k, v in _names(net).items()})}, SOURCE)
    return net


def to_official(net: DCAL) -> dict[str, Tensor]:
    """Return the network's weights under the names of `from_official`."""
    return {name: tensor.clone() for name, tensor in _renamed(net.state_dict(), _names(net)).items()}


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> DCAL:
    """Import as `from_official`."""
    return from_official(weights, options)


def _number(config: Mapping[str, Any], name: str, default: int) -> int:
    try:
        return int(config.get(name, default))
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {config[name]!r}, no number; correct it") from None


def _names(net: DCAL) -> dict[str, str]:
    """Our prefix -> theirs."""
    names = {"trunk.": ""}
    if net.task == "reid":
        for ours, theirs in (("head.", ""), ("glca_head.", "glca_")):
            names |= {f"{ours}{part}.": f"{theirs}{part}." for part in ("bottleneck", "classifier")}
    return names


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    kept = ("glca.", "glca_norm.", "glca_head.", "head.", "uncertainty_w")
    found = {}
    for name, tensor in tensors.items():
        prefixes = [prefix for prefix in names if prefix and name.startswith(prefix)]
        if prefixes:
            prefix = max(prefixes, key=len)
            found[names[prefix] + name.removeprefix(prefix)] = tensor
        elif name.startswith(kept) or "" not in names:
            found[name] = tensor
        else:
            found[names[""] + name] = tensor
    return found
