"""Weights of the official ACMIL program, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from domains.common.attention import GatedAttentionPooling, HeadProjection
from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.files import fill_views
from domains.medical.acmil import ACMIL

HEADS = 8  # of every official ACMIL_MHA


def from_official(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ACMIL:
    """Build ACMIL from the state dict of the official program; the shapes say which.

    Source: dazhangyu123/ACMIL @ e53d19c (MIT), architecture/transformer.py: ACMIL_GA and ACMIL_MHA. Its authors publish
    features and no weights.

    Args:
        weights: the entry `model` of an official checkpoint.
        config: the program's options that shapes do not show, and what they are where absent: `n_masked_patch` 10,
            `mask_drop` 0.6, `dropout` 0.1.

    Raises:
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
        ConfigError: an option is no number.
    """
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    lacking = [name for name in ("dimreduction.fc1.weight", "Slide_classifier.fc.weight") if name not in weights]
    if lacking:
        raise CheckpointMismatchError("official weights", missing=lacking)
    dim, feature_dim = weights["dimreduction.fc1.weight"].shape
    n_classes = len(weights["Slide_classifier.fc.weight"])
    config = config or {}
    try:
        masked_top, probability = int(config.get("n_masked_patch", 10)), float(config.get("mask_drop", 0.6))
        dropout = float(config.get("dropout", 0.1))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"an option of the official program is no number: {error}; correct it") from None
    options: dict[str, Any] = {"masked_top": masked_top, "mask_probability": probability, "dropout": dropout}
    if "q" in weights:
        options |= {"attention": "multi_head", "branches": weights["q"].shape[-2], "heads": HEADS}
    else:
        numbers = [int(found[1]) for name in weights if (found := re.match(r"classifier\.(\d+)\.", name))]
        gate = weights.get("attention.attention_V.0.weight")
        options |= {"branches": max(numbers, default=0) + 1, "gate_dim": 128 if gate is None else len(gate)}
    net = ACMIL(feature_dim, n_classes, dim, **options)
    if net.branch_classifier is None:  # the official program has one that it never trains
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    fill_views(_views(net), weights, "official weights")
    return net


def to_official(net: ACMIL) -> dict[str, Tensor]:
    """Return the network's weights under the official program's names."""
    named = {name: view.clone() for name, view in _views(net).items()}
    if net.branch_classifier is None:
        named |= {
            f"classifier.0.fc.{part}": named[f"Slide_classifier.fc.{part}"].clone() for part in ("weight", "bias")
        }
    return {name: tensor[None] if name == "q" else tensor for name, tensor in named.items()}


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> ACMIL:
    """Import as `from_official`."""
    return from_official(weights, options)


def _views(net: ACMIL) -> dict[str, Tensor]:
    views = {"dimreduction.fc1.weight": net.reduce.weight.data}
    views |= _linear("Slide_classifier.fc", net.classifier)
    if net.branch_classifier is not None:
        for k in range(len(net.branch_classifier.weight)):
            views |= _branch(f"classifier.{k}.fc", net.branch_classifier, k)
    if isinstance(net.attention, GatedAttentionPooling):
        for half, name in enumerate(("attention_V", "attention_U")):
            views[f"attention.{name}.0.weight"] = net.attention.gate.weight.data.chunk(2)[half]
            views[f"attention.{name}.0.bias"] = net.attention.gate.bias.data.chunk(2)[half]
        views |= _linear("attention.attention_weights", net.attention.score)
        return views
    views["q"] = net.attention.queries.data
    for k in range(net.attention.branches):
        views |= _branch(f"sub_attention.{k}.q_proj", net.attention.query, k)
        views |= _branch(f"sub_attention.{k}.k_proj", net.attention.key, k)
        views |= _projection(f"sub_attention.{k}", net.attention.out, k)
    if net.bag is not None:
        views |= _projection("bag_attention", net.bag, 0)
    return views


def _linear(name: str, linear: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": linear.weight.data, f"{name}.bias": linear.bias.data}


def _branch(name: str, linear: Any, k: int) -> dict[str, Tensor]:
    return {f"{name}.weight": linear.weight.data[k], f"{name}.bias": linear.bias.data[k]}


def _projection(name: str, projection: HeadProjection, k: int) -> dict[str, Tensor]:
    views = _branch(f"{name}.v_proj", projection.value, k) | _branch(f"{name}.out_proj", projection.project, k)
    views[f"{name}.layer_norm.weight"] = projection.norm_weight.data[k]
    views[f"{name}.layer_norm.bias"] = projection.norm_bias.data[k]
    return views
