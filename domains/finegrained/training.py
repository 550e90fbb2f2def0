"""Training of DCAL: what fine-grained classes and re-identification share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import polars as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from domains.common.errors import ConfigError
from domains.common.hub import plain
from domains.common.loader import Batch, mix_seed
from domains.common.module import HeptadModule
from domains.common.schedules import cosine_schedule, training_steps
from domains.finegrained.dcal import DCAL, Branches, DCALOutput, Task, class_probabilities, derangement, embedding
from domains.finegrained.heads import BranchOutput
from domains.finegrained.images import REGION
from domains.finegrained.losses import dcal_losses
from domains.finegrained.optimisation import parameter_groups

Normalisation = Literal["auto", "imagenet", "half"]
SIZES = {"patch_size", "embed_dim", "depth", "num_heads"}  # options that make a backbone of one's own
STATISTICS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,) * 3, (0.5,) * 3)}


class InferenceNetwork(nn.Module):
    """What is exported: pictures as they are in, what is decided by out; normalisation is inside.

    Args:
        net: the network.
        mean: of each channel.
        std: likewise.
        branches: that decide.

    Shape:
        images (B, 3, H, W) float32 in [0, 1] -> probabilities (B, C), or for re-identification features (B, 2 D).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: DCAL, mean: Tensor, std: Tensor, branches: Branches) -> None:
        super().__init__()
        self.net, self.branches = net, branches
        self.register_buffer("mean", mean.clone(), persistent=False)
        self.register_buffer("std", std.clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Apply."""
        output = self.net((images - self.mean) / self.std, branches="sa" if self.branches == "sa" else "both")
        if self.net.task == "reid":
            return embedding(output, self.branches)
        return class_probabilities(output, self.branches) / (2 if self.branches == "both" else 1)


class DCALModule(HeptadModule):
    """Dual cross-attention learning; a subclass says what is measured.

    Args:
        n_classes: of the training set, C.
        task: `fgvc` or `reid`.
        image_size: taken from the data.
        pretrained: weights of the backbone: a local file of timm or DeiT (safetensors, torch state dict, Google's
            `.npz`), or a model directory of this project; none: it starts at random.
        normalisation: of pictures: `imagenet` or `half` (0.5); `auto`: as timm says of the backbone's weights.
        branches: `both`; `sa` is the plain backbone, without global-local cross-attention.
        pairwise: train with pair-wise cross-attention, too.
        inference: which branches decide: `both`, `sa` or `glca`.
        pair_shares: distractors are drawn within each of so many interleaved shares of a batch; default the number of
            processes, whose rows these are.
        label_smoothing: share of each label that is spread over all classes.
        triplet: weight of the batch-hard triplet loss.
        margin: of the triplet loss; none: soft.
        optimizer: `adamw`, `adam`, or `sgd` with momentum 0.9.
        lr: learning rate.
        lr_batch: pictures of a batch that lr is stated for; others scale it. None: lr is taken as it is.
        min_lr: at the end of the cosine, as a share of lr.
        warmup: epochs in which the learning rate rises.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from each layer to the one before it; 1: all learn alike.
        bias_lr: factor on the learning rate of biases.
        checkpointing: compute the feed-forward nets of the backbone anew in the backward pass, for less memory.
        seed: of distractors and stochastic depth.
        **network: further options of `DCAL`.

    Raises:
        ConfigError: an option is out of range.
    """

    net: DCAL
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        n_classes: int,
        task: Task,
        image_size: Sequence[int],
        pretrained: str | None = None,
        normalisation: Normalisation = "auto",
        branches: Literal["both", "sa"] = "both",
        pairwise: bool = True,
        inference: Branches = "both",
        pair_shares: int | None = None,
        label_smoothing: float = 0.0,
        triplet: float = 0.0,
        margin: float | None = None,
        optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
        lr: float = 5e-4,
        lr_batch: int | None = 512,
        min_lr: float = 0.0,
        warmup: float = 0.0,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        bias_lr: float = 1.0,
        checkpointing: bool = False,
        seed: int = 0,
        **network: Any,
    ) -> None:
        super().__init__()
        network = plain(network)
        self.save_hyperparameters(ignore=["n_classes", "task"])  # the arguments of the subclass, too
        if lr <= 0 or not 0 <= min_lr <= 1 or warmup < 0 or weight_decay < 0:
            raise ConfigError("model.lr must be above 0, min_lr a share up to 1, warmup and weight_decay at least 0")
        if not 0 <= label_smoothing < 1 or triplet < 0 or (lr_batch is not None and lr_batch < 1):
            raise ConfigError("model.label_smoothing lies in [0, 1); triplet is at least 0, lr_batch at least 1")
        if pair_shares is not None and pair_shares < 1:
            raise ConfigError(f"model.pair_shares is {pair_shares}; give 1 or more, or none")
        self.net = DCAL(n_classes=n_classes, image_size=image_size, task=task, **network)
        self.net.checkpointing = checkpointing
        self.branches, self.pairwise = branches, pairwise
        self.inference: Branches = "sa" if branches == "sa" else inference
        self.pretrained, self.pair_shares, self.seed = pretrained, pair_shares, seed
        self.label_smoothing, self.triplet, self.margin = label_smoothing, triplet, margin
        self.optimizer, self.lr, self.lr_batch, self.min_lr = optimizer, lr, lr_batch, min_lr
        self.warmup, self.weight_decay = warmup, weight_decay
        self.layer_decay, self.bias_lr = layer_decay, bias_lr
        known = self.net.trunk.pretrained_cfg
        mean, std = STATISTICS.get(normalisation, (known["mean"], known["std"]))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        if branches == "sa":  # nothing would train them
            for part in (self.net.glca, self.net.glca_norm, self.net.glca_head):
                part.requires_grad_(False)
        if branches == "sa" and not pairwise:  # a single loss has nothing to be weighed against
            self.net.uncertainty_w.requires_grad_(False)
        self._filled = False
        self.net.register_load_state_dict_post_hook(self._note_weights)  # type: ignore[no-untyped-call]
        self._validated: list[tuple[Tensor, ...]] = []

    def _note_weights(self, *_: Any) -> None:
        self._filled = True

    def on_fit_start(self) -> None:
        """Give a fresh network its start; one whose weights were loaded (`--init_from`, `--ckpt_path`) has its own."""
        if self._filled:
            return
        if self.pretrained is not None:
            self.net.load_pretrained(self.pretrained)
        if self.trainer.is_global_zero:
            print(f"start: backbone from {self.pretrained or 'random numbers'}")
            if self.pretrained is None and not SIZES & set(self.net.arguments["backbone_options"] or ()):
                print(_missing_start(self.net))

    def setup(self, stage: str) -> None:
        """Check what training needs.

        Raises:
            ConfigError: shares of distractors that are not those of the processes.
        """
        super().setup(stage)
        world = self.trainer.world_size
        if world > 1 and self.pair_shares not in (None, world):
            raise ConfigError(f"model.pair_shares is {self.pair_shares} and there are {world} processes; leave it out")

    def forward(self, batch: Batch, pairs: Tensor | None = None) -> DCALOutput:
        """Branches of a batch of pictures in [0, 1]."""
        images = (batch["image"] - self.mean) / self.std
        if len(images):
            return self.net(images, pairs, branches=self.branches)  # type: ignore[no-any-return]
        # a process may have no row of the last batch, and takes part in what all do together
        empty = images.new_zeros(1, *images.shape[1:])
        some = None if pairs is None else torch.zeros(1, dtype=torch.int64, device=images.device)
        output = self.net(empty, some, branches=self.branches)
        return DCALOutput(*(_none(part) for part in output))

    def draw_pairs(self, count: int, index: int) -> Tensor:
        """For each picture of a batch its distractor: a function of (seed, step, place in the global batch).

        A picture that is alone in its share is its own, which makes pair-wise attention self-attention.

        Args:
            count: pictures of this process.
            index: number of the batch in its epoch: gradients may be accumulated over several.
        """
        world = self.trainer.world_size
        shares = 1 if world > 1 else self.pair_shares or 1
        pairs = torch.arange(count)
        for share in range(shares):
            mine = torch.arange(share, count, shares)
            place = self.global_rank if world > 1 else share
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.global_step, index, place))
            drawn = derangement(len(mine), generator=generator)
            pairs[mine] = mine if drawn is None else mine[drawn]
        return pairs

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch: branches weighed by their learned uncertainty, a mean over the pictures of all processes."""
        count = len(batch["row"])
        pairs = self.draw_pairs(count, index).to(batch["row"].device) if self.pairwise else None
        output = self(batch, pairs)
        losses = dcal_losses(
            output,
            batch["label"],
            self.net.uncertainty_w,
            smoothing=self.label_smoothing,
            triplet=self.triplet,
            margin=self.margin,
            share=self.trainer.world_size / batch["global_size"],
        )
        total = losses.pop("total")
        logged = {"train/loss": total.detach()} | {f"train/loss_{name}": loss.detach() for name, loss in losses.items()}
        # by every process: the mean over them waits for all
        self.log_dict(logged, on_step=True, on_epoch=False, batch_size=max(count, 1), sync_dist=True)
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser with its groups, and a cosine."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        images = data.batch_size * self.trainer.accumulate_grad_batches
        lr = self.lr if self.lr_batch is None else self.lr * images / self.lr_batch
        groups = parameter_groups(
            self.net, lr=lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay, bias_lr=self.bias_lr
        )
        optimizer: Optimizer
        if self.optimizer == "sgd":
            optimizer = SGD(groups, lr=lr, momentum=0.9)
        else:
            optimizer = {"adam": Adam, "adamw": AdamW}[self.optimizer](groups, lr=lr)
        total, warmup = training_steps(self.trainer, self.warmup)
        schedule = cosine_schedule(optimizer, total, warmup=warmup, floor=self.min_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `predict_step`; metrics are computed over the whole table at the end."""
        return self.predict_step(batch, index)  # type: ignore[no-any-return]

    def located(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """Add where each picture lies: `path`, and the part that is used."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        frame = data.store("predict" if self.trainer.predicting else "test").frame
        columns = ["path", *REGION] + [name for name in ("identity", "camera_name") if name in frame.columns]
        facts = frame.select(pl.int_range(pl.len()).cast(predictions["row"].dtype).alias("row"), *columns)
        return predictions.join(facts, on="row", how="left", maintain_order="left")

    def exportable(self) -> InferenceNetwork:
        """Pictures in [0, 1] in, what is decided by out."""
        return InferenceNetwork(self.net, self.mean, self.std, self.inference)

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random pictures of the trained size, whatever `length`."""
        del length
        return (torch.rand(rows, 3, *self.net.image_size),)

    def input_rules(self) -> dict[str, Any]:
        """What the network itself expects of values in [0, 1]; exported programs do this themselves."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    def output_names(self) -> tuple[str, ...]:
        """Features of length 1, or probabilities."""
        return ("features",) if self.net.task == "reid" else ("probabilities",)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The batch."""
        return ({0: "batch"},)


def _missing_start(net: DCAL) -> str:
    """What is said of a backbone of published size that starts at random."""
    name, known = net.arguments["backbone"].split(".")[0], net.trunk.pretrained_cfg
    tag = f"{name}.{known['tag']}" if known.get("tag") else name
    return (
        f"warning: {name} starts from random numbers, and the paper's recipes from pretrained weights, without which"
        f" they do not reach its numbers: give a local file of them as --model.pretrained (timm publishes {tag}; DeiT's"
        " .pth and Google's .npz of this size are read, too), or a trained network as --init_from"
    )


def _none(part: Any) -> Any:
    """The same without rows."""
    if isinstance(part, BranchOutput):
        return BranchOutput(*(tensor[:0] for tensor in part))
    return part[:0] if isinstance(part, Tensor) else part
