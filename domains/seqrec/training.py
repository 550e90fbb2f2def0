"""What the training of all sequence models has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from domains.common.errors import ConfigError, PreparedDataError
from domains.common.intervals import Estimate
from domains.common.loader import Batch, mix_seed
from domains.common.module import HeptadModule
from domains.common.optim import AdamForm, LazyAdam
from domains.common.schedules import cosine_schedule
from domains.common.sharded import Placement, share_states
from domains.seqrec.evaluation import CUTOFFS, METRICS, evaluate_rankings, ranking_values
from domains.seqrec.losses import Teacher, Transitions, distillation_loss, next_item_loss
from domains.seqrec.mqsa_ted import SequenceNetwork
from domains.seqrec.ranking import Ranking, Ties, rank_items
from domains.seqrec.sampled import (
    Sampling,
    draw_sample,
    gbce_loss,
    sampled_distillation_loss,
    sampled_next_item_loss,
)
from domains.seqrec.search import ApproximateSearch, Search

Loss = Literal["full", "sampled", "gbce"]
Schedule = Literal["constant", "cosine"]
SAMPLE_STREAM = 1 << 32  # apart from all ranks, so that every process draws the same sample


@dataclass(frozen=True)
class Training:
    """How a sequence model learns; the options of the same names.

    Raises:
        ConfigError: one of them is out of range.
    """

    distillation: float
    tau: float
    teacher: Teacher
    loss: Loss
    negatives: int
    sampling: Sampling
    calibration: float
    l2: float
    lr: float
    schedule: Schedule
    adam: AdamForm

    def __post_init__(self) -> None:
        ranges = {
            "lr": ("above 0", self.lr > 0),
            "tau": ("above 0", self.tau > 0),
            "distillation": ("at least 0", self.distillation >= 0),
            "l2": ("at least 0", self.l2 >= 0),
            "negatives": ("at least 1", self.negatives >= 1),
            "calibration": ("between 0 and 1", 0 <= self.calibration <= 1),
        }
        for name, (wanted, holds) in ranges.items():
            if not holds:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be {wanted}")
        if self.loss == "gbce" and self.sampling != "uniform":
            raise ConfigError("gbce is defined for uniform negatives; set model.sampling to uniform")


class TableOptions(TypedDict):
    """How the network is to make its item table: `sparse` gradients, and where its rows are."""

    sparse: bool
    placement: Placement


class SequenceModule(HeptadModule):
    """Next-item cross entropy and, weighted, the distillation of transitions; a subclass builds the network.

    What a subclass leaves to `**options` are these, with these defaults.

    Args:
        distillation: weight lambda of the distillation loss; 0: none.
        tau: temperature of teacher and student.
        teacher: observed counts over their row's maximum (official) or over its sum (paper).
        loss: cross entropy over the `full` catalogue, over `sampled` items, or `gbce` (for millions of items).
        negatives: sampled items of a batch.
        sampling: what sampled items are drawn by.
        calibration: t of gBCE.
        l2: weight of half the sum of squares of all parameters.
        lr: learning rate.
        schedule: `constant`, or `cosine` down to a hundredth of `lr` at the trainer's last epoch.
        adam: where Adam's eps stands; `tensorflow` is the official MQSA-TED program's.
        ties: how items that score the same count in a rank.
        top: recommended items of a prediction.
        search: how `predict` finds them: `exact`, or among neighbours by `faiss` (for millions of items).
        vectors: `predict` also writes the vectors of users and items, for a service of nearest neighbours.
        seed: of dropout and sampling.
        table_placement: `replicated`, or `sharded`: the rows of the item table divided among the processes (needs a
            loss over samples).

    Raises:
        ConfigError: an option out of range, or a sharded table with a loss that needs all of it.
    """

    net: SequenceNetwork
    validation_metrics = tuple(f"val/{name}" for name in METRICS)

    def __init__(
        self,
        distillation: float = 0.1,
        tau: float = 0.1,
        teacher: Teacher = "row_max",
        loss: Loss = "full",
        negatives: int = 1024,
        sampling: Sampling = "uniform",
        calibration: float = 0.75,
        l2: float = 1e-4,
        lr: float = 1e-3,
        schedule: Schedule = "constant",
        adam: AdamForm = "torch",
        ties: Ties = "mean",
        top: int = 20,
        search: Search = "exact",
        vectors: bool = False,
        seed: int = 0,
        table_placement: Placement = "replicated",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # the arguments of the subclass, too
        self.options = Training(
            distillation=distillation,
            tau=tau,
            teacher=teacher,
            loss=loss,
            negatives=negatives,
            sampling=sampling,
            calibration=calibration,
            l2=l2,
            lr=lr,
            schedule=schedule,
            adam=adam,
        )
        if table_placement == "sharded" and loss == "full":
            raise ConfigError("a sharded item table and the full softmax exclude each other; set model.loss to sampled")
        if top < max(CUTOFFS):
            raise ConfigError(f"model.top is {top}; the metrics look at {max(CUTOFFS)} items")
        self.table_options: TableOptions = {"sparse": loss != "full", "placement": table_placement}
        self.ties, self.top, self.seed = ties, top, seed
        self.search, self.vectors = search, vectors
        self.val = nn.ModuleDict({name: MeanMetric() for name in METRICS})
        self._table: Tensor | None = None
        self._index: ApproximateSearch | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Vectors (B, D) of the users of a batch, at their latest items."""
        return self._at(self.net.represent(batch["items"], batch["slot"], batch["segment"]), batch["last"])

    @staticmethod
    def _at(represented: Tensor, places: Tensor) -> Tensor:
        return represented.flatten(0, 1)[places]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch, a mean over the targets of all processes; the penalty is the optimiser's."""
        summed = self.losses(batch)
        targets = self._over_processes(len(batch["target"]))
        share = self.trainer.world_size / max(targets, 1)  # DistributedDataParallel divides by their number
        named = {f"train/loss_{name}": value.detach() * share for name, value in summed.items()}
        self.log_dict(named, on_step=True, batch_size=1, sync_dist=True)
        total = summed["rec"]
        if "kd" in summed:
            total = total + self.options.distillation * summed["kd"]
        total = total * share
        self.log("train/loss", total.detach(), on_step=True, prog_bar=True, batch_size=1, sync_dist=True)
        return total

    def _over_processes(self, count: int) -> int:
        if self.trainer.world_size == 1:
            return count
        total = torch.tensor(count, device=self.device)
        torch.distributed.all_reduce(total)
        return int(total)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the targets of a batch: `rec`, and `kd` where transitions are distilled."""
        represented = self.net.represent(batch["items"], batch["slot"], batch["segment"])
        users = self._at(represented, batch["at"])
        rows = Transitions(*(batch[name] for name in ("head", "count", "edge_start", "edge_tail", "edge_count")))
        if self.options.loss != "full":
            return self._sampled_losses(users, batch["target"], rows)
        table = self.net.table()
        result = {"rec": next_item_loss(users, table, batch["target"])}
        if self.options.distillation:
            result["kd"] = distillation_loss(
                self._students(rows.head), table, rows, self.options.tau, self.options.teacher
            )
        return result

    def _students(self, head: Tensor) -> Tensor:
        """Vectors of distilled items as they enter the network: scaled, and dropped out."""
        return F.dropout(self.net.embed(head[None])[0][0], self.net.dropout, self.training)

    def _sampled_losses(self, users: Tensor, target: Tensor, rows: Transitions) -> dict[str, Tensor]:
        n_items = self.net.n_items
        seed = mix_seed(self.seed, self.global_step, SAMPLE_STREAM)
        sample = draw_sample(n_items, self.options.negatives, self.options.sampling, seed, users.device)
        wanted, others = self.net.items(target[None])[0], self.net.items(sample.ids[None])[0]
        if self.options.loss == "gbce":
            result = {"rec": gbce_loss(users, wanted, target, others, sample, n_items, self.options.calibration)}
        else:
            result = {"rec": sampled_next_item_loss(users, wanted, target, others, sample, n_items)}
        if self.options.distillation:
            tails = self.net.items(rows.tail[None])[0]
            heads = self._students(rows.head)
            result["kd"] = sampled_distillation_loss(
                heads, tails, rows, others, sample, n_items, self.options.tau, self.options.teacher
            )
        return result

    def on_validation_epoch_start(self) -> None:
        """Gather the item table once."""
        self._table = self.net.table().detach()

    def on_test_epoch_start(self) -> None:
        """Gather the item table once."""
        self._table = self.net.table().detach()

    def on_predict_epoch_start(self) -> None:
        """Gather the item table once; build the index over it."""
        self._table = self.net.table().detach()
        self._index = ApproximateSearch(self._table) if self.search == "faiss" else None

    def rank(self, users: Tensor, batch: Batch, top: int) -> Ranking:
        """Rank all items for the users (B, D) of a batch."""
        table = self.net.table().detach() if self._table is None else self._table
        return rank_items(users.float(), table.float(), batch["seen"], batch.get("target"), top=top, ties=self.ties)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect NDCG, hit rate and reciprocal rank."""
        ranking = self.rank(self(batch), batch, 0)
        if ranking.rank is None or not len(ranking.rank):
            return
        for name, values in ranking_values(ranking.rank).items():
            metric = cast(MeanMetric, self.val[name])
            metric.update(values)
            self.log(f"val/{name}", metric, prog_bar=name == "ndcg@20")

    def predict_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Best items for each user."""
        users = self(batch)
        if self._index is None:
            ranking = self.rank(users, batch, self.top)
        else:
            ranking = self._index.top(users, batch["seen"], self.top)
        vectors = {"vector": users.float()} if self.vectors else {}
        return {**_found(batch, ranking), **vectors}

    def test_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Best items for each user and the rank of the wanted one; metrics are computed over the whole table."""
        ranking = self.rank(self(batch), batch, self.top)
        known = {name: batch[name] for name in ("target", "target_count")}
        known["seen_target"] = (batch["seen"] == batch["target"][:, None]).any(1)
        if ranking.rank is None:
            raise PreparedDataError("the test split names no wanted items; prepare the data again")
        return {**_found(batch, ranking), **known, "rank": ranking.rank}

    def side_tables(self) -> dict[str, pl.DataFrame]:
        """Vectors of all items, where those of users are written; a user's score of an item is their inner product."""
        if not self.vectors or self._table is None:
            return {}
        vectors = self._table.float().cpu().numpy()
        items = np.arange(len(vectors), dtype=np.int32)
        return {"item_vectors": pl.DataFrame({"item": items, "vector": vectors})}

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_rankings`."""
        return evaluate_rankings(predictions, self.net.n_items, replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """What the numbers depend on besides the model."""
        left_out = {
            "recent": f"the user's latest {data.max_len} training events and what came after them",
            "all": "every earlier item of the user",
            "none": "nothing",
        }[data.mask_seen]
        ties = {"mean": "half", "optimistic": "nothing"}[self.ties]
        return (
            f"Full ranking of {self.net.n_items:,} items, none is sampled. The input is the latest {data.max_len} "
            f"events before the target. Left out of the ranking: {left_out}. Items of equal score count {ties}."
        )

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Random left-padded sequences of the full length, whatever `length`; the last column is never padding."""
        width = self.net.max_len
        items = torch.randint(self.net.n_items, (rows, width))
        real = torch.arange(width) >= torch.randint(width, (rows, 1))
        return (items.where(real, self.net.n_items),)

    def free_axes(self) -> tuple[dict[int, str], ...]:
        """The batch; programs take sequences of the full length."""
        return ({0: "batch"},)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam over everything, the penalty as its weight decay: the gradient is the same."""
        table = self.net.items.weight
        others = [parameter for parameter in self.net.parameters() if parameter is not table]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [table]}]
        optimizer = LazyAdam(
            groups,
            lr=self.options.lr,
            weight_decay=self.options.l2,
            form=self.options.adam,
        )
        share_states(optimizer, self)
        if self.options.schedule == "constant":
            return optimizer
        decay = cosine_schedule(optimizer, self.trainer.estimated_stepping_batches, floor=0.01)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def _found(batch: Batch, ranking: Ranking) -> dict[str, Tensor]:
    about = {name: batch[name] for name in ("row", "user", "length")}
    return {**about, "items": ranking.items.int(), "scores": ranking.scores}
