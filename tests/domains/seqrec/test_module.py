from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser

from domains.common.errors import ConfigError
from domains.seqrec.data import SequenceData
from domains.seqrec.losses import squared_norm
from domains.seqrec.module import MQSATEDModule, SASRecModule, TransitionModule
from tests.domains.seqrec.helpers import random_histories, training_batches, write_prepared

N = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("prepared"), random_histories(60, N, 12, seed=4), N)


def module(**options):
    torch.manual_seed(1)
    return MQSATEDModule(N, **{"max_len": 8, "dim": 16, "dropout": 0.0, **options})


def total(one, batch):
    values = one.losses(batch)
    return values["rec"] + one.options.distillation * values.get("kd", 0.0)


@pytest.mark.parametrize("loss", ["full", "sampled", "gbce"])
def test_packed_batches_give_the_losses_of_padding(root, loss, monkeypatch):
    one, results = module(loss=loss), []
    monkeypatch.setattr(MQSATEDModule, "global_step", 0)
    for arrangement in ("packed", "padded"):
        batch = training_batches(SequenceData(str(root), max_len=8, arrangement=arrangement))[0]
        one.zero_grad()
        value = total(one, batch)
        value.backward()
        grads = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in one.net.parameters()]
        results.append([value.detach(), *grads])
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-3, rtol=1e-4)


def test_batch_is_the_sum_of_its_users(root):
    one = module()
    whole = training_batches(SequenceData(str(root), batch_size=64, max_len=8))
    single = training_batches(SequenceData(str(root), batch_size=1, max_len=8))
    together, apart = (sum(total(one, batch) for batch in batches) for batches in (whole, single))
    torch.testing.assert_close(together, apart, atol=1e-2, rtol=1e-5)


def test_penalty_of_the_optimiser_is_that_of_the_loss(root):
    batch = training_batches(SequenceData(str(root), max_len=8))[0]
    results = []
    for explicit in (True, False):
        one = module(l2=0.0 if explicit else 0.01)
        optimizer = one.configure_optimizers()
        (total(one, batch) + (0.01 * squared_norm(list(one.net.parameters())) if explicit else 0.0)).backward()
        optimizer.step()
        results.append([p.detach() for p in one.net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("loss", ["sampled", "gbce"])
def test_losses_over_samples_touch_few_rows(tmp_path, loss, monkeypatch):
    monkeypatch.setattr(MQSATEDModule, "global_step", 0)
    histories = [[item % 30 for item in history] for history in random_histories(20, N, 8, seed=1)]
    data = SequenceData(str(write_prepared(tmp_path, histories, 5000)), max_len=8)
    one = MQSATEDModule(5000, max_len=8, dim=16, loss=loss, negatives=64)
    total(one, training_batches(data)[0]).backward()
    gradient = one.net.items.weight.grad
    assert gradient.is_sparse
    assert len(gradient.coalesce().indices()[0]) <= 64 + 30 + 1


def test_dropout_is_switched_off_for_evaluation(root):
    one = module(dropout=0.5).eval()
    batch = next(iter(SequenceData(str(root), max_len=8).val_dataloader()))
    torch.testing.assert_close(one(batch), one(batch))
    ranked = one.predict_step(batch, 0)
    assert ranked["items"].shape == (len(batch["row"]), 20)
    assert not one.predict_step(batch, 0)["scores"].requires_grad


@pytest.mark.parametrize("kind", [SASRecModule, TransitionModule])
def test_baselines_learn_from_the_same_batches(root, kind):
    one = kind(N, max_len=8, dim=16, lr=0.01)
    batch = training_batches(SequenceData(str(root), max_len=8))[0]
    optimizer = one.configure_optimizers()
    before = float(total(one.eval(), batch).detach())
    one.train()
    for _ in range(20):
        optimizer.zero_grad()
        total(one, batch).backward()
        optimizer.step()
    assert float(total(one.eval(), batch).detach()) < before


def test_options_out_of_range():
    for wrong in ({"lr": 0.0}, {"tau": 0.0}, {"negatives": 0}, {"calibration": 2.0}, {"top": 3}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            module(**wrong)
    with pytest.raises(ConfigError, match=r"set model\.loss to sampled"):
        module(table_placement="sharded")
    with pytest.raises(ConfigError, match="uniform"):
        module(loss="gbce", sampling="log_uniform")


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (MQSATEDModule, {"distillation": 0.1, "l2": 1e-4, "adam": "tensorflow"}),
        (SASRecModule, {"distillation": 0.0, "l2": 0.0, "adam": "torch"}),
        (TransitionModule, {"distillation": 0.1, "l2": 1e-4, "adam": "torch"}),
    ],
)
def test_shared_options_are_offered_and_stored_by_every_module(kind, own):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "model", skip={"n_items"})
    offered = vars(parser.get_defaults().model)
    stored = dict(kind(N, lr=0.5).hparams)
    assert stored == {**offered, "n_items": N, "lr": 0.5}
    assert stored.items() >= {**own, "tau": 0.1, "top": 20, "table_placement": "replicated"}.items()
    assert "temperature of teacher and student" in parser.format_help()
    with pytest.raises(TypeError, match="learning_rate"):
        kind(N, learning_rate=0.5)
