"""Training of Group Pose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from domains.common.errors import ConfigError, HeptadError
from domains.common.hub import plain
from domains.common.intervals import Estimate
from domains.common.loader import Batch
from domains.common.module import HeptadModule
from domains.common.schedules import training_steps
from domains.pose.data import persons
from domains.pose.evaluation2d import (
    NEAR,
    PCK,
    REPLICATES,
    detected_persons,
    evaluate_table,
    split_table,
    with_annotations,
    with_facts,
    write_results,
)
from domains.pose.grouppose import GroupPose
from domains.pose.grouppose_criterion import GroupPoseCriterion, NonFinitePredictionError
from domains.pose.grouppose_post import SELECT, PersonDetector, detections
from domains.pose.keypoint_ap import Protocol, evaluate
from domains.pose.people import PeopleStore
from domains.pose.people_outputs import TIMED, Keypoints, write_people
from domains.pose.weights import start_from

FIRST_STRIDE = 8  # of a backbone's maps; the small one begins at 4
LOGGED = ("loss_ce", "loss_keypoints", "loss_oks", "class_error")


class NonFiniteLossError(HeptadError, ValueError):
    """A training step gave something that is no number; the message names the image that caused it."""


class GroupPoseModule(HeptadModule):
    """Group Pose (H. Liu et al., ICCV 2023, arXiv 2308.07313), trained as the official program does.

    The loss is that of the last layer, of all layers before it, and of the two-stage selection (section 3); AdamW with
    a lower learning rate of the backbone, and one drop of both. The official program clips the norm of gradients at
    0.1: `--trainer.gradient_clip_val 0.1`; its batch has 16 images: `--trainer.accumulate_grad_batches` makes it of
    smaller ones, where the number of persons then counts in each part by itself.

    Args:
        n_keypoints: K, taken from the data.
        sigmas: tolerance of each keypoint, taken from the data.
        protocol: coco or crowdpose, by which areas are measured; taken from the data.
        pretrained: weights to start from: a model directory or checkpoint of this project, or a file of ResNet-50
            (torchvision), Swin, Group Pose, or another program with names like Deformable DETR's; what does not fit
            starts at random.
        select: pairs of instance and class of an image that are kept, best first.
        shown: score from which `predict` draws a person, and follows it over the frames of a video.
        pictures: images that `predict` draws at most, besides videos; 0: it draws nothing.
        lr: learning rate.
        backbone_lr: that of the backbone.
        weight_decay: of all parameters.
        drop: epoch at whose beginning learning rates drop to a tenth (of 60 for COCO; 70 of 80 for CrowdPose).
        warmup: steps in which learning rates rise from 0; none in the official program.
        seed: of the run.
        network: options of `GroupPose`.

    Raises:
        ConfigError: an option is out of range.
    """

    net: GroupPose
    validation_metrics = ("val/AP", "val/AP50", "val/AP75", "val/AR")

    def __init__(
        self,
        n_keypoints: int,
        sigmas: list[float],
        protocol: Protocol = "coco",
        pretrained: str | None = None,
        select: int = SELECT,
        shown: float = 0.3,
        pictures: int = 20,
        lr: float = 1e-4,
        backbone_lr: float = 1e-5,
        weight_decay: float = 1e-4,
        drop: int = 50,
        warmup: int = 0,
        seed: int = 0,
        **network: Any,
    ) -> None:
        super().__init__()
        network = plain(network)  # checkpoints hold lists, not tuples
        self.save_hyperparameters()
        if lr <= 0 or backbone_lr < 0 or weight_decay < 0:
            raise ConfigError("model.lr must be above 0, model.backbone_lr and weight_decay at least 0")
        if drop < 1 or warmup < 0 or select < 1:
            raise ConfigError("model.drop and model.select must be at least 1, model.warmup at least 0")
        if len(sigmas) != n_keypoints or not all(sigma > 0 for sigma in sigmas):
            raise ConfigError(f"model.sigmas: give {n_keypoints} numbers above 0, one for each keypoint")
        if not 0 <= shown <= 1 or pictures < 0:
            raise ConfigError("model.shown must be from 0 to 1, model.pictures at least 0")
        self.sigmas, self.protocol_name, self.pretrained, self.select = list(sigmas), protocol, pretrained, select
        self.shown, self.pictures = shown, pictures
        self.lr, self.backbone_lr, self.weight_decay, self.drop, self.warmup = (
            lr,
            backbone_lr,
            weight_decay,
            drop,
            warmup,
        )
        self.seed = seed
        self.net = GroupPose(n_keypoints, channels=None, classes=2, temperature=20.0, **network)
        self.criterion = GroupPoseCriterion(sigmas)
        self._validated: list[tuple[Tensor, ...]] = []

    def setup(self, stage: str) -> None:
        """Take pretrained weights where a training begins; one that goes on has weights of its own.

        Raises:
            ConfigError: the data have other keypoints.
            CheckpointMismatchError: none of the pretrained weights fits.
        """
        super().setup(stage)
        known = getattr(getattr(self.trainer, "datamodule", None), "n_keypoints", len(self.sigmas))
        if known != len(self.sigmas):
            raise ConfigError(
                f"the data have {known} keypoints, the model {len(self.sigmas)}; train on data like these"
            )
        begins = stage == "fit" and self.trainer.ckpt_path is None and self.started_from is None
        if begins and self.pretrained is not None:
            report = start_from(self.net, self.pretrained)
            if self.trainer.is_global_zero:
                print(f"start from {self.pretrained}: {'; '.join(report.lines())}")

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch: sums over persons and instances, divided by the persons of all processes.

        Raises:
            NonFiniteLossError: a prediction or the loss is no number.
        """
        count = len(batch["row"])
        if count:
            losses = self._losses(batch)
        else:  # the others wait for its part of the normaliser, and of every gradient
            self.criterion.normaliser([], self.device)
            nothing = torch.stack([p.sum() for p in self.net.parameters() if p.requires_grad]).sum() * 0.0
            losses = {"total": nothing} | dict.fromkeys(LOGGED, nothing.detach())
        # by every process: the mean over them waits for all
        size = max(count, 1)
        self.log("train/loss", losses["total"].detach(), on_step=True, prog_bar=True, batch_size=size, sync_dist=True)
        parts = {f"train/{name}": losses[name].detach() for name in LOGGED}
        self.log_dict(parts, on_step=True, batch_size=size, sync_dist=True)
        return losses["total"]

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        targets = persons(batch["targets"])
        try:
            losses: dict[str, Tensor] = self.criterion(self.net(batch["image"], batch["mask"]), targets)
        except NonFinitePredictionError as error:
            what = str(error).partition(": ")[2].partition(" of the network")[0]
            raise self._stop(_name(batch, error.image), f"{what} are") from None
        except ValueError:  # of the matching
            for at, each in enumerate(targets):
                if not bool(each.keypoints.isfinite().all() and each.area.isfinite().all()):
                    raise self._stop(_name(batch, at), "annotations are") from None
            raise
        if not bool(losses["total"].detach().isfinite()):
            names = [name for name, value in losses.items() if not bool(value.detach().isfinite())]
            everyone = ", ".join(_name(batch, at) for at in range(len(targets)))
            raise self._stop(everyone, f"{', '.join(names[:3])} are")
        return losses

    def _stop(self, image: str, what: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"{image}: {what} not finite in step {self.global_step}; lower model.lr or set"
            " trainer.gradient_clip_val 0.1, or look at the image and its annotations"
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with two learning rates, which drop to a tenth once."""
        trained = [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if not name.startswith("backbone.")], "lr": self.lr},
            {"params": [p for name, p in trained if name.startswith("backbone.")], "lr": self.backbone_lr},
        ]
        optimizer = AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)

        _, dropped = training_steps(self.trainer, self.drop)

        def factor(step: int) -> float:
            return min((step + 1) / (self.warmup + 1), 1.0) * (0.1 if step >= dropped else 1.0)

        schedule = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and labels (B, S), and keypoints (B, S, K, 2) in pixels of the original images."""
        sizes = [(int(height), int(width)) for height, width in batch["size"].tolist()]
        found = detections(self.net(batch["image"], batch["mask"]).final, sizes, self.select)
        score, label, points = zip(*((each.scores, each.labels, each.keypoints) for each in found), strict=True)
        return torch.stack(score), torch.stack(label), torch.stack(points)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect detections."""
        if len(batch["row"]):
            self._validated.append((batch["row"], *self(batch)))

    def on_validation_epoch_end(self) -> None:
        """Log AP and AR of the images that were looked at."""
        row, score, label, points = self.gathered(self._validated)
        self._validated = []
        flat = points.reshape(len(points), -1)
        images = pl.DataFrame({"row": row, "score": score, "label": label, "keypoints": flat}).sort("row")
        truth, found = split_table(self._annotated(images, "valid"), len(self.sigmas))
        ids = np.union1d(truth.image, found.image)
        numbers = evaluate(truth, found, ids, np.array(self.sigmas), protocol=self.protocol_name)
        values = {name: numbers[name.removeprefix("val/")] for name in self.validation_metrics}
        # every process has the same numbers
        self.log_dict({name: v if v > -1 else float("nan") for name, v in values.items()}, sync_dist=True)

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """The best detections of each image, as many for all; `complete` takes the persons among them."""
        if not len(batch["row"]):
            return {"row": batch["row"]}
        score, label, points = self(batch)
        return {"row": batch["row"], "score": score, "label": label, "keypoints": points.flatten(1)}

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `predict_step`; metrics are computed over the whole table at the end."""
        return self.predict_step(batch, index)

    def complete(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """One row for each detection, best first in each image; of a test also one for each annotated person."""
        if self.trainer.testing:
            return self._annotated(predictions, "test")
        frame = self._store("predict").frame
        facts = frame.select("row", "image_id", "file", "width", "height", *(n for n in TIMED if n in frame.columns))
        return with_facts(detected_persons(predictions), facts)

    def _store(self, split: str) -> PeopleStore:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        store: PeopleStore = data.store(split)
        return store

    def _annotated(self, images: pl.DataFrame, split: str) -> pl.DataFrame:
        """Detections and annotations of the images of a split that were looked at."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        truth, frame = data.truth(split)
        rows = images["row"].to_list()
        names = ["row", "image_id", "file", "width", "height", "group", "crowd_index"]
        facts = frame[rows].select(name for name in names if name in frame.columns)
        facts = facts.with_columns(path=pl.Series(data.store(split).locations(rows), dtype=pl.String))
        return with_annotations(detected_persons(images), truth, facts, self.sigmas, data.skeleton)

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_table`."""
        return evaluate_table(predictions, self.sigmas, self.protocol_name, replicates=replicates, seed=seed)

    def write_beside(self, predictions: pl.DataFrame, directory: Path) -> None:
        """Write the detections as a results file of COCO, tracks of videos, and pictures; see `write_people`."""
        write_results(predictions, directory)
        store, known = self._store("predict"), Keypoints.of(self.trainer.datamodule.card)  # type: ignore[attr-defined]
        write_people(predictions, store, known, directory, shown=self.shown, pictures=self.pictures)

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        group = (data.card.get("group") or {}).get("name", "image")
        area = "its annotated area" if self.protocol_name == "coco" else "0.53 times that of its box"
        return (
            f"AP and AR by object keypoint similarity at 0.50 to 0.95, the 20 best detections of each image, as the"
            f" official evaluator of {'COCO' if self.protocol_name == 'coco' else 'CrowdPose'}; the size of a person is"
            f" {area}. The tolerances of keypoints are those of the data set; no threshold and no flip test."
            f" {PCK}: share of labelled keypoints that the most similar detection is near to, within {NEAR:g} of the"
            f" longer side of the person's box. Undefined: no such person is annotated. Intervals: at most {REPLICATES}"
            f" resamples over {'images' if group == 'image' else f'groups of images ({group})'}."
        )

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Images of any size with enough tokens for all queries, and their padding, which the last one has."""
        side = self._least_side()
        height, width = side + length, side + 7 * length
        images, padding = torch.randn(rows, 3, height, width), torch.zeros(rows, height, width, dtype=torch.bool)
        padding[-1, height - length :], padding[-1, :, width - 5 * length :] = True, True
        return images.masked_fill(padding[:, None], 0.0), padding

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The images of a batch, and their size."""
        return ({0: "images", 2: "height", 3: "width"}, {0: "images", 1: "height", 2: "width"})

    def least_sizes(self) -> dict[str, int]:
        """As many pixels as all queries need."""
        return dict.fromkeys(("height", "width"), self._least_side())

    def _least_side(self) -> int:
        """Pixels of a side with two places on the last level, and enough tokens on the first three, for all queries."""
        side = (FIRST_STRIDE << (int(self.net.arguments["levels"]) - 1)) + 1
        while (side // 32) ** 2 * 21 < self.net.queries:
            side += 32
        return side

    def output_names(self) -> tuple[str, ...]:
        """As `exportable` gives them."""
        return "scores", "keypoints"

    def exportable(self) -> PersonDetector:
        """Scores and keypoints of all instances, with the plain form of deformable attention."""
        return PersonDetector(self.net)


def _name(batch: Batch, image: int) -> str:
    return f"{batch['file'][image]} (id {int(batch['image_id'][image])})"
