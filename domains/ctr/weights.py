"""Foreign AutoInt weights -> our network, and back.

Each program's names are mapped to *views* of our parameters, so that one table serves both directions: importing
copies into the views, exporting reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from domains.common.attention import FieldAttention
from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.files import fill_views
from domains.ctr.autoint import AutoInt, DeepTower, Variant

_CHUNKS = ("query", "key", "value", "residual")


def from_official(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], roles: Mapping[str, str] | None = None
) -> AutoInt:
    """Build AutoInt from the variables of the official TensorFlow program.

    Source: DeepGraphLearning/RecommenderSystems @ e07370a, featureRec (MIT); both programs, `autoint` and `movielens`
    (whose multi-valued field comes last).

    Args:
        weights: TF variable name -> tensor (kernels `[in, out]`).
        config: the program's options: `field_size`, `feature_size`, `embedding_size`, `blocks`, `block_shape`,
            `heads`, `has_residual`, `deep_layers`, `batch_norm`, `numeric_fields`, and `variant` `movielens` where the
            last field is multi-valued.
        roles: TF name -> role such as `block.0.query.kernel`; default by TF's order of creation.

    Raises:
        CheckpointMismatchError: a variable is missing, unknown, or of another shape.
    """
    kinds = ["categorical"] * int(config["field_size"])
    for position in config.get("numeric_fields") or ():
        kinds[position] = "numerical"
    if config.get("variant") == "movielens":
        kinds[-1] = "multi"
    net = AutoInt(
        [{"name": f"field_{i}", "kind": kind, "size": 1} for i, kind in enumerate(kinds)],
        dim=int(config["embedding_size"]),
        depth=int(config["blocks"]),
        width=list(config["block_shape"]),
        heads=int(config["heads"]),
        residual=bool(config.get("has_residual", True)),
        deep=config.get("deep_layers") or (),
        deep_batch_norm=bool(config.get("batch_norm", 0)),
        rows=int(config["feature_size"]),
    )
    fill_views(_official_views(net, roles or official_roles(config)), weights, "official weights")
    return net


def to_official(net: AutoInt, roles: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return the network's weights under the official program's variable names."""
    config = {
        "blocks": len(net.blocks),
        "has_residual": cast(FieldAttention, net.blocks[0]).residual != "none",
        "deep_layers": [1] * len(net.deep.kernels()) if net.deep is not None else [],
    }
    return {name: view.clone() for name, view in _official_views(net, roles or official_roles(config)).items()}


def official_roles(config: Mapping[str, Any]) -> dict[str, str]:
    """TF variable name -> role, from the order in which the official program creates its variables."""
    roles: dict[str, str] = {}

    def variable(role: str) -> None:
        count = sum(name.startswith("Variable") for name in roles)
        roles[f"Variable_{count}" if count else "Variable"] = role

    for i in range(len(config.get("deep_layers") or ())):
        variable(f"deep.{i}.kernel")
        variable(f"deep.{i}.bias")
    chunks = _CHUNKS if config.get("has_residual", True) else _CHUNKS[:3]
    for block in range(int(config["blocks"])):
        for chunk in chunks:
            count = sum(name.endswith("/kernel") for name in roles)
            prefix = f"dense_{count}" if count else "dense"
            roles[f"{prefix}/kernel"] = f"block.{block}.{chunk}.kernel"
            roles[f"{prefix}/bias"] = f"block.{block}.{chunk}.bias"
        variable(f"block.{block}.layernorm.beta")
        variable(f"block.{block}.layernorm.gamma")
    return roles


