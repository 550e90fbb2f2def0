"""Epochs with as many images of each class, and of no video more than its share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.common.loader import mix_seed


class BalancedEpochs:
    """Each epoch draws images anew: so many of each class, at most so many of each video; a function of (seed, epoch).

    The selection of ARBEx (Wasi et al., 2023, arXiv 2305.01486): 500 random images of each class in an epoch. Of a
    class with fewer images each is taken equally often, but for one. A class without images is left out.

    Args:
        labels: class of each row.
        n_classes: C.
        per_class: rows of each class in an epoch; 0: all rows as they are.
        per_source: most rows of one source that an epoch draws from; 0: all.
        sources: name of the video of each row; "" is none.
        seed: of the run.

    Shape:
        labels (N,) int64.

    Raises:
        ConfigError: there are no rows, or a negative number of them is wanted.
    """

    def __init__(
        self,
        labels: Tensor,
        n_classes: int,
        per_class: int,
        seed: int,
        *,
        per_source: int = 0,
        sources: Sequence[str] = (),
    ) -> None:
        if per_class < 0 or per_source < 0:
            raise ConfigError("data.per_class and data.per_source count images: give 0 or more")
        if not len(labels):
            raise ConfigError("the training split has no rows to draw from")
        self.labels, self.n_classes, self.per_class, self.seed = labels, n_classes, per_class, seed
        self.members = [(labels == k).nonzero().squeeze(1) for k in range(n_classes)]
        self.capped: list[Tensor] = []
        self.free = torch.ones(len(labels), dtype=torch.bool)
        if per_source and sources:
            self._cap(sources, per_source)
        self.per_source = per_source
        rows = int(self.free.sum()) + per_source * len(self.capped)
        self.size = per_class * sum(len(own) > 0 for own in self.members) if per_class else rows

    def _cap(self, sources: Sequence[str], most: int) -> None:
        """Find the videos that have more frames than an epoch may take."""
        places: dict[str, list[int]] = {}
        for row, source in enumerate(sources):
            if source:
                places.setdefault(source, []).append(row)
        for rows in places.values():
            if len(rows) > most:
                self.capped.append(torch.tensor(rows))
                self.free[self.capped[-1]] = False

    def __call__(self, epoch: int) -> BalancedEpoch:
        """Order of an epoch."""
        return BalancedEpoch(self, epoch)


class BalancedEpoch:
    """Order of one epoch of `BalancedEpochs`."""

    def __init__(self, sampling: BalancedEpochs, epoch: int) -> None:
        self.pools, self.pool_sizes = [[0]], [sampling.size]
        self._sampling, self._epoch = sampling, epoch

    def rows(self, pool: int) -> Tensor:
        """All rows of the epoch, shuffled, (size,) int64."""
        del pool
        chosen = self._sampling
        kept = chosen.free.clone()
        for number, rows in enumerate(chosen.capped):
            kept[self._shuffled(rows, 1, number)[: chosen.per_source]] = True
        if not chosen.per_class:
            return self._shuffled(kept.nonzero().squeeze(1), 2)
        drawn = []
        for k, every in enumerate(chosen.members):
            own = every[kept[every]]
            own = own if len(own) else every  # all its frames may be among those an epoch leaves out
            if len(own):
                whole, rest = divmod(chosen.per_class, len(own))
                drawn += [own.repeat(whole), self._shuffled(own, 3, k)[:rest]]
        return self._shuffled(torch.cat(drawn), 4)

    def _shuffled(self, rows: Tensor, *purpose: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seed(self._sampling.seed, self._epoch, *purpose))
        return rows[torch.randperm(len(rows), generator=generator)]
