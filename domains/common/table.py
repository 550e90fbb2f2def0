"""Embedding tables, whole on every process or divided among them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from domains.common.errors import ConfigError
from domains.common.rows import draw_seed, look_up, normal_rows
from domains.common.sharded import Placement, ShardedTable


class EmbeddingTable(nn.Embedding):
    """Rows of `dim` numbers, one gather for all ids of a batch.

    It is an `nn.Embedding` so that DistributedDataParallel knows its gradient to be sparse.

    Args:
        rows: number of rows.
        dim: numbers per row.
        sparse: the gradient is a sparse tensor of the touched rows, so that a training step costs what its batch
            touches and not what the table holds.

    Shape:
        ids (B, S) int, values (B, S) float32 -> (B, S, dim), the rows times the values.
    """

    def __init__(self, rows: int, dim: int, *, sparse: bool = False) -> None:
        super().__init__(rows, dim, sparse=sparse)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.01) -> None:
        """N(0, std²), 0.01 as in the official program; block by block, as a `ShardedTable` starts."""
        seed = draw_seed()
        if self.weight.is_meta:
            return
        for start, block in normal_rows(self.num_embeddings, self.embedding_dim, std, seed):
            self.weight[start : start + len(block)] = block

    def forward(self, ids: Tensor, values: Tensor | None = None) -> Tensor:
        """Look up rows and scale them."""
        return look_up(ids, values, self.weight, sparse=self.sparse)


Table = EmbeddingTable | ShardedTable


def make_table(rows: int, dim: int, *, sparse: bool, placement: Placement) -> Table:
    """Build a table whose rows lie on every process (`replicated`) or are divided among them (`sharded`).

    Raises:
        ConfigError: a sharded table with a dense gradient.
    """
    if placement == "replicated":
        return EmbeddingTable(rows, dim, sparse=sparse)
    if not sparse:
        raise ConfigError("placement is sharded and the gradient is dense; a sharded table needs sparse=True")
    return ShardedTable(rows, dim)
