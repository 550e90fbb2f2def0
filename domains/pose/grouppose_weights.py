"""Weights of the official Group Pose program, and back; parts of other programs' weights to start from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from domains.common.attention.window import relative_position_index
from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.imported import ImportReport
from domains.pose.backbone import SWINS
from domains.pose.grouppose import GroupPose

HEADS = 8  # of every published Group Pose
SOURCE = "official weights"
# (name here, name there); the first that matches is taken
NAMES = tuple(
    (re.compile(own), theirs)
    for own, theirs in (
        (r"backbone\.patch\.(.*)", r"backbone.0.patch_embed.proj.\1"),
        (r"backbone\.patch_norm\.(.*)", r"backbone.0.patch_embed.norm.\1"),
        (r"backbone\.stages\.(\d+)\.(\d+)\.(fc\d.*)", r"backbone.0.layers.\1.blocks.\2.mlp.\3"),
        (r"backbone\.stages\.(\d+)\.(\d+)\.(.*)", r"backbone.0.layers.\1.blocks.\2.\3"),
        (r"backbone\.merging\.(\d+)\.(.*)", r"backbone.0.layers.\1.downsample.\2"),
        (r"backbone\.(.*)", r"backbone.0.\1"),
        (r"projection\.maps\.(.*)", r"input_proj.\1"),
        (r"level_embedding", r"transformer.level_embed"),
        (r"(keypoint|instance)_embedding", r"transformer.\1_embedding.weight"),
        (r"content", r"transformer.tgt_embed"),
        (r"selection\.(.*)", r"transformer.enc_output.\1"),
        (r"selection_norm\.(.*)", r"transformer.enc_output_norm.\1"),
        (r"selection_class\.(.*)", r"transformer.enc_out_class_embed.\1"),
        (r"selection_pose\.(.*)", r"transformer.enc_pose_embed.\1"),
        (r"decoder\.position\.(.*)", r"transformer.decoder.half_pose_ref_point_head.\1"),
        (r"decoder\.(class|pose)_heads\.(.*)", r"\1_embed.\2"),
        (r"(encoder|decoder)\.layers\.(\d+)\.feed_forward\.(.*)", r"transformer.\1.layers.\2.\3"),
        (r"encoder\.layers\.(\d+)\.attention\.(.*)", r"transformer.encoder.layers.\1.self_attn.\2"),
        (r"decoder\.layers\.(\d+)\.cross\.(.*)", r"transformer.decoder.layers.\1.cross_attn.\2"),
        (r"decoder\.layers\.(\d+)\.group\.(\w+)_norm\.(.*)", r"transformer.decoder.layers.\1.\2_norm.\3"),
        (r"decoder\.layers\.(\d+)\.group\.(\w+)\.out\.(.*)", r"transformer.decoder.layers.\1.\2_attn.out_proj.\3"),
        (
            r"decoder\.layers\.(\d+)\.group\.(\w+)\.(query|key_value)\.(.*)",
            r"transformer.decoder.layers.\1.\2_attn.\3_\4",
        ),
        (r"(encoder|decoder)\.(.*)", r"transformer.\1.\2"),
    )
)
PACKED = re.compile(r"(.*_attn\.)query_(weight|bias)")
ALIAS = re.compile(r"transformer\.decoder\.((?:class|pose)_embed\.\d+\..*)")
INDEX = re.compile(r"backbone\.0\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index")


def from_official(
    weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, report: ImportReport | None = None
) -> GroupPose:
    """Build Group Pose from the entry `model` of an official checkpoint; sizes are told by the shapes.

    Source: Michel-liu/GroupPose @ 127fe0e (Apache-2.0). Heads may be there under either of their names, or both.

    Args:
        weights: the state dict.
        config: options that shapes do not show, under the official names: `num_queries` 100, `nheads` 8,
            `pe_temperature` 20, `dropout` 0, `dilation`, and `num_body_points` where it is to differ from the file's:
            the weights that depend on it then start at random, and a warning names them. All else is ignored.
        report: gets what became of each weight.

    Raises:
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
        ConfigError: an option contradicts the shapes.
    """
    report, config = ImportReport() if report is None else report, config or {}
    named = _one_of_each(weights)
    net = GroupPose(**_options(named, config))
    own = official_state(net)
    for name in (
        "transformer.keypoint_embedding.weight",
        *(f"transformer.enc_pose_embed.layers.3.{p}" for p in _PARTS),
    ):
        if name in named and name in own and named[name].shape != own[name].shape and "num_body_points" in config:
            named[name] = own[name]
            report.fresh.append(name)
    if report.fresh:
        warnings.warn(f"{SOURCE}: another number of keypoints; at random start {', '.join(report.fresh)}", stacklevel=2)
    _check(named, own)
    _load(net, named)
    report.loaded += sorted(named.keys() - report.fresh)
    return net


def to_official(net: GroupPose) -> dict[str, Tensor]:
    """Return the network's weights under the official names, heads under both of theirs."""
    named = {name: tensor.clone() for name, tensor in official_state(net).items()}
    heads = [name for name in named if name.startswith(("class_embed.", "pose_embed."))]
    return named | {f"transformer.decoder.{name}": named[name].clone() for name in heads}


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> GroupPose:
    """Import, and print what became of the weights."""
    report = ImportReport()
    net = from_official(weights, options, report=report)
    print("\n".join(report.lines()))
    return net


