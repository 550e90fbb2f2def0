"""Training sequences for the peers of sequential recommendation: a log on disk and its batches.

Needs nothing but NumPy, so that every peer's interpreter can read it. A step counts `rows` of its batch (users;
prefixes where every prefix is a row) and `targets`, the positions that a next item was predicted for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Log:
    """Training sequences, oldest item first.

    Attributes:
        items: all sequences one after the other, (N,), ids from 0.
        offsets: sequence u is items[offsets[u]:offsets[u + 1]], (U + 1,).
        n_items: size V of the catalogue.
    """

    items: Ints
    offsets: Ints
    n_items: int

    @property
    def n_users(self) -> int:
        """Number U of sequences."""
        return len(self.offsets) - 1

    def save(self, path: Path) -> None:
        """Write a NumPy file."""
        np.savez(path, items=self.items, offsets=self.offsets, n_items=np.int64(self.n_items))

    @classmethod
    def load(cls, path: Path) -> Log:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["items"], file["offsets"], int(file["n_items"]))

    def last(self, length: int) -> Log:
        """Keep the newest `length` items of every sequence."""
        sizes = np.diff(self.offsets)
        kept = np.minimum(sizes, length)
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], sizes)
        items = self.items[place >= np.repeat(sizes - kept, sizes)]
        return Log(items, np.concatenate([[0], np.cumsum(kept)]), self.n_items)

    def padded(self, users: Ints, length: int) -> tuple[Ints, Ints]:
        """Return inputs and targets, both (B, length), left padded with the id V.

        The newest `length` items of a sequence are kept before its last item becomes a target only, so that a row has
        `length - 1` targets at most.
        """
        inputs = np.full((len(users), length), self.n_items)
        targets = inputs.copy()
        for row, user in enumerate(users):
            sequence = self.items[self.offsets[user] : self.offsets[user + 1]][-length:]
            if len(sequence) > 1:
                inputs[row, 1 - len(sequence) :] = sequence[:-1]
                targets[row, 1 - len(sequence) :] = sequence[1:]
        return inputs, targets


@dataclass(frozen=True)
class Setting:
    """What one run trains: the file of the log and the sizes of the network.

    Attributes:
        log: file that `Log.save` wrote.
        prepared: directory that the same sequences were prepared in, which Heptad reads.
        state: NumPy file with the weights to start from; empty for random ones.
        batch: rows per step.
        dim: embedding size.
        max_len: slots T.
        window: items L that the long query averages.
        alpha: weight of the short branch.
        distillation: weight of the distillation loss.
        tau: temperature of the distillation.
        span: largest distance that counts as a transition.
        l2: coefficient of half the sum of squares of all weights.
        dropout: rate, everywhere.
        lr: learning rate of Adam.
        seed: of the order of the rows and of the weights.
    """

    log: str
    prepared: str = ""
    state: str = ""
    batch: int = 256
    dim: int = 64
    max_len: int = 50
    window: int = 3
    alpha: float = 0.5
    distillation: float = 0.1
    tau: float = 0.1
    span: int = 1
    l2: float = 1e-4
    dropout: float = 0.5
    lr: float = 1e-3
    seed: int = 2023

    def rows(self, i: int, total: int) -> Ints:
        """Return the row numbers of batch i: the same for every competitor, shuffled anew in every epoch."""
        epoch, place = divmod(i, -(-total // self.batch))
        order = np.random.default_rng((self.seed, epoch)).permutation(total)
        return order[place * self.batch : (place + 1) * self.batch]
