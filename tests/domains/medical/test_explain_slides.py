from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from domains.medical.data import BagData
from domains.medical.explain import explain
from domains.medical.explain_slides import SHARES, Case, choose, look_at
from domains.medical.module import ABMILModule, ACMILModule, PoolingModule

CLASSES = ["normal", "tumor"]


@pytest.fixture(scope="module")
def lesion(planted_bags):
    """The direction in which patches of a lesion differ from others (16,)."""
    truth = pl.read_parquet(planted_bags.truth)
    sums = np.zeros((2, 16)), np.zeros(2)
    for (slide,), patches in truth.group_by("slide", maintain_order=True):
        with h5py.File(planted_bags.features / f"{slide}.h5") as file:
            x = file["features"][:]
        for inside in (0, 1):
            chosen = x[patches["lesion"].to_numpy() == bool(inside)]
            sums[0][inside] += chosen.sum(0)
            sums[1][inside] += len(chosen)
    other, inside = sums[0] / sums[1][:, None]
    return torch.from_numpy(inside - other).float() / np.linalg.norm(inside - other)


@pytest.fixture
def seeing(lesion):
    """A network that attends to lesions, and decides by them alone."""
    module = ABMILModule(CLASSES, 16, dim=1, gate_dim=1)
    net = module.net
    with torch.no_grad():
        net.reduce.weight.copy_(lesion)
        net.attention.gate.weight.copy_(torch.tensor([[0.3], [0.0]]))
        net.attention.gate.bias.copy_(torch.tensor([0.0, 20.0]))
        net.attention.score.weight.fill_(12.0)
        net.classifier.weight.copy_(torch.tensor([[-2.0], [2.0]]))
        net.classifier.bias.copy_(torch.tensor([4.5, -4.5]))
    return module.eval()


def test_what_it_attends_to_decides(bags, seeing, planted_bags):
    truth = pl.read_parquet(planted_bags.truth)
    cases = [case for case in look_at(seeing, BagData(str(bags)), 99) if case.label == 1]
    assert len(cases) > 3
    for case in cases:
        assert case.decided == 1
        assert case.without[0, 0] == case.without[1, 0] == pytest.approx(case.probabilities[1], abs=1e-6)
        inside = truth.filter(pl.col("slide") == case.name)["lesion"].to_numpy()
        assert case.attention[inside].sum() > 0.8
    attended, others = np.mean([case.without for case in cases], axis=0)
    half = SHARES.index(0.3)  # more than the lesions cover
    assert attended[half] < 0.2
    assert others[half] > 0.9


def test_files_and_pictures(bags, seeing, tmp_path):
    data = BagData(str(bags))
    pictures = explain(seeing, data, tmp_path)
    table = pl.read_parquet(tmp_path / "slides.parquet")
    index = data.store("test").frame
    assert table["name"].equals(index["name"])
    assert table["patches"].to_list() == index["patches"].to_list()
    tops = table.select("top_1", "top_5", "top_10", "top_50").to_numpy()
    assert (np.diff(tops, axis=1) >= 0).all()
    assert tops.max() <= 1 + 1e-6
    assert (table["patches_of_half"] <= 5).all()
    assert "similarity" not in table.columns, "there is one branch"
    facts = json.loads((tmp_path / "attention.json").read_text())
    assert facts["slides"] == len(table)
    assert facts["similarity_of_branches"] is None
    assert facts["attention_of_the_strongest"]["5"] == pytest.approx(table["top_5"].mean(), abs=1e-6)
    titles = [picture.title for picture in pictures]
    assert titles[:2] == ["How the attention is spread", "What happens without the attended patches"]
    assert {"normal, right", "tumor, right"} <= {title.split(":")[0] for title in titles[2:]}
    for picture in pictures:
        picture.figure.savefig(tmp_path / "picture.png")


def test_branches_are_compared(bags, tmp_path):
    torch.manual_seed(0)
    module = ACMILModule(CLASSES, 16, dim=8, gate_dim=4, branches=3).eval()
    with torch.no_grad():
        module.net.attention.score.weight.mul_(30)
        module.net.attention.score.weight[1] = module.net.attention.score.weight[0]
    case = next(look_at(module, BagData(str(bags)), 1))
    assert case.similarity.shape == (3, 3)
    np.testing.assert_allclose(np.diag(case.similarity), 1, atol=1e-5)
    assert case.similarity[0, 1] == pytest.approx(1, abs=1e-5)
    assert case.similarity[0, 2] < 0.9
    assert [picture.title for picture in explain(module, BagData(str(bags)), tmp_path)][
        1
    ] == "How alike the branches look"
    table = pl.read_parquet(tmp_path / "slides.parquet")
    assert table["similarity"].is_between(0, 1).all()


def test_a_network_without_attention_shows_what_single_patches_do(bags, tmp_path):
    pictures = explain(PoolingModule(CLASSES, 16, dim=8), BagData(str(bags)), tmp_path)
    assert [picture.title for picture in pictures] == ["What happens without the attended patches"]


def test_slides_without_places_and_of_a_single_patch(bags, seeing, tmp_path):
    root = shutil.copytree(bags, tmp_path / "copy")
    path = root / "test" / "part-00000.parquet"
    table = pl.read_parquet(path)
    with h5py.File(root / table["file"][0], "a") as file:
        x, coords = file["features"][:1], file["coords"][:1]
        del file["features"], file["coords"]
        file["features"], file["coords"] = x, coords
    first = pl.int_range(pl.len()) == 0
    table = table.with_columns(
        patches=pl.when(first).then(1).otherwise("patches").cast(table["patches"].dtype),
        size_level0=pl.lit(None, pl.Float64),
    )
    table.write_parquet(path)
    pictures = explain(seeing, BagData(str(root)), tmp_path)
    written = pl.read_parquet(tmp_path / "slides.parquet")
    assert written.row(0, named=True)["without_attended_0.9"] == written.row(0, named=True)["without_random_0"]
    assert len(pictures) > 2
    for picture in pictures[2:]:
        assert "Colour" not in picture.caption, "nothing to draw a map of"


def test_so_many_slides_are_looked_at(bags, seeing):
    assert len(list(look_at(seeing, BagData(str(bags), 4), 3))) == 3


def case(label, probabilities, row=0):
    without = np.zeros((2, len(SHARES)), np.float32)
    return Case(row, f"s{row}", label, np.array(probabilities), np.ones(3, np.float32) / 3, None, without, None)


def test_the_surest_right_and_wrong_slide_of_each_class_are_shown():
    cases = [
        case(0, [0.9, 0.1], 0), case(0, [0.8, 0.2], 1), case(0, [0.4, 0.6], 2), case(0, [0.2, 0.8], 3),
        case(1, [0.3, 0.7], 4),
    ]  # fmt: skip
    chosen = {title: case.row for title, case in choose(cases).items()}
    assert chosen == {"class 0, right": 0, "class 0, wrong": 3, "class 1, right": 4}
