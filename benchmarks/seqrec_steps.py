"""What Heptad does in the benchmark of sequential recommendation: training steps, epochs, rankings, synthetic logs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from lightning import Callback, Trainer
from torch.optim import Optimizer

from benchmarks.peers.mqsa_ted_dense import load_state
from benchmarks.peers.sequences import Log, Setting
from benchmarks.peers.worker import Step, Work
from domains.common.callbacks import PredictionTable
from domains.common.loader import Batch
from domains.seqrec.data import SequenceData
from domains.seqrec.losses import squared_norm
from domains.seqrec.module import MQSATEDModule
from domains.seqrec.packing import ragged_ranges
from domains.seqrec.training import Loss
from domains.seqrec.weights import from_official


def synthetic(root: Path, n_users: int, n_items: int, seed: int = 0) -> None:
    """Write a prepared log: 3 events and more per user (mean 8.9), the last two held out.

    Item k falls with 1 / sqrt(k): a hundredth of the items takes a tenth of the events, as on Amazon Beauty.
    """
    draw = np.random.default_rng(seed)
    sizes = np.minimum(3 + draw.geometric(1 / 6.9, n_users) - 1, 204)
    items = (draw.random(sizes.sum()) ** 2 * n_items).astype(np.int64)
    counts = np.bincount(items, minlength=n_items)
    number = np.empty(n_items, dtype=np.int64)
    number[np.argsort(-counts, kind="stable")] = np.arange(n_items)
    ends = np.cumsum(sizes)
    flat = pl.Series(number[items].astype(np.int32))
    owner = np.repeat(np.arange(n_users, dtype=np.int32), sizes)
    rows = pl.DataFrame({"user": owner, "items": flat}).group_by("user", maintain_order=True).agg("items")
    held_out = np.sort(np.concatenate([ends - 1, ends - 2]))
    training = np.bincount(np.delete(flat.to_numpy(), held_out), minlength=n_items)
    tables = {"sequences": rows}
    user = np.arange(n_users, dtype=np.int32)
    for split, behind in (("train", 2), ("valid", 2), ("test", 1)):
        columns = {"row": user.astype(np.int64), "user": user, "sequence": user}
        ends_at = {"train_end": (sizes - 2).astype(np.int32), "end": (sizes - behind).astype(np.int32)}
        tables[split] = pl.DataFrame(columns | ends_at)
    for name, table in tables.items():
        (root / name).mkdir(parents=True)
        table.write_parquet(root / name / "part-00000.parquet")
    item = np.arange(n_items, dtype=np.int32)
    names = pl.DataFrame({"item": item, "token": item.astype(str), "count": training})
    names.write_parquet(root / "items.parquet")
    people = pl.DataFrame({"user": user, "token": user.astype(str), "events": sizes.astype(np.int32)})
    people.write_parquet(root / "users.parquet")
    part = {name: [{"path": f"{name}/part-00000.parquet", "rows": n_users}] for name in tables}
    card = {
        "format": "heptad/1",
        "domain": "seqrec",
        "n_users": n_users,
        "n_items": n_items,
        "n_events": len(items),
        "sequences": {"parts": part.pop("sequences")},
        "splits": {name: {"rows": n_users, "parts": parts} for name, parts in part.items()},
    }
    (root / "dataset.json").write_text(json.dumps(card))


def training_rows(data: SequenceData) -> Batch:
    """Return all rows of the training split."""
    store = data.store("train")
    parts = [store.load(block) for block in range(len(store.sizes))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def export(prepared: Path, path: Path) -> Log:
    """Write the training sequences of a prepared directory for the peers."""
    data = SequenceData(str(prepared))
    rows = training_rows(data)
    start, end = rows["start"].numpy(), rows["end"].numpy()
    items = data.histories.items[ragged_ranges(start, end - start)].astype(np.int64)
    log = Log(items, np.concatenate([[0], np.cumsum(end - start)]), data.n_items)
    log.save(path)
    return log


def make_module(setting: Setting, data: SequenceData, loss: Loss = "full") -> MQSATEDModule:
    """Return our module, in training mode, with the weights the setting names."""
    module = MQSATEDModule(
        data.n_items,
        max_len=setting.max_len,
        dim=setting.dim,
        window=setting.window,
        alpha=setting.alpha,
        dropout=setting.dropout,
        distillation=setting.distillation,
        tau=setting.tau,
        loss=loss,
        l2=setting.l2,
        lr=setting.lr,
        seed=setting.seed,
    )
    if setting.state:
        state = load_state(Path(setting.state))
        roles = {name: name for name in state if "." in name}
        official = {name: state[name] for name in roles}
        official["item_embedding/item_embedding"] = state["item"]
        official["positional_embedding/position_embedding"] = state["position"]
        sizes = {"num_item": data.n_items, "max_len": setting.max_len, "num_factor": setting.dim, "L": setting.window}
        net = from_official(official, {**sizes, "alpha": setting.alpha}, roles)
        module.net.load_state_dict(net.state_dict())
    module.train()
    return module


def make_data(setting: Setting) -> SequenceData:
    """Return our data as the setting has it."""
    return SequenceData(setting.prepared, setting.batch, setting.seed, setting.max_len, setting.span)


def build_ours(setting: Setting) -> Step:
    """Return our training step over the same batches as the dense form's."""
    data = make_data(setting)
    module = make_module(setting, data)
    optimiser = module.configure_optimizers()
    if not isinstance(optimiser, Optimizer):
        raise TypeError("the module was built without a schedule and gave more than an optimiser")
    rows, collate = training_rows(data), data.collate_for(data.store("train"))
    torch.manual_seed(setting.seed)

    def step(i: int) -> Work:
        chosen = torch.from_numpy(setting.rows(i, len(rows["row"])))
        batch = collate({name: column[chosen] for name, column in rows.items()})
        targets = len(batch["target"])
        optimiser.zero_grad()
        losses = {name: loss / targets for name, loss in module.losses(batch).items()}
        total = losses["rec"] + setting.distillation * losses["kd"]
        total.backward()  # type: ignore[no-untyped-call]
        found = {name: float(loss.item()) for name, loss in losses.items()}
        if setting.state:  # the optimiser adds the penalty to the gradient; its value is for comparison only
            with torch.no_grad():
                found["total"] = float(total + setting.l2 * squared_norm(list(module.net.parameters())))
        optimiser.step()
        return Work({"rows": len(chosen), "targets": targets}, found)

    return step


