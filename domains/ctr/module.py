"""Training of click models."""

from __future__ import annotations

from typing import Any, Literal

import polars as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from domains.common.attention import FieldAttention
from domains.common.errors import ConfigError
from domains.common.hub import plain
from domains.common.intervals import Estimate
from domains.common.loader import Batch
from domains.common.module import HeptadModule
from domains.common.optim import AdamForm, LazyAdam
from domains.common.sharded import Placement, ShardedTable, share_states
from domains.common.slicing import sliced_sum
from domains.common.table import EmbeddingTable, Table
from domains.ctr.autoint import AutoInt
from domains.ctr.evaluation import evaluate_clicks
from domains.ctr.logistic import LogisticRegression
from domains.ctr.losses import click_loss, l2_penalty

TableUpdate = Literal["lazy", "dense"]


class ClickModule(HeptadModule):
    """Binary cross entropy, Adam, AUC and log loss; a subclass builds the network.

    Args:
        lr: learning rate.
        table_update: `lazy` updates the table rows that a batch touches (fast, an approximation, see `LazyAdam`);
            `dense` updates all rows in every step, as the official program does.
        adam: where Adam's eps stands, see `LazyAdam`; `tensorflow` is the official program's.
        table_l2: L2 coefficient of the embedding tables: of whole tables if dense, of the touched rows if lazy.
        deep_l2: L2 coefficient of the kernels of the feed-forward net (official `l2_reg`).
        lr_patience: validations without a better AUC after which the learning rate is divided by ten; None: never.
        seed: of dropout.
        table_placement: `replicated` keeps the tables on every process; `sharded` divides their rows, see
            `ShardedTable`.

    Raises:
        ConfigError: sharded tables that are not updated lazily.
    """

    net: AutoInt | LogisticRegression
    validation_metrics = ("val/auc", "val/log_loss")

    def __init__(
        self,
        lr: float,
        table_update: TableUpdate,
        adam: AdamForm,
        table_l2: float,
        deep_l2: float,
        lr_patience: int | None,
        seed: int,
        table_placement: Placement,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ConfigError(f"model.lr is {lr}; it must be positive")
        if table_placement == "sharded" and table_update != "lazy":
            raise ConfigError("table_placement is sharded and table_update is dense; set table_update to lazy")
        self.lr, self.table_update, self.adam = lr, table_update, adam
        self.table_l2, self.deep_l2, self.lr_patience = table_l2, deep_l2, lr_patience
        self.seed = seed
        self.val_auc, self.val_log_loss = BinaryAUROC(), MeanMetric()

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B,) of a batch."""
        logits: Tensor = self.net(batch["ids"], batch["values"], batch.get("slot_field"))
        return logits

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch; processes weigh by their share of the global batch."""
        loss = self.loss(batch)
        share: Tensor = len(batch["label"]) * self.trainer.world_size / batch["global_size"]
        if not len(batch["label"]):
            loss = torch.nan_to_num(loss)  # a process without a row of the last batch adds nothing
        loss = loss * share
        self.log("train/loss", loss, on_step=True, batch_size=len(batch["label"]), sync_dist=True)
        return loss + self.penalty()

    def loss(self, batch: Batch) -> Tensor:
        """Mean binary cross entropy of this process's rows."""
        return click_loss(self(batch), batch["label"])

    def penalty(self) -> Tensor | float:
        """L2 terms that belong to the loss (those of lazily updated tables belong to the optimiser)."""
        total: Tensor | float = 0.0
        if self.table_update == "dense":
            total = l2_penalty([table.weight for table in self.tables()], self.table_l2)
        if isinstance(self.net, AutoInt) and self.net.deep is not None:
            total = total + l2_penalty(self.net.deep.kernels(), self.deep_l2)
        return total

    def tables(self) -> list[Table]:
        """All embedding tables of the network."""
        return [module for module in self.net.modules() if isinstance(module, EmbeddingTable | ShardedTable)]

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect AUC and log loss."""
        logits = self(batch)  # also of no rows: other processes may look up rows of tables that lie here
        if not len(batch["label"]):
            return
        losses = nn.functional.binary_cross_entropy_with_logits(logits, batch["label"], reduction="none")
        self.val_auc.update(logits.sigmoid(), batch["label"].long())
        self.val_log_loss.update(losses)
        self.log("val/auc", self.val_auc, prog_bar=True)
        self.log("val/log_loss", self.val_log_loss, prog_bar=True)

    def predict_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Probability of a click for each row."""
        kept: Batch = {name: batch[name] for name in ("row", "label", "group") if name in batch}
        return {**kept, "probability": self(batch).sigmoid().float()}

    def test_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """As `predict_step`; metrics are computed over the whole table at the end."""
        return self.predict_step(batch, index)

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_clicks`."""
        return evaluate_clicks(predictions, replicates=replicates, seed=seed)

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random ids; each bag has `length` slots."""
        layout = self.net.layout
        slots = [length if field.kind == "multi" else 1 for field in layout.fields]
        owner = torch.repeat_interleave(torch.arange(len(layout)), torch.tensor(slots))
        sizes = torch.tensor([field.size for field in layout.fields])[owner]
        ids = torch.tensor(layout.offsets)[owner] + (torch.rand(rows, len(owner)) * sizes).long()
        values = torch.rand(rows, len(owner))
        return (ids, values, owner) if layout.of_kind("multi") else (ids, values)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The batch, and the slots where there are bags."""
        if not self.net.layout.of_kind("multi"):
            return ({0: "batch"}, {0: "batch"})
        return ({0: "batch", 1: "slots"}, {0: "batch", 1: "slots"}, {0: "slots"})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam over everything; the tables in a group of their own."""
        tables: list[Tensor] = [table.weight for table in self.tables()]
        others = [p for p in self.net.parameters() if all(p is not table for table in tables)]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": tables}]
        optimizer: Optimizer
        if self.table_update == "dense" and self.adam == "torch":
            optimizer = Adam(groups, lr=self.lr, fused=True)
        else:
            groups[1]["weight_decay"] = self.table_l2 if self.table_update == "lazy" else 0.0
            optimizer = LazyAdam(groups, lr=self.lr, form=self.adam)
        share_states(optimizer, self)
        if self.lr_patience is None:
            return optimizer
        schedule = ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=self.lr_patience, min_lr=1e-6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/auc"}}


class AutoIntModule(ClickModule):
    """AutoInt and, with `deep` layers, AutoInt+ (Song et al., 2019, arXiv 1810.11921).

    Args:
        fields: taken from the data.
        lr: learning rate.
        table_update: `lazy` updates the table rows that a batch touches (fast, an approximation); `dense` all rows.
        adam: where Adam's eps stands; `tensorflow` is the official program's.
        table_l2: L2 coefficient of the embedding tables: of whole tables if dense, of the touched rows if lazy.
        deep_l2: L2 coefficient of the kernels of the feed-forward net.
        lr_patience: validations without a better AUC after which the learning rate is divided by ten; none: never.
        seed: of dropout.
        compile: compile the network behind the tables (needs a C++ compiler); batches are then not sliced.
        table_placement: `replicated` keeps the tables on every process; `sharded` divides their rows among the
            processes, for tables that outgrow one device (needs `lazy`; checkpoints are the same).
        network: options of `AutoInt`.
    """

    net: AutoInt

    def __init__(
        self,
        fields: list[dict[str, Any]],
        lr: float = 1e-3,
        table_update: TableUpdate = "lazy",
        adam: AdamForm = "torch",
        table_l2: float = 0.0,
        deep_l2: float = 0.0,
        lr_patience: int | None = None,
        seed: int = 0,
        compile: bool = False,
        table_placement: Placement = "replicated",
        **network: Any,
    ) -> None:
        super().__init__(lr, table_update, adam, table_l2, deep_l2, lr_patience, seed, table_placement)
        network = plain(network)
        self.save_hyperparameters()
        self.net = AutoInt(fields, sparse=table_update == "lazy", rows=None, placement=table_placement, **network)
        if compile:
            self.net.compile_interaction()
        # half a megabyte of activations, which stays in the cache of a core; rows of a batch-normalised net depend on
        # each other, and a compiled net takes batches of one size
        self.slice_rows = None if compile or network.get("deep_batch_norm") else max(16, 2048 // max(self.widest, 1))

    @property
    def widest(self) -> int:
        """Width of the widest interacting layer."""
        return max((block.width for block in self.net.blocks if isinstance(block, FieldAttention)), default=16)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B,) of a batch; outside training on a CPU in slices that stay in the cache."""
        if self.slice_rows is None or torch.is_grad_enabled() or not self._on_cpu(batch):
            return super().forward(batch)
        inputs = self.net.lookup(batch["ids"], batch["values"], batch.get("slot_field"))
        parts = zip(*(torch.split(tensor, self.slice_rows) for tensor in inputs), strict=True)
        return torch.cat([self.net.score(*part) for part in parts])

    @staticmethod
    def _on_cpu(batch: Batch) -> bool:
        return batch["ids"].device.type == "cpu" and len(batch["ids"]) > 0

    def loss(self, batch: Batch) -> Tensor:
        """Mean binary cross entropy, on a CPU in slices of the batch that stay in the cache."""
        label = batch["label"]
        if self.slice_rows is None or not self._on_cpu(batch):
            return super().loss(batch)
        tables = {id(table.weight) for table in self.tables()}
        behind = [parameter for parameter in self.net.parameters() if id(parameter) not in tables]
        inputs = self.net.lookup(batch["ids"], batch["values"], batch.get("slot_field"))
        return sliced_sum(self._summed, (label, *inputs), behind, self.slice_rows) / len(label)

    def _summed(self, label: Tensor, *inputs: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.net.score(*inputs), label, reduction="sum")


class LogisticRegressionModule(ClickModule):
    """Logistic regression on the same data, as the baseline.

    Args:
        fields: taken from the data.
        lr: learning rate.
        table_update: `lazy` updates the weights that a batch touches; `dense` all of them.
        adam: where Adam's eps stands.
        table_l2: L2 coefficient of the weights: of all if dense, of the touched ones if lazy.
        lr_patience: validations without a better AUC after which the learning rate is divided by ten; none: never.
        seed: of the run.
        table_placement: `replicated` keeps the tables on every process; `sharded` divides their rows among the
            processes, for tables that outgrow one device (needs `lazy`; checkpoints are the same).
    """

    def __init__(
        self,
        fields: list[dict[str, Any]],
        lr: float = 1e-3,
        table_update: TableUpdate = "lazy",
        adam: AdamForm = "torch",
        table_l2: float = 0.0,
        lr_patience: int | None = None,
        seed: int = 0,
        table_placement: Placement = "replicated",
    ) -> None:
        super().__init__(lr, table_update, adam, table_l2, 0.0, lr_patience, seed, table_placement)
        self.save_hyperparameters()
        self.net = LogisticRegression(fields, sparse=table_update == "lazy", placement=table_placement)
