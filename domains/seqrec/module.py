"""Training of sequence models."""

from __future__ import annotations

from domains.common.optim import AdamForm
from domains.common.sharded import Placement
from domains.seqrec.losses import Teacher
from domains.seqrec.mqsa_ted import MQSATED, SASRec, TransitionModel
from domains.seqrec.ranking import Ties
from domains.seqrec.sampled import Sampling
from domains.seqrec.search import Search
from domains.seqrec.training import Loss, Schedule, SequenceModule, Training


class MQSATEDModule(SequenceModule):
    """MQSA-TED (Zhu et al., 2024, arXiv 2311.01056).

    Args:
        n_items: taken from the data.
        max_len: taken from the data.
        dim: width of item vectors.
        depth: blocks of each branch.
        heads: attention heads.
        window: the number L of latest items in a long query.
        alpha: weight of the short branch, the long one has the rest; for the short one alone see SASRec.
        dropout: of embeddings, attention weights, feed-forward layers and distilled items.
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
        adam: where Adam's eps stands; `tensorflow` is the official program's.
        ties: how items that score the same count in a rank.
        top: recommended items of a prediction.
        search: how `predict` finds them: `exact`, or among neighbours by `faiss` (for millions of items).
        vectors: `predict` also writes the vectors of users and items, for a service of nearest neighbours.
        seed: of dropout and sampling.
        table_placement: `replicated`, or `sharded`: the rows of the item table divided among the processes (needs a
            loss over samples).
    """

    def __init__(
        self,
        n_items: int,
        max_len: int = 50,
        dim: int = 64,
        depth: int = 1,
        heads: int = 1,
        window: int = 3,
        alpha: float = 0.5,
        dropout: float = 0.5,
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
        adam: AdamForm = "tensorflow",
        ties: Ties = "mean",
        top: int = 20,
        search: Search = "exact",
        vectors: bool = False,
        seed: int = 0,
        table_placement: Placement = "replicated",
    ) -> None:
        training = Training(
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
        super().__init__(training, ties, top, search, vectors, seed, table_placement)
        self.save_hyperparameters()
        self.net = MQSATED(
            n_items,
            dim=dim,
            max_len=max_len,
            depth=depth,
            heads=heads,
            window=window,
            alpha=alpha,
            dropout=dropout,
            sparse=loss != "full",
            placement=table_placement,
        )


class SASRecModule(SequenceModule):
    """SASRec (Kang and McAuley, 2018, arXiv 1808.09781), the short branch alone, as the baseline.

    Args:
        n_items: taken from the data.
        max_len: taken from the data.
        dim: width of item vectors.
        depth: blocks.
        heads: attention heads.
        dropout: of embeddings, attention weights and feed-forward layers.
        distillation: weight of the distillation loss; above 0 it is the paper's "SASRec + TED".
        tau: temperature of teacher and student.
        loss: cross entropy over the `full` catalogue, over `sampled` items, or `gbce`.
        negatives: sampled items of a batch.
        sampling: what sampled items are drawn by.
        calibration: t of gBCE.
        l2: weight of half the sum of squares of all parameters.
        lr: learning rate.
        schedule: `constant`, or `cosine` down to a hundredth of `lr` at the trainer's last epoch.
        adam: where Adam's eps stands.
        ties: how items that score the same count in a rank.
        top: recommended items of a prediction.
        search: how `predict` finds them: `exact`, or among neighbours by `faiss` (for millions of items).
        vectors: `predict` also writes the vectors of users and items, for a service of nearest neighbours.
        seed: of dropout and sampling.
        table_placement: `replicated`, or `sharded`, see MQSA-TED.
    """

    def __init__(
        self,
        n_items: int,
        max_len: int = 50,
        dim: int = 64,
        depth: int = 2,
        heads: int = 1,
        dropout: float = 0.5,
        distillation: float = 0.0,
        tau: float = 0.1,
        loss: Loss = "full",
        negatives: int = 1024,
        sampling: Sampling = "uniform",
        calibration: float = 0.75,
        l2: float = 0.0,
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
        training = Training(
            distillation=distillation,
            tau=tau,
            teacher="row_max",
            loss=loss,
            negatives=negatives,
            sampling=sampling,
            calibration=calibration,
            l2=l2,
            lr=lr,
            schedule=schedule,
            adam=adam,
        )
        super().__init__(training, ties, top, search, vectors, seed, table_placement)
        self.save_hyperparameters()
        sparse = loss != "full"
        self.net = SASRec(n_items, dim, max_len, depth, heads, dropout, sparse=sparse, placement=table_placement)


class TransitionModule(SequenceModule):
    """First-order transitions alone: item vectors that predict their successors, as the baseline.

    Args:
        n_items: taken from the data.
        max_len: taken from the data.
        dim: width of item vectors.
        dropout: of item vectors.
        distillation: weight of the distillation loss.
        tau: temperature of teacher and student.
        loss: cross entropy over the `full` catalogue, over `sampled` items, or `gbce`.
        negatives: sampled items of a batch.
        sampling: what sampled items are drawn by.
        calibration: t of gBCE.
        l2: weight of half the sum of squares of all parameters.
        lr: learning rate.
        schedule: `constant`, or `cosine` down to a hundredth of `lr` at the trainer's last epoch.
        adam: where Adam's eps stands.
        ties: how items that score the same count in a rank.
        top: recommended items of a prediction.
        search: how `predict` finds them: `exact`, or among neighbours by `faiss` (for millions of items).
        vectors: `predict` also writes the vectors of users and items, for a service of nearest neighbours.
        seed: of dropout and sampling.
        table_placement: `replicated`, or `sharded`, see MQSA-TED.
    """

    def __init__(
        self,
        n_items: int,
        max_len: int = 50,
        dim: int = 64,
        dropout: float = 0.5,
        distillation: float = 0.1,
        tau: float = 0.1,
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
        training = Training(
            distillation=distillation,
            tau=tau,
            teacher="row_max",
            loss=loss,
            negatives=negatives,
            sampling=sampling,
            calibration=calibration,
            l2=l2,
            lr=lr,
            schedule=schedule,
            adam=adam,
        )
        super().__init__(training, ties, top, search, vectors, seed, table_placement)
        self.save_hyperparameters()
        self.net = TransitionModel(n_items, dim, max_len, dropout, sparse=loss != "full", placement=table_placement)
