"""Training of sequence models: each adds its network to the options that all share."""

from __future__ import annotations

from typing import Any

from domains.common.optim import AdamForm
from domains.seqrec.mqsa_ted import MQSATED, SASRec, TransitionModel
from domains.seqrec.training import SequenceModule


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
        adam: where Adam's eps stands; `tensorflow` is the official program's.
        options: of `SequenceModule`.
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
        adam: AdamForm = "tensorflow",
        **options: Any,
    ) -> None:
        super().__init__(adam=adam, **options)
        self.net = MQSATED(
            n_items,
            dim,
            max_len,
            depth,
            heads,
            window=window,
            alpha=alpha,
            dropout=dropout,
            **self.table_options,
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
        l2: weight of half the sum of squares of all parameters.
        options: of `SequenceModule`.
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
        l2: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(distillation=distillation, l2=l2, **options)
        self.net = SASRec(n_items, dim, max_len, depth, heads, dropout, **self.table_options)


class TransitionModule(SequenceModule):
    """First-order transitions alone: item vectors that predict their successors, as the baseline.

    Args:
        n_items: taken from the data.
        max_len: taken from the data.
        dim: width of item vectors.
        dropout: of item vectors.
        options: of `SequenceModule`.
    """

    def __init__(self, n_items: int, max_len: int = 50, dim: int = 64, dropout: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.net = TransitionModel(n_items, dim, max_len, dropout, **self.table_options)
