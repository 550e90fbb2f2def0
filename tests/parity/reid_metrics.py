"""Replay the scores of re-identification, the triplet loss and the BNNeck."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.finegrained.heads import BNNeck
from domains.finegrained.losses import hardest_pairs, triplet_loss
from domains.finegrained.reid_metrics import Identified, RetrievalScores, score_distances, score_features
from domains.finegrained.reranking import Reranking, rerank

Tensors = dict[str, Tensor]
TOLERANCE = {"output": 1e-6, "loss": 1e-6, "grad": 1e-6}


def replay(metadata: dict[str, str], given: Tensors, wanted: list[str]) -> Tensors:
    config = json.loads(metadata["config"])
    result: Tensors = {}
    if "input/query_pid" in given:
        result |= replay_scores(config, given)
    if "input/triplet.feat" in given:
        result |= replay_triplet(given, wanted) | replay_neck(given)
    return {name: result[name].detach() for name in wanted}


def replay_scores(config: dict[str, Any], given: Tensors) -> Tensors:
    query, gallery = (
        Identified(given[f"input/{side}_pid"], given[f"input/{side}_cam"]) for side in ("query", "gallery")
    )
    options = {"depth": config["max_rank"]}
    result: Tensors = {}
    if "input/query_feat" in given:
        features = given["input/query_feat"], given["input/gallery_feat"]
        for metric in ("euclidean", "cosine"):
            result |= named(metric, score_features(*features, query, gallery, metric=metric, **options))
            again = Reranking(config.get("k1", 20), config.get("k2", 6), config.get("lambda", 0.3))
            for name in ("rerank", f"{metric}_rerank", f"rerank_{metric}"):
                scores = score_features(*features, query, gallery, metric=metric, reranking=again, **options)
                if name != "rerank" or metric == "euclidean":
                    result |= named(name, scores)
                    result[f"output/{name}.distance"] = rerank(*features, metric, again)
    if "input/tie.distance" in given:
        result |= named("tie", score_distances(given["input/tie.distance"], query, gallery, **options))
    return result


def named(name: str, scores: RetrievalScores) -> Tensors:
    trapezoid = scores.ap_trapezoid[scores.valid].mean()
    return {
        f"output/{name}.cmc": scores.cmc,
        f"output/{name}.mAP_mAPtrapezoid_mINP": torch.stack(
            [torch.tensor(scores.mean_ap), trapezoid, torch.tensor(scores.mean_inp)]
        ),
        f"output/{name}.AP": scores.ap,
        f"output/{name}.valid_query": scores.valid.long(),
    }


def replay_triplet(given: Tensors, wanted: list[str]) -> Tensors:
    features, labels = given["input/triplet.feat"].clone().requires_grad_(), given["input/triplet.label"]
    pairs = hardest_pairs(features, labels)
    result = {"output/triplet.hardest_pos": pairs.positive, "output/triplet.hardest_neg": pairs.negative}
    for name in wanted:
        if name.startswith("loss/triplet_"):
            kind = name.removeprefix("loss/triplet_")
            loss = triplet_loss(features, labels, None if kind == "soft" else float(kind.removeprefix("margin")))
            result[name] = loss.reshape(1)
            (result[f"grad/triplet_{kind}.feat"],) = torch.autograd.grad(loss, features)
    return result


def replay_neck(given: Tensors) -> Tensors:
    weights = {name.removeprefix("weight/"): tensor for name, tensor in given.items() if name.startswith("weight/")}
    neck = BNNeck(*reversed(weights["classifier.weight"].shape))
    neck.load_state_dict(weights | {"bottleneck.num_batches_tracked": torch.tensor(0)})
    features = given["input/triplet.feat"]
    trained = neck(features)
    result = {
        "output/bnneck.logits_train": trained,
        "loss/bnneck_ce_train": F.cross_entropy(trained, given["input/triplet.label"]).reshape(1),
    }
    neck.load_state_dict(weights, strict=False)  # the pass above has moved the statistics
    neck.eval()
    return result | {
        "output/bnneck.feat_eval": neck.bottleneck(features),
        "output/bnneck.logits_eval": neck(features),
    }
