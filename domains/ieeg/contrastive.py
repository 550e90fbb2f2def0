"""The generative objective: predict the token of the next segment among tokens of elsewhere (section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1
NEGATIVES = 30
CHUNK = 1 << 23  # numbers of negatives that are gathered at a time


def draw_negatives(real: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw other real tokens of the batch for every token, uniformly and with replacement.

    The official code draws from all but the last row of the batch, and cannot draw from one row at all.

    Args:
        real: which tokens are no padding; at least two.
        count: negatives of each token.
        generator: of the draws.

    Shape:
        real (B, T, C) bool -> (B, T, C, count) int64, flat indices into B T C; rows of padding mean nothing.
    """
    places = real.flatten().nonzero().flatten()
    rank = real.flatten().cumsum(0) - 1
    drawn = torch.randint(max(len(places) - 1, 1), (real.numel(), count), generator=generator, device=real.device)
    drawn = (drawn + (drawn >= rank[:, None])) % max(len(places), 1)
    return places[drawn].view(*real.shape, count)


def contrastive_logits(
    predicted: Tensor, tokens: Tensor, negatives: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Cosine similarities, over the temperature, of each prediction with the true token and with negatives.

    A negative that equals the true token (a stuck channel repeats itself) gets -inf. The gradient flows into the true
    tokens, not into negatives.

    Args:
        predicted: of the next segment's token.
        tokens: of the encoder.
        negatives: of `draw_negatives`; those of segment 0, which nothing predicts, are not used.
        temperature: of the similarities.

    Shape:
        predicted, tokens (B, T, C, E), negatives (B, T, C, M) int -> (B, T - 1, C, 1 + M); the true token is first.
    """
    query = F.normalize(predicted[:, :-1], dim=-1)
    truth, index = tokens[:, 1:], negatives[:, 1:].long()
    positive = (query * F.normalize(truth, dim=-1)).sum(-1, keepdim=True)
    bank = tokens.detach().flatten(0, 2)
    units = F.normalize(bank, dim=-1)
    flat_query, flat_truth, flat_index = query.flatten(0, 2), truth.detach().flatten(0, 2), index.flatten(0, 2)
    rows = max(1, CHUNK // (flat_index.shape[-1] * bank.shape[-1]))
    parts = []
    for part in (slice(start, start + rows) for start in range(0, len(flat_query), rows)):
        chosen = flat_index[part]
        similar = torch.einsum("ne,nme->nm", flat_query[part], units[chosen])
        gap = (bank[chosen] - flat_truth[part, None]).norm(dim=-1)
        same = gap < 1e-8 + 1e-5 * flat_truth[part].norm(dim=-1, keepdim=True)
        parts.append(similar.masked_fill(same, -math.inf))
    other = torch.cat(parts).view(index.shape)
    return torch.cat([positive, other], dim=-1) / temperature


def contrastive_loss(logits: Tensor, real: Tensor | None = None) -> Tensor:
    """Cross entropy of the true token, mean over tokens.

    Args:
        logits: of `contrastive_logits`.
        real: which predicted tokens count; default all.

    Shape:
        logits (..., 1 + M), real (...) bool -> scalar.
    """
    each = logits.logsumexp(dim=-1) - logits[..., 0]
    return each.mean() if real is None else each[real].mean()
