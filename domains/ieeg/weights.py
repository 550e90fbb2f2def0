"""Weights of the official MVPFormer program, of its published files, and of braindecode's port; and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.lora import LowRankLinear
from domains.ieeg.mvpformer import GenerativeMVPFormer, MVPFormer, MVPFormerClassifier
from domains.ieeg.wavelet import coefficient_sizes

Network = GenerativeMVPFormer | MVPFormerClassifier
# in the official files and trained by nothing: kept neither there nor here
UNUSED = re.compile(r"seizure_embeddings|class_loss\.weight|.*\.ln_2\.weight|.*\.(time_bias|masked_bias)")
LORA_ALPHA = 16.0
HEAD_DIM = 64  # of the published S; M has 128
LARGEST = 8192  # samples of a segment that are tried for a width of coefficients


@dataclass
class Report:
    """What became of each weight.

    Args:
        loaded: names that are in the network now.
        ignored: names that nothing uses.
        filled: names the file lacked and that were set to what the official loader sets them to.
    """

    loaded: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Say it."""
        said = [f"loaded: {len(self.loaded)} tensors"]
        for what, names in (("ignored, unused by the model", self.ignored), ("missing, set to one", self.filled)):
            if names:
                said.append(f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}")
        return said


def from_official(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    base: Mapping[str, Tensor] | None = None,
    report: Report | None = None,
) -> Network:
    """Build MVPFormer from a state dict of the official program, a published file, or braindecode's port.

    Sizes are told by the shapes. Keys begin with `mvpformer.` (program), `genie.` (published `genie-*.pt`) or
    `blocks.` (braindecode). A square head makes the generative network, any other the classifier. Published
    fine-tuned files hold the head and the adapters alone: give the base file, too.

    Args:
        weights: the state dict.
        config: what shapes do not show: `n_head` (else by heads of 64 numbers, of 128 from a width of 2,048 on),
            `lora_alpha` (16), `global_att`, `scale_attn_by_inverse_layer_idx`, `size_input`, and the dropouts.
        base: state dict that fills what `weights` lacks.
        report: gets what became of each weight.

    Raises:
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
        ConfigError: an option contradicts the shapes.
    """
    named, report = official_names(weights), Report() if report is None else report
    if base is not None:
        below = official_names(base)
        head = [] if "head.head.weight" not in named else ["head.head.weight"]
        named = {name: tensor for name, tensor in below.items() if name not in head} | named
    report.ignored += sorted(name for name in named if UNUSED.fullmatch(name))
    named = {name: tensor for name, tensor in named.items() if not UNUSED.fullmatch(name)}
    if "encoder.ln.weight" not in named and "encoder.proj.weight" in named:
        # the official loader does the same
        named["encoder.ln.weight"] = torch.ones(named["encoder.proj.weight"].shape[1])
        report.filled.append("encoder.ln.weight")
    net = _build(named, config or {})
    views = _views(net)
    missing, unexpected = sorted(views.keys() - named.keys()), sorted(named.keys() - views.keys())
    wrong = [
        f"{name}: {tuple(named[name].shape)} != {tuple(view.shape)}"
        for name, view in views.items()
        if name in named and named[name].shape != view.shape
    ]
    if missing or unexpected or wrong:
        raise CheckpointMismatchError("official weights", missing, unexpected, wrong)
    with torch.no_grad():
        for name, view in views.items():
            view.copy_(named[name])
    report.loaded += sorted(views)
    return net


def to_official(net: Network, *, merge: bool = False) -> dict[str, Tensor]:
    """Return the network's weights under the official program's names, with the leftovers that it expects.

    Args:
        net: the network.
        merge: add adapters to the weights they adapt, instead of keeping them apart.
    """
    named = {name: view.detach().clone() for name, view in _views(net).items()}
    backbone = net.backbone
    for i, block in enumerate(backbone.layers):
        prefix = f"mvpformer.h.{i}"
        for own, theirs in (("query", "q_attn"), ("key_value", "c_attn")):
            linear = getattr(block.attention, own)
            if merge and isinstance(linear, LowRankLinear):
                named[f"{prefix}.attn.{theirs}.weight"] = linear.merged()
                del named[f"{prefix}.attn.{theirs}.lora_A"], named[f"{prefix}.attn.{theirs}.lora_B"]
        named[f"{prefix}.ln_2.weight"] = torch.ones(backbone.dim)
        size = backbone.max_segments
        named[f"{prefix}.attn.time_bias"] = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
        named[f"{prefix}.attn.masked_bias"] = torch.tensor(torch.finfo(torch.float32).min)
    named["seizure_embeddings"] = torch.zeros(3, backbone.samples)
    return named


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> Network:
    """Import, and print what became of the weights; `base` among the options names the file of the base weights."""
    from domains.common.files import local_path, read_tensors
    from domains.common.foreign import read_foreign_tensors

    options, base = dict(options), None
    if "base" in options:
        path = local_path(str(options.pop("base")))
        base = read_tensors(path) if path.suffix == ".safetensors" else read_foreign_tensors(path)
    report = Report()
    net = from_official(weights, options, base=base, report=report)
    print("\n".join(report.lines()))
    return net


