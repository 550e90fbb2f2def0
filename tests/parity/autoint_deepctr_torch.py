"""Replay DeepCTR-Torch's AutoInt through our import."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from domains.ctr.losses import click_loss
from domains.ctr.weights import from_deepctr_torch, to_deepctr_torch


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    options = json.loads(metadata["config"])
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    net = from_deepctr_torch(weights, options["fields"], options).eval()
    columns = [given[f"input/{name}"] for name in net.layout.names]
    numbers = torch.tensor([field.kind == "numerical" for field in net.layout.fields])
    ids = torch.stack([torch.zeros_like(c).long() if c.is_floating_point() else c for c in columns], dim=1)
    values = torch.stack([c.float() for c in columns], dim=1).where(numbers, torch.ones(()))
    logits = net(ids + torch.tensor(net.layout.offsets), values)
    loss = click_loss(logits, given["input/label"])
    loss.backward()
    result = {"output/pred": logits.sigmoid()[:, None], "loss/bce": loss}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    result |= {f"grad/{name}": tensor for name, tensor in to_deepctr_torch(net).items()}
    return {name: result[name].detach() for name in wanted}
