"""Training of diagnoses: what slides and X-rays share, and ACMIL with its baselines."""

from __future__ import annotations

import shutil
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW

from domains.common.attention import MaskReading
from domains.common.classification import ClassificationScores, choose_threshold, decide
from domains.common.errors import ConfigError
from domains.common.intervals import Estimate
from domains.common.loader import Batch, mix_seed
from domains.common.module import HeptadModule
from domains.common.schedules import cosine_schedule, training_steps
from domains.common.writing import write_tables
from domains.medical.acmil import ABMIL, ACMIL, BagNetwork, Pooling, PoolingMIL
from domains.medical.bags import NAMES
from domains.medical.evaluation import evaluate_diagnosis
from domains.medical.losses import bag_losses

METRICS = ("auroc", "macro_f1", "accuracy", "balanced_accuracy", "log_loss")
SIDES = ("width", "height")


class DiagnosisModule(HeptadModule):
    """A classifier of slides or images, AdamW with a cosine; a subclass builds the network and computes the loss.

    The threshold between two classes is the one that was best on the validation data (Youden), kept with the weights;
    a test uses it and never chooses one.

    Args:
        classes: taken from the data.
        lr: learning rate.
        min_lr: learning rate at the end of the cosine.
        weight_decay: of all parameters.
        warmup: epochs in which the learning rate rises from 0.
        class_weights: weight of each class in the loss; none: all the same.
        seed: of dropout, masking and subsampling.

    Raises:
        ConfigError: an option is out of range.
    """

    validation_metrics = (*(f"val/{name}" for name in METRICS), "val/accuracy_plus_auroc")
    threshold: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        classes: list[str],
        lr: float = 1e-4,
        min_lr: float = 0.0,
        weight_decay: float = 1e-5,
        warmup: float = 0.0,
        class_weights: list[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # the arguments of the subclass, too
        if len(classes) < 2:
            raise ConfigError(f"the data have {len(classes)} class(es): {', '.join(classes)}; a diagnosis needs two")
        if lr <= 0 or min_lr < 0 or weight_decay < 0 or warmup < 0:
            raise ConfigError("model.lr must be above 0; min_lr, weight_decay and warmup at least 0")
        if class_weights is not None and len(class_weights) != len(classes):
            raise ConfigError(f"model.class_weights has {len(class_weights)} numbers for {len(classes)} classes")
        self.classes, self.lr, self.min_lr, self.weight_decay = list(classes), lr, min_lr, weight_decay
        self.warmup, self.seed = warmup, seed
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("threshold", torch.tensor(0.5))
        self._validated: list[tuple[Tensor, ...]] = []

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a batch."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect labels and probabilities."""
        self.collect(batch["label"], self(batch))

    def collect(self, labels: Tensor, logits: Tensor) -> None:
        """Keep what the metrics of a validation are made of."""
        self._validated.append((labels, logits.double().softmax(-1)))

    def on_validation_epoch_end(self) -> None:
        """Log metrics over all of the split, and choose the threshold."""
        labels, probabilities = self.gathered(self._validated)
        self._validated = []
        threshold = choose_threshold(labels, probabilities[:, 1]) if len(self.classes) == 2 else 0.5
        if not self.trainer.sanity_checking:
            self.threshold.fill_(threshold)
        scores = ClassificationScores(labels, probabilities, decide(probabilities), self.classes, per_class=False)
        found = scores(np.ones(len(labels)))
        found["accuracy_plus_auroc"] = found["accuracy"] + found["auroc"]
        # every process has the same numbers
        self.log_dict({name: found[name.removeprefix("val/")] for name in self.validation_metrics}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the threshold chosen last, where averaged weights (`--ema`) bring an average of thresholds along."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"]["threshold"] = self.threshold.clone()

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Probabilities and decision for each row."""
        return self.predictions(batch, self(batch))

    def predictions(self, batch: Batch, logits: Tensor) -> dict[str, Any]:
        """One entry per row: names, label, probability of each class, and the class decided for."""
        probabilities = logits.float().softmax(-1)
        decided = probabilities.argmax(-1)
        if len(self.classes) == 2:
            decided = (probabilities[:, 1] >= self.threshold).long()
        named = {name: batch[name] for name in NAMES if name in batch}
        known: dict[str, Any] = {name: batch[name] for name in ("row", "label") if name in batch} | named
        each = {f"probability_{k}": probabilities[:, k] for k in range(len(self.classes))}
        return {**known, **each, "predicted": decided}

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `predict_step`; metrics are computed over the whole table at the end."""
        return self.predict_step(batch, index)

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_diagnosis`."""
        threshold = float(self.threshold) if len(self.classes) == 2 else None
        return evaluate_diagnosis(predictions, self.classes, threshold=threshold, replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        group = data.card.get("group") or {}
        unit = "patients" if group.get("kept_apart") else "rows: the data do not keep patients apart"
        two = (
            f" Of two classes {self.classes[1]!r} is the positive one; its threshold {float(self.threshold):.4f} is the"
            " best of the validation split (sensitivity + specificity)."
        )
        return f"Intervals are resampled over {unit}.{two if len(self.classes) == 2 else ''}"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, a warm-up, and half a cosine over all steps."""
        groups = self.parameter_groups()
        optimizer = AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        total, warmup = training_steps(self.trainer, self.warmup)
        schedule = cosine_schedule(optimizer, total, warmup=warmup, floor=self.min_lr / self.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters as the optimiser takes them; by default one group."""
        return [{"params": [parameter for parameter in self.net.parameters() if parameter.requires_grad]}]


class BagModule(DiagnosisModule):
    """Training on bags, of any network for bags.

    Args:
        classes: taken from the data.
        max_instances: train on so many instances of a bag, drawn anew in each epoch; none: on all.
        standardize: subtract the mean and divide by the deviation of each feature over the training bags; they become
            a part of the network.
        attention: `test` and `predict` write the attention of each bag, for heat maps.
        options: of `DiagnosisModule`.
    """

    net: BagNetwork

    def __init__(
        self,
        classes: list[str],
        max_instances: int | None = None,
        standardize: bool = False,
        attention: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(classes, **options)
        if max_instances is not None and max_instances < 1:
            raise ConfigError(f"model.max_instances is {max_instances}; give at least 1, or none")
        self.max_instances, self.standardize, self.attention = max_instances, standardize, attention

    def setup(self, stage: str) -> None:
        """Measure the features of the training bags, where a fresh network is to standardise them."""
        super().setup(stage)
        if stage == "fit" and self.standardize and not self.net.measured:
            self.net.measure(*self.trainer.datamodule.feature_statistics())  # type: ignore[attr-defined]

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C) of a batch of bags."""
        return self.net(batch["x"], batch["sizes"]) if batch["sizes"] else self._none(batch)

    def _none(self, batch: Batch) -> Tensor:
        """Logits of no bag: of a process without a row of the last batch."""
        return self.net.classifier.weight.new_zeros(0, len(self.classes))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch, a mean over the bags of all processes."""
        count = len(batch["sizes"])
        if count:
            x, sizes = self._subsample(batch)
            share = self.trainer.world_size / batch["global_size"]
            each = bag_losses(self.net.pool(x, sizes), batch["label"], self.class_weights)
            losses = {name: loss.sum() * share for name, loss in each.items()}
            total = torch.stack(list(losses.values())).sum()
            self.log_dict({f"train/loss_{name}": loss.detach() for name, loss in losses.items()}, batch_size=count)
        else:  # a process without a row of the last batch adds nothing, to every parameter
            total = torch.stack([parameter.sum() for parameter in self.net.parameters()]).sum() * 0.0
        # by every process: the mean over them waits for all
        self.log("train/loss", total.detach(), on_step=True, prog_bar=True, batch_size=max(count, 1), sync_dist=True)
        return total

    def _subsample(self, batch: Batch) -> tuple[Tensor, list[int]]:
        limit, sizes = self.max_instances, batch["sizes"]
        if limit is None or max(sizes) <= limit:
            return batch["x"], sizes
        chosen, start = [], 0
        for row, size in zip(batch["row"].tolist(), sizes, strict=True):
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.current_epoch, row))
            order = torch.randperm(size, generator=generator)[:limit].sort().values
            chosen.append(start + order)
            start += size
        return batch["x"][torch.cat(chosen).to(batch["x"].device)], [min(size, limit) for size in sizes]

    def on_test_start(self) -> None:
        """Forget the attention of an earlier test."""
        self._forget_attention()

    def on_predict_start(self) -> None:
        """Forget the attention of an earlier prediction."""
        self._forget_attention()

    def _forget_attention(self) -> None:
        if self.output is not None and self.trainer.is_global_zero:  # that of other bags would look like this one's
            shutil.rmtree(self.output / "attention", ignore_errors=True)
        self.trainer.strategy.barrier()

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Probabilities and decision for each bag; its attention goes to a file of its own."""
        if not batch["sizes"]:
            return self.predictions(batch, self._none(batch))
        output = self.net.pool(batch["x"], batch["sizes"])
        if self.attention and self.output is not None:
            tables = attention_tables(batch, output.attention(), output.branch_attention())
            for name, table in zip(batch["name"], tables, strict=True):
                write_tables(self.output / "attention" / f"{name}.parquet", [table])
        return self.predictions(batch, output.logits)

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """One bag of `rows` instances."""
        del length
        return (torch.randn(rows, self.net.feature_dim),)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The instances of a bag."""
        return ({0: "instances"},)


def attention_tables(batch: Batch, attention: list[Tensor], branches: list[Tensor]) -> list[pl.DataFrame]:
    """Make the table of each bag of a batch: a row for each patch.

    Returns:
        x, y (corner at level 0, -1 where unknown), size (level-0 pixels, 0 where unknown), width, height (of the
        slide, 0 where unknown), attention (adds up to 1), branch_0 and so on.
    """
    tables = []
    places = torch.split(batch["coords"], batch["sizes"])
    for i, (place, weights, by_branch) in enumerate(zip(places, attention, branches, strict=True)):
        canvas, size = batch["canvas"][i].tolist(), float(batch["patch_size"][i])
        columns: dict[str, Any] = {"x": place[:, 0].cpu().numpy(), "y": place[:, 1].cpu().numpy()}
        columns |= {"size": np.full(len(place), size, np.float32)}
        columns |= {name: np.full(len(place), side, np.int64) for name, side in zip(SIDES, canvas, strict=True)}
        columns["attention"] = weights.float().cpu().numpy()
        columns |= {f"branch_{k}": row.float().cpu().numpy() for k, row in enumerate(by_branch)}
        tables.append(pl.DataFrame(columns))
    return tables


class ACMILModule(BagModule):
    """ACMIL (Zhang et al., 2024, arXiv 2311.07125): ACMIL_GA with gated, ACMIL_MHA with multi_head branches.

    Args:
        classes: taken from the data.
        feature_dim: taken from the data.
        dim: width behind the reduction.
        branch_attention: gated (ACMIL_GA) or multi_head (ACMIL_MHA).
        branches: number of branches K.
        masked_top: candidates for masking in each branch; 0: none is masked.
        mask_probability: share of the candidates that is masked.
        mask_reading: exact: that share (official code); bernoulli: each with that probability (paper).
        scale_masking: in bags of n instances no more than n / 4 candidates, for bags of few instances.
        gate_dim: width of the gate (gated).
        heads: heads of a branch (multi_head).
        dropout: behind the output map of a branch (multi_head).
        options: of `BagModule`.
    """

    def __init__(
        self,
        classes: list[str],
        feature_dim: int,
        dim: int = 128,
        branch_attention: Literal["gated", "multi_head"] = "gated",
        branches: int = 5,
        masked_top: int = 10,
        mask_probability: float = 0.6,
        mask_reading: MaskReading = "exact",
        scale_masking: bool = False,
        gate_dim: int = 128,
        heads: int = 8,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(classes, **options)
        self.net = ACMIL(
            feature_dim,
            len(classes),
            dim,
            attention=branch_attention,
            branches=branches,
            masked_top=masked_top,
            mask_probability=mask_probability,
            mask_reading=mask_reading,
            scale_masking=scale_masking,
            gate_dim=gate_dim,
            heads=heads,
            dropout=dropout,
            standardize=self.standardize,
        )


class ABMILModule(BagModule):
    """Gated ABMIL (Ilse et al., 2018, arXiv 1802.04712), as the baseline.

    Args:
        classes: taken from the data.
        feature_dim: taken from the data.
        dim: width behind the reduction.
        gate_dim: width of the gate.
        options: of `BagModule`.
    """

    def __init__(
        self, classes: list[str], feature_dim: int, dim: int = 128, gate_dim: int = 128, **options: Any
    ) -> None:
        super().__init__(classes, **options)
        self.net = ABMIL(feature_dim, len(classes), dim, gate_dim=gate_dim, standardize=self.standardize)


class PoolingModule(BagModule):
    """Mean or maximum over instances, as the baseline without attention.

    Args:
        classes: taken from the data.
        feature_dim: taken from the data.
        dim: width behind the reduction.
        pooling: mean or max.
        options: of `BagModule`.
    """

    def __init__(
        self, classes: list[str], feature_dim: int, dim: int = 128, pooling: Pooling = "mean", **options: Any
    ) -> None:
        super().__init__(classes, **options)
        self.net = PoolingMIL(feature_dim, len(classes), dim, pooling=pooling, standardize=self.standardize)
