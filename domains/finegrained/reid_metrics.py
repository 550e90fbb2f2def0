"""Scores of re-identification: CMC, mAP and mINP by the rules of Market-1501.

L. Zheng et al., *Scalable Person Re-identification: A Benchmark* (ICCV 2015); M. Ye et al., *Deep Learning for Person
Re-identification: A Survey and Outlook* (2021), arXiv 2001.04193, for mINP.

Gallery images of identity -1 (junk) are dropped, and for each query those of its identity by its camera. Identity 0
(the background of Market-1501) stays as a distractor. Queries without a true match are left out of all means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from domains.common.errors import HeptadError
from domains.finegrained.reid_distances import Metric, distance_blocks
from domains.finegrained.reid_ranking import Block, Matches, RetrievalInputError, match_ranks
from domains.finegrained.reranking import Reranking, reranked_blocks

JUNK = -1
IGNORE_CAMERA = "ignore_camera (--data.ignore_camera true)"  # what messages advise
AveragePrecision = Literal["mean", "trapezoid"]


class NoTrueMatchError(HeptadError, ValueError):
    """No query has a true match in the gallery."""


@dataclass(frozen=True)
class Identified:
    """Who is on images, and which camera took them.

    Attributes:
        identities: (n,) int64; -1 is junk.
        cameras: (n,) int64.
        pictures: name of each image, for messages; empty: its number is told.
        identity_names: what the data call the identities, likewise.
        camera_names: what the data call the cameras, likewise.
    """

    identities: Tensor
    cameras: Tensor
    pictures: Sequence[str] = ()
    identity_names: Mapping[int, str] = field(default_factory=dict)
    camera_names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.identities.ndim != 1 or self.identities.shape != self.cameras.shape:
            shapes = f"{tuple(self.identities.shape)} and {tuple(self.cameras.shape)}"
            raise RetrievalInputError(f"identities and cameras have shapes {shapes}; give one of each for each image")

    def __len__(self) -> int:
        return len(self.identities)

    def identity(self, code: int) -> str:
        """What a message calls an identity."""
        return f"identity {self.identity_names[code]}" if self.identity_names.get(code) else f"identity number {code}"

    def camera(self, code: int) -> str:
        """What a message calls a camera."""
        if code < 0:
            return "an unknown camera"
        return f"camera {self.camera_names[code]}" if self.camera_names.get(code) else f"camera number {code}"


@dataclass(frozen=True)
class RetrievalScores:
    """Scores, and what they are means of.

    Attributes:
        cmc: part of the valid queries whose first true match has rank 1, 2, ... (depth,) float64.
        mean_ap: mean over valid queries of `ap`.
        mean_inp: likewise of `inp`.
        ap: of each query, by the rule asked for (Q,) float64; NaN where there is no true match.
        ap_mean: precision averaged over the true matches.
        ap_trapezoid: area under precision and recall by trapezoids, as the original tool of Market-1501; lower.
        inp: number of true matches / rank of the last one.
        first_rank: rank of the first true match; 0 where there is none (Q,) int64.
        matches: number of true matches (Q,) int64.
    """

    cmc: Tensor
    mean_ap: float
    mean_inp: float
    ap: Tensor
    ap_mean: Tensor
    ap_trapezoid: Tensor
    inp: Tensor
    first_rank: Tensor
    matches: Tensor

    @property
    def valid(self) -> Tensor:
        """Queries that have a true match (Q,) bool."""
        return self.matches > 0


def score_features(
    query_features: Tensor,
    gallery_features: Tensor,
    query: Identified,
    gallery: Identified,
    *,
    metric: Metric = "euclidean",
    depth: int = 50,
    ap: AveragePrecision = "mean",
    ignore_camera: bool = False,
    reranking: Reranking | None = None,
    block_elements: int = 2**22,
) -> RetrievalScores:
    """Score features; the (Q, G) matrix exists in blocks of queries only.

    Ranks are those of distances in float64, whatever the precision of the features: what float32 cannot tell apart is
    compared again. Equal distances keep the order of the gallery.

    Args:
        query_features: of any length.
        gallery_features: likewise.
        query: who they are.
        gallery: likewise.
        metric: `euclidean`, or `cosine`: 1 - the cosine of the angle.
        depth: ranks of the CMC curve, at most G.
        ap: rule of `mean_ap` and `ap`.
        ignore_camera: images by the query's own camera count, too: for a set with a single camera. An image that is
            query and gallery at once is then its own first match.
        reranking: k-reciprocal re-ranking; None: none.
        block_elements: of a block of distances.

    Shape:
        query_features (Q, D), gallery_features (G, D), floating point, on one device.

    Raises:
        NoTrueMatchError: no query has a true match; says why.
        RetrievalInputError: features are not finite, or shapes do not fit.
    """
    for name, features, who in (("query", query_features, query), ("gallery", gallery_features, gallery)):
        if features.ndim != 2 or len(features) != len(who):
            raise RetrievalInputError(
                f"{name} features have shape {tuple(features.shape)} for {len(who)} identities; one row each is needed"
            )
    if query_features.shape[1] != gallery_features.shape[1]:
        widths = f"{query_features.shape[1]} and {gallery_features.shape[1]}"
        raise RetrievalInputError(f"features of queries and gallery have widths {widths}; use one network for both")
    kept = gallery.identities.to(gallery_features.device) != JUNK
    counted = gallery_features if bool(kept.all()) else gallery_features[kept]
    if reranking is None:
        blocks = distance_blocks(query_features, counted, metric, block_elements)
    else:
        blocks = reranked_blocks(query_features, counted, metric, reranking, block_elements)
    return _score(blocks, query, gallery, depth, ap, ignore_camera)


def score_distances(
    distances: Tensor,
    query: Identified,
    gallery: Identified,
    *,
    depth: int = 50,
    ap: AveragePrecision = "mean",
    ignore_camera: bool = False,
    block_elements: int = 2**22,
) -> RetrievalScores:
    """Score a given matrix of distances, see `score_features`; equal entries keep the order of the gallery.

    Shape:
        distances (Q, G), any type of number.

    Raises:
        NoTrueMatchError: see `score_features`.
        RetrievalInputError: likewise.
    """
    if distances.shape != (len(query), len(gallery)):
        raise RetrievalInputError(
            f"distances have shape {tuple(distances.shape)} for {len(query)} queries and {len(gallery)} gallery images"
        )
    if distances.is_floating_point() and not bool(distances.isfinite().all()):
        row, column = (~distances.isfinite()).nonzero()[0].tolist()
        raise RetrievalInputError(f"the distance of query {row} and gallery image {column} is not finite")
    kept = (gallery.identities.to(distances.device) != JUNK).nonzero().squeeze(1)
    dtype = distances.dtype if distances.dtype in (torch.float32, torch.float64) else torch.float64
    rows = max(block_elements // max(distances.shape[1], 1), 1)
    blocks = (
        Block(first, distances[first : first + rows].index_select(1, kept).to(dtype))
        for first in range(0, len(distances), rows)
    )
    return _score(blocks, query, gallery, depth, ap, ignore_camera)


def _score(
    blocks: Iterator[Block],
    query: Identified,
    gallery: Identified,
    depth: int,
    ap: AveragePrecision,
    ignore_camera: bool,
) -> RetrievalScores:
    if ap not in ("mean", "trapezoid") or depth < 1:
        raise RetrievalInputError(f"ap={ap!r}, depth={depth}: the rule is mean or trapezoid, the depth 1 or more")
    kept = gallery.identities != JUNK
    left = Identified(gallery.identities[kept], gallery.cameras[kept])
    matches = Matches.find(query.identities, query.cameras, left.identities, left.cameras, ignore_camera=ignore_camera)
    if not bool((matches.counts > 0).any()):
        raise NoTrueMatchError(_why_nothing_matches(query, left))
    parts = []
    for block in blocks:
        matches = matches.to(block.distances.device)
        parts.append([part.cpu() for part in _per_query(*match_ranks(block, matches))])
    mean, trapezoid, inp, first = (torch.cat(columns) for columns in zip(*parts, strict=True))
    counts = matches.counts.cpu()
    valid = counts > 0
    chosen = mean if ap == "mean" else trapezoid
    reached = first[valid, None] <= torch.arange(1, min(depth, len(left)) + 1)
    return RetrievalScores(
        cmc=reached.double().mean(0),
        mean_ap=float(chosen[valid].mean()),
        mean_inp=float(inp[valid].mean()),
        ap=chosen,
        ap_mean=mean,
        ap_trapezoid=trapezoid,
        inp=inp,
        first_rank=first,
        matches=counts,
    )


def _per_query(ranks: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AP by both rules, INP (each float64, NaN without a match), and the first rank (int64, 0 without)."""
    count = real.sum(1)
    if ranks.shape[1] == 0:
        nothing = torch.full((len(ranks),), torch.nan, dtype=torch.float64, device=ranks.device)
        return nothing, nothing, nothing, torch.zeros_like(count)
    found = torch.arange(1, ranks.shape[1] + 1, device=ranks.device, dtype=torch.float64)
    precision = found / ranks
    # precision one rank earlier, where the match was not yet found; before rank 1 it is 1
    earlier = torch.where(ranks > 1, (found - 1) / (ranks - 1).clamp(min=1), 1.0)
    weight = real / count[:, None].double()  # NaN where nothing matches
    mean = (precision.masked_fill(~real, 0.0) * weight).sum(1)
    trapezoid = ((0.5 * (precision + earlier)).masked_fill(~real, 0.0) * weight).sum(1)
    last = ranks.masked_fill(~real, 0).amax(1)
    first = ranks[:, 0].masked_fill(count == 0, 0)
    return mean, trapezoid, count / last.double(), first


