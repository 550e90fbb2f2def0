"""Replay the official MQSA-TED program through our import."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from domains.common.attention import record
from domains.common.optim import LazyAdam
from domains.seqrec.losses import Transitions, distillation_loss, next_item_loss, squared_norm
from domains.seqrec.mqsa_ted import MQSATED
from domains.seqrec.packing import ragged_ranges
from domains.seqrec.ranking import rank_items
from domains.seqrec.transitions import count_transitions
from domains.seqrec.weights import from_official, to_official
from tests.parity.autoint import gradients


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    config, roles = json.loads(metadata["config"]), json.loads(metadata.get("roles", "null"))
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    net = from_official(weights, config, roles).eval()
    names = ("short", "long")
    result: dict[str, Tensor] = {}
    inputs = given["input/train_input_seq"].long()
    result |= {f"output/train_repr_{name}": part for name, part in zip(names, net.branches(inputs), strict=True)}
    for split in ("valid", "test"):
        items = given[f"input/{split}_input_seq"].long()
        with record(net) as maps:
            parts = net.branches(items)
        for i, name in enumerate(names):
            result[f"output/{split}_user_{name}"] = parts[i][:, -1]
            for block in range(config["num_block"]):
                attention = maps[f"attention.branches.{i}.{block}.attention"][0]
                # where there is nothing to attend to, the official program spreads evenly before it masks the row
                empty = (attention == 0).all(-1, keepdim=True)
                result[f"output/{split}_attention_{name}_{block}"] = attention.masked_fill(empty, 1 / items.shape[1])
        result[f"output/{split}_scores"] = net(items)
        masked = given[f"input/{split}_mask"] != 0
        seen = torch.where(masked, torch.arange(net.n_items, device=masked.device), net.n_items)
        users = net.represent(items)[:, -1]
        result[f"output/{split}_top5"] = rank_items(users, net.table(), seen, top=5).items.int()

    rows = _transitions(given, config, inputs)

    def losses() -> dict[str, Tensor]:
        return _losses(net, inputs, given["input/train_pred_seq"].long(), rows, config)

    first = losses()
    first["total"].backward()
    result |= {f"loss/{name}": value for name, value in first.items()}
    result["loss/train_step_0"] = first["total"]
    result |= {f"grad/{name}": tensor for name, tensor in gradients(net, lambda: to_official(net, roles)).items()}
    LazyAdam(net.parameters(), lr=config["lr"], form="tensorflow").step()
    result["loss/train_step_1"] = losses()["total"]
    result |= {f"output/after_adam_step/{name}": tensor for name, tensor in to_official(net, roles).items()}
    return {name: result[name].detach() for name in wanted}


def _transitions(given: dict[str, Tensor], config: dict[str, float], inputs: Tensor) -> Transitions:
    """Rows of the transition matrix, counted from the raw sequences."""
    lengths = given["input/raw_train_lengths"].cpu().numpy().astype(np.int64)
    kept = np.minimum(lengths, config["max_len"])
    latest = ragged_ranges(np.cumsum(lengths) - kept, kept)
    raw = given["input/raw_train_items"].cpu().numpy()[latest].astype(np.int32)
    matrix = count_transitions(raw, kept, int(config["num_item"]), span=int(config["time_span"]))
    rows = matrix.rows(inputs[inputs != config["num_item"]].cpu().numpy())
    return Transitions(**{name: tensor.to(inputs.device) for name, tensor in vars(rows).items()})


def _losses(
    net: MQSATED, inputs: Tensor, targets: Tensor, rows: Transitions, config: dict[str, float]
) -> dict[str, Tensor]:
    real = inputs != net.n_items
    count = real.sum()
    rec = next_item_loss(net.represent(inputs)[real], net.table(), targets[real]) / count
    students = net.embed(rows.head[None])[0][0]
    kd = distillation_loss(students, net.table(), rows, config["tau"], "row_max") / count
    penalty = squared_norm(list(net.parameters()))
    return {"rec": rec, "kd": kd, "total": rec + config["lambda_kd"] * kd + config["l2_reg"] * penalty}
