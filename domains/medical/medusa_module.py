"""Second step of MEDUSA's training: body, heads and classification network together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.files import fill, read_tensors
from domains.common.hub import network_tensors, plain
from domains.common.loader import Batch
from domains.common.schedules import cosine_factor, training_steps
from domains.medical.medusa import MEDUSA
from domains.medical.module import DiagnosisModule
from domains.medical.segmentation import lung_loss, nothing


class MEDUSAModule(DiagnosisModule):
    """MEDUSA (Aboutalebi et al., 2022, arXiv 2110.06063), trained jointly.

    Cross entropy, AdamW, a warm-up epoch and a cosine; the body learns at a tenth of the rate in the first third of
    the epochs. Where images have lung masks, the segmentation loss can be kept on, so that the body does not forget.

    Args:
        classes: taken from the data.
        side: taken from the data.
        gray_side: taken from the data.
        backbone_weights: ImageNet weights of torchvision's ResNet-50 (safetensors file or torch state dict); none: it
            starts at random. The network then also subtracts ImageNet's mean colour.
        body_weights: a run of system medusa-body (its `model` directory or a checkpoint); none: the body starts at
            random.
        lr: learning rate.
        min_lr: learning rate at the end of the cosine.
        weight_decay: of all parameters.
        warmup: epochs in which the learning rate rises from 0.
        body_lr: factor of the body's learning rate in the first third of the steps.
        segmentation: weight of the segmentation loss; above 0 it needs `--data.masks true`.
        label_smoothing: share of each label that is spread over all classes.
        class_weights: weight of each class in the loss; none: all the same.
        seed: of the run.
        network: options of `MEDUSA`; without `taps` it is the plain ResNet, as the baseline.

    Raises:
        ConfigError: an option is out of range.
    """

    net: MEDUSA

    def __init__(
        self,
        classes: list[str],
        side: int | None = None,
        gray_side: int | None = None,
        backbone_weights: str | None = None,
        body_weights: str | None = None,
        lr: float = 2e-4,
        min_lr: float = 0.0,
        weight_decay: float = 1e-4,
        warmup: float = 1.0,
        body_lr: float = 0.1,
        segmentation: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        seed: int = 0,
        **network: Any,
    ) -> None:
        network = plain(network)  # checkpoints hold lists, not tuples
        super().__init__(classes, lr, min_lr, weight_decay, warmup, class_weights, seed)
        ranges = {"body_lr": body_lr, "segmentation": segmentation, "label_smoothing": label_smoothing}
        for name, value in ranges.items():
            if not 0 <= value < (1 if name == "label_smoothing" else float("inf")):
                raise ConfigError(f"model.{name} is {value}; it must be at least 0{', below 1' * (name[0] == 'l')}")
        self.net = MEDUSA(len(classes), imagenet_statistics=backbone_weights is not None, **network)
        if not self.net.taps and (segmentation or body_weights):
            raise ConfigError("without model.taps there is no body; leave out model.segmentation and body_weights")
        self.net.side, self.net.gray_side = side or self.net.side, gray_side or self.net.gray_side
        self.backbone_weights, self.body_weights = backbone_weights, body_weights
        self.body_lr, self.segmentation, self.label_smoothing = body_lr, segmentation, label_smoothing
        if self.net.body is not None and not segmentation:
            self.net.body.seg.requires_grad_(False)  # nothing would train it
        self._filled = False
        self.net.register_load_state_dict_post_hook(self._note_weights)  # type: ignore[no-untyped-call]

    def _note_weights(self, *_: Any) -> None:
        self._filled = True

    def setup(self, stage: str) -> None:
        """Choose the layout of memory; check what training needs of the data.

        Raises:
            ConfigError: the options contradict the data.
        """
        super().setup(stage)
        self.net.to(memory_format=torch.channels_last)  # faster on processors and accelerators
        if stage == "fit" and self.segmentation and not self.trainer.datamodule.masks:  # type: ignore[attr-defined]
            raise ConfigError("model.segmentation needs lung masks; add --data.masks true")

    def on_fit_start(self) -> None:
        """Give a fresh network its start; one whose weights were loaded (`--init_from`, `--ckpt_path`) has its own."""
        if self._filled:
            return
        said = [f"classification network from {self.backbone_weights or 'random numbers'}"]
        if self.backbone_weights is not None:
            load_backbone(self.net, self.backbone_weights)
        if self.net.body is not None:
            said.append(f"attention body from {self.body_weights or 'random numbers, without lung segmentation'}")
            if self.body_weights is not None:
                load_body(self.net, self.body_weights)
        if self.trainer.is_global_zero:
            print(f"start: {'; '.join(said)}")

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a batch of images."""
        return self._run(batch)[0]

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        views = [batch[name].contiguous(memory_format=torch.channels_last) for name in ("image", "gray")]
        if views[0].shape[1] > self.net.channels:
            raise ConfigError(
                f"the images have {views[0].shape[1]} channels and the network takes {self.net.channels};"
                " set model.channels, or data.channels 1"
            )
        return self.net.with_body(*views)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch, a mean over the images of all processes."""
        count = len(batch["row"])
        total = self._loss(batch) if count else nothing(self.net)
        # by every process: the mean over them waits for all
        self.log("train/loss", total.detach(), on_step=True, prog_bar=True, batch_size=max(count, 1), sync_dist=True)
        return total

    def _loss(self, batch: Batch) -> Tensor:
        count = len(batch["row"])
        share = count * self.trainer.world_size / batch["global_size"]
        logits, body = self._run(batch)
        losses = F.cross_entropy(
            logits.float(),
            batch["label"],
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        total: Tensor = losses.mean() * share
        if self.segmentation and body is not None and self.net.body is not None:
            masked = batch["has_mask"]
            outlined = self.net.body.segment(body)
            # images without mask have no part in it; times 0 where none has one, so that all processes agree
            known = lung_loss(outlined[masked], batch["mask"][masked]) if masked.any() else outlined.sum() * 0.0
            lungs = known * (masked.float().mean() * share)
            self.log("train/loss_segmentation", lungs.detach(), batch_size=count)
            total = total + self.segmentation * lungs
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; the body's learning rate is lower at first."""
        body = [] if self.net.body is None else [p for p in self.net.body.parameters() if p.requires_grad]
        inside = {id(parameter) for parameter in body}
        others = [p for p in self.net.parameters() if p.requires_grad and id(p) not in inside]
        groups = [{"params": others}, {"params": body}]
        optimizer = AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        total, warmup = training_steps(self.trainer, self.warmup)

        def factor(step: int) -> float:
            return cosine_factor(step, total, warmup, self.min_lr / self.lr)

        def body_factor(step: int) -> float:
            return factor(step) * (self.body_lr if 3 * step < total else 1.0)

        schedule = LambdaLR(optimizer, [factor, body_factor])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random images and z-scores of the trained sizes, whatever `length`."""
        del length
        net = self.net
        return torch.rand(rows, net.channels, net.side, net.side), torch.randn(rows, 1, net.gray_side, net.gray_side)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The batch."""
        return ({0: "batch"}, {0: "batch"})


