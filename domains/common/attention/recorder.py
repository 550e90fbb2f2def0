"""Collect the attention weights of named blocks while a model runs as usual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from domains.common.attention.core import attend, weigh


class Recordable(nn.Module):
    """Base class of attention blocks whose weights `record` can collect.

    A subclass computes its attention by `self.mix(...)`, or `self.weigh(...)` where it has the scores, and is otherwise
    an ordinary module.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sink: list[Tensor] | None = None

    @property
    def recording(self) -> bool:
        """Whether a recorder listens."""
        return self._sink is not None

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Call `attend`, and leave a copy of the weights with the recorder if one listens; shapes as there."""
        if self._sink is None:
            return attend(q, k, v, bias=bias, mask=mask, scale=scale, dropout=dropout, need_weights=need_weights)
        out, weights = attend(q, k, v, bias=bias, mask=mask, scale=scale, dropout=dropout, need_weights=True)
        if weights is not None:
            self._sink.append(weights.detach())
        return out, weights if need_weights else None

    def weigh(
        self, scores: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Call `weigh`, and leave a copy of the weights with the recorder if one listens; shapes as there."""
        out, weights = weigh(scores, v, mask=mask, dropout=dropout)
        if self._sink is not None:
            self._sink.append(weights.detach())
        return out, weights


@contextmanager
def record(model: nn.Module, *names: str) -> Iterator[dict[str, list[Tensor]]]:
    """Collect attention weights of the recordable blocks inside `model`.

    Args:
        model: any module.
        names: the blocks' names as in `model.named_modules()`; default all.

    Yields:
        name -> list with one tensor (..., heads, Lq, Lk) per call of the block, in order of the calls.

    Raises:
        KeyError: a name is no recordable block of the model.

    Example:
        >>> import torch
        >>> from domains.common.attention import MultiHeadAttention, record
        >>> block = MultiHeadAttention(dim=8, heads=2)
        >>> with record(block) as maps:
        ...     _ = block(torch.randn(1, 5, 8))
        >>> maps[""][0].shape
        torch.Size([1, 2, 5, 5])
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Recordable)}
    unknown = [name for name in names if name not in blocks]
    if unknown:
        raise KeyError(f"no recordable attention block named {unknown[0]!r}; there are: {', '.join(blocks) or 'none'}")
    chosen = {name: blocks[name] for name in (names or blocks)}
    maps: dict[str, list[Tensor]] = {name: [] for name in chosen}
    before = {name: block._sink for name, block in chosen.items()}
    for name, block in chosen.items():
        block._sink = maps[name]
    try:
        yield maps
    finally:
        for name, block in chosen.items():
            block._sink = before[name]
