"""Replay MVPFormer: its encoder, one attention layer, the generative model, and the classifier with adapters."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.common.attention import MultiVariateParallelAttention, record
from domains.ieeg.contrastive import contrastive_logits, contrastive_loss
from domains.ieeg.mvpformer import GenerativeMVPFormer, MVPFormerClassifier
from domains.ieeg.wavelet import WaveletEncoder, coefficient_sizes, wavelet_transform
from domains.ieeg.weights import from_official, to_official


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    config = json.loads(metadata["config"])
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    inputs = {name.removeprefix("input/"): tensor for name, tensor in given.items() if name.startswith("input/")}
    kind = metadata["system"].split(".")[-1]
    result = {
        "attention": replay_attention,
        "encoder": replay_encoder,
        "generative": replay_generative,
        "classification": replay_classification,
    }[kind](config, weights, inputs)
    return {name: result[name].detach() for name in wanted}


def replay_encoder(config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    segments = inputs["segments"]
    encoder = WaveletEncoder(segments.shape[-1], config["size_output"])
    encoder.norm.load_state_dict({"weight": weights["ln.weight"]})
    encoder.project.load_state_dict({"weight": weights["proj.weight"]})
    coefficients = wavelet_transform(segments)
    return {
        "output/coefficient_sizes": torch.tensor(coefficient_sizes(segments.shape[-1])),
        "output/coefficients": coefficients,
        "output/rms_normed": encoder.norm(coefficients),
        "output/embedding": encoder(segments),
    }


def replay_attention(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    heads, kv_heads = config["n_head"], config.get("n_head_kv", config["n_head"])
    block = MultiVariateParallelAttention(
        config["n_embd"],
        heads,
        kv_heads,
        window=config.get("window", 10),
        relative_index=config.get("relative_index", "from_end"),
        content=config.get("global_att", True),
    )
    ours = {"q_attn": "query", "c_attn": "key_value", "position_net": "time_key", "channel_net": "channel_key"}
    ours |= {"c_proj": "out"}
    state = {f"{own}.weight": weights[f"{theirs}.weight"] for theirs, own in ours.items()}
    block.load_state_dict({**state, "bias": weights["attn_bias"].view(3, kv_heads, -1)})
    x = inputs["hidden_states"].requires_grad_()
    tables = inputs["position_embeds"][0], inputs["channel_embeds"][0]
    time, channel = block.relative_terms(x, *tables)
    with record(block) as maps:
        block(x, *tables)
    out = block(x, *tables)
    loss = (out * inputs["grad_out"]).sum()
    loss.backward()
    grads = {f"grad/{theirs}.weight": getattr(block, own).weight.grad for theirs, own in ours.items()}
    return grads | {
        "output/out": out,
        "output/attention_probs": maps[""][0],
        "output/time_term_causal": time,
        "output/channel_term": channel,
        "loss/weighted_sum": loss.view(1),
        "grad/attn_bias": block.bias.grad.flatten(),
        "grad/input.hidden_states": x.grad,
    }


def replay_generative(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    net = from_official(weights, config)
    assert isinstance(net, GenerativeMVPFormer)
    net.eval()
    states: list[Tensor] = []
    tokens = net.backbone.encode(inputs["x"])
    last = net.backbone.contextualise(tokens, states=states)
    predicted = net.head(last)
    logits = contrastive_logits(predicted, tokens, inputs["negative_index"], config["temp"])
    loss = contrastive_loss(logits)
    loss.backward()
    result = {f"output/hidden_after_block_{i}": state for i, state in enumerate(states)}
    result |= {
        "output/embeddings": tokens,
        "output/last_hidden_state": last,
        "output/head": predicted,
        "output/logits": logits.flatten(0, 2),
        "loss/contrastive": loss.view(1),
    }
    return result | gradients(net)


def replay_classification(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    net = from_official(weights, config)
    assert isinstance(net, MVPFormerClassifier)
    net.eval()
    pooled = net.pool(net.backbone.encode(inputs["x"]))
    logits = net.head(pooled)
    balance = torch.tensor(config["class_weight"]) if "class_weight" in config else None
    loss = F.cross_entropy(logits, inputs["y"].long().flatten(), balance)
    loss.backward()
    merged = {f"output/merged.{name}": tensor for name, tensor in to_official(net, merge=True).items()}
    result = {"output/pooled": pooled, "output/logits": logits, "loss/cross_entropy": loss.view(1)}
    return merged | result | gradients(net)


def gradients(net: GenerativeMVPFormer | MVPFormerClassifier) -> dict[str, Tensor]:
    """Gradients under the official names: those of a network whose weights are the gradients."""
    twin = type(net)(**net.arguments)
    twin.load_state_dict(
        {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in net.named_parameters()
        }
    )
    named = to_official(twin)
    return {f"grad/{name}": tensor for name, tensor in named.items()}
