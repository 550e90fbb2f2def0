from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from domains.common.attention import record
from domains.expression.data import ExpressionData
from domains.expression.explain import (
    Case,
    _caption,
    _distance_picture,
    _draw,
    attention_maps,
    case_of,
    choose_cases,
    distance_table,
    explain,
)
from tests.domains.expression.face_helpers import CLASSES, module, prepare_planted


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ExpressionData(str(prepare_planted(tmp_path_factory.mktemp("faces"))), batch_size=16)


def maps_of(net, image):
    with record(net.net) as recorded, torch.no_grad():
        net.net(image)
    return attention_maps(net, recorded)


def test_maps_cover_the_face_and_their_weights_add_up():
    maps = maps_of(module().eval(), torch.randn(1, 1, 24, 24))
    assert list(maps) == ["level 0", "level 1", "class token"]
    assert maps["level 0"].shape == (6, 6) and maps["level 1"].shape == (3, 3)
    for rows in (slice(0, 3), slice(3, 6)):  # of each window
        assert maps["level 0"][rows, :3].sum() == pytest.approx(1, abs=1e-5)
    assert maps["level 1"].sum() == pytest.approx(1, abs=1e-5)
    assert 0 < maps["class token"].sum() < 1, "the class token attends to itself, too"


def test_maps_do_not_depend_on_the_fast_form_of_the_last_block():
    image = torch.randn(1, 1, 24, 24)
    fused, explicit = (maps_of(module(fuse=fuse).eval(), image) for fuse in (True, False))
    for name, values in fused.items():
        np.testing.assert_allclose(values, explicit[name], atol=1e-5)


def test_the_class_token_is_that_of_the_last_of_many_blocks():
    net = module(depth=11).eval()
    image = torch.randn(1, 1, 24, 24)
    with record(net.net) as recorded, torch.no_grad():
        net.net(image)
    wanted = recorded["extractor.vit.blocks.10.attention"][0][0].mean(0)[0, 1:].sum()
    assert attention_maps(net, recorded)["class token"].sum() == pytest.approx(float(wanted), abs=1e-5)


def test_maps_of_the_whole_network():
    torch.manual_seed(0)
    net = module(backbone="poster", image_size=112, dim=64, depth=1, heads=4).eval()
    maps = maps_of(net, torch.randn(1, 3, 112, 112))
    assert {name: values.shape for name, values in maps.items()} == {
        "level 0": (28, 28),
        "level 1": (14, 14),
        "level 2": (7, 7),
        "class token": (7, 7),
    }


def test_distances_are_those_to_the_nearest_anchor(data):
    net = module(anchors=2).eval()
    data.take_shape(net)
    table = distance_table(net, data, 1000)
    assert table["row"].to_list() == list(range(len(table)))
    batch = data.finish(next(iter(data.test_dataloader())))
    with torch.no_grad():
        e = net(batch).embedding
    wanted = torch.stack([(e[:, None] - net.net.anchor_points[k]).norm(dim=-1).amin(1) for k in range(3)], 1)
    found = table.head(len(wanted)).select(f"distance_{k}" for k in range(3)).to_numpy()
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-4)


def test_good_and_bad_cases_of_unlike_classes_are_chosen():
    table = pl.DataFrame(
        {
            "row": range(6),
            "label": [0, 0, 1, 1, 2, 2],
            "predicted": [0, 0, 1, 2, 2, 1],
            "probability": [0.6, 0.9, 0.8, 0.7, 0.5, 0.95],
        }
    )
    assert choose_cases(table) == [1, 2, 4, 5, 3]


def test_distances_that_differ_little_are_told_apart():
    for spread in (0.004, 0.3, 40.0):
        values = 5.4 + spread * np.linspace(0, 1, 9).reshape(3, 3)
        columns = {f"distance_{k}": values[:, k] for k in range(3)}
        picture = _distance_picture(pl.DataFrame({"label": range(3), **columns}), CLASSES)
        assert len({text.get_text() for text in picture.figure.axes[0].texts}) == 9


def test_pictures_of_a_case_hide_no_bar_and_its_caption_says_how_it_was_chosen():
    net = module(anchors=2)
    shares = np.array([0.1, 0.2, 0.7], np.float32)
    case = Case(0, "a", 1, np.zeros((4, 4, 1), np.float32), {}, shares, shares, 1 + shares)
    figure = _draw(net, case)
    figure.canvas.draw()
    (bars,) = (panel for panel in figure.axes if panel.get_legend())
    assert bars.get_legend().get_window_extent().y1 < bars.get_window_extent().y0
    said = _caption(net, case, 380)
    assert "the surest wrong decision about a face of this label among the first 380 of the test split" in said
    assert "0.200 before balancing, 0.200 after it" in said
    plain = _caption(module(balancing=False), case, 380)
    assert "(probability 0.200, not" in plain and "balancing" not in plain


@pytest.mark.parametrize("options", [{"anchors": 2}, {"balancing": False}], ids=["balanced", "plain"])
def test_explain_draws_cases(data, options, tmp_path):
    net = module(**options)
    pictures = explain(net, data, tmp_path)
    assert (tmp_path / "distances.parquet").is_file()
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as maps:
        assert len(maps.files) == 3 * (len(pictures) - net.balancing)
    assert any(picture.title.startswith("wrong") for picture in pictures)
    batch = data.finish(next(iter(data.test_dataloader())))
    one = {name: value[:1] for name, value in batch.items() if name != "global_size"}
    assert case_of(net, one).decided("primary") in range(len(CLASSES))
