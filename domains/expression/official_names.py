"""Names of weights in the official ARBEx program, in POSTER++, and in the files of its two backbones."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# what the official network has and never uses
UNUSED = re.compile(
    r"vit\.(?:patch_embed\.|CON1\.|IRLinear[12]\.|blocks\.\d+\.conv\.|head\.)|(?:ir|landmark)\.output_layer\."
)
PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")
CONV_BLOCK = {"conv": "net.0", "norm": "net.1", "activation": "net.2"}
DEPTH_WISE = {"expand": "net.0", "depthwise": "net.1", "project": "net.2"}
UNIT = {"norm1": "res.0", "conv1": "res.1", "activation": "res.2", "conv2": "res.3", "norm2": "res.4"}
UNIT |= {"shortcut": "shortcut", "conv": "0", "norm": "1"}
STEM = {"conv": "0", "norm": "1", "activation": "2"}
CORRECTOR = {"query": "Q", "key": "K", "value": "V", "inner_query": "attn_fn.in_proj", "out": "attn_fn.out_proj"}
CORRECTOR |= {"inner_key": "attn_fn.in_proj", "inner_value": "attn_fn.in_proj"}
# (name here, name there); the first that matches is taken
NAMES = tuple(
    (re.compile(own), theirs)
    for own, theirs in (
        (r"landmark_conv\.(.*)", r"conv.\1"),
        (r"levels\.(\d)\.conv\.(.*)", r"convs.\1.\2"),
        (r"levels\.(\d)\.norm\.(.*)", r"window_module.\1.norm.\2"),
        (r"levels\.(\d)\.attention\.relative_position_bias_table", r"attns.\1.table"),
        (r"levels\.(\d)\.attention\.key_value\.(.*)", r"attns.\1.qkv.\2"),
        (r"levels\.(\d)\.attention\.out\.(.*)", r"attns.\1.linear.\2"),
        (r"levels\.(\d)\.feed_forward\.fc1\.(.*)", r"ffns.\1.mlp.0.\2"),
        (r"levels\.(\d)\.feed_forward\.fc2\.(.*)", r"ffns.\1.mlp.3.\2"),
        (r"levels\.(\d)\.feed_forward\.(.*)", r"ffns.\1.\2"),
        (r"levels\.0\.embedding\.convs\.(\d)\.(.*)", r"embs.0.\1.\2"),
        (r"levels\.1\.embedding\.convs\.0\.(.*)", r"embs.1.\1"),
        (r"levels\.2\.embedding\.convs\.0\.(.*)", r"embs.2.proj.\1"),
        (r"vit\.class_token", r"vit.cls_token"),
        (r"vit\.positions", r"vit.pos_embed"),
        (r"vit\.blocks\.(\d+)\.attention\.(?:query|key_value)\.(.*)", r"vit.blocks.\1.attn.qkv.\2"),
        (r"vit\.blocks\.(\d+)\.attention\.out\.(.*)", r"vit.blocks.\1.attn.proj.\2"),
        (r"vit\.blocks\.(\d+)\.(fc\d)\.(.*)", r"vit.blocks.\1.mlp.\2.\3"),
        (r"vit\.gate\.(.*)", r"vit.se_block.\1"),
        (r"head\.(.*)", r"head.\1"),
        (r"anchors\.points", r"anchors.anchors"),
    )
)
# of whole POSTER++ networks, behind the prefix of parallel training
POSTER_NAMES = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"face_landback\.(.*)", r"landmark.\1"),
        (r"ir_back\.(.*)", r"ir.\1"),
        (r"VIT\.head\.linear\.(.*)", r"head.net.0.\1"),
        (r"VIT\.(.*)", r"vit.\1"),
        (r"last_face_conv\.(.*)", r"conv.\1"),
        (r"embed_q\.(.*)", r"embs.0.\1"),
        (r"embed_k\.0\.(.*)", r"embs.1.\1"),
        (r"embed_v\.(.*)", r"embs.2.\1"),
    )
)
NUMBERED = {"attn": "attns", "window": "window_module", "conv": "convs", "ffn": "ffns"}
PARTS = {"relative_position_bias_table": "table", "relative_position_index": "index_relative", "proj": "linear"}
PARTS |= {"gamma1": "gamma_1", "gamma2": "gamma_2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}
LANDMARK = {"conv1": "path_1.0", "conv2_dw": "path_1.1", "conv_23": "path_1.2", "conv_3": "path_1.3"}
LANDMARK |= {"conv_34": "path_2.0", "conv_4": "path_2.1", "conv_45": "path_3.0", "conv_5": "path_3.1"}
LANDMARK |= {"conv_6_sep": "path_3.2"}
LANDMARK_PARTS = {"bn": "net.1", "prelu": "net.2", "conv_dw": "net.1", "project": "net.2"}


def official_name(own: str) -> str:
    """Official name of a weight of `POSTERV2`, or of `ReliabilityBalancing`; packed ones have the same."""
    parts = own.split(".")
    if parts[0] == "landmarks":
        deep = [CONV_BLOCK.get(part) or DEPTH_WISE.get(part) or part for part in parts[4:]]
        deep = [f"net.{part}" if part.isdigit() else part for part in deep]  # inside a row of bottlenecks
        return ".".join([f"landmark.path_{int(parts[2]) + 1}.{parts[3]}", *deep])
    if parts[:2] == ["image", "stem"]:
        return ".".join(["ir.input_layer", STEM[parts[2]], *parts[3:]])
    if parts[0] == "image":
        deep = [UNIT.get(part, part) for part in parts[4:]]
        return ".".join([f"ir.net_{int(parts[2]) + 1}.net.{parts[3]}", *deep])
    if parts[0] == "attention":
        joint = "_" if parts[1].startswith("inner_") else "."
        return f"self_attn.{CORRECTOR[parts[1]]}{joint}{parts[2]}"
    for pattern, theirs in NAMES:
        if pattern.fullmatch(own):
            return pattern.sub(theirs, own)
    return own


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any known file under the names of the ARBEx program.

    These have no prefix for the extractor, and `head.`, `anchors.` and `self_attn.` before those of the other files.
    """
    plain = {PREFIX.sub("", name): tensor for name, tensor in weights.items()}
    if any(name.startswith(("face_landback.", "ir_back.", "VIT.")) for name in plain):
        plain = {_of_poster(name): tensor for name, tensor in plain.items()}
    elif "conv_23.conv.conv.weight" in plain:
        plain = {f"landmark.{name}": tensor for name, tensor in plain.items()}
    elif any(name.startswith("body1.") for name in plain):
        plain = {f"ir.{name}": tensor for name, tensor in plain.items()}
    return {_of_backbone(_of_file(name)): tensor for name, tensor in plain.items()}


