"""Replay DCAL: rollout, selection, both cross-attentions, the whole network and its losses."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from domains.common.attention import (
    GlobalLocalCrossAttention,
    PairwiseCrossAttention,
    attention_map,
    rollout_matrix,
    rollout_row,
    select_tokens,
)
from domains.finegrained.dcal import DCAL, class_probabilities, embedding
from domains.finegrained.losses import dcal_losses
from domains.finegrained.weights import from_official, to_official

Tensors = dict[str, Tensor]


def replay(metadata: dict[str, str], given: Tensors, wanted: list[str]) -> Tensors:
    config = json.loads(metadata["config"])
    found = {name.removeprefix("input/"): tensor for name, tensor in given.items() if name.startswith("input/")}
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    result = replay_functions(found, wanted)
    if weights:
        result |= replay_network(config, weights, found)
    return {name: result[name].detach() for name in wanted}


def replay_functions(found: Tensors, wanted: list[str]) -> Tensors:
    result = {}
    if "rollout.q" in found:
        q, k = list(found["rollout.q"]), list(found["rollout.k"])
        maps = [attention_map(*pair) for pair in zip(q, k, strict=True)]
        result["output/rollout.attn_mean"] = torch.stack(maps)
        result["output/rollout.full"] = rollout_matrix(maps)
        result["output/rollout.cls_row"] = rollout_row(q, k)
    for name in wanted:
        if name.startswith("output/select.idx_"):
            result[name] = select_tokens(found["select.row"], float(name.removeprefix("output/select.idx_")))
    if "pwca_fn.q1" in found:
        q, k, v, k2, v2 = (found[f"pwca_fn.{part}"] for part in ("q1", "k1", "v1", "k2", "v2"))
        result["output/pwca_fn.out"] = heads_of(PairwiseCrossAttention, q)(q, k, v, (k2, v2))
        first = heads_of(GlobalLocalCrossAttention, q)
        for name in wanted:
            if name.startswith("output/glca_fn.out_first"):
                result[name] = first(q[:, :, : int(name.removeprefix("output/glca_fn.out_first"))], k, v)
    return result


def heads_of(kind: Any, q: Tensor) -> Any:
    """The attention of a block without its projection, by heads."""
    _, heads, _, width = q.shape
    block = kind(heads * width, heads)
    block.finish = lambda out: out
    return block.attend


def replay_network(config: dict[str, Any], weights: Tensors, found: Tensors) -> Tensors:
    result: Tensors = {}
    for reading in ("pwca", "sa"):  # losses and gradients are of the latter
        net = from_official(weights, {**config, "distractor": reading}).to(found["image"].device).train()
        with torch.no_grad():
            net.uncertainty_w.copy_(found["uncertainty_w"])
        batch_norm_free(net)
        output = net(found["image"], found["pair_index"])
        result[f"output/feat_pwca.distractor_{reading}"] = output.pairwise.features
        result[f"output/logits_pwca.distractor_{reading}"] = output.pairwise.logits
    encoded = net.encode(found["image"])
    q, k = ([layer[i].detach() for layer in encoded.layers] for i in (0, 1))
    result["output/rollout_full"] = rollout_matrix([attention_map(*pair) for pair in zip(q, k, strict=True)])
    result |= {"output/tokens_sa": encoded.tokens, "output/rollout_row": output.rollout}
    result |= {"output/selected": output.selected}
    result["output/tokens_glca"] = net.global_local(encoded.tokens, output.selected)
    for name, branch in (("sa", output.self_attention), ("glca", output.global_local)):
        result |= {f"output/feat_{name}": branch.features, f"output/logits_{name}": branch.logits}
    result["output/prob_fgvc"] = class_probabilities(output)
    result["output/feat_reid"] = embedding(output, normalise=False)
    losses = dcal_losses(output, found["labels"], net.uncertainty_w, triplet=net.task == "reid")
    losses["total"].backward()
    result |= {f"loss/{name}": loss.reshape(1) for name, loss in losses.items()}
    return result | gradients(net)


def batch_norm_free(net: DCAL) -> None:
    """Heads of re-identification with the statistics of their weights, as at inference."""
    for head in (net.head, net.glca_head):
        head.eval()


def gradients(net: DCAL) -> Tensors:
    """Gradients under the official names: those of a network whose weights are the gradients."""
    twin = DCAL(**net.arguments)
    state = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    state |= {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    twin.load_state_dict(state)
    return {f"grad/{name}": tensor for name, tensor in to_official(twin).items()}
