"""Replay the official AutoInt programs (both of them) through our import."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from domains.common.attention import record
from domains.common.optim import LazyAdam
from domains.ctr.losses import l2_penalty, official_log_loss
from domains.ctr.weights import from_official, to_official


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    config, roles = json.loads(metadata["config"]), json.loads(metadata.get("roles", "null"))
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    net = from_official(weights, config, roles).eval()
    ids, values, slot_field = _slots(given)
    labels = given["input/label"].flatten()

    result: dict[str, Tensor] = {}
    with record(net) as maps:
        embeddings = net.embed(ids, values, slot_field)
        x = embeddings
        for i, block in enumerate(net.blocks):
            x = block(x)
            result[f"output/block_{i}"] = x
        logits = net(ids, values, slot_field)
    for i in range(len(net.blocks)):
        result[f"output/attention_{i}"] = maps[f"blocks.{i}"][0]
    result["output/embeddings"] = embeddings
    result["output/flat"] = x.flatten(1)
    result["output/logits_attention"] = net.output(x.flatten(1))
    if net.deep is not None:
        result["output/logits_deep"] = net.deep(embeddings.flatten(1))[:, None]
    result["output/pred"] = logits.sigmoid()[:, None]

    def loss() -> Tensor:
        penalty = l2_penalty(net.deep.kernels(), config["l2_reg"]) if net.deep is not None else 0.0
        return official_log_loss(net(ids, values, slot_field).sigmoid(), labels) + penalty

    before = loss()
    before.backward()
    result["loss/logloss_plus_l2"] = result["loss/train_step_0"] = before
    result |= {f"grad/{name}": tensor for name, tensor in gradients(net, lambda: to_official(net, roles)).items()}
    LazyAdam(net.parameters(), lr=config["learning_rate"], form="tensorflow").step()
    result["loss/train_step_1"] = loss()
    result |= {f"output/after_adam_step/{name}": tensor for name, tensor in to_official(net, roles).items()}
    return {name: result[name].detach() for name in wanted}


def _slots(given: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    ids, values = given["input/feat_index"].long(), given["input/feat_value"]
    if "input/genre_index" not in given:
        return ids, values, None
    genres = given["input/genre_index"].long()
    singles = ids.shape[1]
    slot_field = torch.cat([torch.arange(singles), torch.full((genres.shape[1],), singles)])
    ids, values = torch.cat([ids, genres], dim=1), torch.cat([values, given["input/genre_value"]], dim=1)
    return ids, values, slot_field.to(ids.device)


def gradients(net: torch.nn.Module, export: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Gradients under the official names: read through the same export as the weights."""
    kept = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
        named = export()
        for name, parameter in net.named_parameters():
            parameter.copy_(kept[name])
    return named
