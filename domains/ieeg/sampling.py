"""Which windows an epoch of training takes, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.common.loader import mix_seed

BUCKET_BATCHES = 64  # batches among which windows are sorted by their number of channels


class WindowSampling:
    """Windows of an epoch, as a function of (seed, epoch): shares of classes, alike numbers of channels in a batch.

    Windows of each class are dealt from shuffled decks of all of them; the next epoch goes on where one has ended, so
    that no window comes again before nearly all have come once, however short an epoch is.

    Args:
        labels: class of each window.
        channels: number of channels of each window.
        batch_size: windows of a global batch.
        seed: of the run.
        seizure_share: share of windows of class 1 in an epoch; None: as they occur.
        epoch_windows: windows of an epoch; None: as many as there are.
        bucket: put windows with alike numbers of channels into one batch, so that little is padded.

    Shape:
        labels, channels (n,) int64.

    Raises:
        ConfigError: a class that is asked for has no window, or a number is out of range.
    """

    def __init__(
        self,
        labels: Tensor,
        channels: Tensor,
        batch_size: int,
        seed: int,
        *,
        seizure_share: float | None = None,
        epoch_windows: int | None = None,
        bucket: bool = True,
    ) -> None:
        if seizure_share is not None and not 0 <= seizure_share <= 1:
            raise ConfigError(f"data.seizure_share is {seizure_share}; give a share from 0 to 1, or none")
        if epoch_windows is not None and epoch_windows < 1:
            raise ConfigError(f"data.epoch_windows is {epoch_windows}; give at least 1, or none")
        total = len(labels) if epoch_windows is None else epoch_windows
        if seizure_share is None:
            self.decks = [torch.arange(len(labels))]
            self.shares = [total]
        else:
            seizures = round(total * seizure_share)
            self.decks = [(labels != 1).nonzero().flatten(), (labels == 1).nonzero().flatten()]
            self.shares = [total - seizures, seizures]
        for deck, share, name in zip(self.decks, self.shares, ("other", "seizure"), strict=False):
            if share and not len(deck):
                raise ConfigError(
                    f"data.seizure_share {seizure_share} needs {name} windows and the training split has none; set it"
                    " to none, or prepare data with annotated seizures in the training split"
                )
        self.channels, self.batch_size, self.seed, self.bucket = channels, batch_size, seed, bucket

    def __call__(self, epoch: int) -> WindowOrder:
        """Order of an epoch."""
        return WindowOrder(self, epoch)

    def dealt(self, epoch: int) -> Tensor:
        """Windows (total,) of an epoch, in the order of training."""
        parts = []
        for k, (deck, share) in enumerate(zip(self.decks, self.shares, strict=True)):
            hand, position = [], epoch * share
            while position < (epoch + 1) * share:
                number, place = divmod(position, len(deck))
                shuffled = deck[self._permutation(len(deck), k, number)]
                hand.append(shuffled[place : place + (epoch + 1) * share - position])
                position += len(hand[-1])
            parts += hand
        rows = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
        rows = rows[self._permutation(len(rows), 2, epoch)]
        return self._bucketed(rows, epoch) if self.bucket else rows

    def _bucketed(self, rows: Tensor, epoch: int) -> Tensor:
        whole = len(rows) - len(rows) % self.batch_size
        batches = []
        for chunk in torch.split(rows[:whole], self.batch_size * BUCKET_BATCHES):
            order = self.channels[chunk].sort(stable=True).indices
            batches += list(torch.split(chunk[order], self.batch_size))
        mixed = [batches[i] for i in self._permutation(len(batches), 3, epoch).tolist()]
        return torch.cat([*mixed, rows[whole:]])

    def _permutation(self, length: int, *stream: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, *stream))
        return torch.randperm(length, generator=generator)


class WindowOrder:
    """One epoch of `WindowSampling`; see `domains.common.loader.Order`."""

    def __init__(self, sampling: WindowSampling, epoch: int) -> None:
        self.pools, self.pool_sizes = [[0]], [sum(sampling.shares)]
        self._sampling, self._epoch = sampling, epoch

    def rows(self, pool: int) -> Tensor:
        """All windows of the epoch, (n,) int64."""
        del pool
        return self._sampling.dealt(self._epoch)
