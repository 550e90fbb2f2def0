"""Worlds of two and three processes train a sharded table as one process trains a whole one."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from domains.common.errors import ConfigError
from domains.common.module import HeptadModule
from domains.common.optim import LazyAdam
from domains.common.sharded import ShardedTable, gathered_state, place_tables, share_states, state_shapes
from domains.common.table import EmbeddingTable

ROWS, DIM, STEPS, SAVED = 23, 4, 6, 3
MEGABYTES = 64  # of the table whose memory is measured


class Net(nn.Module):
    """Two tables, so that collectives of several are in flight, and a parameter that every process has."""

    def __init__(self, kind):
        super().__init__()
        self.table, self.wide = kind(ROWS, DIM), kind(ROWS, 1)
        self.wide.reset_parameters(std=0.1)
        self.map = nn.Linear(DIM, 1)

    def forward(self, ids, values):
        return (self.map(self.table(ids, values)) + self.wide(ids)).sum(dim=(1, 2))


def whole(rows, dim):
    return EmbeddingTable(rows, dim, sparse=True)


def batches():
    """Repeated ids, ids that only some process has, and batches of one row, which leave processes without any."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for rows in (7, 1, 12, 1, 5, 8):
        ids = (torch.rand(rows, 3, generator=generator).square() * ROWS).long()  # small ids are frequent
        found.append((ids, torch.randn(rows, 3, generator=generator), torch.randn(rows, generator=generator)))
    return found


class Tabled(HeptadModule):
    """A module that only trains."""

    def example_inputs(self, rows=2, length=3):
        return ()

    def free_axes(self):
        return ()

    def evaluate(self, predictions, *, replicates, seed):
        return {}


def build(kind):
    torch.manual_seed(7)
    module = Tabled()
    module.net = Net(kind)
    place_tables(module)
    tables = [module.net.table.weight, module.net.wide.weight]
    groups = [{"params": module.net.map.parameters()}, {"params": tables, "weight_decay": 0.01}]
    optimizer = LazyAdam(groups, lr=0.05)
    share_states(optimizer, module)
    return module, optimizer


def train(module, optimizer, rank, world, steps):
    """Train as DistributedDataParallel does; return what one process would see of it."""
    outputs, losses, gradients = [], [], []
    for step in steps:
        ids, values, target = batches()[step]
        output = module.net(ids[rank::world], values[rank::world])
        loss = (output - target[rank::world]).square().sum() / len(target)
        (loss * world).backward()
        for parameter in module.net.map.parameters():
            parameter.grad = all_sum(parameter.grad, world) / world
        clip = 0.05 if step % 2 else None
        if clip:
            module.configure_gradient_clipping(optimizer, clip, "norm")
        gradients.append([full(module.net, name) for name in ("table", "wide")])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(all_sum(loss.detach(), world))
        outputs.append(gathered_rows(output.detach(), len(target), rank, world))
    return {"outputs": outputs, "losses": losses, "gradients": gradients, **saved(module, optimizer)}


def saved(module, optimizer):
    content = {"weights": gathered_state(module, module.state_dict()), "optimizer": optimizer.state_dict()}
    return deepcopy(content)  # training goes on in place


def all_sum(tensor, world):
    if world > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def gathered_rows(local, rows, rank, world):
    placed = torch.zeros(rows)
    placed[rank::world] = local
    return all_sum(placed, world)


def full(net, name):
    table = getattr(net, name)
    gradient = table.weight.grad.to_dense()
    return table.gather(gradient) if isinstance(table, ShardedTable) else gradient


def restored(kind, content):
    module, optimizer = build(kind)
    torch.manual_seed(0)
    module.load_state_dict(content["weights"])
    optimizer.load_state_dict(deepcopy(content["optimizer"]))
    return module, optimizer


