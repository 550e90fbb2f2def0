"""Scores of re-identification against a double loop; ties, precision, blocks, and what a user is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.finegrained.reid_metrics import (
    Identified,
    NoTrueMatchError,
    RetrievalInputError,
    describe_unmatched,
    score_distances,
    score_features,
)
from tests.domains.finegrained.retrieval import by_loops, made_set


def same(scores, expected):
    np.testing.assert_allclose(scores.ap_mean, expected["ap"], atol=1e-12)
    np.testing.assert_allclose(scores.cmc, expected["cmc"], atol=1e-12)
    assert scores.mean_ap == pytest.approx(expected["mean_ap"], abs=1e-12)
    assert scores.mean_inp == pytest.approx(expected["mean_inp"], abs=1e-12)
    assert float(scores.ap_trapezoid[scores.valid].mean()) == pytest.approx(expected["trapezoid"], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 2, 4, 1000]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(2, 6), st.integers(1, 4)),
    block=st.sampled_from([1, 50, 2**20]),
    ignore=st.booleans(),
    kind=st.sampled_from([torch.float32, torch.float64, torch.int64]),
)
def test_distances_equal_a_double_loop(seed, levels, sizes, block, ignore, kind):
    queries, images, identities, cameras = sizes
    query, gallery, generator = made_set(seed, queries=queries, gallery=images, identities=identities, cameras=cameras)
    distances = torch.randint(levels, (queries, images), generator=generator).to(kind)
    given = distances.clone()
    expected = by_loops(distances, query, gallery, depth=10, ignore_camera=ignore)
    options = {"depth": 10, "ignore_camera": ignore, "block_elements": block}
    if expected["cmc"] is None:
        with pytest.raises(NoTrueMatchError):
            score_distances(distances, query, gallery, **options)
        return
    same(score_distances(distances, query, gallery, **options), expected)
    assert torch.equal(distances, given), "what is given stays"


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    metric=st.sampled_from(["euclidean", "cosine"]),
    far=st.sampled_from([0.0, 100.0]),
    copies=st.booleans(),
)
def test_features_rank_as_in_float64(seed, kind, metric, far, copies):
    """Far from the origin float32 products lose the distances of near images; copies of an image are true ties."""
    query, gallery, generator = made_set(seed, gallery=30)
    features = [torch.randn(n, 6, generator=generator) + far for n in (len(query), len(gallery))]
    if copies:
        features[1] = features[1][torch.randint(4, (30,), generator=generator)]
    features = [part.to(kind) for part in features]
    a, b = (part.double() for part in features)
    if metric == "cosine":
        a, b = (part / part.norm(dim=1, keepdim=True) for part in (a, b))
    distances = (a[:, None] - b[None]).square().sum(2)
    expected = by_loops(distances, query, gallery)
    if expected["cmc"] is not None:
        for block in (1, 2**20):
            same(score_features(*features, query, gallery, metric=metric, block_elements=block), expected)


def test_background_stays_and_junk_goes():
    query = Identified(torch.tensor([3]), torch.tensor([0]))
    gallery = Identified(torch.tensor([-1, 0, 3, 3]), torch.tensor([1, 1, 0, 1]))
    scores = score_distances(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), query, gallery)
    assert scores.first_rank.tolist() == [2], "behind the background; neither junk nor the own camera counts"
    assert scores.mean_ap == 0.5
    assert scores.cmc.tolist() == [0.0, 1.0, 1.0]
    area = score_distances(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), query, gallery, ap="trapezoid")
    assert area.mean_ap == 0.25


def test_ties_keep_the_order_of_the_gallery():
    query = Identified(torch.tensor([1]), torch.tensor([0]))
    gallery = Identified(torch.tensor([2, 1, 2, 1]), torch.tensor([1, 1, 1, 1]))
    scores = score_distances(torch.zeros(1, 4), query, gallery)
    assert scores.mean_ap == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert scores.mean_inp == 0.5


def test_one_camera_is_told_with_counts():
    query = Identified(torch.tensor([1, 2]), torch.tensor([7, 7]))
    gallery = Identified(torch.tensor([1, 1, 2]), torch.tensor([7, 7, 7]))
    with pytest.raises(NoTrueMatchError, match="all images are by camera number 7") as error:
        score_distances(torch.rand(2, 3), query, gallery)
    assert "identity number 1: query 1 by camera number 7, gallery 2 by camera number 7" in str(error.value)
    assert "--data.ignore_camera true" in str(error.value)
    assert "\n" not in str(error.value)
    assert score_distances(torch.rand(2, 3), query, gallery, ignore_camera=True).valid.all()


def test_no_identity_in_common_is_told():
    query, gallery = (Identified(torch.tensor([i]), torch.tensor([i])) for i in (1, 2))
    with pytest.raises(NoTrueMatchError, match="no identity in common"):
        score_distances(torch.rand(1, 1), query, gallery)


def test_queries_without_a_match_are_named_and_left_out():
    names = {"identity_names": {1: "0100", 5: "0105", 2: "0017"}, "camera_names": {0: "1", 1: "6"}}
    query = Identified(torch.tensor([1, 5, 2]), torch.tensor([0, 0, 0]), ["a.jpg", "b.jpg", "c.jpg"], **names)
    gallery = Identified(torch.tensor([1, 2, 2]), torch.tensor([1, 0, 0]))
    scores = score_distances(torch.tensor([[0.1, 0.2, 0.3]]).expand(3, -1), query, gallery)
    assert scores.valid.tolist() == [True, False, False]
    assert scores.mean_ap == 1.0
    told = describe_unmatched(scores, query, gallery)
    assert told.startswith("2 of 3 queries (b.jpg, c.jpg) have no true match")
    assert "identity 0105: query 1 by camera 1, gallery none" in told
    assert "identity 0017: query 1 by camera 1, gallery 2 by camera 1" in told
    assert "--data.ignore_camera true" in told
    absent = score_distances(torch.rand(2, 1), *(Identified(who.identities[:k], who.cameras[:k]) for who, k in
                                                 ((query, 2), (gallery, 1))))  # fmt: skip
    assert "ignore_camera" not in describe_unmatched(absent, *(Identified(who.identities[:k], who.cameras[:k])
                                                    for who, k in ((query, 2), (gallery, 1)))), "no help"  # fmt: skip
    whole = score_distances(torch.rand(3, 3), query, Identified(query.identities, query.cameras + 1))
    assert describe_unmatched(whole, query, gallery) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, q, g: (f[0][:3], f[1], q, g), r"query features have shape \(3, 6\) for 9 identities"),
        (lambda f, q, g: (f[0], f[1][:, :4], q, g), "widths 6 and 4"),
        (lambda f, q, g: (f[0] / 0, f[1], q, g), "query features of image 0 are not finite"),
    ],
)
def test_features_that_do_not_fit(change, message):
    query, gallery, generator = made_set(0)
    features = [torch.randn(n, 6, generator=generator) for n in (9, 40)]
    with pytest.raises(RetrievalInputError, match=message):
        score_features(*change(features, query, gallery))


def test_distances_that_do_not_fit():
    query, gallery, _ = made_set(0)
    with pytest.raises(RetrievalInputError, match="for 9 queries and 40 gallery images"):
        score_distances(torch.rand(9, 41), query, gallery)
    with pytest.raises(RetrievalInputError, match="query 0 and gallery image 0 is not finite"):
        score_distances(torch.full((9, 40), torch.nan), query, gallery)
    with pytest.raises(RetrievalInputError, match="the rule is mean or trapezoid"):
        score_distances(torch.rand(9, 40), query, gallery, ap="area")
    with pytest.raises(RetrievalInputError, match="give one of each"):
        Identified(torch.zeros(3), torch.zeros(2))


def test_precision_of_products_is_restored():
    query, gallery, generator = made_set(0)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            features = [torch.randn(n, 6, generator=generator) for n in (9, 40)]
            scores = score_features(*features, query, gallery)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert scores.mean_ap == score_features(*features, query, gallery).mean_ap
