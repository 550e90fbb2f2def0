"""A vision transformer of timm as it is, fused attention on: what DCAL is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from torch.nn import functional as F

from benchmarks.peers.worker import Step, Work


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        backbone: name of the model in timm.
        size: height and width of images.
        batch: images of a step.
        classes: of the classifier.
        seed: of weights and images.
    """

    backbone: str
    size: int
    batch: int
    classes: int = 200
    seed: int = 0


def make_batch(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise, and labels."""
    generator = torch.Generator().manual_seed(setting.seed)
    images = torch.randn(setting.batch, 3, setting.size, setting.size, generator=generator)
    return images, torch.randint(setting.classes, (setting.batch,), generator=generator)


def build(setting: Setting, mode: str) -> Step:
    """Return a step: `infer`, or `train`, which ends with AdamW's update."""
    torch.manual_seed(setting.seed)
    net = timm.create_model(setting.backbone, img_size=setting.size, num_classes=setting.classes)
    images, labels = make_batch(setting)
    if mode == "infer":
        net.eval()

        @torch.no_grad()
        def infer(_: int) -> Work:
            return Work({"images": setting.batch}, {"value": float(net(images).norm())})

        return infer
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.05)

    def train(_: int) -> Work:
        optimiser.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        torch.autograd.backward(loss)
        optimiser.step()
        return Work({"images": setting.batch}, {"loss": float(loss)})

    return train
