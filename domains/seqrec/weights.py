"""Weights of the official MQSA-TED program, and back; of the same layout: SASRec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from domains.common.attention import LQueryBlock
from domains.common.errors import ConfigError
from domains.common.files import fill_views
from domains.seqrec.mqsa_ted import MQSATED

BRANCHES = ("short", "long")
# our argument -> the official program's option and its default
_OPTIONS = {
    "n_items": ("num_item", 0),
    "dim": ("num_factor", 64),
    "max_len": ("max_len", 50),
    "depth": ("num_block", 1),
    "heads": ("num_head", 1),
    "window": ("L", 3),
}


def from_official(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], roles: Mapping[str, str] | None = None
) -> MQSATED:
    """Build MQSA-TED from the variables of the official TensorFlow program.

    Source: zhuty16/MQSA-TED @ 91c9001, MQSA_TED.py (no licence file; nothing of it is copied). Its authors publish no
    weights.

    Args:
        weights: TF variable name -> tensor (kernels `[in, out]`).
        config: the program's options: `num_item`, `max_len`, `num_factor`, `num_block`, `num_head`, `L`, `alpha`.
        roles: TF name -> role such as `short.block.0.query.kernel`; default by TF's order of creation.

    Raises:
        CheckpointMismatchError: a variable is missing, unknown, or of another shape.
        ConfigError: an option is missing or no number.
    """
    if "num_item" not in config:
        raise ConfigError('the options lack "num_item", the number of items; give the options of the official program')
    try:
        sizes = {ours: int(config.get(name, default)) for ours, (name, default) in _OPTIONS.items()}
        alpha, dropout = float(config.get("alpha", 0.5)), float(config.get("dropout_rate", 0.0))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"an option of the official program is no number: {error}; correct it") from None
    net = MQSATED(alpha=alpha, dropout=dropout, **cast(Any, sizes))
    roles = roles or official_roles(sizes["depth"])
    fill_views(_views(net, roles), weights, "official weights")
    return net


def to_official(net: MQSATED, roles: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return the network's weights under the official program's variable names."""
    roles = roles or official_roles(len(cast(nn.ModuleList, net.attention.branches[0])))
    return {name: view.clone() for name, view in _views(net, roles).items()}


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> MQSATED:
    """Import as `from_official`; options may hold `roles`."""
    return from_official(weights, options, options.get("roles"))


def official_roles(depth: int) -> dict[str, str]:
    """TF variable name -> role, from the order in which the official program creates its variables."""
    roles: dict[str, str] = {}
    dense = 0
    for branch in BRANCHES:
        norms = []
        for block in range(depth):
            for layer in ("query", "key", "value", "ffn1", "ffn2"):
                name = f"dense_{dense}" if dense else "dense"
                roles |= {f"{name}/{part}": f"{branch}.block.{block}.{layer}.{part}" for part in ("kernel", "bias")}
                dense += 1
            norms += [f"{branch}.block.{block}.norm_query", f"{branch}.block.{block}.norm_attn"]
        norms.append(f"{branch}.norm_out")
        for i, role in enumerate(f"{norm}.{part}" for norm in norms for part in ("beta", "gamma")):
            roles[f"block_{branch}_query/Variable" + (f"_{i}" if i else "")] = role
    return roles


def _views(net: MQSATED, roles: Mapping[str, str]) -> dict[str, Tensor]:
    by_role: dict[str, Tensor] = {}
    for branch, blocks, last in zip(BRANCHES, net.attention.branches, net.attention.norms, strict=True):
        for i, module in enumerate(cast(nn.ModuleList, blocks)):
            block, prefix = cast(LQueryBlock, module), f"{branch}.block.{i}"
            key, value = block.attention.key_value.weight.data.chunk(2)
            key_bias, value_bias = block.attention.key_value.bias.data.chunk(2)
            by_role |= {f"{prefix}.key.kernel": key.T, f"{prefix}.key.bias": key_bias}
            by_role |= {f"{prefix}.value.kernel": value.T, f"{prefix}.value.bias": value_bias}
            linears = {"query": block.attention.query, "ffn1": block.inner, "ffn2": block.outer}
            for role, linear in linears.items():
                by_role |= {f"{prefix}.{role}.kernel": linear.weight.data.T, f"{prefix}.{role}.bias": linear.bias.data}
            by_role |= _norm(f"{prefix}.norm_query", block.attention.norm)
            by_role |= _norm(f"{prefix}.norm_attn", block.norm)
        by_role |= _norm(f"{branch}.norm_out", cast(nn.LayerNorm, last))
    views = {name: by_role[role] for name, role in roles.items() if role in by_role}
    views["item_embedding/item_embedding"] = net.items.weight.data
    views["positional_embedding/position_embedding"] = net.positions.data
    return views


def _norm(role: str, norm: nn.LayerNorm) -> dict[str, Tensor]:
    return {f"{role}.beta": norm.bias.data, f"{role}.gamma": norm.weight.data}
