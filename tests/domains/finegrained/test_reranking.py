"""k-reciprocal re-ranking against its definition written out with sets and full matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.common.errors import ConfigError
from domains.finegrained.reid_metrics import score_distances, score_features
from domains.finegrained.reranking import Reranking, rerank
from tests.domains.finegrained.retrieval import made_set


def by_sets(query, gallery, options):
    """Equations 3 to 12 as they stand."""
    features = torch.cat([query, gallery]).double()
    distances = (features[:, None] - features[None]).square().sum(2).numpy()
    total, k1, half = len(features), options.k1, round(options.k1 / 2)
    order = np.argsort(distances, axis=1, kind="stable")
    relative = distances / distances.max(1, keepdims=True)

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    encoding = np.zeros((total, total))
    for i in range(total):
        near = reciprocal(i, k1)
        expanded = set(near)
        for j in near:
            theirs = reciprocal(j, half)
            if 3 * len(theirs & near) > 2 * len(theirs):
                expanded |= theirs
        members = sorted(expanded)
        weights = np.exp(-relative[i, members])
        encoding[i, members] = weights / weights.sum()
    if options.k2 > 1:
        encoding = np.stack([encoding[order[i, : options.k2]].mean(0) for i in range(total)])
    smaller = np.minimum(encoding[: len(query), None], encoding[None, len(query) :]).sum(2)
    larger = np.maximum(encoding[: len(query), None], encoding[None, len(query) :]).sum(2)
    jaccard = 1.0 - smaller / larger
    return (1 - options.weight) * jaccard + options.weight * relative[: len(query), len(query) :]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 25)),
    options=st.sampled_from([(20, 6, 0.3), (5, 1, 0.3), (4, 4, 0.0), (7, 3, 1.0), (1, 1, 0.5)]),
)
def test_equals_its_definition(seed, sizes, options):
    torch.manual_seed(seed)
    query, gallery = (torch.randn(n, 4) for n in sizes)
    found = rerank(query, gallery, options=Reranking(*options))
    np.testing.assert_allclose(found, by_sets(query, gallery, Reranking(*options)), atol=1e-6)


def test_blocks_and_metric():
    query, gallery, generator = made_set(3)
    features = [torch.randn(n, 6, generator=generator) for n in (9, 40)]
    kept = gallery.identities != -1
    unit = [torch.nn.functional.normalize(part.double()) for part in features]
    whole = rerank(unit[0], unit[1][kept])
    filled = torch.full((9, 40), 9.0, dtype=torch.float64)
    filled[:, kept] = whole
    expected = score_distances(filled, query, gallery)
    for block in (1, 2**20):
        scores = score_features(*features, query, gallery, metric="cosine", reranking=Reranking(), block_elements=block)
        torch.testing.assert_close(scores.ap, expected.ap, equal_nan=True)


@pytest.mark.parametrize("options", [(0, 1, 0.3), (5, 6, 0.3), (5, 0, 0.3), (5, 2, 1.5)])
def test_options_that_cannot_work(options):
    with pytest.raises(ConfigError, match="1 <= k2 <= k1"):
        Reranking(*options)