def load_backbone(net: MEDUSA, path: str) -> None:
    """Start the classification network from weights of a torchvision ResNet; its last layer, of other classes, stays.

    Args:
        net: what is filled.
        path: safetensors file or torch state dict; names as torchvision's, or with `backbone.` before them.

    Raises:
        CheckpointMismatchError: it holds another network.
        UnsafeFileError: see `read_tensors`.
        CheckpointNotFoundError: it does not exist.
    """
    given = _inside(read_tensors(path), "backbone.")
    own = net.backbone.state_dict()
    # old files lack the counters, which nothing uses
    kept = {name: own[name] for name in own if name.startswith("fc.") or name.endswith("num_batches_tracked")}
    fill(net.backbone, kept | {name: tensor for name, tensor in given.items() if not name.startswith("fc.")}, path)


def load_body(net: MEDUSA, path: str) -> None:
    """Start the attention body from one that has learned to find lungs.

    Args:
        net: what is filled.
        path: model directory, weights or checkpoint of system medusa-body, or of a MEDUSA.

    Raises:
        CheckpointMismatchError: it holds no body, or one of another size.
    """
    given = _inside(network_tensors(path), "body.")
    if net.body is None:
        raise CheckpointMismatchError(path, unexpected=sorted(given))
    fill(net.body, given, path)


def _inside(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return chosen or dict(tensors)
