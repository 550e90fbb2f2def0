"""MQSA-TED (Zhu et al., WSDM 2024, arXiv 2311.01056), and what is left of it without its parts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention import MultiQueryAttention
from domains.common.attention.multi_query import NORM_EPS
from domains.common.errors import ConfigError
from domains.common.sharded import Placement
from domains.common.table import make_table


class SequenceNetwork(nn.Module, ABC):
    """An item table, and a vector for each position of a sequence that is compared with it.

    Items are 0..n_items-1; n_items is padding, the zero vector.

    Args:
        n_items: size V of the catalogue.
        dim: width D.
        max_len: longest input T.
        dropout: of the embedded items.
        sparse: the table's gradient holds only the rows that a step looks up.
        placement: of the item table, see `make_table`.

    Shape:
        items (B, T) int, left padded -> scores (B, V).
    """

    arguments: dict[str, Any]  # a subclass adds its own

    def __init__(
        self, n_items: int, dim: int, max_len: int, dropout: float, *, sparse: bool, placement: Placement
    ) -> None:
        super().__init__()
        if n_items < 1 or max_len < 1 or dim < 1:
            raise ConfigError(f"n_items is {n_items}, max_len {max_len} and model.dim {dim}; they count from 1")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"model.dropout is {dropout}; it must lie in [0, 1)")
        self.n_items, self.dim, self.max_len, self.dropout = n_items, dim, max_len, dropout
        self.arguments = {"n_items": n_items, "dim": dim, "max_len": max_len, "dropout": dropout}
        self.items = make_table(n_items, dim, sparse=sparse, placement=placement)

    @abstractmethod
    def represent(self, items: Tensor, slot: Tensor | None = None, segment: Tensor | None = None) -> Tensor:
        """Vectors of all positions; that at t is compared with the items that may follow.

        Args:
            items: padding = n_items.
            slot: place of each position in a left-padded sequence of `max_len`; default: rows are such sequences, or
                their last columns.
            segment: number of the sequence of each position, where a row holds several one behind the other.

        Shape:
            items, slot, segment (B, T) int -> (B, T, D).
        """

    def forward(self, items: Tensor) -> Tensor:
        """Scores (B, V) of what follows the last position; rows are left padded."""
        return self.score(self.represent(items)[:, -1])

    def score(self, users: Tensor) -> Tensor:
        """Compare user vectors (..., D) with all items: (..., V)."""
        scores: Tensor = users @ self.table().mT
        return scores

    def table(self) -> Tensor:
        """All item vectors (V, D); of a table divided among processes a copy is gathered, which is collective."""
        if self.items.weight.shape[0] == self.n_items:
            return self.items.weight
        rows: Tensor = self.items(torch.arange(self.n_items, device=self.items.weight.device)[None])[0]
        return rows

    def embed(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled vectors of items, zero at padding, and where they are real.

        Shape:
            items (B, T) int -> (B, T, D), keep (B, T) bool.
        """
        keep = items != self.n_items
        rows = self.items(items.masked_fill(~keep, 0))
        return rows * (keep[..., None].to(rows.dtype) * math.sqrt(self.dim)), keep


class AttentiveNetwork(SequenceNetwork):
    """Items and places embedded, then multi-query attention: what MQSA-TED and SASRec share."""

    def __init__(
        self,
        n_items: int,
        dim: int,
        max_len: int,
        depth: int,
        heads: int,
        windows: tuple[int, ...],
        weights: tuple[float, ...],
        dropout: float,
        norm_eps: float,
        *,
        sparse: bool,
        placement: Placement,
    ) -> None:
        super().__init__(n_items, dim, max_len, dropout, sparse=sparse, placement=placement)
        if heads < 1 or depth < 1:
            raise ConfigError(f"model.heads is {heads} and model.depth {depth}; both count from 1")
        if dim % heads:
            raise ConfigError(f"model.heads {heads} does not divide model.dim {dim}")
        self.positions = nn.Parameter(torch.empty(max_len, dim).normal_(std=0.01))
        self.attention = MultiQueryAttention(
            dim, depth, heads, windows=windows, weights=weights, dropout=dropout, norm_eps=norm_eps
        )
        self.arguments |= {"depth": depth, "heads": heads, "norm_eps": norm_eps}

    def represent(self, items: Tensor, slot: Tensor | None = None, segment: Tensor | None = None) -> Tensor:
        """Combined representations of the branches, eq. 8."""
        combined: Tensor = self.attention(*self._inputs(items, slot), segment)
        return combined

    def branches(self, items: Tensor, slot: Tensor | None = None, segment: Tensor | None = None) -> list[Tensor]:
        """Representations (B, T, D) of each branch alone; shapes as in `represent`."""
        return self.attention.each(*self._inputs(items, slot), segment)

    def _inputs(self, items: Tensor, slot: Tensor | None) -> tuple[Tensor, Tensor]:
        length = items.shape[1]
        if slot is None:
            if length > self.max_len:
                raise ConfigError(f"sequences of {length} items, the model takes {self.max_len}; keep the latest")
            places = self.positions[self.max_len - length :]
        else:
            places = F.embedding(slot, self.positions)
        embedded, keep = self.embed(items)
        x = F.dropout(embedded + places, self.dropout, self.training)
        return x * keep[..., None].to(x.dtype), keep


