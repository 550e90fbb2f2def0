from __future__ import annotations

import math

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from domains.common.schedules import cosine_factor, cosine_schedule, training_steps


def test_a_rise_then_half_a_cosine():
    factors = [cosine_factor(step, 14, warmup=4, floor=0.1) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[9] == pytest.approx(0.55), "half-way down"
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[14:] == pytest.approx([0.1] * 6), "and there it stays"


def test_without_an_end_it_never_falls():
    assert [cosine_factor(step, math.inf, warmup=1) for step in (0, 1, 10**6)] == [0.5, 1.0, 1.0]
    assert cosine_factor(3, 3, warmup=3) == 1.0, "all of the training is warm-up"


def test_each_group_keeps_its_own_rate():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.1}])
    schedule = cosine_schedule(optimizer, 4, floor=0.2)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [a for a, _ in rates] == pytest.approx([cosine_factor(step, 4, floor=0.2) for step in range(5)])
    assert [b for _, b in rates] == pytest.approx([a / 10 for a, _ in rates])


class KnownError(Exception):
    """Ends a training before its first step."""


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self):
        return DataLoader(list(range(10)), batch_size=2)

    def training_step(self, batch, index):
        return self.weight.sum()

    def configure_optimizers(self):
        self.steps = training_steps(self.trainer, 2)
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_start(self):
        raise KnownError


@pytest.mark.filterwarnings("ignore:.*is deprecated, use `isinstance")  # Lightning's use of torch's tree utilities
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, (15, 10)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, (9, 6)),
        ({"max_steps": 12}, (12, 10)),  # not as many epochs as there are steps
        ({"max_epochs": 100, "max_steps": 12}, (12, 10)),
        ({"max_epochs": -1, "max_time": "00:00:00:01"}, (math.inf, 10)),
    ],
)
def test_a_warm_up_is_so_many_epochs_however_training_ends(options, steps, tmp_path):
    module = Recorder()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)
    with pytest.raises(KnownError):
        trainer.fit(module)
    assert module.steps == steps
