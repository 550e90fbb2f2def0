"""MVPFormer: F. Carzaniga, M. Hersche, A. Sebastian, K. Schindler, A. Rahimi (ICLR 2026), arXiv 2506.20354.

*A foundation model with multi-variate parallel attention to generate neuronal activity*. Official code:
IBM/multi-variate-parallel-transformer @ 9f5357b (Apache-2.0, "research only, not for diagnosis").
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from domains.common.attention import MultiVariateParallelAttention
from domains.common.attention.mvpa import Backend, ChannelDistance, DropoutKind, RelativeIndex
from domains.common.lora import LowRankLinear, freeze_adapted
from domains.ieeg.wavelet import WaveletEncoder

INIT_STD = 0.02


class SwiGLU(nn.Module):
    """Gated feed-forward network (Shazeer, 2020, arXiv 2002.05202, eq. 6) without biases.

    Args:
        dim: width of tokens.
        hidden: width between.

    Shape:
        x (..., dim) -> (..., dim).
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class MVPABlock(nn.Module):
    """Attention and feed-forward network side by side behind one norm: x + MLP(n) + Attention(n), n = RMSNorm(x).

    Args:
        dim: width E of tokens.
        hidden: width inside the feed-forward network.
        attention: the attention.
        dropout: of the attention's output.

    Shape:
        x (B, T, C, E) -> (B, T, C, E), or (B, 1, C, E) with `last_only`.
    """

    def __init__(self, dim: int, hidden: int, attention: MultiVariateParallelAttention, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.attention = attention
        self.mlp = SwiGLU(dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        channel: Tensor,
        *,
        counts: Tensor | None = None,
        mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Apply; see `MultiVariateParallelAttention.forward`."""
        normed = self.norm(x)
        attended = self.attention(normed, time, channel, counts=counts, mask=mask, last_only=last_only)
        x, own = (x[:, -1:], normed[:, -1:]) if last_only else (x, normed)
        out: Tensor = x + self.mlp(own) + self.dropout(attended)
        return out


class MVPFormer(nn.Module):
    """The backbone: wavelet tokens of every segment and channel, blocks of MVPA, a last norm.

    Args:
        samples: L of a segment (2,560: 5 s at 512 Hz).
        dim: width E of tokens.
        depth: number of blocks.
        heads: query heads.
        kv_heads: key and value heads.
        hidden: width inside the feed-forward networks.
        max_segments: rows of the table of relative time; a window has no more segments.
        max_channels: rows of the table of relative channels (of signed distances twice as many less one).
        window: segments before its own whose content a query compares.
        relative_index: see `MultiVariateParallelAttention`; from_end as the official weights need it, distance for
            tables that mean the same at any number of segments and channels.
        channel_distance: absolute (official code) or signed (paper).
        content: False leaves the content term out.
        encoder_eps: see `WaveletEncoder`; about the square of usual amplitudes, such as 1e4, lets tokens tell them.
        inverse_layer_scale: divide the scores of block i by i, counted from 1.
        dropout: of tokens, attention weights, and attention outputs.
        dropout_kind: of attention weights.
        backend: of the attention.
        lora_rank: rank of the adapters of queries and values; 0: none, and everything is trained.
        lora_alpha: their scale is alpha / rank.
        checkpointing: compute blocks again in the backward pass, which saves their activations.

    Shape:
        x (B, T, C, L) float, microvolts -> (B, T, C, E).
    """

    def __init__(
        self,
        samples: int = 2560,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        kv_heads: int = 4,
        hidden: int = 1728,
        max_segments: int = 110,
        max_channels: int = 128,
        window: int = 10,
        relative_index: RelativeIndex = "from_end",
        channel_distance: ChannelDistance = "absolute",
        content: bool = True,
        encoder_eps: float = 1e-5,
        inverse_layer_scale: bool = False,
        dropout: float = 0.1,
        dropout_kind: DropoutKind = "structured",
        backend: Backend = "auto",
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "samples": samples,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "hidden": hidden,
            "max_segments": max_segments,
            "max_channels": max_channels,
            "window": window,
            "relative_index": relative_index,
            "channel_distance": channel_distance,
            "content": content,
            "encoder_eps": encoder_eps,
            "inverse_layer_scale": inverse_layer_scale,
            "dropout": dropout,
            "dropout_kind": dropout_kind,
            "backend": backend,
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,
            "checkpointing": checkpointing,
        }
        self.samples, self.dim, self.max_segments, self.max_channels = samples, dim, max_segments, max_channels
        self.lora_rank, self.checkpointing = lora_rank, checkpointing
        self.encoder = WaveletEncoder(samples, dim, encoder_eps)
        self.dropout = nn.Dropout(dropout)
        self.time = nn.Parameter(torch.empty(max_segments, dim))
        rows = max_channels if channel_distance == "absolute" else 2 * max_channels - 1
        self.channel = nn.Parameter(torch.empty(rows, dim))
        self.blocks = nn.ModuleList(
            MVPABlock(
                dim,
                hidden,
                MultiVariateParallelAttention(
                    dim,
                    heads,
                    kv_heads,
                    window=window,
                    relative_index=relative_index,
                    channel_distance=channel_distance,
                    content=content,
                    divisor=i + 1.0 if inverse_layer_scale else 1.0,
                    dropout=dropout,
                    dropout_kind=dropout_kind,
                    backend=backend,
                ),
                dropout,
            )
            for i in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self._start()
        if lora_rank:
            self._adapt(lora_rank, lora_alpha)

    def _start(self) -> None:
        """N(0, 0.02²) for all that is no norm; the encoder keeps torch's own start, as in the official code."""
        for name, parameter in self.named_parameters():
            if not name.startswith("encoder.") and "norm" not in name:
                nn.init.normal_(parameter, std=INIT_STD)

    def _adapt(self, rank: int, alpha: float) -> None:
        """Give queries and values adapters, and freeze all the rest."""
        for block in self.layers:
            attention = block.attention
            values = attention.key_value.out_features // 2
            attention.query = LowRankLinear.around(attention.query, rank, alpha)
            attention.key_value = LowRankLinear.around(attention.key_value, rank, alpha, adapted=values)
        freeze_adapted(self)

    @property
    def layers(self) -> list[MVPABlock]:
        """The blocks."""
        return [cast(MVPABlock, block) for block in self.blocks]

    def encode(self, x: Tensor) -> Tensor:
        """Tokens (B, T, C, E) of segments (B, T, C, L).

        Raises:
            ValueError: the segments are not what the tables and the encoder were made for.
        """
        segments, channels, samples = x.shape[1:]
        if samples != self.samples:
            raise ValueError(f"segments of {samples} samples; the model reads {self.samples}")
        if segments > self.max_segments or channels > self.max_channels:
            raise ValueError(
                f"{segments} segments of {channels} channels; the model knows up to {self.max_segments} segments "
                f"(max_segments) and {self.max_channels} channels (max_channels)"
            )
        tokens: Tensor = self.encoder(x)
        return tokens

    def contextualise(
        self,
        tokens: Tensor,
        counts: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        last_only: bool = False,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the blocks.

        Args:
            tokens: of `encode`.
            counts: channels of each row of the batch, where rows are padded.
            mask: True where a token is a key.
            last_only: return the last segment alone; the last block computes nothing else.
            states: gets what each block but the last leaves.

        Shape:
            tokens (B, T, C, E), counts (B,) int, mask (B, T, C) bool -> (B, T, C, E) or (B, 1, C, E).
        """
        hidden = self.dropout(tokens)
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            run = partial(block, counts=counts, mask=mask, last_only=last_only and last)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                hidden = checkpoint(run, hidden, self.time, self.channel, use_reentrant=False)
            else:
                hidden = run(hidden, self.time, self.channel)
            if states is not None and not last:
                states.append(hidden)
        normed: Tensor = self.norm(hidden)
        return normed

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Encode and contextualise."""
        return self.contextualise(self.encode(x), counts)


class GenerativeMVPFormer(nn.Module):
    """MVPFormer that predicts the token of each channel's next segment (section 3.2).

    Args:
        options: of `MVPFormer`.

    Shape:
        x (B, T, C, L) microvolts -> predictions (B, T, C, E); row t predicts the token of segment t + 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.backbone = MVPFormer(**options)
        self.arguments = self.backbone.arguments
        self.head = nn.Linear(self.backbone.dim, self.backbone.dim, bias=False)

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Predict."""
        predicted: Tensor = self.head(self.backbone(x, counts))
        return predicted


class MVPFormerClassifier(nn.Module):
    """MVPFormer that classifies the last segment of a window: mean over channels, one linear map without bias.

    Args:
        n_classes: number of classes.
        options: of `MVPFormer`.

    Shape:
        x (B, T, C, L) microvolts, counts (B,) int -> logits (B, n_classes).
    """

    def __init__(self, n_classes: int = 2, **options: Any) -> None:
        super().__init__()
        self.backbone = MVPFormer(**options)
        self.arguments = {"n_classes": n_classes, **self.backbone.arguments}
        self.head = nn.Linear(self.backbone.dim, n_classes, bias=False)

    def pool(self, tokens: Tensor, counts: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Mean (B, E) of the last segment over its real channels, from the tokens (B, T, C, E) of the encoder."""
        last = self.backbone.contextualise(tokens, counts, mask=mask, last_only=True)[:, 0]
        if counts is None:
            return last.mean(dim=1)
        real = torch.arange(last.shape[1], device=last.device) < counts[:, None]
        # where, not a product: what stands in padding may be anything
        return torch.where(real[..., None], last, 0.0).sum(dim=1) / counts[:, None]

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Classify."""
        logits: Tensor = self.head(self.pool(self.backbone.encode(x), counts))
        return logits
