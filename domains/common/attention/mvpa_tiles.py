"""Exact MVPA by tiles of query segments: no tensor over all pairs of tokens is ever made.

For queries of segment t only keys of segments <= t exist. Inside the content window the score is a product of query and
key plus a term of time and one of channels; beyond it only the two terms are left, so that the weights factorise,

    exp(tau[t'] + chi[c']) = exp(tau[t']) exp(chi[c']),

and neither a product with a key nor an exponential is computed for such a pair. Both parts share one normaliser: all
far keys together are one more key of the softmax, whose score is logsumexp(tau) + logsumexp(chi). Nothing of a tile is
kept for the gradient but its normaliser; scores are computed again (Dao et al., 2022, arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_TILE = 1 << 20  # scores of the largest tile of a part: small enough for the cache, large enough for few calls
DEVICE_TILE = 1 << 26
SMALL_ROWS = 128  # queries below which several segments make one tile


@dataclass(frozen=True)
class Layout:
    """How tokens lie in the tensors of `tiled_attention`.

    Args:
        segments: T.
        channels: C.
        group: query heads G that share a key head.
        window: segments before its own whose content a query sees; the last segment sees all.
        queries: segments that have queries, counted from the end; T or 1.
        content: whether contents are compared at all.
    """

    segments: int
    channels: int
    group: int
    window: int
    queries: int
    content: bool = True

    @property
    def rows(self) -> int:
        """Queries of one segment and one key head."""
        return self.group * self.channels

    def tiles(self) -> Iterator[Tile]:
        """Tiles of query segments; the last segment, whose window is open, is one of its own."""
        first, last = self.segments - self.queries, self.segments - 1
        several = max(1, SMALL_ROWS // self.rows)
        for start in range(first, last, several):
            yield Tile(start, min(start + several, last), max(0, start - self.window))
        yield Tile(last, self.segments, 0)


@dataclass(frozen=True)
class Tile:
    """Query segments [start, stop) with content from segment `near` on; all segments before are far for all of them."""

    start: int
    stop: int
    near: int


class Inputs(NamedTuple):
    """What is attended to; N stands for batch times key heads.

    Args:
        q: queries, scaled by 1 / sqrt(D).
        k: keys.
        v: values.
        time_keys: row T - 1 - d is the key of distance d in segments.
        channel_keys: row C - 1 + c' - c is the key of channel c' for a query of channel c.
        bias: u, v, w, which are added to the query of the content, time and channel term, scaled as q is.
        visible: channels that are keys, at least one; None: all.

    Shape:
        q (N, queries, G, C, D), k and v (N, T, C, D), time_keys (N, T, D), channel_keys (N, 2 C - 1, D), bias
        (N, 3, D), visible (N, C) bool.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    time_keys: Tensor
    channel_keys: Tensor
    bias: Tensor
    visible: Tensor | None = None

    def part(self, which: slice) -> Inputs:
        """Some of the N."""
        visible = None if self.visible is None else self.visible[which]
        q, k, v, time_keys, channel_keys, bias = (tensor[which] for tensor in self[:-1])
        return Inputs(q, k, v, time_keys, channel_keys, bias, visible)