def from_fuxictr(
    weights: Mapping[str, Tensor], fields: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> AutoInt:
    """Build AutoInt from a FuxiCTR state dict.

    Source: reczoo/FuxiCTR @ 0245987 (Apache-2.0), model_zoo/AutoInt.

    Args:
        weights: its state dict; names start with `embedding_layer`, `self_attention`, `fc`, `dnn`, `lr_layer`.
        fields: name, kind (`numerical`, `categorical`, `multi`) and size of each field in FuxiCTR's feature order.
        options: FuxiCTR's own: `embedding_dim`, `attention_layers`, `num_heads`, `attention_dim`,
            `dnn_hidden_units`, `batch_norm`, `layer_norm`, `use_scale`, `use_wide`, `use_residual`, `net_dropout`.

    Raises:
        CheckpointMismatchError: a tensor is missing, unknown, or of another shape.
    """
    net = AutoInt(
        fields,
        dim=int(options["embedding_dim"]),
        depth=int(options["attention_layers"]),
        width=int(options["attention_dim"]),
        heads=int(options["num_heads"]),
        variant="fuxictr",
        deep=options.get("dnn_hidden_units") or (),
        deep_batch_norm=bool(options.get("batch_norm", False)),
        deep_dropout=float(options.get("net_dropout", 0.0)),
        dropout=float(options.get("net_dropout", 0.0)),
        wide=bool(options.get("use_wide", False)),
        residual=bool(options.get("use_residual", True)),
        scaled=bool(options.get("use_scale", False)),
        layer_norm=bool(options.get("layer_norm", False)),
    )
    fill_views(_fuxictr_views(net), weights, "FuxiCTR weights")
    return net


def to_fuxictr(net: AutoInt) -> dict[str, Tensor]:
    """Return the weights of a network of variant `fuxictr` as a FuxiCTR state dict."""
    _require(net, "fuxictr")
    return {name: view.clone() for name, view in _fuxictr_views(net).items()}


def from_deepctr_torch(
    weights: Mapping[str, Tensor], fields: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> AutoInt:
    """Build AutoInt from a DeepCTR-Torch state dict (numerical fields bypass the attention there).

    Source: shenweichen/DeepCTR-Torch @ f685425 (Apache-2.0), deepctr_torch/models/autoint.py.

    Args:
        weights: its state dict; names start with `embedding_dict`, `linear_model`, `int_layers`, `dnn`, `out`.
        fields: name, kind and size of each field; the categorical ones in the order of DeepCTR-Torch's columns.
        options: DeepCTR-Torch's own: `att_layer_num`, `att_head_num`, `att_res`, `dnn_hidden_units`, `dnn_dropout`.

    Raises:
        CheckpointMismatchError: a tensor is missing, unknown, or of another shape.
    """
    name = next((str(f["name"]) for f in fields if f["kind"] == "categorical"), None)
    if name is None or f"embedding_dict.{name}.weight" not in weights:
        raise CheckpointMismatchError("DeepCTR-Torch weights", missing=[f"embedding_dict.{name}.weight"])
    dim = weights[f"embedding_dict.{name}.weight"].shape[1]
    net = AutoInt(
        fields,
        dim=dim,
        depth=int(options.get("att_layer_num", 3)),
        width=dim,
        heads=int(options.get("att_head_num", 2)),
        variant="deepctr_torch",
        deep=options.get("dnn_hidden_units", (256, 128)) or (),
        deep_dropout=float(options.get("dnn_dropout", 0.0)),
        residual=bool(options.get("att_res", True)),
    )
    joined = weights.get("dnn_linear.weight")
    if joined is not None:  # one output map over both parts there, two here
        flat = 0 if net.output is None else net.output.in_features
        split = {"dnn_linear.attention": joined[:, :flat], "dnn_linear.deep": joined[:, flat:]}
        kept = {name: part for name, part in split.items() if part.numel()}
        weights = {name: tensor for name, tensor in weights.items() if name != "dnn_linear.weight"} | kept
    fill_views(_deepctr_torch_views(net), weights, "DeepCTR-Torch weights")
    return net


def to_deepctr_torch(net: AutoInt) -> dict[str, Tensor]:
    """Return the weights of a network of variant `deepctr_torch` as a DeepCTR-Torch state dict."""
    _require(net, "deepctr_torch")
    views = _deepctr_torch_views(net)
    joined = torch.cat([view.flatten() for name, view in views.items() if name.startswith("dnn_linear.")])
    state = {name: view.clone() for name, view in views.items() if not name.startswith("dnn_linear.")}
    return {**state, "dnn_linear.weight": joined[None]}


def _require(net: AutoInt, variant: Variant) -> None:
    if net.variant != variant:
        raise ConfigError(f"a network of variant {net.variant!r} has no counterpart in {variant}")


def _joined(block: FieldAttention) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Kernel (out, in) and bias of each map that the block holds in one product."""
    kernels = torch.split(block.project.weight.data, block.width)
    biases = [None] * len(kernels) if block.project.bias is None else torch.split(block.project.bias.data, block.width)
    return {chunk: (kernel, bias) for chunk, kernel, bias in zip(_CHUNKS, kernels, biases, strict=False)}


def _official_views(net: AutoInt, roles: Mapping[str, str]) -> dict[str, Tensor]:
    by_role: dict[str, Tensor] = {}
    for i, module in enumerate(net.blocks):
        block = cast(FieldAttention, module)
        for chunk, (kernel, bias) in _joined(block).items():
            by_role[f"block.{i}.{chunk}.kernel"] = kernel.T
            if bias is not None:
                by_role[f"block.{i}.{chunk}.bias"] = bias
        if block.norm is not None:
            by_role[f"block.{i}.layernorm.beta"] = block.norm.bias.data
            by_role[f"block.{i}.layernorm.gamma"] = block.norm.weight.data
    views = {"feature_embeddings": net.table.weight.data}
    if net.output is not None:
        views |= {"prediction": net.output.weight.data.T, "prediction_bias": net.output.bias.data[0]}
    if net.deep is not None:
        linears, norms = _tower(net.deep)
        for i, linear in enumerate(linears):
            by_role |= {f"deep.{i}.kernel": linear.weight.data.T, f"deep.{i}.bias": linear.bias.data}
        for i, norm in enumerate(norms):
            views |= {f"bn_{i}/{name}": view for name, view in _batch_norm(norm).items()}
        views["prediction_dense"] = net.deep.output.weight.data.T
        views["prediction_bias_dense"] = net.deep.output.bias.data[0]
    return {**{name: by_role[role] for name, role in roles.items() if role in by_role}, **views}


def _fuxictr_views(net: AutoInt) -> dict[str, Tensor]:
    views: dict[str, Tensor] = {}
    tables = {"embedding_layer.embedding_layer": net.table}
    if net.wide is not None:
        tables["lr_layer.embedding_layer.embedding_layer"] = net.wide
    for prefix, table in tables.items():
        for field, offset in zip(net.layout.fields, net.layout.offsets, strict=True):
            rows = table.weight.data[offset : offset + field.size]
            views[f"{prefix}.embedding_layers.{field.name}.weight"] = rows.T if field.kind == "numerical" else rows
    for i, module in enumerate(net.blocks):
        block = cast(FieldAttention, module)
        for chunk, (kernel, _) in _joined(block).items():
            short = {"query": "q", "key": "k", "value": "v", "residual": "res"}[chunk]
            views[f"self_attention.{i}.W_{short}.weight"] = kernel
        if block.norm is not None:
            views[f"self_attention.{i}.layer_norm.weight"] = block.norm.weight.data
            views[f"self_attention.{i}.layer_norm.bias"] = block.norm.bias.data
    if net.output is not None:
        views |= {"fc.weight": net.output.weight.data, "fc.bias": net.output.bias.data}
    if net.deep is not None:
        layers = [layer for layer in net.deep.layers if not isinstance(layer, nn.Dropout) or layer.p > 0]
        for i, layer in enumerate([*layers, net.deep.output]):
            views |= {f"dnn.mlp.{i}.{name}": tensor.data for name, tensor in layer.state_dict(keep_vars=True).items()}
    return views


def _deepctr_torch_views(net: AutoInt) -> dict[str, Tensor]:
    if net.wide is None or net.bias is None:
        raise ConfigError("DeepCTR-Torch's AutoInt always has the linear term; build the network with it")
    views: dict[str, Tensor] = {"out.bias": net.bias.data}
    numerical = []
    for field, offset in zip(net.layout.fields, net.layout.offsets, strict=True):
        if field.kind == "numerical":
            numerical.append(offset)
            continue
        rows = slice(offset, offset + field.size)
        views[f"embedding_dict.{field.name}.weight"] = net.table.weight.data[rows]
        views[f"linear_model.embedding_dict.{field.name}.weight"] = net.wide.weight.data[rows]
    if numerical:
        first = numerical[0]
        if numerical != list(range(first, first + len(numerical))):
            raise ConfigError("DeepCTR-Torch keeps numerical fields together; list them one behind the other")
        views["linear_model.weight"] = net.wide.weight.data[first : first + len(numerical)]
    for i, module in enumerate(net.blocks):
        for chunk, (kernel, _) in _joined(cast(FieldAttention, module)).items():
            name = {"query": "W_Query", "key": "W_key", "value": "W_Value", "residual": "W_Res"}[chunk]
            views[f"int_layers.{i}.{name}"] = kernel.T
    if net.output is not None:
        views["dnn_linear.attention"] = net.output.weight.data
    if net.deep is not None:
        views["dnn_linear.deep"] = net.deep.output.weight.data
        for i, linear in enumerate(_tower(net.deep)[0]):
            views |= {f"dnn.linears.{i}.weight": linear.weight.data, f"dnn.linears.{i}.bias": linear.bias.data}
    return views


def _tower(deep: DeepTower) -> tuple[list[nn.Linear], list[nn.BatchNorm1d]]:
    linears = [layer for layer in deep.layers if isinstance(layer, nn.Linear)]
    norms = [layer for layer in deep.layers if isinstance(layer, nn.BatchNorm1d)]
    return linears, norms


def _batch_norm(norm: nn.BatchNorm1d) -> dict[str, Tensor]:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    names = ("beta", "gamma", "moving_mean", "moving_variance")
    return dict(zip(names, (norm.bias.data, norm.weight.data, mean, variance), strict=True))


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> AutoInt:
    """Import as `from_official`; options may hold `roles`."""
    return from_official(weights, options, options.get("roles"))


def import_fuxictr(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> AutoInt:
    """Import as `from_fuxictr`; options hold FuxiCTR's own and `fields`."""
    return from_fuxictr(weights, _listed(options), options)


def import_deepctr_torch(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> AutoInt:
    """Import as `from_deepctr_torch`; options hold DeepCTR-Torch's own and `fields`."""
    return from_deepctr_torch(weights, _listed(options), options)


def _listed(options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if "fields" not in options:
        raise ConfigError('the options lack "fields": a list of {"name", "kind", "size"} in the program\'s field order')
    return cast(Sequence[Mapping[str, Any]], options["fields"])
