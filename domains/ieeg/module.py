"""Training of MVPFormer: the generative objective, and the detection of seizures."""

from __future__ import annotations

from typing import Any, Literal

import polars as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW

from domains.common.attention.mvpa import Backend, ChannelDistance, DropoutKind, RelativeIndex
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.intervals import Estimate, group_bootstrap
from domains.common.loader import Batch, mix_seed
from domains.common.module import HeptadModule
from domains.common.schedules import cosine_schedule, training_steps
from domains.ieeg.contrastive import NEGATIVES, TEMPERATURE, contrastive_logits, contrastive_loss, draw_negatives
from domains.ieeg.mvpformer import GenerativeMVPFormer

Tuning = Literal["full", "lora", "head"]
NAMES = ("recording", "subject", "onset", "duration", "annotated")


class SignalModule(HeptadModule):
    """What all trainings on windows share: AdamW, warm-up and cosine.

    Args:
        samples: of a segment, taken from the data.
        lr: learning rate.
        weight_decay: of all parameters.
        warmup: share of the steps in which the learning rate rises from 0.
        seed: of dropout and of negatives.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self, samples: int, lr: float = 1e-4, weight_decay: float = 0.01, warmup: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # the arguments of the subclass, too
        if lr <= 0 or weight_decay < 0 or not 0 <= warmup < 1:
            raise ConfigError("model.lr must be above 0, weight_decay at least 0, and warmup a share below 1")
        self.samples, self.lr, self.weight_decay, self.warmup, self.seed = samples, lr, weight_decay, warmup, seed

    def share(self, batch: Batch) -> float:
        """Factor that makes the sum over this process's rows a mean over the rows of all processes."""
        return float(self.trainer.world_size / batch["global_size"])

    def nothing(self) -> Tensor:
        """Loss of a process without a row of the last batch: it adds nothing, to every parameter."""
        return torch.stack([p.sum() for p in self.net.parameters() if p.requires_grad]).sum() * 0.0

    def log_loss(self, loss: Tensor, rows: int) -> None:
        """Log the training loss; by every process, as the mean over them waits for all."""
        self.log("train/loss", loss.detach(), on_step=True, prog_bar=True, batch_size=max(rows, 1), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with the official betas, a straight warm-up, and half a cosine over all steps."""
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer = AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        total, _ = training_steps(self.trainer, 0)
        warmup = round(self.warmup * total) if total != float("inf") else 0
        schedule = cosine_schedule(optimizer, total, warmup=warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Windows of two segments and three channels."""
        del length
        return (torch.randn(rows, 2, 3, self.samples) * 50,)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The windows of a batch."""
        return ({0: "windows"},)


class MVPFormerModule(SignalModule):
    """What all trainings of MVPFormer share: the sizes of the network.

    Args:
        samples: of a segment, taken from the data.
        dim: width of tokens.
        depth: number of blocks.
        heads: query heads.
        kv_heads: key and value heads.
        hidden: width inside the feed-forward networks.
        max_segments: segments of the longest window (110 in the official weights).
        max_channels: channels of the largest recording (128 in the official weights).
        window: segments before its own whose content a query compares.
        relative_index: from_end (official code and weights) or distance (means the same at any size).
        channel_distance: absolute (official code) or signed (paper).
        content: False leaves the content term out.
        encoder_eps: added to the mean square of a segment's coefficients, microvolts squared; 1e-5 (official) takes
            amplitudes away, 1e4 lets tokens tell those around 100 microvolts.
        dropout: of tokens, attention weights, and attention outputs.
        dropout_kind: structured (official kernel) or elementwise (official eager code).
        backend: of the attention.
        checkpointing: compute blocks again in the backward pass.
        options: of `SignalModule`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        samples: int,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        kv_heads: int = 4,
        hidden: int = 1728,
        max_segments: int = 110,
        max_channels: int = 128,
        window: int = 10,
        relative_index: RelativeIndex = "from_end",
        channel_distance: ChannelDistance = "absolute",
        content: bool = True,
        encoder_eps: float = 1e-5,
        dropout: float = 0.1,
        dropout_kind: DropoutKind = "structured",
        backend: Backend = "auto",
        checkpointing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(samples, **options)
        if encoder_eps <= 0:
            raise ConfigError(f"model.encoder_eps is {encoder_eps}; give more than 0 microvolts squared")
        if heads < 1 or kv_heads < 1 or dim % heads or heads % kv_heads:
            raise ConfigError(f"model.heads {heads} must divide dim {dim}, and kv_heads {kv_heads} must divide heads")
        if relative_index == "from_end" and channel_distance == "signed":
            raise ConfigError("model.channel_distance signed needs model.relative_index distance")
        self.max_segments, self.max_channels = max_segments, max_channels
        self.sizes: dict[str, Any] = {
            "samples": samples,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "hidden": hidden,
            "max_segments": max_segments,
            "max_channels": max_channels,
            "window": window,
            "relative_index": relative_index,
            "channel_distance": channel_distance,
            "content": content,
            "encoder_eps": encoder_eps,
            "dropout": dropout,
            "dropout_kind": dropout_kind,
            "backend": backend,
            "checkpointing": checkpointing,
        }

    def setup(self, stage: str) -> None:
        """Compare the data with the tables of the network.

        Raises:
            ConfigError: windows have more segments or channels than the network has rows for.
            PreparedDataError: a recording that is to be predicted has.
        """
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        for name, most in (("segments", self.max_segments), ("max_channels", self.max_channels)):
            found = getattr(data, name, 0)
            if found > most:
                option = "max_segments" if name == "segments" else "max_channels"
                fewer = "data.segments" if name == "segments" else "data.channels"
                raise ConfigError(
                    f"the data have {found} {name.removeprefix('max_')} and model.{option} is {most}; raise it (and"
                    f" train anew), or lower {fewer}"
                )
        if stage == "predict" and data is not None:
            for recording, channels in data.predicted_channels().items():
                if channels > self.max_channels:
                    raise PreparedDataError(
                        f"{recording}: has {channels} channels, the model reads at most {self.max_channels}; read the"
                        f" best of them (--data.channels {self.max_channels})"
                    )


class PretrainModule(MVPFormerModule):
    """Generative pretraining (section 3.2): the next segment's token among tokens of elsewhere.

    Args:
        samples: taken from the data.
        negatives: tokens that the true one is told apart from.
        temperature: of the similarities.
        options: of `MVPFormerModule`.
    """

    net: GenerativeMVPFormer
    validation_metrics = ("val/loss", "val/accuracy", "val/similarity")

    def __init__(
        self, samples: int, negatives: int = NEGATIVES, temperature: float = TEMPERATURE, **options: Any
    ) -> None:
        super().__init__(samples, **options)
        if negatives < 1 or temperature <= 0:
            raise ConfigError("model.negatives must be at least 1 and model.temperature above 0")
        self.negatives, self.temperature = negatives, temperature
        self.net = GenerativeMVPFormer(**self.sizes)
        self._validated: list[tuple[Tensor, ...]] = []

    def predict_tokens(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the true token and of negatives, and which of them stand for real channels.

        Shape:
            -> (B, T - 1, C, 1 + M), (B, T - 1, C) bool.
        """
        x, counts = batch["x"], batch.get("counts")
        if x.shape[1] < 2:
            raise ConfigError("data.segments is 1: the next segment needs windows of at least 2")
        tokens = self.net.backbone.encode(x)
        predicted = self.net.head(self.net.backbone.contextualise(tokens, counts))
        real = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
        if counts is not None:
            real &= (torch.arange(x.shape[2], device=x.device) < counts[:, None])[:, None]
        negatives = draw_negatives(real, self.negatives, generator)
        return contrastive_logits(predicted, tokens, negatives, self.temperature), real[:, 1:]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Contrastive loss, mean over the tokens of this process."""
        rows = len(batch["x"])
        loss = contrastive_loss(*self.predict_tokens(batch)) if rows else self.nothing()
        self.log_loss(loss, rows)
        return loss

    def _measured(self, batch: Batch) -> tuple[Tensor, ...]:
        """Loss, accuracy and similarity of each window (B,), the same whenever the batch is the same.

        Negatives are tokens of the batch, as in training: other batch sizes or numbers of processes draw others.
        """
        if not len(batch["x"]):
            return tuple(batch["x"].new_zeros(0) for _ in range(3))
        seed = mix_seed(self.seed, int(batch["row"][0]))
        generator = torch.Generator(batch["x"].device).manual_seed(seed)
        logits, real = self.predict_tokens(batch, generator)
        each = logits.float().logsumexp(-1) - logits[..., 0].float()
        right = (logits[..., 0] > logits[..., 1:].amax(-1)).float()
        count = real.sum((1, 2))
        return tuple(
            torch.where(real, values, 0.0).sum((1, 2)) / count
            for values in (each, right, logits[..., 0].float() * self.temperature)
        )

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect what windows measure."""
        self._validated.append(self._measured(batch))

    def on_validation_epoch_end(self) -> None:
        """Log means over all windows."""
        found = self.gathered(self._validated)
        self._validated = []
        # every process has the same numbers
        values = {name: float(v.mean()) for name, v in zip(self.validation_metrics, found, strict=True)}
        self.log_dict(values, sync_dist=True)

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """One row for each window."""
        loss, accuracy, similarity = self._measured(batch)
        known = {name: batch[name] for name in ("row", *NAMES)}
        return known | {"loss": loss, "accuracy": accuracy, "similarity": similarity}

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `test_step`."""
        return self.test_step(batch, index)

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """Means over windows, with intervals over subjects."""
        columns = {name: predictions[name].to_numpy() for name in ("loss", "accuracy", "similarity")}
        means = {name: _weighted_mean(values) for name, values in columns.items()}
        groups = predictions["subject"].to_numpy()
        return group_bootstrap(means, len(predictions), groups, replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """Say what is measured."""
        del data
        return (
            f"The token of every channel's next segment is told apart from {self.negatives} tokens of the same batch;"
            f" guessing finds it in {1 / (1 + self.negatives):.1%} of the cases. Intervals are resampled over subjects."
        )


def _weighted_mean(values: Any) -> Any:
    return lambda weights: float(weights @ values / weights.sum())
