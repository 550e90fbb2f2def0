"""What the pictures of an explanation rest on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.finegrained.planted import write_planted_classes, write_planted_identities
from data_prep.finegrained.prepare import prepare
from domains.common.attention import record, rollout_matrix
from domains.finegrained.data import ClassData, IdentityData
from domains.finegrained.explain import choose, explain, look
from domains.finegrained.looked import choose_rows
from domains.finegrained.module import ClassModule, ReIDModule


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
    assert found.among == "11 of 15 pictures of the test"
    table = found.table.to_dicts()
    chosen = choose(module, found)
    assert all(table[i]["label"] == table[i]["predicted"] for i in chosen["Right, and surest"])
    assert all(table[i]["label"] != table[i]["predicted"] for i in chosen["Wrong, and surest"])


def test_a_map_is_drawn_as_multiples_of_even_attention(looked):
    _, _, found = looked
    even = replace(found, rollout=np.full_like(found.rollout, 0.003))
    assert even.relative == pytest.approx(1)
    np.testing.assert_allclose(found.relative.mean((1, 2)), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    """Queries first in the index, as published lists have them, and far more pictures than are looked at."""
    folder = tmp_path_factory.mktemp("persons")
    made = write_planted_identities(folder / "raw", identities=20, cameras=3, per_camera=6, size=(40, 20))
    table = pl.read_csv(made.table, infer_schema=False)
    number, place = table["identity"].cast(pl.Int64), pl.int_range(pl.len())
    side = pl.when(number < 4).then(pl.lit("train")).when(place % 3 == 0).then(pl.lit("query"))
    table = table.with_columns(split=side.otherwise(pl.lit("gallery")), identity="id" + pl.col("identity"))
    alone = (pl.col("identity") == "id0007") & (pl.col("camera") != "1")  # its queries have no true match
    order = ["train", "query", "gallery"]
    table.filter(~alone).sort(pl.col("split").replace_strict(order, [0, 1, 2])).write_csv(folder / "raw" / "t.csv")
    options = {"table": folder / "raw" / "t.csv", "valid_identities": 0, "executor": "serial", "progress": False}
    prepare("csv", folder / "raw", folder / "data", **options)
    data = IdentityData(str(folder / "data"), batch_size=8, image_size=(32, 16))
    net = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    module = ReIDModule(data.identities, [32, 16], backbone="vit_tiny_patch16_224", backbone_options=net)
    return module.eval(), data


def test_of_identities_queries_are_looked_at_with_their_matches(persons, tmp_path):
    module, data = persons
    frame = data.store("test").frame
    assert frame["role"].to_list()[:60] == ["query"] * 60, "queries come first"
    pictures = explain(module, data, tmp_path, rows=40)
    assert [one.title for one in pictures][2:] == ["Queries that are found best", "Queries that are found worst"]
    looked = look(module, data, rows=40)
    table = looked.table
    assert len(table) == 40
    assert table.equals(look(module, data, rows=40).table), "always the same"
    queries, gallery = (table.filter(pl.col("role") == role) for role in (1, 2))
    assert "id0007" not in queries["identity"].to_list(), "nothing could be found for it"
    for query in queries.iter_rows(named=True):
        mine = gallery.filter((pl.col("label") == query["label"]) & (pl.col("camera") != query["camera"]))
        assert len(mine) > 0
    assert queries["label"].n_unique() >= 4
    others = gallery.filter(~pl.col("label").is_in(queries["label"].to_list()))
    assert len(others) >= 10, "a quarter is of nobody who is looked for"
    said = f"{len(queries)} of 90 queries with a true match, of {queries['label'].n_unique()} of 15 identities, and"
    assert said in pictures[0].caption
    assert said in pictures[2].caption


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(16, 80), st.booleans())
def test_every_chosen_query_keeps_a_match_it_had(seed, count, ignore):
    rng = np.random.default_rng(seed)
    total = 150
    frame = pl.DataFrame(
        {
            "label": rng.integers(-1, 8, total),
            "camera": rng.integers(0, 3, total),
            "role": np.sort(rng.choice(["query", "gallery"], total))[::-1],
        }
    )
    chosen = frame[choose_rows(frame, count, ignore_camera=ignore).rows]
    assert len(chosen) <= count
    gallery = chosen.filter(pl.col("role") == "gallery")
    queries = chosen.filter(pl.col("role") == "query")
    assert len(queries) > 0
    for label, camera in queries.select("label", "camera").iter_rows():
        same = gallery.filter(pl.col("label") == label)
        assert len(same if ignore else same.filter(pl.col("camera") != camera)) > 0


def test_without_any_match_pictures_are_shown_all_the_same(persons):
    module, data = persons
    frame = data.store("test").frame
    no_camera = frame.with_columns(camera=pl.lit(0))
    assert len(choose_rows(no_camera, 30).rows) == 30
    assert choose_rows(no_camera, 30).among.startswith("0 of 0 queries")
    found = look(module, data, rows=20)
    alone = replace(found, table=found.table.with_columns(camera=pl.lit(0)))
    assert choose(module, alone) == {"Pictures of the test": list(range(8))}
