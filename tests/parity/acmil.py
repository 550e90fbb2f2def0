"""ACMIL_GA and ACMIL_MHA, in evaluation and, with recorded draws of the masking, in training."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from domains.common.attention import LearnedQueryPooling
from domains.common.attention.multi_branch import MASKED
from domains.medical.losses import bag_losses
from domains.medical.weights import from_official, to_official


def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    config = json.loads(metadata["config"])
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    options = {"n_masked_patch": config["n_masked_patch"], "mask_drop": config["mask_drop"], "dropout": 0.0}
    net = from_official(weights, options)
    net.train(config["mode"].startswith("train"))
    bags = [given[f"input/bag{b}"][0] for b in range(len(config["bags"]))]
    labels = torch.cat([given[f"input/label{b}"] for b in range(len(bags))])
    draws = [given[f"input/stkim_u{b}"] for b in range(len(bags))] if "input/stkim_u0" in given else None
    sizes = [len(bag) for bag in bags]
    output = net.pool(torch.cat(bags), sizes, draws=draws)
    losses = bag_losses(output, labels)
    if output.branch_logits is None:  # one branch: the official program carries its classifier along, untrained
        losses |= {"branch": torch.zeros(len(bags)), "diversity": torch.zeros(len(bags))}
        untrained = (weights["classifier.0.fc.weight"], weights["classifier.0.fc.bias"])
        branch_logits = torch.nn.functional.linear(output.branch_features, *untrained)
    else:
        branch_logits = output.branch_logits
    results: dict[str, Tensor] = {}
    multi_head = isinstance(net.attention, LearnedQueryPooling)
    instances = net.instances(torch.cat(bags)).split(sizes)
    total = sum(losses[name].sum() for name in ("slide", "branch", "diversity"))
    for b in range(len(bags)):
        weights_b, logits = output.weights[b], output.attention_logits[b]
        found = {
            "h": instances[b][None] if multi_head else instances[b],
            "attn_logits": logits,
            "bag_attn": weights_b.mean(1),
            "branch_feat": output.branch_features[b],
            "bag_feat": output.features[b][None],
            "branch_logits": branch_logits[b],
            "slide_logits": output.logits[b][None],
            "slide_prob": output.logits[b][None].softmax(-1),
            "masked": logits == MASKED,
        }
        results |= {f"output/bag{b}/{name}": tensor for name, tensor in found.items()}
        results |= {f"loss/bag{b}/slide": losses["slide"][b], f"loss/bag{b}/sub": losses["branch"][b]}
        results |= {f"loss/bag{b}/diversity": losses["diversity"][b]}
        results[f"loss/bag{b}/total"] = losses["slide"][b] + losses["branch"][b] + losses["diversity"][b]
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(total, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.copy_(gradient)
    results |= {f"grad/{name}": tensor for name, tensor in to_official(net).items()}
    return {name: results[name].detach() for name in wanted}
