"""One embedding table for all fields, whole or sharded over processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EmbeddingTable(nn.Module):
    """Rows of `dim` numbers, one gather for all fields of a batch.

    Args:
        rows: number of rows.
        dim: numbers per row.
        sparse: the gradient is a sparse tensor of the touched rows, so that a training step costs what its batch
            touches and not what the table holds.

    Shape:
        ids (...) int -> (..., dim).
    """

    def __init__(self, rows: int, dim: int, *, sparse: bool = False) -> None:
        super().__init__()
        self.sparse = sparse
        self.weight = nn.Parameter(torch.empty(rows, dim))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows."""
        return F.embedding(ids, self.weight, sparse=self.sparse)