def late(rank, world, folder):
    """Tables built before the processes know each other, as LightningCLI builds them."""
    torch.manual_seed(1)
    untouched, loaded, looked_at = (ShardedTable(ROWS, DIM) for _ in range(3))
    marked = torch.arange(ROWS * DIM, dtype=torch.float32).view(ROWS, DIM)
    loaded.load_state_dict({"weight": marked})
    looked_at.load_state_dict({"weight": marked})
    assert torch.equal(looked_at.state_dict()["weight"], marked)
    start = {"init_method": f"file://{folder}/rendezvous{world}", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=world, **start)
    for table in (untouched, loaded, looked_at):
        parameter = table.weight
        table.place()
        assert table.weight is parameter
        assert table.weight.shape == (len(range(rank, ROWS, world)), DIM)
    assert torch.equal(loaded.weight, marked[rank::world])
    assert torch.equal(looked_at.weight, marked[rank::world])
    return untouched.gather(untouched.weight.detach())


def memory(rank, world):
    """Megabytes that building a table adds to the peak of this process."""
    before = peak()
    table = ShardedTable(MEGABYTES << 14, 16)
    assert len(table.weight) == len(range(rank, MEGABYTES << 14, world))
    return peak() - before


def peak():
    """Largest resident memory of this process in megabytes (getrusage would count that of its parent)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []  # Linux alone has it
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def work(rank, folder):
    """One process of the worlds of two and of three; starting processes costs more than all they do."""
    torch.set_num_threads(1)
    for world in (2, 3):
        if rank < world:
            torch.save(explore(rank, world, folder), folder / f"{world}_{rank}.pt")


def explore(rank, world, folder):
    found = {"late": late(rank, world, folder), "memory": memory(rank, world)}
    module, optimizer = build(ShardedTable)
    found["start"] = saved(module, optimizer)["weights"]
    found["shapes"] = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found["reported"] = state_shapes(module)
    found["ignored"] = module._ddp_params_and_buffers_to_ignore
    found["first"] = train(module, optimizer, rank, world, range(SAVED))
    half = [found["first"]]
    dist.broadcast_object_list(half, src=0)
    found["rest"] = train(module, optimizer, rank, world, range(SAVED, STEPS))
    found["resumed"] = train(*restored(ShardedTable, half[0]), rank, world, range(SAVED, STEPS))
    one = torch.load(folder / "one.pt")
    found["from_one"] = train(*restored(ShardedTable, one["first"]), rank, world, range(SAVED, STEPS))
    with pytest.raises(IndexError, match=r"0\.\.22"):
        module.net.table(torch.tensor([[ROWS]]))
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process computes with whole tables; `folder` has it for the others."""
    folder = tmp_path_factory.mktemp("sharded")
    module, optimizer = build(whole)
    found = {"start": saved(module, optimizer)["weights"]}
    first = train(module, optimizer, 0, 1, range(SAVED))
    torch.save({"first": first}, folder / "one.pt")
    found["first"] = torch.load(folder / "one.pt")["first"]
    found["rest"] = train(module, optimizer, 0, 1, range(SAVED, STEPS))
    return found | {"folder": folder}


@pytest.fixture(scope="module")
def worlds(one):
    """Folder of what the processes found."""
    mp.get_context("forkserver").set_forkserver_preload([__name__])  # imports cost more than all the tests
    mp.start_processes(work, args=(one["folder"],), nprocs=3, start_method="forkserver")
    return one["folder"]


@pytest.fixture(scope="module", params=[2, 3])
def others(request, worlds):
    """What each process of a world found."""
    return [torch.load(worlds / f"{request.param}_{rank}.pt") for rank in range(request.param)]


def close(got, want):
    if isinstance(want, dict) and "state" in want:
        assert got["param_groups"] == want["param_groups"]
        got, want = got["state"], want["state"]
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_same_start(one, others):
    assert one["start"].keys() == others[0]["start"].keys()
    assert all(torch.equal(tensor, others[0]["start"][name]) for name, tensor in one["start"].items())


def test_same_start_when_placed_late(others):
    torch.manual_seed(1)
    assert torch.equal(others[0]["late"], EmbeddingTable(ROWS, DIM).weight)


@pytest.mark.parametrize("part", ["first", "rest"])
def test_same_outputs_losses_gradients_weights_and_moments(one, others, part):
    want, got = one[part], others[0][part]
    assert got.keys() == want.keys()
    for name, content in want.items():
        close(got[name], content)