def initialise(net: GroupPose, weights: Mapping[str, Tensor]) -> ImportReport:
    """Load what fits by name and shape of other weights, and say what.

    Understood are ResNet-50 of torchvision, Swin of its authors' program and of timm, and the backbone, projections and
    encoder of programs with the names of Deformable DETR's descendants, such as DINO and ED-Pose.

    Args:
        net: the network.
        weights: state dict.

    Raises:
        CheckpointMismatchError: nothing fits.
    """
    own, report = official_state(net), ImportReport()
    found = {}
    for name, tensor in _foreign(weights).items():
        if name in own and own[name].shape == tensor.shape and not INDEX.fullmatch(name):
            found[name] = tensor
        elif not INDEX.fullmatch(name):
            report.ignored.append(name)
    if not found:
        raise CheckpointMismatchError("weights to start from", unexpected=sorted(weights)[:8])
    report.loaded = sorted(found)
    report.fresh = sorted(name for name in own.keys() - found.keys() if not INDEX.fullmatch(name))
    _load(net, own | found)
    return report


def official_state(net: GroupPose) -> dict[str, Tensor]:
    """Weights of the network under the official names, heads under the shorter of theirs."""
    state = {_official(name): tensor.detach() for name, tensor in net.state_dict().items()}
    named = {}
    for name, tensor in state.items():
        if packed := PACKED.fullmatch(name):
            other = state[f"{packed[1]}key_value_{packed[2]}"]
            named[f"{packed[1]}in_proj_{packed[2]}"] = torch.cat([tensor, other])
        elif "_attn.key_value_" not in name:
            named[name] = tensor
        if name.endswith("attn.relative_position_bias_table"):
            window = (int(len(tensor) ** 0.5) + 1) // 2
            index = relative_position_index(window, tensor.device)
            named[name.replace("bias_table", "index")] = index
    return named


_PARTS = ("weight", "bias")


def _official(name: str) -> str:
    if found := re.fullmatch(r"backbone\.norms\.(\d+)\.(.*)", name):
        return f"backbone.0.norm{int(found[1]) + 1}.{found[2]}"
    for own, theirs in NAMES:
        if own.fullmatch(name):
            return own.sub(theirs, name)
    return name


def _load(net: GroupPose, named: Mapping[str, Tensor]) -> None:
    """Copy weights of fitting names and shapes into the network."""
    state = net.state_dict()
    with torch.no_grad():
        for own, tensor in state.items():
            name = _official(own)
            if found := re.fullmatch(r"(.*_attn\.)(query|key_value)_(weight|bias)", name):
                packed = named[f"{found[1]}in_proj_{found[3]}"]
                dim = len(packed) // 3
                tensor.copy_(packed[:dim] if found[2] == "query" else packed[dim:])
            else:
                tensor.copy_(named[name])


