from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.ctr import weights
from domains.ctr.autoint import AutoInt

CASES = Path(__file__).parents[2] / "parity" / "cases"
FIELDS = [
    {"name": "I0", "kind": "numerical"},
    {"name": "C0", "kind": "categorical", "size": 6},
    {"name": "C1", "kind": "categorical", "size": 4},
]
OFFICIAL = {
    "field_size": 3, "feature_size": 11, "embedding_size": 4, "blocks": 2, "block_shape": [8, 6], "heads": 2,
    "numeric_fields": [0],
}  # fmt: skip
FUXICTR = {"embedding_dim": 4, "attention_layers": 2, "num_heads": 2, "attention_dim": 8, "layer_norm": True}
DEEPCTR = {"att_layer_num": 2, "att_head_num": 2}


@pytest.mark.parametrize("more", [{}, {"has_residual": False}, {"deep_layers": [5, 3], "batch_norm": 1}])
def test_official_weights_come_back(more):
    config = {**OFFICIAL, **more}
    kinds = ["numerical", "categorical", "categorical"]
    fields = [{"name": f"field_{i}", "kind": kind, "size": 1} for i, kind in enumerate(kinds)]
    net = AutoInt(
        fields, dim=4, depth=2, width=[8, 6], heads=2, residual=more.get("has_residual", True),
        deep=more.get("deep_layers", ()), deep_batch_norm=bool(more.get("batch_norm")), rows=11,
    )  # fmt: skip
    again = weights.from_official(weights.to_official(net), config)
    for (name, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        if "num_batches" not in name:
            assert torch.equal(a, b), name
    assert weights.import_official(weights.to_official(net), config).arguments == again.arguments


@pytest.mark.parametrize("case", ["autoint", "autoint_nodeep"])
def test_roles_follow_the_official_order_of_creation(case):
    with safe_open(CASES / f"{case}.safetensors", "pt") as file:
        metadata = file.metadata()
    assert weights.official_roles(json.loads(metadata["config"])) == json.loads(metadata["roles"])


@pytest.mark.parametrize(
    "more", [{}, {"use_wide": True, "dnn_hidden_units": [5, 3], "batch_norm": True, "net_dropout": 0.1}]
)
def test_fuxictr_weights_come_back(more):
    options = {**FUXICTR, **more, "fields": FIELDS}
    net = AutoInt(
        FIELDS, dim=4, depth=2, width=8, heads=2, variant="fuxictr", layer_norm=True,
        wide="use_wide" in more, deep=more.get("dnn_hidden_units", ()), deep_batch_norm="batch_norm" in more,
        deep_dropout=more.get("net_dropout", 0.0), dropout=more.get("net_dropout", 0.0),
    )  # fmt: skip
    again = weights.import_fuxictr(weights.to_fuxictr(net), options)
    for (name, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("deep", [(), (5, 3)])
def test_deepctr_torch_weights_come_back(deep):
    net = AutoInt(FIELDS, dim=4, depth=2, width=4, heads=2, variant="deepctr_torch", deep=deep)
    state = weights.to_deepctr_torch(net)
    again = weights.import_deepctr_torch(state, {**DEEPCTR, "dnn_hidden_units": deep, "fields": FIELDS}).eval()
    ids, values = torch.tensor([[0, 3, 8]]), torch.tensor([[0.5, 1.0, 1.0]])
    net.table.weight.data[0] = again.table.weight.data[0]  # the number's row takes no part there
    torch.testing.assert_close(again(ids, values), net.eval()(ids, values))


def test_what_does_not_fit_is_named():
    net = AutoInt(FIELDS, dim=4, depth=2, width=8, heads=2, variant="fuxictr", layer_norm=True)
    state = weights.to_fuxictr(net)
    state["extra"] = state.pop("fc.bias")
    state["fc.weight"] = torch.zeros(1, 3)
    with pytest.raises(CheckpointMismatchError, match=r"missing: fc\.bias; unexpected: extra; wrong shape: fc\.weight"):
        weights.from_fuxictr(state, FIELDS, FUXICTR)
    with pytest.raises(ConfigError, match='lack "fields"'):
        weights.import_fuxictr(state, FUXICTR)
    with pytest.raises(ConfigError, match="has no counterpart"):
        weights.to_deepctr_torch(net)
