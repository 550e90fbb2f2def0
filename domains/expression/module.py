"""Training of expression recognition: ARBEx."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from domains.common.classification import ClassificationScores, decide
from domains.common.errors import ConfigError
from domains.common.hub import plain
from domains.common.intervals import Estimate
from domains.common.loader import Batch
from domains.common.module import HeptadModule
from domains.common.schedules import cosine_schedule, training_steps
from domains.expression.arbex import ARBEx
from domains.expression.balancing import ARBExOutput
from domains.expression.calibration import calibration_note, fit_temperature, scaled_distribution
from domains.expression.data import NAMES
from domains.expression.evaluation import evaluate_expressions
from domains.expression.losses import LAMBDAS, MARGIN, AnchorLoss, anchor_loss, arbex_losses, class_weights
from domains.expression.official_scores import official_scores
from domains.expression.smoothing import Smoothing, smoothed_columns, write_csv
from domains.expression.targets import shares, soft_loss
from domains.expression.weights import SCALING, start_from_all

Prediction = Literal["corrected", "primary"]
Schedule = Literal["exponential", "cosine", "constant"]


class ARBExModule(HeptadModule):
    """ARBEx (Wasi et al., 2023, arXiv 2305.01486): classification, anchor and centre losses under a growing trust.

    Defaults are those of the paper, where the program's diverge (all learning rates 1, an anchor loss without bound).

    Args:
        classes: taken from the data.
        pretrained: local files to start from, each loaded as far as it fits: `ir50.pth`, MobileFaceNet, a whole
            POSTER++ or ARBEx; what is missing starts at random, but for backbones that are frozen. A run that is
            continued has its own weights.
        lr: learning rate of Adam.
        schedule: exponential (gamma per epoch, the paper), cosine (half of one over all steps) or constant.
        gamma: factor of the learning rate per epoch (exponential).
        warmup: epochs in which the learning rate rises from 0 (cosine).
        weight_decay: decoupled, of all parameters.
        lambdas: weights of the classification, anchor and centre losses.
        anchor_loss: hinge (bounded) or official.
        anchor_margin: distance at which the hinge ends, in units of the square root of D.
        label_smoothing: share of each label that is spread over all classes.
        balanced_loss: weigh classes by the inverse of how often they are in the training split.
        balancing: train the reliability balancing; false trains the primary head alone, as a baseline.
        trust_steps: steps in which the trust in the correction rises from 0 to 1; default all of the training.
        prediction: distribution that decides: corrected (the paper) or primary.
        calibrate: at the end of each validation, fit the temperatures of both distributions to its rows (Guo et al.,
            2017, arXiv 1706.04599); they lie in the weights, and are 1 without validation data, or with false.
        smoothing: of predictions over the frames of a video: exponential (of the past), window (around each) or none.
        smoothing_seconds: time constant, or length of the window.
        seed: of the run.
        network: options of `ARBEx`.

    Raises:
        ConfigError: an option is out of range.
    """

    net: ARBEx
    validation_metrics = (
        "val/accuracy",
        "val/macro_f1",
        "val/accuracy_primary",
        "val/accuracy_corrected",
        "val/log_loss",
        "val/ece",
    )

    def __init__(
        self,
        classes: list[str],
        pretrained: list[str] = [],  # noqa: B006 (never changed; checkpoints hold lists, not tuples)
        lr: float = 3e-4,
        schedule: Schedule = "exponential",
        gamma: float = 0.995,
        warmup: float = 0.0,
        weight_decay: float = 0.0,
        lambdas: list[float] = list(LAMBDAS),  # noqa: B006 (likewise)
        anchor_loss: AnchorLoss = "hinge",
        anchor_margin: float = MARGIN,
        label_smoothing: float = 0.11,
        balanced_loss: bool = False,
        balancing: bool = True,
        trust_steps: int | None = None,
        prediction: Prediction = "corrected",
        calibrate: bool = True,
        smoothing: Smoothing = "exponential",
        smoothing_seconds: float = 0.5,
        seed: int = 0,
        **network: Any,
    ) -> None:
        super().__init__()
        network = plain(network)
        self.save_hyperparameters()
        if lr <= 0 or weight_decay < 0 or warmup < 0 or not 0 < gamma <= 1:
            raise ConfigError("model.lr must be above 0, weight_decay and warmup at least 0, gamma above 0, at most 1")
        if len(lambdas) != 3 or min(lambdas) < 0 or anchor_margin < 0 or not 0 <= label_smoothing < 1:
            raise ConfigError(
                "model.lambdas are three numbers from 0 on, anchor_margin too; label_smoothing is below 1"
            )
        if (trust_steps is not None and trust_steps < 1) or smoothing_seconds <= 0:
            raise ConfigError("model.trust_steps counts from 1, and smoothing_seconds must be above 0")
        self.classes, self.pretrained, self.seed = list(classes), list(pretrained), seed
        self.lr, self.schedule, self.gamma, self.warmup = lr, schedule, gamma, warmup
        self.weight_decay, self.anchor_loss, self.anchor_margin = weight_decay, anchor_loss, anchor_margin
        self.lambdas = (lambdas[0], lambdas[1], lambdas[2]) if balancing else (lambdas[0], 0.0, 0.0)
        self.label_smoothing, self.balanced_loss, self.balancing = label_smoothing, balanced_loss, balancing
        self.trust_steps, self.prediction = trust_steps, prediction if balancing else "primary"
        self.smoothing, self.smoothing_seconds = smoothing, smoothing_seconds
        self.net = ARBEx(len(classes), **network)
        if not balancing:  # nothing would train it
            for part in (self.net.balancing.anchors, self.net.balancing.attention):
                part.requires_grad_(False)
        self.calibrate = calibrate
        self._temperatures: tuple[float, float] | None = None
        self._weights: Tensor | None = None
        self._total = math.inf
        self._validated: list[tuple[Tensor, ...]] = []
        self._filled = False
        self.net.register_load_state_dict_post_hook(self._note_weights)  # type: ignore[no-untyped-call]

    def _note_weights(self, *_: Any) -> None:
        self._filled = True

    def setup(self, stage: str) -> None:
        """Count the classes of the training split, where the loss is balanced."""
        super().setup(stage)
        if stage != "fit":
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.balanced_loss:
            labels = torch.from_numpy(data.index("train")[1]["label"].to_numpy().astype("int64"))
            self._weights = class_weights(torch.bincount(labels, minlength=len(self.classes)))

    def on_fit_start(self) -> None:
        """Give a fresh network its start; one whose weights were loaded (`--init_from`, `--ckpt_path`) has its own.

        Raises:
            ConfigError: the length of training, which the trust grows with, is not known; or frozen backbones would
                stay at random.
        """
        self._total = training_steps(self.trainer, 0)[0] if self.trust_steps is None else self.trust_steps
        if self.balancing and math.isinf(self._total):
            raise ConfigError("only time ends this training; give model.trust_steps, in which the trust rises to 1")
        said = [] if self._filled else start_from_all(self.net, self.pretrained)
        if said and self.trainer.is_global_zero:
            print("\n".join(said))
        if self.trainer.ckpt_path is None:  # those of a network to start from are of its weights and its data
            self._set_temperatures(1.0, 1.0)
        else:
            self._temperatures = self.temperatures

    @property
    def trust(self) -> float:
        """Trust in the correction at this step of training."""
        return min(self.global_step / self._total, 1.0) if self.balancing else 0.0

    def forward(self, batch: Batch, *, trust: float = 1.0) -> ARBExOutput:
        """Output of the network for a batch."""
        output: ARBExOutput = self.net(batch["image"], trust=trust)
        return output

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch, a mean over the images of all processes."""
        count = len(batch["label"])
        losses = self._losses(batch) if count else self._no_losses()
        # by every process: the mean over them waits for all
        self.log(
            "train/loss",
            losses["total"].detach(),
            on_step=True,
            prog_bar=True,
            batch_size=max(count, 1),
            sync_dist=True,
        )
        for name in ("ce", "mu", "center"):
            self.log(f"train/loss_{name}", losses[name].detach(), batch_size=max(count, 1))
        if self.balancing:
            self.log("train/trust", self.trust)
            self.log("train/anchor_norm", self.net.anchor_points.detach().norm(dim=-1).mean())
        return losses["total"]

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        labels, trust = batch["label"], self.trust
        output = self(batch, trust=trust)
        share = len(labels) * self.trainer.world_size / batch["global_size"]
        weights = None if self._weights is None else self._weights.to(labels.device)
        found = arbex_losses(
            output,
            labels,
            self.net.anchor_points,
            trust=trust,
            weights=weights,
            label_smoothing=self.label_smoothing,
            kind=self.anchor_loss,
            margin=self.anchor_margin,
        )
        if "target" in batch:
            found["ce"] = soft_loss(output.corrected, batch["target"], weights, label_smoothing=self.label_smoothing)
        ce_share = share
        if weights is not None:
            own = (weights[labels] if "target" not in batch else shares(batch["target"]) @ weights).sum()
            ce_share = own * self.trainer.world_size / self._over_processes(own)
        return self._summed(found["ce"] * ce_share, found["mu"], found["center"] * share, trust)

    def _no_losses(self) -> dict[str, Tensor]:
        """Of a process without a row of the last batch: nothing, in every parameter, and the anchors' own loss."""
        nothing = torch.stack([p.sum() for p in self.net.parameters() if p.requires_grad]).sum() * 0.0
        if self._weights is not None:
            self._over_processes(nothing.detach())
        found = anchor_loss(self.net.anchor_points, self.anchor_loss, margin=self.anchor_margin)
        return self._summed(nothing, found, nothing, self.trust)

    def _summed(self, ce: Tensor, mu: Tensor, center: Tensor, trust: float) -> dict[str, Tensor]:
        total = self.lambdas[0] * ce + trust * (self.lambdas[1] * mu + self.lambdas[2] * center)
        return {"ce": ce, "mu": mu, "center": center, "total": total}

    def _over_processes(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        return total

    def on_train_end(self) -> None:
        """Say that nothing was validated; put temperatures back, which averaging of weights (--ema) averages, too."""
        if self._temperatures is not None:
            self._set_temperatures(*self._temperatures)
        elif self.calibrate and self.trainer.is_global_zero:
            print("nothing was validated: probabilities are not calibrated, their temperature stays 1")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the temperatures of the last validation in the place of averaged ones (--ema), which fit no weights."""
        super().on_save_checkpoint(checkpoint)
        own = {name: tensor for name, tensor in self.state_dict().items() if SCALING.search(name)}
        checkpoint["state_dict"] |= {name: tensor.detach().clone() for name, tensor in own.items()}

    @property
    def temperatures(self) -> tuple[float, float]:
        """T of the primary and of the corrected distribution."""
        balancing = self.net.balancing
        return float(balancing.primary_scaling.temperature), float(balancing.corrected_scaling.temperature)

    def _set_temperatures(self, primary: float, corrected: float) -> None:
        self.net.balancing.primary_scaling.set(primary)
        self.net.balancing.corrected_scaling.set(corrected)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect labels and both distributions."""
        output = self(batch)
        both = output.primary.double(), self._corrected(output).double()
        self._validated.append((batch["row"], batch["label"], *both))

    def on_validation_epoch_end(self) -> None:
        """Fit temperatures where this is part of a training, and log metrics over all of the split."""
        rows, *gathered = self.gathered(self._validated)
        self._validated = []
        labels, primary, corrected = (values[np.argsort(rows)] for values in gathered)  # for any number of processes
        if self.calibrate and self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            # here averaging of weights (--ema) has given the trained ones back; it is they that carry temperatures
            fitted = fit_temperature(labels, primary)
            self._set_temperatures(fitted, fit_temperature(labels, corrected) if self.balancing else 1.0)
            self._temperatures = self.temperatures
        decided = {"primary": decide(primary), "corrected": decide(corrected)}
        place = ("primary", "corrected").index(self.prediction)
        chosen, values = decided[self.prediction], (primary, corrected)[place]
        values = scaled_distribution(values, self.temperatures[place])
        scores = ClassificationScores(labels, values, chosen, self.classes, per_class=False)(np.ones(len(labels)))
        official = official_scores(labels, chosen, len(self.classes))
        found = {name: scores[name] for name in ("accuracy", "log_loss", "ece")} | {"macro_f1": official["macro_f1"]}
        found |= {f"accuracy_{name}": float((classes == labels).mean()) for name, classes in decided.items()}
        # every process has the same numbers
        self.log_dict({name: found[name.removeprefix("val/")] for name in self.validation_metrics}, sync_dist=True)

    def _corrected(self, output: ARBExOutput) -> Tensor:
        """The corrected distribution; where nothing trains the correction, there is none."""
        return output.corrected if self.balancing else output.primary

    def decided(self, output: ARBExOutput) -> tuple[Tensor, Tensor]:
        """The distribution that decides, and what is told as probabilities: the same, calibrated."""
        if self.prediction == "primary":
            return output.primary, output.primary_calibrated
        return output.corrected, output.calibrated

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Both distributions, before and after scaling, the confidences and the decision for each row."""
        output = self(batch)
        chosen, probabilities = self.decided(output)
        found: dict[str, Any] = {name: batch[name] for name in ("row", "label", *NAMES) if name in batch}
        found |= {f"probability_{k}": probabilities[:, k].float() for k in range(len(self.classes))}
        found["predicted"] = chosen.argmax(-1)
        told = {"primary": output.primary, "corrected": self._corrected(output)}
        told["primary_calibrated"] = output.primary_calibrated
        told["calibrated"] = output.calibrated if self.balancing else output.primary_calibrated
        for name, values in told.items():
            found |= {f"{name}_{k}": values[:, k].float() for k in range(len(self.classes))}
        found["confidence"] = output.confidence[:, 0]
        if self.balancing:
            found["confidence_anchors"] = output.confidence_geometric[:, 0]
            found["confidence_attention"] = output.confidence_attention[:, 0]
        return found

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `predict_step`; metrics are computed over the whole table at the end."""
        return self.predict_step(batch, index)

    def complete(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """Smooth over the frames of videos, where there are some and no labels."""
        if "label" in predictions.columns:
            return predictions
        return smoothed_columns(predictions, self.smoothing, self.smoothing_seconds)

    def write_beside(self, predictions: pl.DataFrame, directory: Path) -> None:
        """Write predictions.csv, with classes by name."""
        write_csv(predictions, self.classes, directory / "predictions.csv")
        if self.trainer.is_global_zero:
            print(f"by class names: {directory / 'predictions.csv'}")

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_expressions`."""
        return evaluate_expressions(predictions, self.classes, replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        group = data.card.get("group") or {}
        unit = (
            f"{group.get('name', 'subject')}s"
            if group.get("kept_apart")
            else "subjects where they are known, images else"
        )
        primary, corrected = self.temperatures
        note = calibration_note(primary, corrected if self.balancing else None)
        fold = "" if data.fold is None else f" The test split is fold {data.fold} of {data.card.get('folds')}."
        return (
            f"Decisions are those of the {self.prediction} distribution; accuracy_primary and accuracy_corrected are"
            f" those of both; accuracy_majority is that of always deciding for the commonest class of the test split."
            f" {note} ece is over bins of equal mass, one for each 10 images, at most 15; ece_15 over 15 bins of equal"
            " width, the usual ones. macro_f1_all_classes counts 0 for a class that neither occurs nor is predicted."
            f" Intervals are resampled over {unit}.{fold}"
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam (with decoupled weight decay) over what is trained, and the schedule."""
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer = AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        if self.schedule == "constant":
            return optimizer
        if self.schedule == "exponential":
            by_epoch: LRScheduler = ExponentialLR(optimizer, self.gamma)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": by_epoch, "interval": "epoch"}}
        total, warmup = training_steps(self.trainer, self.warmup)
        schedule = cosine_schedule(optimizer, total, warmup=warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random normalised images, whatever `length`."""
        del length
        return (torch.randn(rows, self.net.channels, self.net.image_size, self.net.image_size),)

    def output_names(self) -> tuple[str, ...]:
        """As `exportable` gives them."""
        return "corrected", "primary", "embedding", "calibrated"

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The batch."""
        return ({0: "batch"},)

    def exportable(self) -> nn.Module:
        """Normalised images -> corrected and primary distribution, the embedding, and the calibrated distribution."""
        return _Distributions(self.net)


class _Distributions(nn.Module):
    """What an exported program computes; attention is of each sample alone, as in evaluation."""

    def __init__(self, net: ARBEx) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Apply."""
        output = self.net(image)
        return output.corrected, output.primary, output.embedding, output.calibrated
