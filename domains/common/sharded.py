"""Embedding tables whose rows are divided among the processes, for tables that outgrow one machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from domains.common.rows import BLOCK, bag_sums, draw_seed, look_up, normal_rows, sparse_rows, summed_by_row

Placement = Literal["replicated", "sharded"]


class ShardedTable(nn.Module):
    """Rows of `dim` numbers; row r lies on process r mod world, where its gradient and optimiser state stay, too.

    Neighbouring rows lie on different processes, because frequent ids are often neighbours. A lookup asks every
    process for the distinct rows that the batch needs of it; the backward pass sends their summed gradients the same
    way. Lookup and backward are collective: every process of the default group must call them equally often, with an
    empty batch where it has no row.

    The gradient is sparse and divided by the number of processes, as DistributedDataParallel averages the others.
    Processes are told apart only when `place` is called or, without it, by the constructor where torch.distributed is
    initialised and else by the first use; until then `weight` has no row. Starting holds no full table either.

    `state_dict` holds this process's rows; loading takes full tables and keeps a share. See `gather`. Checkpoints are
    one file with full tables: process 0 needs main memory for a table and its moments while it is written, and every
    process for what it reads.

    Args:
        rows: number of rows over all processes.
        dim: numbers per row.

    Shape:
        ids (B, S) int, values (B, S) float32 -> (B, S, dim), the rows times the values.

    Example:
        >>> import torch
        >>> table = ShardedTable(10, 4)
        >>> table(torch.tensor([[3, 7]]), torch.ones(1, 2)).shape
        torch.Size([1, 2, 4])
    """

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows, self.dim = rows, dim
        # filled in place later: an optimiser made before keeps its parameter
        self.weight = nn.Parameter(torch.empty(0, dim))
        self._placed: tuple[int, int] | None = None
        self._loaded: Tensor | None = None
        self.reset_parameters()
        if _initialised():
            self.place()

    @property
    def full_shape(self) -> torch.Size:
        """Shape of the whole table."""
        return torch.Size([self.rows, self.dim])

    def reset_parameters(self, std: float = 0.01) -> None:
        """N(0, std²), the same numbers as one process draws for the whole table from the same seed."""
        self._start = (draw_seed(), std)
        self._loaded = None
        if self._placed is not None:
            self.weight.data = self._drawn(*self._placed).to(self.weight.device)

    @torch.no_grad()
    def place(self) -> None:
        """Keep the rows of this process. Collective the first time; later calls change nothing.

        Raises:
            RuntimeError: the rows are already divided among another number of processes.
        """
        now = (dist.get_rank(), dist.get_world_size()) if _initialised() else (0, 1)
        if now == self._placed:
            return
        if self._placed is not None and self._placed[1] > 1:
            raise RuntimeError(f"the table is placed as {self._placed} (process, processes) and cannot become {now}")
        rank, world = now
        if self._loaded is not None:
            share = self._loaded[rank::world].clone()
        elif self._placed is not None:
            share = self.weight.data[rank::world].clone()
        else:
            share = self._drawn(rank, world)
        self.weight.data = share.to(self.weight.device)
        self._placed, self._loaded = now, None

    def _drawn(self, rank: int, world: int) -> Tensor:
        start = [self._start]
        if world > 1:  # as DistributedDataParallel does with the other parameters: process 0 decides
            dist.broadcast_object_list(start, src=0)
        seed, std = start[0]
        share = torch.empty(len(range(rank, self.rows, world)), self.dim)
        for first, block in normal_rows(self.rows, self.dim, std, seed):
            skip = (rank - first) % world
            mine, position = block[skip::world], (first + skip) // world
            share[position : position + len(mine)] = mine
        return share

    def forward(self, ids: Tensor, values: Tensor | None = None) -> Tensor:
        """Look up rows, wherever they lie, and scale them.

        Raises:
            IndexError: an id outside the table.
        """
        if self._placed is None:
            self.place()
        world = self.world
        if world == 1:
            return look_up(ids, values, self.weight, sparse=True)
        found: Tensor = _ExchangedRows.apply(ids, values, self.weight, self.rows, world)
        return found

    @property
    def world(self) -> int:
        """Number of processes that the rows are divided among."""
        return 1 if self._placed is None else self._placed[1]

    def share(self, full: Tensor) -> Tensor:
        """This process's rows of a tensor with a row for each of the table's: (rows, ...) -> (own rows, ...)."""
        if self._placed is None or self.world == 1:
            return full
        return full[self._placed[0] :: self.world].clone()  # a view would keep the full tensor alive

    @torch.no_grad()
    def gather(self, local: Tensor) -> Tensor:
        """Collect a tensor with a row for each of this process's, such as `weight`, on process 0. Collective.

        Blocks are sent one after the other, so that no device holds more than its share.

        Returns:
            On process 0 the full tensor (rows, dim) on the CPU; elsewhere, or without others, `local`.
        """
        if self._placed is None or self.world == 1:
            return local
        rank, world = self._placed
        full = torch.empty(self.rows, self.dim, dtype=local.dtype) if rank == 0 else None
        largest, size = -(-self.rows // world), max(1, BLOCK // self.dim)
        for start in range(0, largest, size):
            stop = min(start + size, largest)
            part = local.new_zeros(stop - start, self.dim)  # collectives want equal shapes; shares differ by a row
            part[: len(local[start:stop])] = local[start:stop]
            parts = [torch.empty_like(part) for _ in range(world)] if rank == 0 else None
            dist.gather(part, parts, dst=0)
            if full is not None and parts is not None:
                for owner, block in enumerate(parts):
                    target = full[start * world + owner : stop * world : world]
                    target.copy_(block[: len(target)])
        return local if full is None else full

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._placed is None and not keep_vars:  # state_shapes keeps the variables and needs no row
            self.place()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        full = state_dict.get(f"{prefix}weight")
        if full is None:
            missing_keys.append(f"{prefix}weight")
        elif full.shape != self.full_shape:
            error_msgs.append(f"{prefix}weight: {tuple(full.shape)} is no full table {tuple(self.full_shape)}")
        elif self._placed is None:
            self._loaded = full.detach()
        else:
            self.weight.data.copy_(self.share(full))

    def extra_repr(self) -> str:
        """Rows, numbers per row, processes."""
        return f"{self.rows}, {self.dim}, world={self.world}"


class _ExchangedRows(torch.autograd.Function):
    """`table[ids] * values` over all processes, and the sparse gradient of this process's rows."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, values: Tensor | None, weight: Tensor, rows: int, world: int) -> Tensor:
        if ids.numel():
            least, most = (int(end) for end in torch.aminmax(ids))
            if least < 0 or most >= rows:  # it would be read as some other row
                raise IndexError(f"ids must lie in 0..{rows - 1}, found {least}..{most}")
        ids = ids.long()
        largest = -(-rows // world)
        # ordered by owner, then by the row's position there
        keys, slots = torch.sort((ids % world * largest + ids // world).flatten())
        keys, inverse, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        asking = torch.bincount(keys // largest, minlength=world)
        asked_for = torch.empty_like(asking)
        dist.all_to_all_single(asked_for, asking)
        asking_sizes, asked_sizes = asking.tolist(), asked_for.tolist()
        asked = _exchange(keys % largest, asked_sizes, asking_sizes)  # own rows that the others want
        found = _exchange(weight.index_select(0, asked), asking_sizes, asked_sizes)  # (U, dim)
        positions = torch.empty_like(inverse).scatter_(0, slots, inverse).view(ids.shape)
        ctx.save_for_backward(slots, counts, asked, values)
        ctx.sizes, ctx.shape, ctx.world = (asked_sizes, asking_sizes), weight.shape, world
        result = F.embedding(positions, found)
        return result if values is None else result.mul_(values[..., None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, None, None]:
        slots, counts, asked, values = ctx.saved_tensors
        weights = None if values is None else values.flatten()
        sums = bag_sums(slots, counts, grad.flatten(0, -2), weights)
        rows, totals = summed_by_row(asked, _exchange(sums, *ctx.sizes))
        return None, None, sparse_rows(rows, totals / ctx.world, ctx.shape[0]), None, None


def _exchange(tensor: Tensor, receive: list[int], send: list[int]) -> Tensor:
    """Send each process its run of rows; return the runs that come from each."""
    received = tensor.new_empty(sum(receive), *tensor.shape[1:])
    dist.all_to_all_single(received, tensor.contiguous(), receive, send)
    return received


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def sharded_tables(module: nn.Module) -> dict[str, ShardedTable]:
    """All sharded tables inside a module, by the name of their parameter."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, ShardedTable)}
    return {f"{name}.weight".removeprefix("."): table for name, table in found.items()}


def place_tables(module: nn.Module) -> None:
    """Give this process its rows of all sharded tables, and keep DistributedDataParallel away from them."""
    tables = sharded_tables(module)
    for table in tables.values():
        table.place()
    if tables:
        # DistributedDataParallel would broadcast the rows of process 0 and average the gradients of different rows.
        # This attribute of the module that it wraps is its only switch for single parameters; it is what
        # DistributedDataParallel._set_params_and_buffers_to_ignore_for_model sets.
        module._ddp_params_and_buffers_to_ignore = list(tables)  # type: ignore[assignment]


def state_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Name -> shape of a module's state as checkpoints hold it, sharded tables whole."""
    own = {name: tensor.shape for name, tensor in module.state_dict(keep_vars=True).items()}
    return own | {name: table.full_shape for name, table in sharded_tables(module).items()}


def gathered_state(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Replace shares by full tables on process 0 in the state dict of a module. Collective."""
    tables = sharded_tables(module)
    return {name: tables[name].gather(value) if name in tables else value for name, value in state.items()}


def share_states(optimizer: Optimizer, module: nn.Module) -> None:
    """Let an optimiser save full moments of sharded tables (on process 0, collectively) and load its share of them.

    Checkpoints then do not depend on the number of processes.
    """
    tables = {id(table.weight): table for table in sharded_tables(module).values()}
    if tables:
        optimizer.register_state_dict_post_hook(partial(_states, tables, save=True))
        optimizer.register_load_state_dict_pre_hook(partial(_states, tables, save=False))


def _states(
    tables: dict[int, ShardedTable], optimizer: Optimizer, content: dict[str, Any], *, save: bool
) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = dict(content["state"])  # its entries are the optimiser's own; they are replaced, not changed
    for index, parameter in enumerate(parameters):
        table = tables.get(id(parameter))
        if table is not None and index in state:
            convert, shape = (table.gather, parameter.shape) if save else (table.share, table.full_shape)
            state[index] = {
                name: convert(value) if isinstance(value, Tensor) and value.shape == shape else value
                for name, value in state[index].items()
            }
    return {**content, "state": state}


def norm_over_shards(parts: list[Tensor]) -> Tensor:
    """Norm () of the gradients of sharded tables, over the shares of all processes. Collective."""
    square = torch.stack([part.norm() for part in parts]).square().sum()
    if _initialised():
        dist.all_reduce(square)
    return square.sqrt()
