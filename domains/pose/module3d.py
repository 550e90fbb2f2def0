"""Training of ConvFormer, which lifts 2D joints of a video to 3D poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR

from domains.common.errors import ConfigError, PreparedDataError
from domains.common.hub import plain
from domains.common.intervals import Estimate
from domains.common.loader import Batch
from domains.common.module import HeptadModule
from domains.pose.convformer import ConvFormer
from domains.pose.evaluation3d import PREDICTED, TARGET, evaluate_poses, evaluate_scores, known_runs, score_all
from domains.pose.layouts import find_layout
from domains.pose.lift_outputs import write_lifted
from domains.pose.lifting import lift
from domains.pose.metrics3d import METRICS, Clip, joint_distances, mpjpe, p_mpjpe
from domains.pose.sequences import PREPARED

MILLIMETRES = 1000.0
NAMED = ("name", "recording", "camera", "subject", "action", "layout")


class LiftModule(HeptadModule):
    """ConvFormer trained by the mean distance of joints (eq. 2), the rate falling by a factor each epoch (section 4.2).

    Training sees windows; validation, test and prediction lift whole clips, each frame encoded once (see `lift`).

    Args:
        joints: J, taken from the data.
        frames: T of a window, taken from the data.
        layout: name of the joints' layout, taken from the data.
        lr: learning rate.
        lr_decay: factor of the learning rate behind each epoch.
        weight_decay: decoupled (AdamW); 0, as published, is Adam.
        amsgrad: never divide by less than the largest second moment, as VideoPose3D does.
        flip_test: a prediction is the mean with that of the mirrored clip, as published.
        pictures: clips that `predict` draws on a sheet at most, the longest first, which moves, too; 0: draws none.
        seed: of dropout.
        network: options of `ConvFormer`.

    Raises:
        ConfigError: an option is out of range.
    """

    net: ConvFormer
    validation_metrics = tuple(f"val/{name}" for name in METRICS)

    def __init__(
        self,
        joints: int = 17,
        frames: int = 9,
        layout: str = "h36m-17",
        lr: float = 1e-3,
        lr_decay: float = 0.95,
        weight_decay: float = 0.0,
        amsgrad: bool = True,
        flip_test: bool = True,
        pictures: int = 6,
        seed: int = 0,
        **network: Any,
    ) -> None:
        super().__init__()
        network = plain(network)  # checkpoints hold lists, not tuples
        self.save_hyperparameters()
        if pictures < 0:
            raise ConfigError(f"model.pictures is {pictures}; give 0 or more")
        if lr <= 0 or weight_decay < 0 or not 0 < lr_decay <= 1:
            raise ConfigError("model.lr must be above 0, weight_decay at least 0, and lr_decay above 0 and at most 1")
        self.layout = find_layout(layout)
        if len(self.layout.joints) != joints:
            raise ConfigError(
                f"model.joints is {joints}, layout {layout} has {len(self.layout.joints)}; give its number"
            )
        self.lr, self.lr_decay, self.weight_decay, self.amsgrad = lr, lr_decay, weight_decay, amsgrad
        self.flip_test, self.pictures, self.seed = flip_test, pictures, seed
        self.net = ConvFormer(frames, joints, norm_eps=1e-6, reparameterised=False, **network)
        self._merged: list[ConvFormer] = []  # in a list, so that its weights are not this module's
        self._validated: list[Clip] = []

    def setup(self, stage: str) -> None:
        """Compare the data with the network.

        Raises:
            PreparedDataError: the joints are others.
        """
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "layout", self.layout.name)
        if found != self.layout.name:
            raise PreparedDataError(
                f"{data.root}: its joints are {found}, the model reads {self.layout.name}; prepare data of that layout"
            )

    def forward(self, keypoints: Tensor) -> Tensor:
        """Poses of the middle frames: (B, T, J, 2) -> (B, J, 3) metres."""
        pose: Tensor = self.net(keypoints)[:, 0]
        return pose

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean distance of known joints, over the windows of all processes (eq. 2)."""
        rows = len(batch["keypoints"])
        loss: Tensor
        if rows:
            known = batch["known"]
            distances = joint_distances(self(batch["keypoints"]).float(), batch["pose"])
            each = (distances * known).sum(1) / known.sum(1).clamp(min=1)
            loss = each.sum() * float(self.trainer.world_size / batch["global_size"])
        else:  # a process without a row of the last batch adds nothing, to every parameter
            loss = torch.stack([p.sum() for p in self.net.parameters()]).sum() * 0.0
        # by every process, as the mean over them waits for all; metres
        self.log("train/loss", loss.detach(), on_step=True, prog_bar=True, batch_size=max(rows, 1), sync_dist=True)
        return loss

    def lift(self, keypoints: Tensor) -> Tensor:
        """3D poses of every frame of a clip: (N, J, 2) screen units -> (N, J, 3) millimetres."""
        if not self._merged:
            fixed = self.net.arguments
            merged = fixed["path"] == "merged" and not fixed["mixing_per_head"]
            self._merged = [self.net.reparameterise() if merged else self.net]
        pose: Tensor = lift(self._merged[0], keypoints, flip=self.layout if self.flip_test else None)
        return pose.float() * MILLIMETRES

    def on_validation_epoch_start(self) -> None:
        """Forget filters merged before: weights have changed since."""
        self._merged = []

    def on_test_epoch_start(self) -> None:
        """As for a validation."""
        self._merged = []

    def on_predict_epoch_start(self) -> None:
        """As for a validation."""
        self._merged = []

    def validation_step(self, batch: Batch, index: int) -> None:
        """Lift clips, and keep what counts of them."""
        for i, keypoints in enumerate(batch["keypoints"]):
            pose, target = self.lift(keypoints).cpu(), batch["pose"][i].cpu() * MILLIMETRES
            action, subject, name = (str(batch[name][i]) for name in ("action", "subject", "name"))
            for first, stop in known_runs(batch["known"][i]):
                self._validated.append(Clip(pose[first:stop], target[first:stop], action, subject, name))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all clips; every process has the same numbers."""
        clips, self._validated, self._merged = self._validated, [], []
        mine = score_all(clips).to_dict(as_series=False) if clips else {}
        every: list[Any] = [mine]
        if self.trainer.world_size > 1:
            every = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(every, mine)
        tables = [pl.DataFrame(part, schema_overrides=dict.fromkeys(METRICS, pl.Float64)) for part in every if part]
        if not tables:
            raise PreparedDataError("no frame of the validation split has a known true pose; prepare another split")
        scores = pl.concat(tables).sort("clip", maintain_order=True)
        found = evaluate_scores(scores, replicates=1)
        self.log_dict({f"val/{name}": found[name].value for name in METRICS}, sync_dist=True)

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """The pose of every frame: one list of x, y, z of each joint, millimetres, relative to the root."""
        poses = [self.lift(keypoints) for keypoints in batch["keypoints"]]
        counts = [len(pose) for pose in poses]
        if not counts:
            return {"row": batch["row"]}
        frame = torch.cat([torch.arange(count) for count in counts])
        names = {"clip" if name == "name" else name: batch[name] for name in NAMED}
        return {
            "row": torch.cat(
                [torch.arange(count) + int(first) for count, first in zip(counts, batch["first"], strict=True)]
            ),
            **{
                name: [v for v, n in zip(values, counts, strict=True) for _ in range(n)]
                for name, values in names.items()
            },
            "frame": frame,
            PREDICTED: torch.cat(poses).flatten(1),
        }

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """As `predict_step`, with the true pose, whether the frame counts, and its errors."""
        found = self.predict_step(batch, index)
        if PREDICTED not in found:
            return found
        target, known = torch.cat(batch["pose"]) * MILLIMETRES, torch.cat(batch["known"])
        poses = found[PREDICTED].view(target.shape)
        errors = {"mpjpe_mm": mpjpe(poses, target), "p_mpjpe_mm": p_mpjpe(poses, target)}
        return found | {TARGET: target.flatten(1), "counted": known.all(1)} | errors

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_poses`."""
        return evaluate_poses(predictions, replicates=replicates, seed=seed)

    def write_beside(self, predictions: pl.DataFrame, directory: Path) -> None:
        """Write a table of joints, a sheet of poses and moving pictures; see `write_lifted`."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        write_lifted(predictions, data.clips("predict"), self.layout, directory, pictures=self.pictures)

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        apart = (data.card.get("group") or {}).get("kept_apart")
        unit = "subjects" if apart else "subjects, which the data have on both sides of the split"
        source = data.card.get("keypoints", "as prepared") if data.keypoints == PREPARED else data.keypoints
        flip = "is the mean with that of the mirrored clip" if self.flip_test else "is of the clip as it is"
        return (
            f"MPJPE is the mean distance of joints relative to the root; P-MPJPE that after the best rotation,"
            f" translation and scale; N-MPJPE that after the best scale; MPJVE the mean distance of joints' differences"
            f" between successive frames. All are in mm, means over actions of all their frames. PCK and AUC are of all"
            f" joints of all frames, up to 150 mm. A prediction {flip}, from {self.net.frames} frames;"
            f" 2D joints: {source}. Intervals are resampled over {unit}."
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam; the learning rate falls behind each epoch."""
        optimizer = AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, amsgrad=self.amsgrad)
        return {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, self.lr_decay)}

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Windows."""
        del length
        return (torch.randn(rows, self.net.frames, self.net.joints, 2) * 0.3,)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The windows of a batch."""
        return ({0: "windows"},)
