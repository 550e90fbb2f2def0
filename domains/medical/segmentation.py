"""First step of MEDUSA's training: its body learns where the lungs are."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import polars as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics import MeanMetric

from domains.common.errors import ConfigError
from domains.common.intervals import Estimate, ratio_bootstrap
from domains.common.loader import Batch
from domains.common.module import HeptadModule
from domains.common.schedules import cosine_schedule, training_steps
from domains.medical.bags import NAMES
from domains.medical.medusa import UNetBody
from domains.medical.patients import units

OVERLAPS = ("dice", "iou")


class LungSegmenter(nn.Module):
    """MEDUSA's body with its segmentation output, as a network of its own; parameters are named as inside `MEDUSA`.

    Args:
        width: see `UNetBody`.
        levels: likewise.

    Shape:
        gray (B, 1, s, s) float32, z-scores of each image -> logits of the lung mask (B, 1, s, s).
    """

    def __init__(self, width: int = 24, levels: int = 5) -> None:
        super().__init__()
        self.arguments = {"width": width, "levels": levels}
        self.body = UNetBody(width, levels)

    def forward(self, gray: Tensor) -> Tensor:
        """Return the logits."""
        return self.body.segment(self.body(gray))


class MEDUSABodyModule(HeptadModule):
    """Lung segmentation: binary cross entropy + (1 - soft Dice), AdamW with a cosine.

    Its published model, or its checkpoint, is what `--model.body_weights` of MEDUSA takes.

    Args:
        gray_side: taken from the data.
        width: of the body.
        levels: of the body.
        lr: learning rate.
        weight_decay: of all parameters.
        warmup: epochs in which the learning rate rises from 0.
        seed: of the run.

    Raises:
        ConfigError: an option is out of range.
    """

    net: LungSegmenter
    validation_metrics = tuple(f"val/{name}" for name in OVERLAPS)

    def __init__(
        self,
        gray_side: int = 256,
        width: int = 24,
        levels: int = 5,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if lr <= 0 or weight_decay < 0 or warmup < 0:
            raise ConfigError("model.lr must be above 0; weight_decay and warmup at least 0")
        self.save_hyperparameters()
        self.net = LungSegmenter(width, levels)
        self.gray_side, self.lr, self.weight_decay, self.warmup, self.seed = gray_side, lr, weight_decay, warmup, seed
        self.val = nn.ModuleDict({name: MeanMetric() for name in OVERLAPS})

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the lung mask (B, 1, s, s)."""
        logits: Tensor = self.net(batch["gray"])
        return logits

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch, a mean over the images of all processes."""
        count = len(batch["row"])
        share = count * self.trainer.world_size / batch["global_size"]
        loss = lung_loss(self(batch), batch["mask"]) * share if count else nothing(self.net)
        # by every process: the mean over them waits for all
        self.log("train/loss", loss.detach(), on_step=True, prog_bar=True, batch_size=max(count, 1), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect the overlap of each image."""
        for name, values in overlaps(self(batch), batch["mask"]).items():
            metric = cast(MeanMetric, self.val[name])
            metric.update(values)
            self.log(f"val/{name}", metric, prog_bar=True)

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Share of lung in each image and, where there is a mask, how well it was found."""
        logits = self(batch)
        known: dict[str, Any] = {name: batch[name] for name in ("row", *NAMES) if name in batch}
        known["lung_share"] = (logits > 0).float().mean(dim=(1, 2, 3))
        return known | {
            name: torch.where(batch["has_mask"], values, torch.nan)
            for name, values in overlaps(logits, batch["mask"]).items()
        }

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `predict_step`; metrics are computed over the whole table at the end."""
        return self.predict_step(batch, index)

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """Mean Dice and intersection over union of images, with intervals over patients."""
        ratios = {}
        for name in OVERLAPS:
            values = predictions[name].to_numpy().astype(np.float64)
            ratios[name] = (np.nan_to_num(values), np.isfinite(values).astype(np.float64))
        return ratio_bootstrap(ratios, len(predictions), units(predictions), replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        return (
            f"Dice and intersection over union of each image at {data.gray_side} x {data.gray_side} pixels, lung where"
            " the probability is above 0.5, averaged over images; intervals are resampled over patients."
        )

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random images of the trained size, whatever `length`."""
        del length
        return (torch.randn(rows, 1, self.gray_side, self.gray_side),)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The batch."""
        return ({0: "batch"},)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, a warm-up, and half a cosine over all steps."""
        optimizer = AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        total, warmup = training_steps(self.trainer, self.warmup)
        schedule = cosine_schedule(optimizer, total, warmup=warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def lung_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy + (1 - soft Dice of each image), means over images (Milletari et al., 2016, for the latter).

    Shape:
        logits, mask (B, 1, s, s) -> ().
    """
    from monai.losses.dice import DiceCELoss  # takes seconds to import, and only training needs it

    loss: Tensor = DiceCELoss(sigmoid=True)(logits.float(), mask)
    return loss


def overlaps(logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Dice and intersection over union of each image, 1 where both are empty.

    Shape:
        logits, mask (B, 1, s, s) -> dice (B,), iou (B,).
    """
    found, wanted = logits > 0, mask > 0.5
    both = (found & wanted).sum(dim=(1, 2, 3)).float()
    either = (found | wanted).sum(dim=(1, 2, 3)).float()
    empty = either == 0
    return {
        "dice": torch.where(empty, 1.0, 2 * both / (both + either).clamp(min=1.0)),
        "iou": torch.where(empty, 1.0, both / either.clamp(min=1.0)),
    }


def nothing(network: nn.Module) -> Tensor:
    """Zero that depends on every trained parameter: the loss of a process without a row of the last batch."""
    parameters = [parameter.sum() for parameter in network.parameters() if parameter.requires_grad]
    return torch.stack(parameters).sum() * 0.0
