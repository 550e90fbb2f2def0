"""Losses over a sample of the catalogue, for catalogues of millions of items.

A batch shares its sample. What the sample stands for is estimated by self-normalised importance weights (Bengio and
Senécal, 2008, IEEE TNN 19(4)); a sample of every item once gives the losses of the full softmax exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.seqrec.losses import Teacher, Transitions, teacher_excess

Sampling = Literal["uniform", "log_uniform"]


@dataclass(frozen=True)
class Sample:
    """Distinct items that stand for the catalogue.

    Shape:
        ids (S,) int64 ascending; log_weight (S,) float32, log of how many items each stands for.
    """

    ids: Tensor
    log_weight: Tensor


def draw_sample(n_items: int, draws: int, sampling: Sampling, seed: int, device: torch.device) -> Sample:
    """Draw items with replacement.

    Args:
        n_items: size V of the catalogue, numbered by falling frequency.
        draws: number of draws.
        sampling: `uniform`, or `log_uniform`, where item k has probability `log((k + 2) / (k + 1)) / log(V + 1)`, which
            is near the frequencies of most logs and needs none of them.
        seed: of the draws; every process draws the same.
        device: where the sample goes.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
    drawn = uniform * n_items if sampling == "uniform" else torch.expm1(uniform * math.log(n_items + 1))
    ids, counts = torch.unique(drawn.long().clamp_(max=n_items - 1), return_counts=True)
    weight = counts.double().log() - math.log(draws)
    if sampling == "uniform":
        weight += math.log(n_items)
    else:
        weight -= ((ids + 2.0) / (ids + 1.0)).log().div(math.log(n_items + 1)).log()
    return Sample(ids.to(device), weight.float().to(device))


def sampled_next_item_loss(
    users: Tensor, wanted: Tensor, target: Tensor, others: Tensor, sample: Sample, n_items: int
) -> Tensor:
    """Summed cross entropy of the next items; the items besides the wanted one are estimated from the sample.

    Shape:
        users (N, D), wanted (N, D) vectors of target (N,) int64, others (S, D) vectors of the sample -> ().
    """
    scores = users @ others.T  # (N, S)
    hit = target[:, None] == sample.ids
    rest = _rest(scores, sample, hit, math.log(max(n_items - 1, 1)))
    positive = (users * wanted).sum(1)
    null = torch.zeros_like(positive)
    return (torch.stack([positive, rest, null]).logsumexp(0) - positive).sum()


def gbce_loss(
    users: Tensor, wanted: Tensor, target: Tensor, others: Tensor, sample: Sample, n_items: int, calibration: float
) -> Tensor:
    """Summed generalised binary cross entropy (Petrov and Macdonald, RecSys 2023, arXiv 2308.07192, eq. 8, 9).

    `-beta log sigma(s+) - sum_k log(1 - sigma(s-))` over k negatives, `beta = a (t (1 - 1/a) + 1/a)` with sampling rate
    `a = k / (V - 1)`, divided by k + 1. Items that were drawn more than once weigh as often, k counts distinct ones.

    Args:
        users: user vectors.
        wanted: vectors of the next items.
        target: the next items.
        others: vectors of the sample.
        sample: uniformly drawn items.
        n_items: size V of the catalogue.
        calibration: t; 0 is binary cross entropy, 1 makes the probabilities those of the full softmax.
    """
    scores = users @ others.T
    drawn = len(sample.ids)
    repeats = sample.log_weight.softmax(0) * drawn  # how often each was drawn, over the mean
    keep = (target[:, None] != sample.ids) * repeats
    rate = min(drawn / max(n_items - 1, 1), 1.0)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    positive = F.softplus(-(users * wanted).sum(1)) * beta
    return (positive + (F.softplus(scores) * keep).sum(1)).sum() / (drawn + 1)


def sampled_distillation_loss(
    heads: Tensor,
    tails: Tensor,
    rows: Transitions,
    others: Tensor,
    sample: Sample,
    n_items: int,
    tau: float,
    teacher: Teacher,
) -> Tensor:
    """Summed cross entropy of the student; observed transitions are exact, all other items estimated from the sample.

    Args:
        heads: student vectors of `rows.head`, scaled and dropped out.
        tails: vectors of `rows.tail`.
        rows: observed transitions.
        others: vectors of the sample.
        sample: items that stand for those that never followed.
        n_items: size V of the catalogue.
        tau: temperature of both sides.
        teacher: see `losses.distillation_loss`.

    Shape:
        heads (H, D), tails (E, D), others (S, D) -> (), each row times its count.
    """
    scaled, row = heads / tau, rows.row
    excess, total = teacher_excess(rows, n_items, tau, teacher)
    known = (scaled[row] * tails).sum(1)  # (E,) logits of observed transitions
    scores = scaled @ others.T  # (H, S)
    observed = torch.zeros_like(scores, dtype=torch.bool)
    place = torch.searchsorted(sample.ids, rows.tail).clamp(max=len(sample.ids) - 1)
    found = sample.ids[place] == rows.tail
    observed[row[found], place[found]] = True
    degree = torch.bincount(row, minlength=len(rows.head))
    unobserved = (n_items - degree).clamp(min=0).to(scores.dtype)
    rest = _rest(scores, sample, observed, 0.0) + unobserved.log()
    highest = torch.zeros_like(rest).scatter_reduce(0, row, known.detach(), "amax").maximum(rest.detach())
    sums = torch.exp(rest - highest).index_add(0, row, torch.exp(known - highest[row]))
    partition = sums.log() + highest
    weight = sample.log_weight.exp() * (~observed)
    mean = (scores * weight).sum(1) / weight.sum(1).clamp(min=1e-12)  # logits of a never-observed item
    taught = (mean * unobserved).index_add(0, row, (excess + 1) * known) / total
    return ((partition - taught) * rows.count).sum()


def _rest(scores: Tensor, sample: Sample, left_out: Tensor, log_size: float) -> Tensor:
    """Log of `size` times the weighted mean of exp(scores) over the sample, less what is left out: (N, S) -> (N,)."""
    weight = sample.log_weight.expand_as(scores).masked_fill(left_out, -math.inf)
    norm = weight.logsumexp(1)
    estimate = (scores + weight).logsumexp(1) - norm + log_size
    return torch.where(norm == -math.inf, torch.full_like(estimate, -1e30), estimate)
