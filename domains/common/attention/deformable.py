"""Multi-scale deformable attention: X. Zhu, W. Su, L. Lu, B. Li, X. Wang, J. Dai (ICLR 2021), arXiv 2010.04159.

*Deformable DETR: Deformable transformers for end-to-end object detection*, section 4.1. Official code:
fundamentalvision/Deformable-DETR @ 11169a6 (Apache-2.0); nothing here needs its compiled operator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention.recorder import Recordable

Backend = Literal["auto", "gather", "compiled", "grid_sample"]
Sizes = Sequence[tuple[int, int]]
Corners = tuple[Tensor, Tensor]

# queries whose arithmetic is done at once: what stands between the operations stays in the cache
CHUNK = 512
# rows are numbered in float32, which holds every integer up to here
EXACT = 1 << 24
# heads narrower than this gain nothing from one look-up for all levels
NARROW = 16


@dataclass(frozen=True)
class View:
    """Maps as one attention block sees them, and its linear map of queries.

    Attributes:
        value: the maps, zero on padding.
        sizes: (H_l, W_l) of the levels.
        weight: of offsets in x, offsets in y, and scores.
        bias: of the same.

    Shape:
        value (B, S, heads, D / heads), weight (3 heads L P, D), bias (3 heads L P,).
    """

    value: Tensor
    sizes: tuple[tuple[int, int], ...]
    weight: Tensor
    bias: Tensor


class MultiScaleDeformableAttention(Recordable):
    """Each query looks at P points around its reference in each of L maps (eq. 3).

    `sum_h W_h sum_l sum_p A_hlqp W'_h x_l(phi_l(r_q) + dp_hlqp)`: the offsets dp, in pixels of their level, and the
    weights A, a softmax over all L P points, are linear maps of the query; x_l is read by bilinear interpolation
    between pixel centres, and is zero outside.

    A recorder gets the weights A as (B, heads, Q, L P).

    Args:
        dim: width D of queries, maps and result.
        heads: number of heads; divides `dim`.
        levels: number of maps L.
        points: points P per head and level.
        backend: gather: the four neighbours of all points by one look-up with weights (`sample_gather`). compiled: the
            same with its index arithmetic compiled, for which torch needs a C++ compiler at run time. grid_sample: map
            by map by torch's `grid_sample` (`sample_grid`), the plain form. auto: gather on the CPU, without gradients
            and with heads of at least 16 numbers; else grid_sample. All give the same numbers.

    Shape:
        query (B, Q, D), references (B, Q, L, 2), memory (B, S, D), S = sum of H_l W_l -> (B, Q, D).

    Raises:
        ValueError: `heads` does not divide `dim`.

    Example:
        >>> import torch
        >>> block = MultiScaleDeformableAttention(dim=16, heads=2, levels=2, points=3)
        >>> memory = torch.randn(1, 4 * 6 + 2 * 3, 16)
        >>> block(torch.randn(1, 5, 16), torch.rand(1, 5, 2, 2), memory, [(4, 6), (2, 3)]).shape
        torch.Size([1, 5, 16])
    """

    def __init__(
        self, dim: int, heads: int = 8, levels: int = 4, points: int = 4, *, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.levels, self.points, self.backend = heads, levels, points, backend
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with even weights, and with point p of head h p + 1 pixels away in the head's direction.

        As the official code of Group Pose does, distances begin again after four points, and offsets are zero where the
        number of points is no multiple of four.
        """
        angles = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        direction = torch.stack([angles.cos(), angles.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(self.points) % 4 + 1.0
        offsets = direction[:, None, None] * distance[:, None]  # (heads, 1, P, 2)
        offsets = offsets.expand(-1, self.levels, -1, -1) if self.points % 4 == 0 else offsets.new_zeros(())
        with torch.no_grad():
            shape = (self.heads, self.levels, self.points, 2)
            self.sampling_offsets.bias.copy_(offsets.expand(shape).reshape(-1))
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, query: Tensor, references: Tensor, memory: Tensor, sizes: Sizes, *, padding: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: what looks.
            references: where, as fractions of width and height (x, y) of each level.
            memory: the maps, row by row, level after level.
            sizes: (H_l, W_l) of the levels.
            padding: True where a token of memory is padding: it has the value zero.

        Shape:
            padding (B, S) bool.

        Raises:
            ValueError: see `view`.
        """
        return self.look(query, references, self.view(memory, sizes, padding))

    def view(self, memory: Tensor, sizes: Sizes, padding: Tensor | None = None) -> View:
        """Prepare the maps for queries that look at them in parts; arguments are those of `forward`.

        Raises:
            ValueError: the sizes are not those of `levels` maps of S tokens.
        """
        if len(sizes) != self.levels or sum(h * w for h, w in sizes) != memory.shape[1]:
            raise ValueError(f"{list(sizes)} are not the sizes of {self.levels} maps of {memory.shape[1]} tokens")
        value = self.value_proj(memory)
        if padding is not None:
            hide = value.masked_fill if torch.is_grad_enabled() else value.masked_fill_
            value = hide(padding[..., None], 0.0)
        value = value.view(*value.shape[:2], self.heads, -1)
        # offsets in x and in y and scores by one product, each contiguous for its query
        rows = self.sampling_offsets.weight.view(-1, 2, memory.shape[-1])
        weight = torch.cat([rows[:, 0], rows[:, 1], self.attention_weights.weight])
        bias = torch.cat([*self.sampling_offsets.bias.view(-1, 2).unbind(1), self.attention_weights.bias])
        return View(value, tuple(sizes), weight, bias)

    def look(self, query: Tensor, references: Tensor, view: View) -> Tensor:
        """Attend to maps; shapes and arguments are those of `forward`."""
        batch, queries, dim = query.shape
        value = view.value
        maps = F.linear(query, view.weight, view.bias)
        x, y, scores = maps.view(batch, queries, 3, self.heads, self.levels, self.points).unbind(2)
        weights = scores.flatten(-2).softmax(-1).view_as(scores)
        if self._sink is not None:
            self._sink.append(weights.detach().flatten(-2).transpose(1, 2))
        with torch.autocast(query.device.type, enabled=False):  # places need more than the eight bits of bfloat16
            exact = torch.promote_types(query.dtype, torch.float32)
            extent = torch.tensor([(w, h) for h, w in view.sizes], dtype=exact, device=query.device)
            centre = (references.to(exact) * extent - 0.5)[:, :, None, :, None].repeat(1, 1, 1, 1, self.points, 1)
            places = (x.to(exact) + centre[..., 0].contiguous(), y.to(exact) + centre[..., 1].contiguous())
            out = self._sampler(value)(value.to(exact), view.sizes, *places, weights.to(exact))
        projected: Tensor = self.output_proj(out.to(value.dtype).view(batch, queries, dim))
        return projected

    def _sampler(self, value: Tensor) -> Callable[[Tensor, Sizes, Tensor, Tensor, Tensor], Tensor]:
        if self.backend == "compiled":
            return functools.partial(sample_gather, compiled=True)
        if self.backend == "gather":
            return sample_gather
        suits = value.device.type == "cpu" and value.shape[-1] >= NARROW and not torch.is_grad_enabled()
        return sample_gather if self.backend == "auto" and suits else sample_grid


def sample_grid(value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of interpolated values, map by map: the reference.

    Args:
        value: the maps, level after level.
        sizes: (H_l, W_l) of the levels.
        x: columns of the points, pixel centres at whole numbers.
        y: their rows.
        weights: of the points.

    Shape:
        value (B, S, heads, c), x, y and weights (B, Q, heads, L, P) -> (B, Q, heads c).
    """
    batch, queries = x.shape[:2]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B heads, c, S)
    out = value.new_zeros(())
    for level, part in enumerate(torch.split(maps, [h * w for h, w in sizes], dim=-1)):
        height, width = sizes[level]
        grid = torch.stack(
            [(2 * x[:, :, :, level] + 1) / width - 1, (2 * y[:, :, :, level] + 1) / height - 1], dim=-1
        )  # (B, Q, heads, P, 2)
        sampled = F.grid_sample(
            part.reshape(*part.shape[:2], height, width),
            grid.transpose(1, 2).flatten(0, 1),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # (B heads, c, Q, P)
        own = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        out = out + (sampled * own).sum(-1)
    return out.view(batch, -1, queries).transpose(1, 2)


def sample_gather(
    value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor, *, compiled: bool = False
) -> Tensor:
    """Compute `sample_grid` by one weighted look-up of the four neighbours of all points of all levels.

    The rows of an embedding bag are the tokens of each head, its weights those of the points times those of the
    interpolation, which are zero outside the map.

    Args:
        value: see `sample_grid`, as the others.
        sizes: of the levels.
        x: columns.
        y: rows.
        weights: of the points.
        compiled: compile the arithmetic.

    Shape:
        As `sample_grid`.
    """
    batch, tokens, heads, width = value.shape
    if tokens * heads >= EXACT:
        return sample_grid(value, sizes, x, y, weights)
    table = _table(tuple(sizes), heads, x.shape[-1], x)
    learn = torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad)
    corners = _compiled_corners() if compiled else _corners
    narrow = any(1 in size for size in sizes)
    step = x.shape[1] if compiled or torch.compiler.is_compiling() else CHUNK
    found = []
    for rows, *image in zip(value.reshape(batch, tokens * heads, width), x, y, weights, strict=True):
        for some_x, some_y, some_weights in zip(*(torch.split(t, step) for t in image), strict=True):
            index, share = corners(some_x, some_y, some_weights, table, tokens * heads, learn, narrow)
            found.append(F.embedding_bag(index, rows, per_sample_weights=share, mode="sum"))
    out = found[0] if len(found) == 1 else torch.cat(found)
    return out.view(batch, -1, heads * width)


def _table(sizes: tuple[tuple[int, int], ...], heads: int, points: int, like: Tensor) -> tuple[Tensor, ...]:
    """Constants of the points: last column and row to start from, rows per line, first row, steps right and down.

    They have an entry for each point of a query, because adding short rows to long ones is slow.

    Shape:
        -> (heads, L, P) each, the steps int32.
    """
    starts = [0]
    for height, width in sizes[:-1]:
        starts.append(starts[-1] + height * width)
    columns = (
        [max(w - 2, 0) for _, w in sizes],
        [max(h - 2, 0) for h, _ in sizes],
        [w * heads for _, w in sizes],
        [start * heads for start in starts],
        # a map of one column or row has no neighbour there
        [heads if w > 1 else 0 for _, w in sizes],
        [w * heads if h > 1 else 0 for h, w in sizes],
    )
    whole = torch.tensor(columns, device=like.device)[:, None, :, None].repeat(1, heads, 1, points)
    whole[3] += torch.arange(heads, device=like.device)[:, None, None]
    return *whole[:4].to(like.dtype).unbind(), *whole[4:].to(torch.int32).unbind()


def _corners(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    table: tuple[Tensor, ...],
    rows: int,
    learn: bool,
    narrow: bool,
) -> Corners:
    """Rows and weights of the four neighbours of each point.

    Args:
        x: columns.
        y: rows.
        weights: of the points.
        table: see `_table`.
        rows: how many there are.
        learn: whether derivatives are wanted.
        narrow: whether a map has a single column or row.

    Shape:
        x, y and weights (q, heads, L, P) -> (q heads, 4 L P) int32 and float.
    """
    heads = x.shape[1]
    column, row, line, first, right, down = table
    left = torch.minimum(x.detach().floor().clamp(min=0.0), column)
    top = torch.minimum(y.detach().floor().clamp(min=0.0), row)
    index = torch.addcmul(torch.add(first, left, alpha=heads), top, line).to(torch.int32).clamp_(0, rows - 1)
    if narrow or learn:
        (x0, x1), (y0, y1) = _tents(x - left), _tents(y - top)
        x1, y1 = x1 * (right > 0), y1 * (down > 0)
    else:
        x0, y0 = x - left, y - top
        x1, y1 = (1 - (x0 - 1).abs_()).clamp_(min=0.0), (1 - (y0 - 1).abs_()).clamp_(min=0.0)
        x0, y0 = (1 - x0.abs_()).clamp_(min=0.0), (1 - y0.abs_()).clamp_(min=0.0)
    y0, y1 = y0 * weights, y1 * weights
    below = index + down
    indices = (index, index + right, below, below + right)
    shares = ((y0, x0), (y0, x1), (y1, x0), (y1, x1))
    if learn or torch.compiler.is_compiling():
        share = torch.stack([a * b for a, b in shares], dim=2)  # (q, heads, 4, L, P)
    else:
        share = y0.new_empty(*y0.shape[:2], 4, *y0.shape[2:])
        for corner, (a, b) in enumerate(shares):
            torch.mul(a, b, out=share[:, :, corner])
    return torch.stack(indices, dim=2).flatten(2).flatten(0, 1), share.flatten(2).flatten(0, 1)


def _tents(offset: Tensor) -> Corners:
    """Weights of two neighbours at 0 and 1 for a point at `offset`, which may lie outside.

    Their derivatives at whole numbers are those to the right, as in `grid_sample`: points start at whole numbers.
    """
    near = torch.where(offset < 0, torch.where(offset < -1, 0.0, 1 + offset), (1 - offset).relu())
    far = torch.where(offset < 1, torch.where(offset < 0, 0.0, offset), (2 - offset).relu())
    return near, far


@functools.cache
def _compiled_corners() -> Callable[..., Corners]:
    return torch.compile(_corners, dynamic=True)
