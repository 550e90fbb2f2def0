"""Logistic regression on the fields: the baseline of every click model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from domains.common.hub import plain
from domains.common.sharded import Placement
from domains.common.table import make_table
from domains.ctr.fields import FieldLayout


class LogisticRegression(nn.Module):
    """One weight per category and per number, and a bias (the LR row of Song et al., 2019, table 2).

    Args:
        fields: the fields as `dataset.json` lists them.
        sparse: whether the table's gradient holds touched rows only.
        placement: of the table's rows, see `AutoInt`.

    Shape:
        ids (B, S) int, values (B, S) float32, slot_field ignored (a bag is a sum) -> logits (B,) float32.
    """

    def __init__(
        self, fields: Sequence[Mapping[str, Any]], sparse: bool = False, placement: Placement = "replicated"
    ) -> None:
        super().__init__()
        self.arguments = {"fields": plain(fields), "sparse": sparse}
        self.layout = FieldLayout(fields)
        self.table = make_table(self.layout.rows, 1, sparse=sparse, placement=placement)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor, values: Tensor, slot_field: Tensor | None = None) -> Tensor:
        """Return logits (B,)."""
        del slot_field
        logits: Tensor = self.table(ids, values).sum(dim=(1, 2)) + self.bias
        return logits
