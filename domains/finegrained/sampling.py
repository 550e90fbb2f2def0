"""Batches of P identities with K pictures each: A. Hermans, L. Beyer, B. Leibe (2017), arXiv 1703.07737, section 2."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.common.loader import mix_seed


class IdentitySampling:
    """Every batch shows P identities, K pictures of each; each epoch is a function of (seed, epoch) and equally long.

    In an epoch the shuffled pictures of an identity make as many hands of K as they fill, at least one; an identity
    with fewer than K pictures fills its hand by taking some of them again. Hands are dealt so that no batch has two of
    one identity, and that as many batches as possible are full: B is the largest number with
    `sum_i min(hands_i, B) >= P B`.

    Args:
        labels: identity of each row, (n,) int64.
        batch_size: rows of a global batch, P K.
        instances: pictures of an identity in a batch, K.
        seed: of the run.

    Raises:
        ConfigError: batches cannot be divided by K, or there are fewer than P identities, or P is 1.
    """

    def __init__(self, labels: Tensor, batch_size: int, instances: int, seed: int) -> None:
        self.share, self.seed = instances, seed
        self.members = [(labels == label).nonzero().squeeze(1) for label in sorted(set(labels.tolist()))]
        if instances < 1 or batch_size % instances or batch_size < 2 * instances:
            raise ConfigError(
                f"data.batch_size is {batch_size} and data.instances {instances}; a batch needs two identities or more,"
                " with as many pictures of each: give a multiple"
            )
        self.identities = batch_size // instances
        if len(self.members) < self.identities:
            raise ConfigError(
                f"data.batch_size {batch_size} with {instances} pictures of an identity needs {self.identities}"
                f" identities and the training split has {len(self.members)}; lower data.batch_size"
            )
        hands = torch.tensor([max(len(rows) // instances, 1) for rows in self.members])
        batches = 1
        while hands.clamp(max=batches + 1).sum() >= self.identities * (batches + 1):
            batches += 1
        self.hands, self.batches = hands.clamp(max=batches).tolist(), batches

    def __call__(self, epoch: int) -> IdentityOrder:
        """Order of an epoch."""
        return IdentityOrder(self, epoch)


class IdentityOrder:
    """Order of one epoch of `IdentitySampling`: batch by batch, identity by identity."""

    def __init__(self, sampling: IdentitySampling, epoch: int) -> None:
        self._sampling, self._epoch = sampling, epoch
        self.pools = [[0]]
        self.pool_sizes = [sampling.batches * sampling.identities * sampling.share]

    def rows(self, pool: int) -> Tensor:
        """All rows of the epoch, (batches P K,) int64."""
        one = self._sampling
        hands: list[Tensor] = []
        for i in self._permutation(len(one.members), 0).tolist():
            rows, count = one.members[i], one.hands[i]
            order = self._permutation(len(rows), i + 1)
            if len(rows) < one.share:
                order = order.repeat(-(-one.share // len(rows)))
            hands += rows[order[: count * one.share]].split(one.share)
        # An identity has at most as many hands as there are batches, one behind the other: dealt in turn, no batch
        # gets two of them.
        dealt = torch.stack(hands[: one.batches * one.identities]).view(one.identities, one.batches, one.share)
        return dealt.transpose(0, 1)[self._permutation(one.batches, -1)].reshape(-1)

    def _permutation(self, count: int, stream: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seed(self._sampling.seed, self._epoch, stream))
        return torch.randperm(count, generator=generator)
