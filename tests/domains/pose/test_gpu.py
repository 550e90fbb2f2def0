from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from domains.pose.convformer import ConvFormer
from domains.pose.grouppose import GroupPose
from domains.pose.grouppose_criterion import GroupPoseCriterion, Persons
from domains.pose.layouts import HUMANEVA_15
from domains.pose.lifting import lift

SMALL: dict[str, Any] = {"queries": 12, "dim": 32, "heads": 4, "hidden": 48, "encoder_depth": 2, "decoder_depth": 2}


def persons(image: int) -> Persons:
    """As many persons as the image's number says, with the fifth keypoint not labelled."""
    draw = torch.Generator().manual_seed(image)
    visible = torch.ones(image, 5)
    visible[:, 4] = 0
    keypoints = torch.rand(image, 5, 2, generator=draw)
    return Persons(keypoints, visible, torch.full((image,), 0.1), torch.ones(image, dtype=torch.long))


def gradient(net: nn.Module) -> Tensor:
    """Of all parameters, as one vector: of some there is nothing but rounding."""
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["small", "swin_t"])
def test_gpu_equals_cpu(backbone: str) -> None:
    torch.manual_seed(0)
    net, criterion = GroupPose(5, backbone=backbone, **SMALL).eval(), GroupPoseCriterion([0.1] * 5)
    images, padding = torch.randn(3, 3, 96, 128), torch.zeros(3, 96, 128, dtype=torch.bool)
    padding[1, :, 90:] = True
    results = []
    for device in ("cpu", "cuda"):
        net, criterion = net.to(device), criterion.to(device)
        net.zero_grad()
        found = net(images.to(device), padding.to(device))
        targets = [Persons(*(value.to(device) for value in vars(persons(image)).values())) for image in range(3)]
        losses = criterion(found, targets)
        losses["total"].backward()
        outputs = [found.final.logits.detach(), found.final.keypoints.detach(), losses["total"].detach()]
        results.append([*outputs, gradient(net)])
    for cpu, gpu in zip(*results, strict=True):
        assert (gpu.cpu() - cpu).norm() <= 1e-3 * cpu.norm()


@pytest.mark.gpu
def test_gpu_equals_cpu_for_whole_clips() -> None:
    torch.manual_seed(0)
    net = ConvFormer(frames=27, joints=15, dim=16).eval()
    clip = torch.randn(100, 15, 2) * 0.3
    want = lift(net, clip, flip=HUMANEVA_15)
    got = lift(net.cuda(), clip.cuda(), flip=HUMANEVA_15)
    assert (got.cpu() - want).norm() <= 1e-4 * want.norm()


@pytest.mark.gpu
def test_gpu_equals_cpu_in_gradients_of_lifting() -> None:
    torch.manual_seed(0)
    net, keypoints, results = ConvFormer(frames=9, joints=15, dim=16).eval(), torch.randn(4, 9, 15, 2) * 0.3, []
    for device in ("cpu", "cuda"):
        net = net.to(device)
        net.zero_grad()
        net(keypoints.to(device)).square().sum().backward()
        results.append(gradient(net))
    assert (results[1].cpu() - results[0]).norm() <= 1e-4 * results[0].norm()