class MQSATED(AttentiveNetwork):
    """Multi-query self-attention with transition-aware embedding distillation (Zhu et al., 2024).

    The user's vector is `alpha R_short + (1 - alpha) R_long` (eq. 8): both branches attend from the latest item, or
    from the mean of the L latest ones, to the whole past. The distillation is a loss on the item table, see `losses`.

    Args:
        n_items: size V of the catalogue.
        dim: width D.
        max_len: longest input T; older items are cut off.
        depth: blocks of each branch.
        heads: attention heads.
        window: the number L of latest items in a long query.
        alpha: weight of the short branch.
        dropout: of embeddings, attention weights and feed-forward layers.
        norm_eps: of the layer normalisations.
        sparse: the table's gradient holds only the rows that a step looks up.
        placement: of the item table.

    Shape:
        items (B, T) int, left padded with n_items -> scores (B, V).

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch
        >>> net = MQSATED(n_items=10, dim=8, max_len=5)
        >>> net(torch.tensor([[10, 10, 3, 7, 1]])).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 64,
        max_len: int = 50,
        depth: int = 1,
        heads: int = 1,
        window: int = 3,
        alpha: float = 0.5,
        dropout: float = 0.0,
        norm_eps: float = NORM_EPS,
        sparse: bool = False,
        placement: Placement = "replicated",
    ) -> None:
        if not 0.0 <= alpha <= 1.0 or window < 1:
            raise ConfigError(f"model.alpha is {alpha} and model.window {window}; need 0 <= alpha <= 1 and window >= 1")
        super().__init__(
            n_items,
            dim,
            max_len,
            depth,
            heads,
            (1, window),
            (alpha, 1.0 - alpha),
            dropout,
            norm_eps,
            sparse=sparse,
            placement=placement,
        )
        self.arguments |= {"window": window, "alpha": alpha}


class SASRec(AttentiveNetwork):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, arXiv 1808.09781).

    The short branch alone.

    Args:
        n_items: size V of the catalogue.
        dim: width D.
        max_len: longest input T.
        depth: blocks.
        heads: attention heads.
        dropout: of embeddings, attention weights and feed-forward layers.
        norm_eps: of the layer normalisations.
        sparse: the table's gradient holds only the rows that a step looks up.
        placement: of the item table.

    Shape:
        items (B, T) int, left padded with n_items -> scores (B, V).
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 64,
        max_len: int = 50,
        depth: int = 2,
        heads: int = 1,
        dropout: float = 0.0,
        norm_eps: float = 1e-8,
        sparse: bool = False,
        placement: Placement = "replicated",
    ) -> None:
        super().__init__(
            n_items, dim, max_len, depth, heads, (1,), (1.0,), dropout, norm_eps, sparse=sparse, placement=placement
        )


class TransitionModel(SequenceNetwork):
    """First-order transitions alone, factorised as in FPMC without users (Rendle et al., WWW 2010).

    The vector of a position is that of its item, `E[i] sqrt(D)`: the student that MQSA-TED distils transitions into.

    Args:
        n_items: size V of the catalogue.
        dim: width D.
        max_len: longest input T; only the last item counts.
        dropout: of the embedded items.
        sparse: the table's gradient holds only the rows that a step looks up.
        placement: of the item table.

    Shape:
        items (B, T) int, left padded with n_items -> scores (B, V).
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 64,
        max_len: int = 50,
        dropout: float = 0.0,
        sparse: bool = False,
        placement: Placement = "replicated",
    ) -> None:
        super().__init__(n_items, dim, max_len, dropout, sparse=sparse, placement=placement)

    def represent(self, items: Tensor, slot: Tensor | None = None, segment: Tensor | None = None) -> Tensor:
        """Vectors of the items themselves."""
        return F.dropout(self.embed(items)[0], self.dropout, self.training)
