"""Market-1501's rules query by query, as published evaluators in Python do it; no import from `domains`.

L. Zheng et al. (ICCV 2015), section 5: sort the gallery, take out images of the query's identity by its camera, then
walk down the list. Distances are one product of matrices; the whole matrix is sorted before the loop starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.peers.worker import Step, Work

DEPTH = 50


@dataclass(frozen=True)
class Setting:
    """A made set of features.

    Attributes:
        queries: Q.
        gallery: G.
        dim: of features.
        identities: who is on the images.
        cameras: that took them.
        noise: of features around the centre of an identity.
        seed: of all.
    """

    queries: int
    gallery: int
    dim: int
    identities: int
    cameras: int = 6
    noise: float = 3.5
    seed: int = 0


def make_set(setting: Setting) -> dict[str, torch.Tensor]:
    """Features float32, identities from 1 and cameras of queries and gallery."""
    generator = torch.Generator().manual_seed(setting.seed)
    centres = torch.randn(setting.identities + 1, setting.dim, generator=generator)
    made = {}
    for side, count in (("query", setting.queries), ("gallery", setting.gallery)):
        identity = torch.randint(1, setting.identities + 1, (count,), generator=generator)
        noise = torch.randn(count, setting.dim, generator=generator)
        made[f"{side}_feature"] = torch.nn.functional.normalize(centres[identity] + setting.noise * noise)
        made[f"{side}_identity"] = identity
        made[f"{side}_camera"] = torch.randint(setting.cameras, (count,), generator=generator)
    return made


def distances(query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances (Q, G)."""
    squares = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
    return squares.addmm(query, gallery.T, alpha=-2.0)


def evaluate(matrix: np.ndarray, made: dict[str, np.ndarray]) -> dict[str, float]:
    """MAP and rank-1 of a matrix of distances."""
    order = np.argsort(matrix, axis=1, kind="stable")
    matching = made["gallery_identity"][order] == made["query_identity"][:, None]
    curves, precisions = [], []
    for i in range(len(matrix)):
        cameras = made["gallery_camera"][order[i]]
        removed = matching[i] & (cameras == made["query_camera"][i])
        hits = matching[i][~removed].astype(np.int64)
        if not hits.any():
            continue
        curve = hits.cumsum()
        curve[curve > 1] = 1
        curves.append(curve[:DEPTH])
        found = hits.cumsum()
        precision = np.asarray([count / (place + 1.0) for place, count in enumerate(found)]) * hits
        precisions.append(precision.sum() / hits.sum())
    mean = np.asarray(curves, dtype=np.float64).mean(0)
    return {"mAP": float(np.mean(precisions)), "rank1": float(mean[0]), "rank5": float(mean[4])}


def build(setting: Setting, part: str) -> Step:
    """Return a step: `all` from features, or `ranking` of distances that exist already."""
    made = make_set(setting)
    arrays = {name: tensor.numpy() for name, tensor in made.items()}
    given = distances(made["query_feature"], made["gallery_feature"]).numpy() if part == "ranking" else None

    def step(_: int) -> Work:
        matrix = given
        if matrix is None:
            matrix = distances(made["query_feature"], made["gallery_feature"]).numpy()
        return Work({"queries": setting.queries}, evaluate(matrix, arrays))

    return step