def describe_unmatched(scores: RetrievalScores, query: Identified, gallery: Identified, limit: int = 5) -> str:
    """One line about the queries that have no true match, which are left out of all means; empty if all have one.

    Args:
        scores: of a run.
        query: as given to it.
        gallery: likewise.
        limit: identities that are told one by one.
    """
    missing = (~scores.valid).nonzero().squeeze(1).tolist()
    if not missing:
        return ""
    identities = query.identities.cpu()
    pictures = [query.pictures[row] if query.pictures else f"number {row}" for row in missing[:limit]]
    named = ", ".join(pictures) + (", ..." if len(missing) > limit else "")
    wanted = sorted({int(identities[row]) for row in missing})
    told = "; ".join(_cameras(identity, query, gallery) for identity in wanted[:limit])
    more = f"; and {len(wanted) - limit} identities more" if len(wanted) > limit else ""
    there = torch.isin(identities[missing], gallery.identities.cpu())  # by the own camera, or else they would match
    advice = f"; {IGNORE_CAMERA} counts images by the query's own camera, too" if bool(there.any()) else ""
    return (
        f"{len(missing)} of {len(identities)} queries ({named}) have no true match in the gallery and are left out:"
        f" {told}{more}{advice}"
    )


def _why_nothing_matches(query: Identified, gallery: Identified) -> str:
    common = sorted(set(query.identities.tolist()) & set(gallery.identities.tolist()))
    start = f"none of {len(query)} queries has a true match among {len(gallery)} gallery images"
    if not common:
        return f"{start}: they have no identity in common; check how identities are read from file names"
    told = "; ".join(_cameras(identity, query, gallery) for identity in common[:3])
    every = sorted(set(query.cameras.tolist()) | set(gallery.cameras.tolist()))
    cause = "each was seen by the query's own camera only"
    if len(every) == 1:
        cause = f"all images are by {query.camera(every[0])}"
    return f"{start}: {cause} ({told}); prepare the data with the camera of each image, or use {IGNORE_CAMERA}"


def _cameras(identity: int, query: Identified, gallery: Identified) -> str:
    """Images of an identity by camera."""
    told = []
    for name, who in (("query", query), ("gallery", gallery)):
        cameras = who.cameras[who.identities == identity]
        values, counts = torch.unique(cameras.cpu(), return_counts=True)
        images = ", ".join(f"{n} by {query.camera(c)}" for c, n in zip(values.tolist(), counts.tolist(), strict=True))
        told.append(f"{name} {images or 'none'}")
    return f"{query.identity(identity)}: {', '.join(told)}"
