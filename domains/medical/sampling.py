"""Batches with as many images of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.common.loader import mix_seed


class BalancedSampling:
    """One epoch is a pass over class 0; every batch holds equal shares of all classes.

    The official script of COVID-Net exchanges half of each batch of negatives for positives drawn without replacement
    within the batch. Here the negatives are not thrown away, and positives are dealt from shuffled decks of all of
    them, so that none is drawn twice before nearly all have been drawn once. Everything is a function of (seed, epoch).

    Args:
        labels: class of each row, (n,) int64.
        n_classes: C.
        batch_size: rows of a global batch.
        seed: of the run.

    Raises:
        ConfigError: batches cannot be divided by C, or a class has no row, or fewer than its share of a batch.
    """

    def __init__(self, labels: Tensor, n_classes: int, batch_size: int, seed: int) -> None:
        if batch_size % n_classes:
            raise ConfigError(
                f"data.balanced needs a data.batch_size that {n_classes} classes divide evenly, not {batch_size}"
            )
        self.share, self.seed = batch_size // n_classes, seed
        self.members = [(labels == k).nonzero().squeeze(1) for k in range(n_classes)]
        first = len(self.members[0])
        for k, members in enumerate(self.members):
            if len(members) < max(min(self.share, first), 1):
                raise ConfigError(
                    f"data.balanced needs {self.share} rows of class {k} in each batch and the training split has"
                    f" {len(members)}; lower data.batch_size, or set data.balanced false"
                )

    def __call__(self, epoch: int) -> BalancedOrder:
        """Order of an epoch."""
        return BalancedOrder(self.members, self.share, self.seed, epoch)


class BalancedOrder:
    """Order of one epoch of `BalancedSampling`: batch by batch, class by class."""

    def __init__(self, members: list[Tensor], share: int, seed: int, epoch: int) -> None:
        self.pools, self.pool_sizes = [[0]], [len(members[0]) * len(members)]
        self._members, self._share, self._seed, self._epoch = members, share, seed, epoch

    def rows(self, pool: int) -> Tensor:
        """All rows of the epoch, (C * rows of class 0,) int64."""
        batches = torch.split(self._deck(0, 0), self._share)
        dealt = [[own] for own in batches]
        for k in range(1, len(self._members)):
            hands = max(len(self._members[k]) // self._share, 1)  # batches that one deck serves
            for number in range(-(-len(batches) // hands)):
                deck = self._deck(k, number)
                for i, batch in enumerate(dealt[number * hands : (number + 1) * hands]):
                    batch.append(deck[i * self._share :][: len(batch[0])])
        return torch.cat([part for batch in dealt for part in batch])

    def _deck(self, k: int, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seed(self._seed, self._epoch, k, number))
        return self._members[k][torch.randperm(len(self._members[k]), generator=generator)]