def _of_file(name: str) -> str:
    """Names of the smaller files of the ARBEx program, with the prefix that tells them apart."""
    if re.match(r"net\.\d+\.", name):
        return f"head.{name}"
    if name == "anchors":
        return "anchors.anchors"
    return f"self_attn.{name}" if re.match(r"(?:[QKV]|attn_fn)\.", name) else name


def _of_poster(name: str) -> str:
    for pattern, ours in POSTER_NAMES:
        if pattern.fullmatch(name):
            return pattern.sub(ours, name)
    found = re.fullmatch(r"(attn|window|conv|ffn)([123])\.(.*)", name)
    if found is None:
        return name
    rest = next(
        (ours + found[3].removeprefix(theirs) for theirs, ours in PARTS.items() if found[3].startswith(theirs)),
        found[3],
    )
    return f"{NUMBERED[found[1]]}.{int(found[2]) - 1}.{rest}"


def _of_backbone(name: str) -> str:
    """Names of IR50 and MobileFaceNet files."""
    if found := re.fullmatch(r"ir\.body(\d)\.(\d+)\.(res|shortcut)_layer\.(.*)", name):
        return f"ir.net_{found[1]}.net.{found[2]}.{found[3]}.{found[4]}"
    found = re.fullmatch(r"landmark\.(conv\w+)\.(.*)", name)
    if found is None or found[1] not in LANDMARK:
        return name
    first, parts = LANDMARK[found[1]], found[2].split(".")
    deep = ["net" if part == "model" else LANDMARK_PARTS.get(part) or part for part in parts]
    deep = ["net.0" if part == "conv" else part for part in deep]
    return ".".join([f"landmark.{first}", *deep])