def test_clipping_was_no_idle_test(one):
    norms = [torch.cat([table.flatten() for table in tables]).norm() for tables in one["rest"]["gradients"]]
    assert norms[0] <= 0.05 < norms[1]


def test_each_process_holds_its_share(one, others):
    for rank, found in enumerate(others):
        own = len(range(rank, ROWS, len(others)))
        assert found["shapes"]["net.table.weight"] == (own, DIM)
        assert found["reported"] == {name: tensor.shape for name, tensor in one["start"].items()}
        assert found["ignored"] == ["net.table.weight", "net.wide.weight"]
        # the share, a block, and what the allocator keeps; in the second world the peak was reached before
        assert found["memory"] < MEGABYTES / len(others) + 16
        assert found["memory"] > MEGABYTES / 4 or len(others) > 2 or not Path("/proc/self/status").exists()


def test_resumed_equals_uninterrupted(others):
    rest, resumed = others[0]["rest"], others[0]["resumed"]
    assert all(torch.equal(tensor, resumed["weights"][name]) for name, tensor in rest["weights"].items())


def test_checkpoints_pass_between_worlds(one, others):
    close(others[0]["from_one"]["weights"], one["rest"]["weights"])
    for kind in (whole, ShardedTable):
        again = train(*restored(kind, others[0]["first"]), 0, 1, range(SAVED, STEPS))
        close(again["weights"], one["rest"]["weights"])
        close(again["optimizer"], one["rest"]["optimizer"])


class TestOneProcess:
    def test_equals_the_whole_table(self, one):
        module, optimizer = build(ShardedTable)
        close(train(module, optimizer, 0, 1, range(SAVED))["weights"], one["first"]["weights"])

    def test_first_use_places(self):
        table = ShardedTable(ROWS, DIM)
        parameter = table.weight
        table(torch.tensor([[22]])).sum().backward()
        assert table.weight is parameter
        assert parameter.shape == (ROWS, DIM)
        assert parameter.grad.is_sparse
        assert parameter.grad._indices().tolist() == [[22]]

    def test_shapes_need_no_rows(self):
        table = ShardedTable(ROWS, DIM)
        assert state_shapes(table) == {"weight": (ROWS, DIM)}
        assert len(table.weight) == 0
        assert table.state_dict()["weight"].shape == (ROWS, DIM)

    def test_wrong_weights_are_named(self):
        with pytest.raises(RuntimeError, match=r"\(3, 4\) is no full table \(23, 4\)"):
            ShardedTable(ROWS, DIM).load_state_dict({"weight": torch.zeros(3, 4)})
        with pytest.raises(RuntimeError, match="Missing key"):
            ShardedTable(ROWS, DIM).load_state_dict({})

    def test_many_blocks_are_one_table(self, monkeypatch):
        monkeypatch.setattr("domains.common.rows.BLOCK", 5 * DIM)
        torch.manual_seed(0)
        want = EmbeddingTable(ROWS, DIM)
        torch.manual_seed(0)
        table = ShardedTable(ROWS, DIM)
        assert torch.equal(torch.stack([table._drawn(0, 1)]), want.weight[None])
        monkeypatch.setattr(dist, "broadcast_object_list", lambda *args, **kwargs: None)
        for rank in range(3):
            assert torch.equal(table._drawn(rank, 3), want.weight[rank::3])


class TestRunsThatCannotBe:
    def test_averaged_weights(self):
        self.refused("--ema", callbacks=[EMAWeightAveraging()])

    def test_scaled_half_precision(self, monkeypatch):
        monkeypatch.setattr(Trainer, "precision", "16-mixed")  # without a GPU there is no such trainer
        self.refused("16-mixed")

    def test_other_strategies(self, monkeypatch):
        monkeypatch.setattr(Trainer, "world_size", 2)
        self.refused("strategy ddp")

    def refused(self, reason, **options):
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        module = Tabled()
        module.net = Net(ShardedTable)
        module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, **quiet, **options)
        with pytest.raises(ConfigError, match=reason):
            module.setup("fit")
