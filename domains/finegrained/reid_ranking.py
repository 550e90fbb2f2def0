"""Ranks of true matches among all gallery images, without sorting the gallery.

A match's rank is 1 + the matches before it + the other images before it. So each image needs only its place between the
few matches of its query, which is a search among their sorted distances. Images closer to a match than rounding allows
to tell are looked at again in higher precision; equal distances keep the order of the gallery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.common.errors import HeptadError

COMPARED = 2**22  # entries of a comparison of near images with matches

# (query, gallery) numbers of pairs, each (F,) int64 -> their distances in float64
Exact = Callable[[Tensor, Tensor], Tensor]


class RetrievalInputError(HeptadError, ValueError):
    """Features, distances, identities or options do not fit each other."""


@dataclass(frozen=True)
class Block:
    """Distances of some consecutive queries.

    Attributes:
        first: number of the first query.
        distances: (c, G) float32 or float64; is written to.
        tolerance: how far a difference of two distances of a query may be wrong (c,); None: they are exact.
        exact: distances of pairs; None: those of the block are.
    """

    first: int
    distances: Tensor
    tolerance: Tensor | None = None
    exact: Exact | None = None


@dataclass(frozen=True)
class Lists:
    """For each query a list of gallery numbers, ascending, all of them in one row.

    Attributes:
        items: all lists, one after the other.
        starts: where each begins, and the end (Q + 1,) int64.
    """

    items: Tensor
    starts: Tensor

    def of(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Entries of the lists of some queries: whose (from 0), what, and which place in the list, each (n,) int64."""
        starts = self.starts[first : first + count + 1]
        items = self.items[int(starts[0]) : int(starts[-1])]
        owner = torch.arange(count, device=starts.device).repeat_interleave(starts.diff())
        return owner, items, torch.arange(len(items), device=starts.device) - (starts[:-1] - starts[0])[owner]


@dataclass(frozen=True)
class Matches:
    """Which gallery images are true matches of each query, and which do not count for it."""

    true: Lists
    ignored: Lists

    @classmethod
    def find(
        cls,
        query_identities: Tensor,
        query_cameras: Tensor,
        gallery_identities: Tensor,
        gallery_cameras: Tensor,
        *,
        ignore_camera: bool = False,
    ) -> Matches:
        """Same identity by another camera is true, by the same camera is ignored."""
        ordered, order = gallery_identities.sort(stable=True)
        start = torch.searchsorted(ordered, query_identities)
        sizes = torch.searchsorted(ordered, query_identities, right=True) - start
        query = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        before = sizes.cumsum(0) - sizes
        within = torch.arange(len(query), device=sizes.device) - before[query]
        item = order[start[query] + within]
        counted = torch.ones_like(item, dtype=torch.bool)
        if not ignore_camera:
            counted = gallery_cameras[item] != query_cameras[query]
        return cls(*(_lists(item[chosen], query[chosen], len(sizes)) for chosen in (counted, ~counted)))

    def to(self, device: torch.device) -> Matches:
        """Copy to a device, if they are elsewhere."""
        if self.true.starts.device == device:
            return self
        return Matches(*(Lists(x.items.to(device), x.starts.to(device)) for x in (self.true, self.ignored)))

    @property
    def counts(self) -> Tensor:
        """True matches of each query (Q,) int64."""
        return self.true.starts.diff()


def _lists(items: Tensor, owners: Tensor, count: int) -> Lists:
    starts = torch.zeros(count + 1, dtype=torch.int64, device=items.device)
    starts[1:] = torch.bincount(owners, minlength=count).cumsum(0)
    return Lists(items, starts)