def quiet_trainer(root: str, *callbacks: Callback, validating: float = 0.0) -> Trainer:
    """Return a trainer that logs nothing; `validating` is the share of validation batches it runs."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_val_batches=validating,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )


def build_epochs(setting: Setting, loss: Loss = "full") -> Step:
    """Return a step that is a whole epoch of the trainer, from our loader, without validation."""
    data = make_data(setting)
    module = make_module(setting, data, loss)
    rows = training_rows(data)
    targets = int((torch.clamp(rows["end"] - rows["start"], max=setting.max_len) - 1).clamp(min=0).sum())

    def step(_: int) -> Work:
        trainer = quiet_trainer(setting.prepared)
        trainer.fit(module, data)
        counts = {"rows": len(rows["row"]), "targets": targets}
        return Work(counts, {"total": float(trainer.callback_metrics["train/loss"])})

    return step


def build_ranking(setting: Setting, verb: str = "validate") -> Step:
    """Return a step that ranks all items for all users of a split and computes the metrics.

    Args:
        setting: sizes.
        verb: `validate` for the metrics alone; `test` for the best items too, metrics with 1,000 bootstrap replicates,
            and the table of predictions on disk.
    """
    data = make_data(setting)
    module = make_module(setting, data)

    def validate(_: int) -> Work:
        trainer = quiet_trainer(setting.prepared, validating=1.0)
        trainer.validate(module, data, verbose=False)
        rows = data.card["splits"]["valid"]["rows"]
        return Work({"rows": rows}, {"ndcg@10": float(trainer.callback_metrics["val/ndcg@10"])})

    def test(_: int) -> Work:
        with tempfile.TemporaryDirectory() as folder:
            table = PredictionTable(Path(folder))
            quiet_trainer(setting.prepared, table).test(module, data, verbose=False)
        rows = data.card["splits"]["test"]["rows"]
        return Work({"rows": rows}, {"ndcg@10": table.metrics["ndcg@10"].value})

    return validate if verb == "validate" else test
