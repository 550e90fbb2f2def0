"""Batches cut from blocks of rows in a seeded order that any process can enter at any point."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Any]  # tensors, and lists of strings where rows have names


class BlockStore(Protocol):
    """Rows in blocks that are read one at a time (for example, one Parquet file each)."""

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each block."""
        ...

    def load(self, block: int) -> Batch:
        """Read one block: name -> tensor whose first axis is the block's rows."""
        ...


class Order(Protocol):
    """Which rows one epoch takes, pool by pool; `SeededOrder` takes each once."""

    pools: list[list[int]]
    pool_sizes: list[int]

    def rows(self, pool: int) -> Tensor:
        """Positions (n,) int64 in the pool's joined blocks; n is the pool's size."""
        ...


class SeededOrder:
    """Order of all rows as a function of (seed, epoch) alone.

    Blocks are permuted, then joined into pools of at least `pool_rows` rows, and the rows of each pool are permuted.
    Memory holds two pools, whatever the data; data that fits one pool is shuffled as a whole.

    Args:
        sizes: rows of each block.
        seed: of the run.
        epoch: number of the pass over the data.
        pool_rows: rows to gather before permuting them.
        shuffle: False keeps the blocks and rows as they lie.
    """

    def __init__(self, sizes: Sequence[int], seed: int, epoch: int, pool_rows: int, *, shuffle: bool) -> None:
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        blocks = self._permutation(len(sizes), 0).tolist()
        self.pools: list[list[int]] = [[]]
        rows = 0
        for block in blocks:
            if rows >= pool_rows:
                self.pools.append([])
                rows = 0
            self.pools[-1].append(block)
            rows += sizes[block]
        self.pools = [sorted(pool) for pool in self.pools]  # their rows are permuted anyway; one pool = data as it lies
        self.pool_sizes = [sum(sizes[block] for block in pool) for pool in self.pools]

    def rows(self, pool: int) -> Tensor:
        """Permutation of the rows of one pool, as (n,) int64 positions in its joined blocks."""
        return self._permutation(self.pool_sizes[pool], pool + 1)

    def _permutation(self, length: int, stream: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(length)
        generator = torch.Generator().manual_seed(mix_seed(self._seed, self._epoch, stream))
        return torch.randperm(length, generator=generator)


def mix_seed(*parts: int) -> int:
    """Hash several integers into one 63-bit seed (SplitMix64; Steele et al., 2014), different for each tuple."""
    mask = (1 << 64) - 1
    state = 0
    for part in parts:
        state = (state + (part & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


class BatchLoader:
    """Iterate over batches of a block store; made for Lightning, which needs no torch DataLoader.

    A global batch holds `batch_size` rows over all processes; each process gets every `world`-th row of it, so that
    any number of processes trains on the same batches. Rows are gathered a batch at a time, not one by one.

    Args:
        store: where the rows are.
        batch_size: rows of a global batch.
        collate: turns gathered rows into what the model takes, such as table rows out of field ids.
        seed: of the run.
        shuffle: see `SeededOrder`.
        drop_last: leave an incomplete last batch out.
        pool_rows: see `SeededOrder`.
        rank: this process.
        world: number of processes.
        skip: batches that the first pass leaves out (a resumed epoch).
        workers: threads that run `collate` ahead of the model, where it reads and decodes files; 0 runs it in between.
        order: epoch -> its order, in the place of the seeded one; it may repeat rows and leave some out, but all
            epochs have as many.

    Every batch also has `global_size` (): the rows of the global batch it belongs to; with an `order` of its own also
    `position` (n,) int64: the places of its rows in the epoch.
    """

    def __init__(
        self,
        store: BlockStore,
        batch_size: int,
        *,
        collate: Callable[[Batch], Batch] | None = None,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        pool_rows: int = 1 << 19,
        rank: int = 0,
        world: int = 1,
        skip: int = 0,
        workers: int = 0,
        order: Callable[[int], Order] | None = None,
    ) -> None:
        self.store, self.batch_size, self.collate, self.workers = store, batch_size, collate, workers
        self.seed, self.shuffle, self.pool_rows = seed, shuffle, pool_rows
        self.rank, self.world, self.skip = rank, world, skip
        self.epoch, self.order = 0, order
        rows = sum(store.sizes if order is None else order(0).pool_sizes)
        self.rows = rows - rows % batch_size if drop_last else rows
        # where Lightning looks for set_epoch
        self.sampler, self.batch_sampler = self, None
        self._whole: Batch | None = None

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        if not self.workers:
            yield from map(self._finish, self._gathered())
            return
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for batch in self._gathered():
                waiting.append(pool.submit(self._finish, batch))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever leaves an epoch early does not wait for what is read ahead
            pool.shutdown(wait=False, cancel_futures=True)

    def _finish(self, batch: Batch) -> Batch:
        size = batch.pop("global_size")
        batch = self.collate(batch) if self.collate is not None else batch
        return batch | {"global_size": size}

    def _gathered(self) -> Iterator[Batch]:
        first, self.skip = self.skip, 0
        order = self._epoch_order()
        position, pieces = first * self.batch_size, []
        for start, data, rows in self._pools(order, position):
            while position < min(start + len(rows), self.rows):
                begin = position - position % self.batch_size
                end = min(begin + self.batch_size, self.rows)
                stop = min(end, start + len(rows))
                mine = position + (self.rank - (position - begin)) % self.world
                chosen = rows[mine - start : stop - start : self.world]
                pieces.append({name: tensor[chosen] for name, tensor in data.items()})
                if self.order is not None:
                    pieces[-1]["position"] = torch.arange(mine, stop, self.world)
                position = stop
                if position == end:
                    batch = _join(pieces)
                    pieces = []
                    yield batch | {"global_size": torch.tensor(end - begin)}

    def _epoch_order(self) -> Order:
        if self.order is not None:
            return self.order(self.epoch)
        return SeededOrder(self.store.sizes, self.seed, self.epoch, self.pool_rows, shuffle=self.shuffle)

    def _pools(self, order: Order, position: int) -> Iterator[tuple[int, Batch, Tensor]]:
        """Yield (first global position, data, permutation) of each pool from `position` on, reading one ahead."""
        ahead: list[tuple[int, int, Future[Batch]]] = []
        with ThreadPoolExecutor(max_workers=1) as reader:
            start = 0
            for pool, size in enumerate(order.pool_sizes):
                if start < self.rows and start + size > position:
                    ahead.append((start, pool, reader.submit(self._read, order.pools[pool])))
                    if len(ahead) == 2:
                        yield self._wait(order, *ahead.pop(0))
                start += size
            for waiting in ahead:
                yield self._wait(order, *waiting)

    @staticmethod
    def _wait(order: Order, start: int, pool: int, data: Future[Batch]) -> tuple[int, Batch, Tensor]:
        return start, data.result(), order.rows(pool)

    def _read(self, blocks: Sequence[int]) -> Batch:
        if len(blocks) < len(self.store.sizes):
            return _join([self.store.load(block) for block in blocks])
        if self._whole is None:  # it all fits one pool: read once, keep for every epoch
            self._whole = _join([self.store.load(block) for block in blocks])
        return self._whole


def _join(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return dict(pieces[0])
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