def match_ranks(block: Block, matches: Matches) -> tuple[Tensor, Tensor]:
    """Ranks of the true matches of a block's queries, ascending from 1, and which of them are real.

    Shape:
        -> (c, M) int64, (c, M) bool.
    """
    distances = block.distances
    rows = len(distances)
    owner, items, within = matches.true.of(block.first, rows)
    width = int(within.max()) + 1 if len(within) else 0
    own = distances.new_full((rows, width), torch.inf)
    own[owner, within] = distances[owner, items]
    real = torch.zeros_like(own, dtype=torch.bool)
    real[owner, within] = True
    if width == 0:
        return real.long(), real
    ignored, ignored_items, _ = matches.ignored.of(block.first, rows)
    distances[owner, items] = torch.inf  # neither a match nor an ignored image counts as one before a match
    distances[ignored, ignored_items] = torch.inf
    places, passed, near = _search(distances, own, block.tolerance)
    offsets = torch.arange(rows, device=own.device)[:, None] * near.shape[1]
    found = torch.bincount((places + offsets).flatten(), minlength=near.numel()).view(near.shape)
    others = torch.zeros_like(found).scatter_add_(1, passed, found.masked_fill(near, 0))
    if bool((found * near).any()):
        row, item = near.gather(1, places).nonzero().unbind(1)
        first = passed[row, places[row, item]]
        between = first, (places[row, item] - first).clamp(max=width)
        place = _compared(block, (row, item), (owner, items, within), own, between)
        others.index_put_((row, place), torch.ones_like(place), accumulate=True)
    order = torch.arange(1, width + 1, device=own.device)
    return order + others[:, :width].cumsum(1), real


def _search(distances: Tensor, own: Tensor, tolerance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Place of every distance among the bounds of its row's matches; of each place, how many matches it has passed.

    Every match has a lower and an upper bound; between the two a distance is too near for the order to be told.

    Shape:
        distances (c, G), own (c, M) -> places (c, G), passed (c, 2 M + 1), near (c, 2 M + 1) bool.
    """
    spread = 0.0 if tolerance is None else tolerance[:, None].to(own.dtype)
    upper = torch.nextafter(own + spread, torch.full_like(own, torch.inf))
    bounds, origin = torch.cat([own - spread, upper], 1).sort(1)
    passed = torch.nn.functional.pad((origin >= own.shape[1]).long().cumsum(1), (1, 0))
    entered = torch.arange(passed.shape[1], device=own.device) - passed
    return torch.searchsorted(bounds, distances, right=True), passed, entered > passed


def _compared(
    block: Block,
    near: tuple[Tensor, Tensor],
    matches: tuple[Tensor, Tensor, Tensor],
    own: Tensor,
    between: tuple[Tensor, Tensor],
) -> Tensor:
    """How many matches lie before each near image, by exact distance and then by number (F,) int64.

    Args:
        block: of distances.
        near: row and number of each near image.
        matches: row, number and place of each match.
        own: distances of matches by row and place.
        between: the matches, by rank, that an image is near to: the first, and the one behind the last.
    """
    row, item = near
    owner, items, within = matches
    numbers = torch.zeros_like(own, dtype=torch.int64)
    numbers[owner, within] = items
    values, given = own, block.distances[row, item]
    if block.exact is not None:
        edges = torch.zeros(len(own), own.shape[1] + 1, dtype=torch.int64, device=own.device)
        edges.index_put_((row, between[0]), torch.ones_like(row), accumulate=True)
        edges.index_put_((row, between[1]), -torch.ones_like(row), accumulate=True)
        asked = (edges.cumsum(1)[:, :-1] > 0).gather(1, own.argsort(dim=1, stable=True).argsort(dim=1))
        chosen = asked[owner, within]
        values = own.double()
        values[owner[chosen], within[chosen]] = block.exact(owner[chosen] + block.first, items[chosen])
        given = block.exact(row + block.first, item)
    values, order = values.sort(dim=1, stable=True)  # numbers ascend, so equal distances keep their order
    numbers = numbers.gather(1, order)
    places = []
    for some in torch.split(torch.arange(len(row), device=row.device), max(COMPARED // own.shape[1], 1)):
        theirs, mine = values[row[some]], given[some, None]
        earlier = (theirs < mine) | ((theirs == mine) & (numbers[row[some]] < item[some, None]))
        places.append(earlier.sum(1))
    return torch.cat(places)
