"""What the pictures of an explanation rest on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_prep.finegrained.planted import write_planted_classes
from data_prep.finegrained.prepare import prepare
from domains.common.attention import record, rollout_matrix
from domains.finegrained.data import ClassData
from domains.finegrained.explain import choose, look
from domains.finegrained.module import ClassModule


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    made = write_planted_classes(folder / "raw", classes=3, per_class=10, size=32)
    prepare("folder", made.images, folder / "data", ratios=(0.5, 0.0, 0.5), executor="serial", progress=False)
    data = ClassData(str(folder / "data"), batch_size=4, image_size=(32, 32), resize=(32, 32))
    options = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    module = ClassModule(data.classes, [32, 32], backbone="vit_tiny_patch16_224", backbone_options=options, ratio=0.25)
    return module.eval(), data, look(module, data, rows=11)


@torch.no_grad()
def test_the_rollout_is_the_product_of_recorded_maps(looked):
    module, data, found = looked
    store = data.store("test")
    rows = torch.tensor(found.table["row"].to_numpy()[:2].astype(np.int64))
    batch = data.finish(data.collate_for(store)({"row": rows}))
    with record(module.net.trunk) as recorded:
        module(batch)
    maps = [recorded[f"blocks.{i}.attn"][0].mean(1) for i in range(2)]
    wanted = rollout_matrix(maps)[:, 0, 1:].reshape(-1, 4, 4)
    np.testing.assert_allclose(found.rollout[:2], wanted, atol=1e-6)


def test_the_asking_patches_have_the_largest_weights(looked):
    _, _, found = looked
    assert (found.selected.sum((1, 2)) == 4).all()
    for rollout, selected in zip(found.rollout, found.selected, strict=True):
        assert rollout[selected].min() >= rollout[~selected].max()


def test_rows_are_spread_over_the_split_and_cases_are_right_or_wrong(looked):
    module, _, found = looked
    rows = found.table["row"].to_list()
    assert len(rows) == 11
    assert (rows[0], rows[-1]) == (0, 14)
    table = found.table.to_dicts()
    chosen = choose(module, found)
    assert all(table[i]["label"] == table[i]["predicted"] for i in chosen["Right, and surest"])
    assert all(table[i]["label"] != table[i]["predicted"] for i in chosen["Wrong, and surest"])
