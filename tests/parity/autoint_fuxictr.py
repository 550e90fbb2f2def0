"""Replay FuxiCTR's AutoInt through our import."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from domains.common.attention import record
from domains.ctr.losses import click_loss, l2_penalty
from domains.ctr.weights import from_fuxictr, to_fuxictr


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    options = json.loads(metadata["config"])
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    fields = [_field(name, given, weights) for name in options["feature_order"]]
    net = from_fuxictr(weights, fields, options).eval()
    ids, values, slot_field = _slots(net, given)

    result: dict[str, Tensor] = {}
    with record(net) as maps:
        embeddings = net.embed(ids, values, slot_field)
        x = embeddings
        for i, block in enumerate(net.blocks):
            x = block(x)
            result[f"output/block_{i}"] = x
            result[f"output/attention_{i}"] = maps[f"blocks.{i}"][0]
    logits = net(ids, values, slot_field)
    result["output/embeddings"] = embeddings
    result["output/pred"] = logits.sigmoid()[:, None]
    bce = click_loss(logits, given["input/label"].flatten())
    tables = [net.table.weight] + ([] if net.wide is None else [net.wide.weight])
    others = [p for p in net.parameters() if all(p is not table for table in tables)]
    total = (
        bce
        + l2_penalty(tables, options["embedding_regularizer"] or 0.0)
        + l2_penalty(others, options["net_regularizer"] or 0.0)
    )
    total.backward()
    result |= {"loss/bce": bce, "loss/total": total}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    result |= {f"grad/{name}": tensor for name, tensor in to_fuxictr(net).items()}
    return {name: result[name].detach() for name in wanted}


def _field(name: str, given: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, object]:
    value = given[f"input/{name}"]
    size = len(weights[f"embedding_layer.embedding_layer.embedding_layers.{name}.weight"])
    if value.is_floating_point():
        return {"name": name, "kind": "numerical"}
    return {"name": name, "kind": "categorical" if value.ndim == 1 else "multi", "size": size}


def _slots(net: torch.nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    ids, values, owner = [], [], []
    for position, (field, offset) in enumerate(zip(net.layout.fields, net.layout.offsets, strict=True)):
        entry = given[f"input/{field.name}"]
        local = torch.zeros_like(entry, dtype=torch.long) if field.kind == "numerical" else entry
        # id 0 is FuxiCTR's padding: a zero row that never learns, in categories as in sequences
        value = entry if field.kind == "numerical" else (local != 0)
        ids.append((local + offset).reshape(len(entry), -1))
        values.append(value.float().reshape(len(entry), -1))
        owner.append(torch.full((ids[-1].shape[1],), position, device=local.device))
    return torch.cat(ids, 1), torch.cat(values, 1), torch.cat(owner)
