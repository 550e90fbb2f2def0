"""Replay ConvFormer: poses, every block, and the loss."""

from __future__ import annotations

import json
from functools import partial

import torch
from torch import Tensor, nn

from domains.pose.convformer_weights import from_official
from domains.pose.metrics3d import mpjpe


@torch.no_grad()
def replay(metadata: dict[str, str], given: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    net = from_official(weights, json.loads(metadata["config"])).eval()
    keypoints = given["input/keypoints_2d"]
    result: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        result[f"output/{name}"] = output.view(*keypoints.shape[:3], -1) if name.startswith("spatial") else output

    def keep_queries(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for part, tensor in zip("qkv", module.aggregate(inputs[0]), strict=True):
            result[f"output/{name}_{part}"] = (
                tensor.reshape(*keypoints.shape[:3], -1) if name.startswith("spatial") else tensor
            )

    for stage in ("spatial", "temporal"):
        for i, block in enumerate(getattr(net, stage)):
            block.register_forward_hook(partial(keep, f"{stage}{i}"))
            block.attn.register_forward_hook(partial(keep_queries, f"{stage}{i}"))
    result["output/pose_3d"] = net(keypoints)
    result["loss/mpjpe"] = mpjpe(result["output/pose_3d"][:, 0], given["input/target_3d"]).mean()
    return {name: result[name] for name in wanted}
