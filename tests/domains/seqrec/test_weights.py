from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.seqrec.mqsa_ted import MQSATED
from domains.seqrec.weights import from_official, import_official, official_roles, to_official

CASE = Path(__file__).parents[2] / "parity" / "cases" / "mqsa_ted.safetensors"


@pytest.mark.parametrize("options", [{}, {"depth": 2, "heads": 2}, {"alpha": 1.0}, {"alpha": 0.0, "window": 4}])
def test_official_weights_come_back(options):
    net = MQSATED(30, dim=16, max_len=8, **options)
    config = {
        "num_item": 30, "num_factor": 16, "max_len": 8, "num_block": options.get("depth", 1),
        "num_head": options.get("heads", 1), "L": options.get("window", 3), "alpha": options.get("alpha", 0.5),
    }  # fmt: skip
    again = import_official(to_official(net), config)
    assert again.arguments == net.arguments
    for (name, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_roles_follow_the_official_order_of_creation():
    with safe_open(CASE, "pt") as file:
        metadata = file.metadata()
    assert official_roles(json.loads(metadata["config"])["num_block"]) == json.loads(metadata["roles"])


def test_weights_that_do_not_fit_are_named():
    net = MQSATED(30, dim=16, max_len=8)
    config = {"num_item": 30, "num_factor": 16, "max_len": 8}
    weights = to_official(net)
    for wrong in (
        {name: tensor for name, tensor in weights.items() if name != "dense_3/bias"},
        {**weights, "dense_99/bias": torch.zeros(16)},
        {**weights, "dense_3/bias": torch.zeros(17)},
    ):
        with pytest.raises(CheckpointMismatchError, match=r"dense_(3|99)/bias"):
            from_official(wrong, config)


@pytest.mark.parametrize("options", [{"num_factor": 16}, {"num_item": 30, "L": "x"}, {"num_item": 30, "alpha": None}])
def test_options_that_lack_or_are_no_numbers(options):
    with pytest.raises(ConfigError, match=r"num_item|no number"):
        from_official({}, options)
