"""Replay MEDUSA's body and heads, given the features that the classification network would have."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from domains.common.attention.injection import InjectionHead, resize_map
from domains.medical.medusa import UNetBody


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    config = json.loads(metadata["config"])
    net = attention_network(config)
    net.load_state_dict({name.removeprefix("weight/"): t for name, t in given.items() if name.startswith("weight/")})
    net.train(config.get("mode", "eval") == "train")
    body = net["body"](given["input/gray"])
    result = {"output/body": body, "output/seg_logits": net["body"].segment(body)}
    outputs = []
    for j, head in enumerate(net["heads"]):
        features = given[f"input/feat{j}"]
        gates = head.gates(features, body)
        outputs.append(features * gates)
        result |= {f"output/resized{j}": resize_map(body, *features.shape[-2:]), f"output/feat{j}": outputs[-1]}
        # the recorded gate is a quotient of features, so that it has all channels whatever the kind
        result[f"output/gate{j}"] = gates.expand_as(features)
    loss = sum(output.square().mean() for output in outputs)
    loss.backward()
    result["loss/sumsq"] = loss
    for name, parameter in net.named_parameters():
        result[f"grad/{name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return {name: result[name].detach() for name in wanted}


def attention_network(config: dict[str, Any]) -> nn.ModuleDict:
    body = UNetBody(config["width"], config["levels"], config.get("in_channels", 1))
    gate = config.get("gate", "channel")
    heads = [InjectionHead(size, config["width"], config["head_hidden"], gate) for size in config["tap_channels"]]
    return nn.ModuleDict({"body": body, "heads": nn.ModuleList(heads)})