def official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of published files and of braindecode's port as the official program calls them."""
    found = {}
    for name, tensor in weights.items():
        plain = re.sub(r"^(?:module\.|model\.|_orig_mod\.)+", "", name)
        plain = re.sub(r"^genie\.", "mvpformer.", plain)
        plain = re.sub(r"^patch_embed\.", "encoder.", plain)
        plain = re.sub(r"^blocks\.(\d+)\.", r"mvpformer.h.\1.", plain)
        plain = re.sub(r"^(positional_embedding|channel_embedding)(?:\.weight)?$", r"mvpformer.\1.weight", plain)
        plain = re.sub(r"^ln_f\.weight$", "mvpformer.ln_f.weight", plain)
        plain = re.sub(r"^final_layer\.weight$", "head.head.weight", plain)
        found[plain] = tensor
    return found


def _build(named: Mapping[str, Tensor], config: Mapping[str, Any]) -> Network:
    first = "mvpformer.h.0"
    needed = [
        "encoder.proj.weight",
        "mvpformer.positional_embedding.weight",
        "mvpformer.channel_embedding.weight",
        f"{first}.attn.c_attn.weight",
        f"{first}.mlp.gate_proj.weight",
        "head.head.weight",
    ]
    lacking = [name for name in needed if name not in named]
    if lacking:
        fine_tuned = any("lora_A" in name for name in named)
        hint = "official weights (a fine-tuned file without its base: give --options with base)"
        raise CheckpointMismatchError(hint if fine_tuned else "official weights", missing=lacking)
    dim, width = named["encoder.proj.weight"].shape
    heads = int(config.get("n_head", dim // (128 if dim >= 2048 else HEAD_DIM) or 1))
    if dim % heads:
        raise ConfigError(f"n_head {heads} does not divide the width {dim}; give --options with the n_head of training")
    kv_width = len(named[f"{first}.attn.c_attn.weight"]) // 2
    kv_heads = int(config.get("n_head_kv", kv_width * heads // dim))
    if kv_heads * (dim // heads) != kv_width:
        raise ConfigError(
            f"n_head {heads} at width {dim} gives heads of {dim // heads} numbers, keys have {kv_width}; give --options"
            " with the n_head of training"
        )
    adapter = named.get(f"{first}.attn.q_attn.lora_A")
    dropout = max(float(config.get(name, 0.1)) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"))
    options: dict[str, Any] = {
        "samples": _samples(width, config),
        "dim": dim,
        "depth": 1 + max(int(found[1]) for name in named if (found := re.match(r"mvpformer\.h\.(\d+)\.", name))),
        "heads": heads,
        "kv_heads": kv_heads,
        "hidden": len(named[f"{first}.mlp.gate_proj.weight"]),
        "max_segments": len(named["mvpformer.positional_embedding.weight"]),
        "max_channels": len(named["mvpformer.channel_embedding.weight"]),
        "content": bool(config.get("global_att", True)),
        "inverse_layer_scale": bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        "dropout": dropout,
        "lora_rank": 0 if adapter is None else len(adapter),
        "lora_alpha": float(config.get("lora_alpha", LORA_ALPHA)),
    }
    classes = len(named["head.head.weight"])
    if classes == dim:
        return GenerativeMVPFormer(**options)
    return MVPFormerClassifier(classes, **options)


def _samples(width: int, config: Mapping[str, Any]) -> int:
    """Samples of a segment whose transform has so many coefficients; two lengths may share a width."""
    given = config.get("size_input")
    fitting = [n for n in range(1, min(width, LARGEST) + 1) if sum(coefficient_sizes(n)) == width]
    if given is not None:
        if int(given) not in fitting:
            raise ConfigError(f"size_input {given}: has not the {width} coefficients of the weights; correct it")
        return int(given)
    if not fitting:
        raise ConfigError(f"no segment has {width} wavelet coefficients; give --options with size_input")
    even = [n for n in fitting if n % 2 == 0]
    return (even or fitting)[-1]


def _views(net: Network) -> dict[str, Tensor]:
    backbone: MVPFormer = net.backbone
    views = {
        "encoder.ln.weight": backbone.encoder.norm.weight.data,
        "encoder.proj.weight": backbone.encoder.project.weight.data,
        "mvpformer.positional_embedding.weight": backbone.time.data,
        "mvpformer.channel_embedding.weight": backbone.channel.data,
        "mvpformer.ln_f.weight": backbone.norm.weight.data,
        "head.head.weight": net.head.weight.data,
    }
    for i, block in enumerate(backbone.layers):
        attention, prefix = block.attention, f"mvpformer.h.{i}"
        views[f"{prefix}.ln_1.weight"] = block.norm.weight.data
        for name, linear in (
            ("attn.q_attn", attention.query),
            ("attn.c_attn", attention.key_value),
            ("attn.position_net", attention.time_key),
            ("attn.channel_net", attention.channel_key),
            ("attn.c_proj", attention.out),
            ("mlp.gate_proj", block.mlp.gate),
            ("mlp.up_proj", block.mlp.up),
            ("mlp.down_proj", block.mlp.down),
        ):
            views |= _linear(f"{prefix}.{name}", linear)
        views[f"{prefix}.attn.attn_bias"] = attention.bias.data.view(-1)
    return views


def _linear(name: str, linear: nn.Linear) -> dict[str, Tensor]:
    views = {f"{name}.weight": linear.weight.data}
    if isinstance(linear, LowRankLinear):
        views |= {f"{name}.lora_A": linear.down.data, f"{name}.lora_B": linear.up.data}
    return views