def _check(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing, unexpected = sorted(own.keys() - named.keys()), sorted(named.keys() - own.keys())
    wrong = [
        f"{name}: {tuple(named[name].shape)} != {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in named and named[name].shape != tensor.shape
    ]
    wrong += [
        f"{name}: numbers places otherwise"
        for name, tensor in own.items()
        if INDEX.fullmatch(name) and name in named and not wrong and not torch.equal(named[name].cpu(), tensor.cpu())
    ]
    if missing or unexpected or wrong:
        raise CheckpointMismatchError(SOURCE, missing, unexpected, wrong)


def _one_of_each(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefix of parallel training, and keep one of the two names of each head."""
    plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    named = {name: tensor for name, tensor in plain.items() if not ALIAS.fullmatch(name)}
    for name, tensor in plain.items():
        alias = ALIAS.fullmatch(name)
        if alias and not torch.equal(named.setdefault(alias[1], tensor), tensor):
            raise CheckpointMismatchError(SOURCE, wrong_shape=[f"{name}: not the same as {alias[1]}"])
    return named


def _options(named: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    first = {
        side: f"transformer.{side}.layers.0.{kind}_attn" for side, kind in (("encoder", "self"), ("decoder", "cross"))
    }
    needed = ["transformer.level_embed", "transformer.keypoint_embedding.weight", "input_proj.0.0.weight"]
    needed += [f"{first[side]}.attention_weights.weight" for side in first]
    needed += ["transformer.encoder.layers.0.linear1.weight", "class_embed.0.weight"]
    lacking = [name for name in needed if name not in named]
    if lacking:
        raise CheckpointMismatchError(SOURCE, missing=lacking)
    levels, dim = named["transformer.level_embed"].shape
    try:
        heads, queries = int(config.get("nheads", HEADS)), int(config.get("num_queries", 100))
        keypoints = int(config.get("num_body_points", len(named["transformer.keypoint_embedding.weight"])))
        dropout, temperature = float(config.get("dropout", 0.0)), float(config.get("pe_temperature", 20))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"an option of the official program is no number: {error}; correct it") from None
    rows = {side: len(named[f"{name}.attention_weights.weight"]) for side, name in first.items()}
    if any(count % (heads * levels) for count in rows.values()):
        raise ConfigError(f"nheads {heads}: does not fit the weights; give the nheads of training")
    content = named.get("transformer.tgt_embed")
    return _backbone(named) | {
        "keypoints": keypoints,
        "queries": queries if content is None else len(content),
        "dim": dim,
        "heads": heads,
        "encoder_depth": _count(named, r"transformer\.encoder\.layers\.(\d+)\."),
        "decoder_depth": _count(named, r"transformer\.decoder\.layers\.(\d+)\."),
        "hidden": len(named["transformer.encoder.layers.0.linear1.weight"]),
        "levels": levels,
        "encoder_points": rows["encoder"] // (heads * levels),
        "decoder_points": rows["decoder"] // (heads * levels),
        "classes": len(named["class_embed.0.weight"]),
        "dropout": dropout,
        "temperature": temperature,
        "learnable_tgt_init": content is not None,
        "dilation": bool(config.get("dilation", False)),
    }


def _count(named: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in named if (found := re.match(pattern, name)))


def _backbone(named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Backbone by its weights; without any, the channels of the maps that it would have given."""
    inside = [name for name in named if name.startswith("backbone.")]
    if not inside:
        kernels = [named[f"input_proj.{i}.0.weight"] for i in range(_count(named, r"input_proj\.(\d+)\."))]
        return {"backbone": None, "channels": [kernel.shape[1] for kernel in kernels if kernel.shape[-1] == 1]}
    if "backbone.0.body.conv1.weight" in named:
        return {"backbone": "r50"}
    if "backbone.0.layers.0.0.weight" in named:
        return {"backbone": "small"}
    patch = named.get("backbone.0.patch_embed.norm.weight")
    table = named.get("backbone.0.layers.0.blocks.0.attn.relative_position_bias_table")
    for name, (dim, depths, _, window) in SWINS.items():
        if patch is None or table is None:
            break
        depth = _count(named, r"backbone\.0\.layers\.2\.blocks\.(\d+)\.")
        if (dim, depths[2], (2 * window - 1) ** 2) == (len(patch), depth, len(table)):
            return {"backbone": name}
    raise CheckpointMismatchError(SOURCE, unexpected=inside)


def _foreign(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of backbones alone, and of programs with names like the official ones."""
    plain = {re.sub(r"^(?:module\.|model\.)+", "", name): tensor for name, tensor in weights.items()}
    plain = {name: tensor for name, tensor in plain.items() if not name.endswith("num_batches_tracked")}
    if "conv1.weight" in plain:
        return {f"backbone.0.body.{name}": tensor for name, tensor in plain.items()}
    if "patch_embed.proj.weight" not in plain:
        return {name: tensor for name, tensor in plain.items() if not ALIAS.fullmatch(name)}
    later = "layers.0.downsample.reduction.weight" not in plain  # timm merges before the blocks of the next stage
    named = {}
    for name, tensor in plain.items():
        found = re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name)
        own = f"layers.{int(found[1]) - 1}.downsample.{found[2]}" if found and later else name
        named[f"backbone.0.{own}"] = tensor
    return named
