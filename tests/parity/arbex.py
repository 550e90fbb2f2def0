"""Replay ARBEx: reliability balancing with its losses and gradients, every block, the full extractor, the scores."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domains.common.attention import WindowCrossAttention
from domains.common.attention.window_cross import from_windows, to_windows
from domains.expression.arbex import ARBEx
from domains.expression.balancing import ARBExOutput, ReliabilityBalancing
from domains.expression.folding import ConvBlock
from domains.expression.fusion import ScaledFeedForward, TokenEmbedding
from domains.expression.ir50 import IRUnit, ir_stage
from domains.expression.losses import anchor_loss, center_loss, class_weights, distribution_loss
from domains.expression.mobilefacenet import DepthWise, residuals
from domains.expression.official_scores import official_scores
from domains.expression.token_vit import SqueezeExcitation, ViTBlock
from domains.expression.weights import balancing_from_official, fill_part, from_official, official_state, to_official

Tensors = dict[str, Tensor]
BALANCING = ("head.", "anchors.", "self_attn.")


def replay(metadata: dict[str, str], given: Tensors, wanted: list[str]) -> Tensors:
    config = json.loads(metadata["config"])
    if "procedural_salt" in config:
        result = replay_full(config)
    else:
        weights = below(given, "weight/")
        balancing = {name: tensor for name, tensor in weights.items() if name.startswith(BALANCING)}
        result = replay_blocks(config, weights, given)
        if balancing:
            result |= replay_balancing(config, balancing, given)
        if "input/metrics.y_true" in given:
            result |= replay_scores(config, given)
    return {name: result[name].detach() for name in wanted}


def below(given: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}


def replay_balancing(config: dict[str, Any], weights: Tensors, given: Tensors) -> Tensors:
    net = balancing_from_official(weights, config | {"attn_scope": "batch"}).eval()
    embedding, labels = given["input/embeddings"].requires_grad_(), given["input/labels"]
    trust = config["trust"]
    output = net(embedding, trust=trust)
    result = told(output)
    weight = class_weights(given["input/class_counts"])
    result["output/rb.class_weights"] = weight
    smoothing = config.get("label_smoothing", 0.0)
    ce = distribution_loss(output.corrected, labels, weight, label_smoothing=smoothing)
    mu, center = anchor_loss(net.anchors.points, "official"), center_loss(output, labels)
    total = config["lambda_ce"] * ce + trust * (config["lambda_mu"] * mu + config["lambda_center"] * center)
    total.backward()
    losses = {"ce": ce, "mu": mu, "center": center, "total": total}
    losses["center_sum"] = center_loss(output, labels, reduction="sum")
    result |= {f"loss/{name}": value.view(1) for name, value in losses.items()}
    result |= {f"grad/{name}": gradient for name, gradient in gradients(net, weights, config).items()}
    result["grad/embeddings"] = embedding.grad  # type: ignore[assignment]
    net.attention.scope = "sample"
    result["output/rb.attention_per_sample"] = net(embedding).attention
    return result


def told(output: ARBExOutput) -> Tensors:
    names = {"logits": "logits", "prob": "primary", "confidence": "confidence", "distances": "distances"}
    names |= {name: name for name in ("similarities", "confidence_geometric", "attention", "confidence_attention")}
    names |= {"correction": "correction", "dist_correction": "balanced", "prob_corrected": "corrected"}
    return {f"output/rb.{name}": getattr(output, own) for name, own in names.items()}


def gradients(net: ReliabilityBalancing, weights: Tensors, config: dict[str, Any]) -> Tensors:
    """Gradients under the official names: those of a network whose weights are the gradients."""
    twin = balancing_from_official(weights, config)
    state = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in net.named_parameters()
    }
    twin.load_state_dict(twin.state_dict() | state)
    return official_state(twin)


def replay_scores(config: dict[str, Any], given: Tensors) -> Tensors:
    labels, predicted = (given[f"input/metrics.{name}"].cpu().numpy() for name in ("y_true", "y_pred"))
    scores = official_scores(labels, predicted, config["n_classes"])
    return {"output/metrics.acc_macroF1_macroP_macroR": torch.tensor(list(scores.values()), dtype=torch.float64)}


@torch.no_grad()
def replay_blocks(config: dict[str, Any], weights: Tensors, given: Tensors) -> Tensors:
    result = {}
    for name, (own, official) in PLACES.items():
        part = below(weights, f"{name}.")
        if part:
            block = make(name, config, part).eval()
            fill_part(block, part, own, official)
            result |= {
                f"output/{key}": value for key, value in run(name, block, config, below(given, "input/")).items()
            }
    return result


# block -> what its names begin with in our network and in the official one
PLACES = {
    "ir_bottleneck_same": ("image.stages.0.0.", "ir.net_1.net.0."),
    "ir_bottleneck_proj": ("image.stages.0.0.", "ir.net_1.net.0."),
    "ir_block": ("image.stages.0.", "ir.net_1."),
    "mfn_conv_block": ("landmarks.paths.0.0.", "landmark.path_1.0."),
    "mfn_linear_block": ("landmarks.paths.0.0.", "landmark.path_1.0."),
    "mfn_depthwise": ("landmarks.paths.0.2.", "landmark.path_1.2."),
    "mfn_residual": ("landmarks.paths.0.3.", "landmark.path_1.3."),
    "window.norm": ("levels.0.norm.", "window_module.0.norm."),
    "window_attn": ("levels.0.attention.", "attns.0."),
    "window_ffn": ("levels.0.feed_forward.", "ffns.0."),
    "patch_embed_1x1": ("levels.2.embedding.", "embs.2."),
    "vit_block": ("vit.blocks.0.", "vit.blocks.0."),
    "se_block": ("vit.gate.", "vit.se_block."),
}


def make(name: str, config: dict[str, Any], part: Tensors) -> nn.Module:
    """An empty block of the size of its weights."""
    if name.startswith("ir_"):
        first = "net.0." if name == "ir_block" else ""
        outputs, inputs = part[f"{first}res.1.weight"].shape[:2]
        depth = len({key.split(".")[1] for key in part}) if first else 1
        return ir_stage(inputs, outputs, depth) if first else IRUnit(inputs, outputs, 2)
    if name in ("mfn_conv_block", "mfn_linear_block"):
        outputs, inputs, kernel, _ = part["net.0.weight"].shape
        whole = name == "mfn_conv_block"
        return ConvBlock(inputs, outputs, kernel, 2 if whole else 1, activation=whole)
    if name.startswith("mfn_"):
        first = "net.0." if name == "mfn_residual" else ""
        groups, inputs = part[f"{first}net.0.net.0.weight"].shape[:2]
        outputs = len(part[f"{first}net.2.net.0.weight"])
        depth = len({key.split(".")[1] for key in part})
        return residuals(inputs, groups, depth) if first else DepthWise(inputs, outputs, groups, 2)
    if name == "window_attn":
        window = (int(len(part["table"]) ** 0.5) + 1) // 2
        return WindowCrossAttention(len(part["linear.bias"]), part["table"].shape[1], window)
    if name == "patch_embed_1x1":
        outputs, inputs, kernel, _ = part["proj.weight"].shape
        return TokenEmbedding((inputs, outputs), (kernel,))
    makers = {"window.norm": ("weight", nn.LayerNorm), "window_ffn": ("gamma_1", ScaledFeedForward)}
    makers |= {"se_block": ("linear1.bias", SqueezeExcitation)}
    if name in makers:
        key, kind = makers[name]
        return kind(len(part[key]))
    return ViTBlock(len(part["norm1.weight"]), config["vit"][2])


def run(name: str, block: nn.Module, config: dict[str, Any], found: Tensors) -> Tensors:
    """Outputs of a block, which official names tell apart."""
    if name == "window.norm":
        shortcut = block(found["window.x"].permute(0, 2, 3, 1))
        return {"window.0": to_windows(shortcut, config["attn"][2]).flatten(0, 1), "window.1": shortcut}
    if name == "window_attn":
        x, query = found["window_attn.x"], found["window_attn.q"]
        batch, _, _, places, _ = query.shape
        asked = query[:, 0].transpose(1, 2).reshape(batch, places, -1)
        return {name: block(x.unflatten(0, (batch, -1)), asked).flatten(0, 1)}
    if name == "window_ffn":
        shortcut = found["window_ffn.shortcut"]
        batch, height, width, _ = shortcut.shape
        attended = from_windows(found["window_ffn.window"].unflatten(0, (batch, -1)), height, width)
        return {name: block(attended, shortcut)}
    return {name: block(found[f"{name}.x"])}


@torch.no_grad()
def replay_full(config: dict[str, Any]) -> Tensors:
    salt, device = config["procedural_salt"], torch.get_default_device()
    with torch.device("cpu"):
        sizes = {"dim": config["dim_emb"], "depth": config["depth"], "heads": config["num_heads"]}
        blank = to_official(ARBEx(**sizes))
        weights = {name: generated(salt + name, name, tensor) for name, tensor in blank.items()}
        image = (4 * uniform(f"{salt}input/image", config["image"])).float()
    count = sum(tensor.numel() for name, tensor in weights.items() if counts(name) and not name.startswith(BALANCING))
    if count != config["n_params"]:
        raise ValueError(f"{count} parameters, the case has {config['n_params']}")
    net = from_official(weights, config).to(device).eval()
    result = {"output/embedding": net.extractor(image.to(device))}
    for name, tensor in stages(net, image.to(device)).items():
        flat = tensor.flatten()
        index = torch.arange(64, device=flat.device) * (flat.numel() - 1) // 63
        result[f"output/probe64/{name}"] = flat[index]
        result[f"output/stats/{name}"] = torch.stack([flat.mean(), flat.std(correction=0), flat.abs().max()])
        result[f"output/shape/{name}"] = torch.tensor(tensor.shape)
    result["output/embedding_float64"] = net.double().extractor(image.to(device).double())
    return result


def counts(name: str) -> bool:
    """Whether an official name is of a parameter."""
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked", "index_relative"))


def stages(net: ARBEx, image: Tensor) -> Tensors:
    """What the extractor computes on its way."""
    extractor = net.extractor
    landmarks, maps = extractor.streams(image)  # type: ignore[operator]
    found = {f"ir[{i}]": x for i, x in enumerate(maps)}
    scaled = nn.functional.interpolate(image, size=112)
    for i, tap in enumerate(extractor.landmarks(scaled)):  # type: ignore[operator]
        found[f"landmark[{i}]"] = tap
    found["conv"] = landmarks[-1]
    tokens = []
    for i, level in enumerate(extractor.levels):  # type: ignore[arg-type]
        found[f"convs.{i}"] = level.conv(maps[i])
        level.attention.register_forward_hook(
            lambda block, given, out, key=f"attns.{i}": found.__setitem__(key, out.flatten(0, 1))
        )
        fused = level.fused(maps[i], landmarks[i])
        found[f"ffns.{i}"] = fused.permute(0, 2, 3, 1)
        tokens.append(level.embedding(fused))
        side = round(tokens[-1].shape[1] ** 0.5)
        square = tokens[-1].transpose(1, 2).unflatten(2, (side, side))
        found[f"embs.{i}"] = tokens[-1] if i == 2 else square
    x = extractor.vit.placed(torch.cat(tokens, 1))  # type: ignore[union-attr, operator]
    for i, block in enumerate(extractor.vit.blocks):  # type: ignore[union-attr, arg-type]
        found[f"vit.blocks.{i}"] = x = block(x)
    found["vit.norm"] = extractor.vit.norm(x)  # type: ignore[union-attr, operator]
    found["vit.se_block"] = extractor.vit.gate(found["vit.norm"][:, 0])  # type: ignore[union-attr, operator]
    return found


def uniform(key: str, shape: Any) -> Tensor:
    """Numbers in -0.5..0.5 by hashing (key, index), float64."""
    total = int(np.prod(shape, dtype=np.int64))
    x = (np.arange(1, total + 1, dtype=np.uint64) * 2654435761 + zlib.crc32(key.encode()) * 40503) & 0xFFFFFFFF
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & 0xFFFFFFFF
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & 0xFFFFFFFF
    x ^= x >> 16
    return torch.from_numpy(x.astype(np.float64) / 2**32 - 0.5).reshape(tuple(shape))


def generated(key: str, name: str, tensor: Tensor) -> Tensor:
    """The weight that the case has under this name; integers stay."""
    if not tensor.is_floating_point():
        return tensor
    u, last = uniform(key, tensor.shape), name.rsplit(".", 1)[-1]
    if last in ("table", "pos_embed", "cls_token", "anchors"):
        value = u
    elif last in ("gamma_1", "gamma_2", "running_var") or (tensor.ndim < 2 and last.endswith("weight")):
        value = 1 + u
    elif tensor.ndim < 2:
        value = 0.2 * u
    else:
        gain = (
            2.0 if ".qkv." in name else 0.5 if name.startswith("ir.") else 0.7 if name.startswith("landmark.") else 1.0
        )
        value = gain * 2 * u * (3 / tensor[0].numel()) ** 0.5
    return value.float()
