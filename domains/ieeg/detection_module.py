"""Training of detectors of seizures: MVPFormer with all or few of its weights trained, and the baseline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.files import check_fit
from domains.common.hub import network_arguments, network_tensors
from domains.common.intervals import Estimate
from domains.common.loader import Batch
from domains.common.lora import LowRankLinear
from domains.ieeg.annotations import write_detections
from domains.ieeg.band_energy import BandEnergyClassifier
from domains.ieeg.detections import Decisions, decide_windows, detected_events
from domains.ieeg.evaluation import evaluate_detection
from domains.ieeg.module import NAMES, MVPFormerModule, SignalModule
from domains.ieeg.mvpformer import MVPFormerClassifier
from domains.ieeg.threshold import choose_detection_threshold

CLASSES = ("background", "seizure")
Tuning = Literal["full", "lora", "head"]
# options that leave shapes alone and change what weights mean
SAME_FUNCTION = ("window", "relative_index", "channel_distance", "content", "encoder_eps")
# name of a metric of `evaluate_detection` -> what validation calls it
VALIDATED = (
    *("event_f1", "event_sensitivity", "false_alarms_per_24h", "auroc", "average_precision", "cohen_kappa"),
    "log_loss",
)


class Detector(SignalModule):
    """A detector of seizures: cross entropy of the decided segment, a threshold, events.

    The threshold between background and seizure is the one with the best event F1 on the validation data, kept with
    the weights; a test uses it and never chooses one.

    Args:
        samples: of a segment, taken from the data.
        class_weights: weight of background and of seizure in the loss; none: the same.
        smoothing: decisions of the moving median over probabilities; 1: none.
        causal: smooth over past decisions alone, as a device that raises alarms must.
        min_gap: seconds; detections that are less apart become one.
        min_duration: seconds; shorter detections are dropped.
        gain_jitter: standard deviation of the logarithm of a random gain, drawn for each channel of each window of
            training: what a seizure looks like then counts for more than how large it is.
        options: of `SignalModule`.

    Raises:
        ConfigError: an option is out of range.
    """

    threshold: Tensor
    class_weights: Tensor | None
    validation_metrics = tuple(f"val/{name}" for name in VALIDATED)

    def __init__(
        self,
        samples: int,
        class_weights: list[float] | None = None,
        smoothing: int = 3,
        causal: bool = False,
        min_gap: float = 0.0,
        min_duration: float = 10.0,
        gain_jitter: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(samples, **options)
        if not 0 <= gain_jitter < math.inf:
            raise ConfigError(f"model.gain_jitter is {gain_jitter}; give 0 (none) or a standard deviation")
        self.gain_jitter = gain_jitter
        if class_weights is not None and (len(class_weights) != len(CLASSES) or min(class_weights) < 0):
            raise ConfigError(f"model.class_weights is {class_weights}; give one for background and one for seizure")
        self.decisions = Decisions(smoothing=smoothing, causal=causal, min_gap=min_gap, min_duration=min_duration)
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("threshold", torch.tensor(0.5))
        self._validated: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Have recordings that nobody looked through for seizures left out of training and validation."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None:
            data.annotated_only = True

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, 2) of a batch."""
        logits: Tensor = self.net(batch["x"], batch.get("counts"))
        return logits

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Cross entropy, mean over the windows of all processes."""
        rows = len(batch["x"])
        if rows:
            if self.gain_jitter > 0:
                x = batch["x"]
                gains = torch.randn(rows, 1, x.shape[2], 1, device=x.device, dtype=x.dtype) * self.gain_jitter
                batch = batch | {"x": x * gains.exp()}
            each = F.cross_entropy(self(batch), batch["label"], self.class_weights, reduction="none")
            loss = each.sum() * self.share(batch)
        else:
            loss = self.nothing()
        self.log_loss(loss, rows)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect what the metrics of a validation are made of."""
        if len(batch["x"]):
            self._validated.append(self.predict_step(batch, index))

    def on_validation_epoch_end(self) -> None:
        """Choose the threshold, and log metrics over all of the split."""
        table = self._gather_validated()
        if self.trainer.sanity_checking:  # a few windows may hold nothing to choose from
            return
        events = self.trainer.datamodule.events()  # type: ignore[attr-defined]
        threshold = choose_detection_threshold(table, events=events, decisions=self.decisions).threshold
        self.threshold.fill_(threshold)
        found = evaluate_detection(table, threshold=threshold, events=events, decisions=self.decisions, replicates=1)
        # every process has the same numbers
        self.log_dict({f"val/{name}": found[name].value for name in VALIDATED}, sync_dist=True)

    def _gather_validated(self) -> pl.DataFrame:
        """Predictions of all processes."""
        mine = [{name: _plain(values) for name, values in part.items()} for part in self._validated]
        self._validated = []
        every: list[Any] = [mine]
        if self.trainer.world_size > 1:
            every = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(every, mine)
        return pl.concat([pl.DataFrame(part) for parts in every for part in parts]).sort("row")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the threshold chosen last, where averaged weights (`--ema`) bring an average of thresholds along."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"]["threshold"] = self.threshold.clone()

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Probabilities of each window; decisions need its neighbours, see `complete`."""
        known = {name: batch[name] for name in ("row", *NAMES, "label") if name in batch}
        if not len(batch["x"]):
            return known
        probabilities = self(batch).float().softmax(-1)
        return known | {f"probability_{k}": probabilities[:, k] for k in range(len(CLASSES))}

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `predict_step`; metrics are computed over the whole table at the end."""
        return self.predict_step(batch, index)

    def complete(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """Add `predicted`: 1 where a window is part of a detection."""
        decided = decide_windows(predictions, float(self.threshold), self.decisions)
        return predictions.with_columns(predicted=pl.Series(decided))

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_detection`; the true seizures are those of the annotations, not of labelled windows."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return evaluate_detection(
            predictions,
            threshold=float(self.threshold),
            events=None if data is None else data.events(),
            decisions=self.decisions,
            replicates=replicates,
            seed=seed,
        )

    def write_beside(self, predictions: pl.DataFrame, directory: Path) -> None:
        """Write the detections of each recording, as BIDS events and as EDF+ annotations."""
        events = detected_events(predictions, float(self.threshold), self.decisions)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        # of recordings that an earlier call predicted: only such calls write both files of a pair
        for table in (directory / "events").glob("*_events.tsv"):
            notes = table.with_name(table.name.removesuffix("_events.tsv") + "_annotations.edf")
            if notes.exists():
                table.unlink()
                notes.unlink()
        lengths, names = data.durations(), predictions["recording"].unique(maintain_order=True)
        write_detections(directory / "events", events, {name: lengths[name] for name in names})

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        group = data.card.get("group") or {}
        unit = "subjects" if group.get("kept_apart") else "subjects, which the data do not keep apart"
        rules = self.decisions
        return (
            f"Intervals are resampled over {unit}. A decision every {data.decision_stride / data.rate:g} s;"
            f" probabilities are smoothed (moving {rules.method} of {rules.smoothing}, "
            f"{'past ones' if rules.causal else 'centred'}), the threshold is"
            f" {float(self.threshold):.4f} (chosen on the validation split), detections shorter than"
            f" {rules.min_duration:g} s are dropped. Events are scored by the rules of SzCORE (Dan et al., 2024)."
        )


class SeizureModule(Detector, MVPFormerModule):
    """MVPFormer as a detector of seizures (section 3.3).

    Args:
        samples: of a segment, taken from the data.
        pretrained: model directory or checkpoint of a pretrained MVPFormer, whose backbone is taken.
        tuning: full: all weights are trained; lora: adapters of queries and values, and the head (as published); head:
            the head alone.
        lora_rank: rank of the adapters.
        lora_alpha: their scale is alpha / rank.
        options: of `Detector` and `MVPFormerModule`.

    Raises:
        ConfigError: an option is out of range.
        CheckpointMismatchError: the pretrained weights do not fit.
    """

    net: MVPFormerClassifier

    def __init__(
        self,
        samples: int,
        pretrained: str | None = None,
        tuning: Tuning = "full",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        **options: Any,
    ) -> None:
        super().__init__(samples, **options)
        if tuning == "lora" and lora_rank < 1:
            raise ConfigError(f"model.lora_rank is {lora_rank}; adapters have at least rank 1")
        rank = lora_rank if tuning == "lora" else 0
        self.net = MVPFormerClassifier(len(CLASSES), **self.sizes, lora_rank=rank, lora_alpha=lora_alpha)
        if tuning == "head":
            self.net.backbone.requires_grad_(False)
        self.pretrained, self.tuning = pretrained, tuning

    def setup(self, stage: str) -> None:
        """Take the pretrained backbone where a training begins; one that goes on has weights of its own.

        Raises:
            ConfigError: a backbone that was never trained would stay as it is, or the pretrained one was computed
                with other options.
            CheckpointMismatchError: the pretrained weights do not fit.
        """
        super().setup(stage)
        if stage != "fit" or self.trainer.ckpt_path is not None:
            return
        if self.pretrained is not None:
            fill_backbone(self.net, self.pretrained)
        elif self.tuning != "full" and self.started_from is None:
            raise ConfigError(
                f"model.tuning {self.tuning} trains a small part of the network, and the rest holds random numbers;"
                " give --model.pretrained DIR, or train all of it (--model.tuning full)"
            )


class BandEnergyModule(Detector):
    """The baseline: log energies of wavelet bands, without attention and without order of channels.

    Args:
        samples: of a segment, taken from the data.
        hidden: width between.
        options: of `Detector`.
    """

    net: BandEnergyClassifier

    def __init__(self, samples: int, hidden: int = 32, **options: Any) -> None:
        super().__init__(samples, **options)
        self.net = BandEnergyClassifier(samples, hidden)


def fill_backbone(net: MVPFormerClassifier, source: str) -> None:
    """Take the backbone of a pretrained network; fresh adapters stay as they are, all else must be there.

    Raises:
        ConfigError: the pretrained network computes another function of the same weights.
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
    """
    for name, value in network_arguments(source).items():
        if name in SAME_FUNCTION and value != net.arguments[name]:
            raise ConfigError(
                f"{source}: was trained with {name} {value}, model.{name} is {net.arguments[name]}; give the same"
            )
    prefix = "backbone."
    tensors = network_tensors(source)
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        raise CheckpointMismatchError(source, missing=[f"{prefix}*"])
    fresh = {
        f"{name}.{part}": getattr(module, part).data
        for name, module in net.backbone.named_modules()
        if isinstance(module, LowRankLinear)
        for part in ("down", "up")
    }
    check_fit(net.backbone, fresh | found, source)
    net.backbone.load_state_dict(fresh | found)
    print(f"{len(found)} pretrained tensors from {source}; the head and {len(fresh)} tensors of adapters start anew")


def _plain(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