def tiled_attention(inputs: Inputs, layout: Layout) -> Tensor:
    """Attend by tiles; gradients are exact, of first order only.

    Shape:
        -> (N, queries, G, C, D).
    """
    out: Tensor = _Tiled.apply(layout, *inputs)
    return out


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, *tensors: Any) -> Tensor:
        given = Inputs(*tensors)
        given = given._replace(q=given.q.contiguous(), k=given.k.contiguous(), v=given.v.contiguous())
        q = given.q
        with torch.autocast(q.device.type, enabled=False):
            out, normaliser = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=_accumulator(q))
            for which in _parts(layout, q):
                inputs = given.part(which)
                for tile in layout.tiles():
                    scores = _Scores(inputs, layout, tile)
                    out[which, scores.place], normaliser[which, scores.place] = scores.attend()
        ctx.save_for_backward(*given, out, normaliser)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out, normaliser = ctx.saved_tensors
        given, layout = Inputs(*tensors), ctx.layout
        wide = _accumulator(given.q)
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.contiguous()
            sums = [torch.empty_like(given.q)]  # each query is in one tile
            sums += [torch.zeros_like(tensor, dtype=wide) for tensor in given[1:-1]]
            for which in _parts(layout, given.q):
                inputs, parts = given.part(which), [tensor[which] for tensor in sums]
                for tile in layout.tiles():
                    scores = _Scores(inputs, layout, tile)
                    place = scores.place
                    scores.differentiate(grad[which, place], out[which, place], normaliser[which, place], parts)
        return (None, *(total.to(given.q.dtype) for total in sums), None)


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _parts(layout: Layout, q: Tensor) -> Iterator[slice]:
    """Slices of the first axis whose tiles are as large as the device likes."""
    largest = layout.rows * layout.segments * layout.channels
    size = max(1, (CPU_TILE if q.device.type == "cpu" else DEVICE_TILE) // largest)
    for start in range(0, len(q), size):
        yield slice(start, start + size)


def _shares(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis, and its logarithm of sums (..., 1)."""
    top = scores.amax(-1, keepdim=True)
    shares = (scores - top).exp_()
    total = shares.sum(-1, keepdim=True)
    return shares.div_(total), top + total.log()


class _Scores:
    """One tile of queries with all of its keys; P below are its parts (N of `tiled_attention`), S its segments."""

    def __init__(self, inputs: Inputs, layout: Layout, tile: Tile) -> None:
        q, k, v, time_keys, channel_keys, bias, visible = inputs
        self.layout, self.tile, self.channels, self.parts = layout, tile, layout.channels, len(q)
        self.segments, self.far, self.near = tile.stop - tile.start, tile.near, tile.stop - tile.near
        self.place = slice(tile.start - layout.segments + layout.queries, tile.stop - layout.segments + layout.queries)
        self.rows = self.segments * layout.rows
        self.wide = _accumulator(q)
        self.q = q[:, self.place].flatten(1, 3)
        self.k = k[:, tile.near : tile.stop].flatten(1, 2)
        self.v = v[:, tile.near : tile.stop].flatten(1, 2)
        self.v_far = v[:, : tile.near].flatten(1, 2)
        self.time_keys, self.channel_keys = time_keys, channel_keys
        self.biased = [self.q + bias[:, i, None] for i in range(3)]
        self.tau = self._time_terms(torch.bmm(self.biased[1], time_keys.mT).to(self.wide))
        self.chi = self._channel_view(torch.bmm(self.biased[2], channel_keys.mT).to(self.wide))
        if visible is not None:
            self.chi = self.chi.masked_fill(~visible[:, None, None], -torch.inf)

    def _time_terms(self, by_distance: Tensor) -> Tensor:
        """(P, rows, T) by row of the table -> (P, S, rows of a segment, stop) by key segment; the future is -inf."""
        start, stop, last = self.tile.start, self.tile.stop, self.layout.segments - 1
        table = by_distance.view(self.parts, self.segments, self.layout.rows, -1)
        if self.segments == 1:
            return table[..., last - start :]
        found = table.new_full((*table.shape[:-1], stop), -torch.inf)
        for s in range(self.segments):
            found[:, s, :, : start + s + 1] = table[:, s, :, last - start - s :]
        return found

    def _time_gradients(self, grad: Tensor) -> Tensor:
        """Undo `_time_terms`."""
        start, last = self.tile.start, self.layout.segments - 1
        table = grad.new_zeros(self.parts, self.segments, self.layout.rows, self.layout.segments)
        for s in range(self.segments):
            table[:, s, :, last - start - s :] = grad[:, s, :, : start + s + 1]
        return table.view(self.parts, self.rows, -1)

    def _channel_view(self, by_distance: Tensor) -> Tensor:
        """(P, rows, 2 C - 1) by signed distance -> view (P, S G, C, C) of it by key channel: row c starts C-1-c in."""
        count, width = self.channels, 2 * self.channels - 1
        shape = (self.parts, self.segments * self.layout.group, count, count)
        strides = (self.rows * width, count * width, width - 1, 1)
        return by_distance.as_strided(shape, strides, by_distance.storage_offset() + count - 1)

    def _bias(self, shift: Tensor | None) -> Tensor:
        """Terms of time and channels of the near keys, (P, rows, near C), less a number for each row."""
        channels, group = self.channels, self.layout.group
        tau = self.tau[..., self.far :]
        tau = tau if shift is None else tau - shift.view(*tau.shape[:-1], 1)
        scores = tau.new_empty(self.parts, self.rows, self.near * channels)
        inside = scores.view(self.parts, self.segments * group, channels, self.near, channels)
        chi = self.chi.unsqueeze(-2)
        torch.add(tau.reshape(self.parts, self.segments * group, channels, self.near, 1), chi, out=inside)
        return scores

    def _content(self, scores: Tensor) -> None:
        """Add the products of queries and keys inside the window to the near scores, in place."""
        if not self.layout.content:
            return
        if self._whole and self.q.dtype == self.wide:
            scores.baddbmm_(self.biased[0], self.k.mT)
            return
        product = torch.bmm(self.biased[0], self.k.mT).to(self.wide)
        scores.add_(product if self._whole else self._gated(product))

    @property
    def _whole(self) -> bool:
        """Whether all near keys are inside the window of all queries of the tile (or are their future)."""
        return self.tile.stop == self.layout.segments or self.tile.stop - 1 - self.tile.near <= self.layout.window

    def _gated(self, product: Tensor) -> Tensor:
        """Put 0 in the place of the content beyond each query's own window."""
        distance = torch.arange(self.tile.start, self.tile.stop, device=product.device)[:, None] - torch.arange(
            self.tile.near, self.tile.stop, device=product.device
        )
        gate = (distance <= self.layout.window).to(product.dtype)
        by_segment = product.view(self.parts, self.segments, self.layout.rows, self.near, self.channels)
        return (by_segment * gate[:, None, :, None]).view(product.shape)

    def _content_gradients(self, dscores: Tensor, dk: Tensor) -> Tensor:
        """Add the gradients of keys to theirs, and return those of the queries."""
        if not self.layout.content:
            return torch.zeros_like(self.q)
        content = (dscores if self._whole else self._gated(dscores)).to(self.q.dtype)
        dk[:, self.tile.near : self.tile.stop].flatten(1, 2).add_(torch.bmm(content.mT, self.biased[0]))
        return torch.bmm(content, self.k)

    def _far(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shares of the far segments (P, rows, far) and of their channels (P, rows, C), and their common score."""
        times, over_time = _shares(self.tau[..., : self.far].flatten(1, 2))
        channels, over_channels = _shares(self.chi.flatten(1, 2))
        return times, channels, over_time + over_channels

    def _far_weights(self, times: Tensor, channels: Tensor, share: Tensor) -> Tensor:
        """(P, rows, far C)."""
        return ((times * share).unsqueeze(-1) * channels.unsqueeze(-2)).flatten(-2)

    def attend(self) -> tuple[Tensor, Tensor]:
        """Outputs of the tile, and the logarithm of the normaliser of each of its rows."""
        scores = self._bias(None)
        self._content(scores)
        # amax, exp and sum by themselves are faster than softmax, whose normaliser would have to be found again
        top = scores.amax(-1, keepdim=True)
        if self.far:
            times, channels, common = self._far()
            top = torch.maximum(top, common)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        out = torch.bmm(weights.to(self.v.dtype), self.v)
        if self.far:
            share = (common - top).exp()
            total += share
            out.baddbmm_(self._far_weights(times, channels, share).to(self.v.dtype), self.v_far)
        shape = (self.parts, self.segments, self.layout.group, self.channels)
        return (out / total.to(out.dtype)).view(*shape, -1), (top + total.log()).view(shape)

    def differentiate(self, grad: Tensor, out: Tensor, normaliser: Tensor, sums: list[Tensor]) -> None:
        """Add the tile's gradients to those of q, k, v, time keys, channel keys and bias."""
        dq, dk, dv, dtime, dchannel, dbias = sums
        channels = self.channels
        grad, shift = grad.reshape(self.parts, self.rows, -1), normaliser.view(self.parts, self.rows, 1)
        delta = (grad * out.reshape(grad.shape)).to(self.wide).sum(-1, keepdim=True)
        scores = self._bias(shift)
        self._content(scores)
        weights = scores.exp_()
        dv[:, self.tile.near : self.tile.stop].flatten(1, 2).add_(torch.bmm(weights.to(grad.dtype).mT, grad))
        dscores = torch.bmm(grad, self.v.mT).to(self.wide).sub_(delta).mul_(weights)
        by_key = dscores.view(self.parts, self.rows, self.near, channels)
        dtau, dchi = by_key.sum(-1), by_key.sum(-2)
        if self.far:
            times, over, common = self._far()
            weights = self._far_weights(times, over, (common - shift).exp_())
            dv[:, : self.far].flatten(1, 2).add_(torch.bmm(weights.to(grad.dtype).mT, grad))
            dfar = torch.bmm(grad, self.v_far.mT).to(self.wide).sub_(delta).mul_(weights)
            by_key = dfar.view(self.parts, self.rows, self.far, channels)
            dtau, dchi = torch.cat([by_key.sum(-1), dtau], dim=-1), dchi.add_(by_key.sum(-2))
        dcontent = self._content_gradients(dscores, dk)
        by_segment = dtau.view(self.parts, self.segments, self.layout.rows, -1)
        dtable = self._time_gradients(by_segment).to(grad.dtype)
        spread = dchi.new_zeros(self.parts, self.rows, 2 * channels - 1)
        self._channel_view(spread).copy_(dchi.view(self.parts, -1, channels, channels))
        spread = spread.to(grad.dtype)
        dtime.add_(torch.bmm(dtable.mT, self.biased[1]))
        dchannel.add_(torch.bmm(spread.mT, self.biased[2]))
        terms = (dcontent, torch.bmm(dtable, self.time_keys), torch.bmm(spread, self.channel_keys))
        for i, term in enumerate(terms):
            dbias[:, i].add_(term.sum(1))
        total = terms[0] + terms[1] + terms[2]
        dq[:, self.place] = total.view(self.parts, self.segments, self.layout.group, channels, -1)
