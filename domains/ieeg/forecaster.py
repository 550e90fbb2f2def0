"""A forecaster of multivariate series on MVPA: patches of each variate as tokens, variates as channels.

The paper reports forecasting (ETT) without a published model or its sizes; what stands here is this project's reading:
tokens are patches of every variate, blocks are those of MVPFormer, one linear map leads from the last token of a
variate to its horizon, and each window is normalised by itself (Kim et al., ICLR 2022, RevIN without its affine map).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from domains.common.attention import MultiVariateParallelAttention
from domains.common.attention.mvpa import ChannelDistance
from domains.ieeg.mvpformer import INIT_STD, MVPABlock

Normalisation = Literal["window", "last"]
EPS = 1e-5


class PatchForecaster(nn.Module):
    """Blocks of MVPA between patches of all variates and the horizon of each.

    Args:
        n_variates: C.
        look_back: steps N.
        horizon: steps H.
        patch: steps of a token; divides N.
        dim: width of tokens.
        depth: number of blocks.
        heads: query heads.
        kv_heads: key and value heads.
        hidden: width inside the feed-forward networks.
        window: patches before its own whose content a query compares.
        content: False leaves the content term out.
        channel_distance: signed or absolute.
        dropout: of tokens, attention and head.

    Shape:
        series (B, C, N) -> (B, C, H).
    """

    def __init__(
        self,
        n_variates: int,
        look_back: int,
        horizon: int,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        window: int,
        content: bool,
        channel_distance: ChannelDistance,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patch = patch
        segments = look_back // patch
        self.embed = nn.Linear(patch, dim)
        self.dropout = nn.Dropout(dropout)
        rows = 2 * n_variates - 1 if channel_distance == "signed" else n_variates
        self.place = nn.Parameter(torch.empty(segments, dim))
        self.time = nn.Parameter(torch.empty(segments, dim))
        self.channel = nn.Parameter(torch.empty(rows, dim))
        for table in (self.place, self.time, self.channel):
            nn.init.normal_(table, std=INIT_STD)
        self.blocks = nn.ModuleList(
            MVPABlock(
                dim,
                hidden,
                MultiVariateParallelAttention(
                    dim,
                    heads,
                    kv_heads,
                    window=window,
                    content=content,
                    relative_index="distance",
                    channel_distance=channel_distance,
                    dropout=dropout,
                ),
                dropout,
            )
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, horizon)

    def forward(self, series: Tensor) -> Tensor:
        """Forecast."""
        patches = series.reshape(*series.shape[:2], -1, self.patch).transpose(1, 2)  # (B, T, C, P)
        hidden = self.dropout(self.embed(patches) + self.place[:, None])
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, self.time, self.channel, last_only=i == len(self.blocks) - 1)
        forecast: Tensor = self.head(self.dropout(self.norm(hidden[:, -1])))
        return forecast


class MVPAForecaster(nn.Module):
    """Forecast all variates for a horizon from a look-back window.

    Args:
        n_variates: C.
        look_back: steps N that are seen; a multiple of `patch`.
        horizon: steps H that are forecast.
        patch: steps of a token; patches do not overlap.
        dim: width of tokens.
        depth: number of blocks; 0: the linear map alone, the baseline.
        heads: query heads.
        kv_heads: key and value heads.
        hidden: width inside the feed-forward networks.
        window: patches before its own whose content a query compares.
        content: False leaves the content term out.
        channel_distance: signed or absolute; variates have no order of their own, so a table row stands for a pair of
            places in the file.
        normalisation: window: subtract mean and divide by deviation of the look-back; last: subtract its last value.
        skip: add a linear map from the look-back to the horizon, shared by variates, so that blocks learn the rest.
        dropout: of tokens, attention and head.

    Variates come in their own units; `measure` tells the network their mean and deviation.

    Shape:
        x (B, N, C) float32 -> (B, H, C).

    Raises:
        ValueError: `patch` does not divide `look_back`, or nothing is left that could forecast.
    """

    mean: Tensor
    deviation: Tensor
    measured: Tensor

    def __init__(
        self,
        n_variates: int,
        look_back: int = 336,
        horizon: int = 96,
        patch: int = 24,
        dim: int = 32,
        depth: int = 1,
        heads: int = 4,
        kv_heads: int = 4,
        hidden: int = 64,
        window: int = 10,
        content: bool = True,
        channel_distance: ChannelDistance = "signed",
        normalisation: Normalisation = "last",
        skip: bool = True,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if look_back % patch:
            raise ValueError(f"patch={patch} does not divide look_back={look_back}")
        if not depth and not skip:
            raise ValueError("depth=0 needs skip=True; else nothing is left that could forecast")
        sizes: dict[str, Any] = {
            "patch": patch,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "hidden": hidden,
            "window": window,
            "content": content,
            "channel_distance": channel_distance,
            "dropout": dropout,
        }
        self.arguments: dict[str, Any] = {
            "n_variates": n_variates,
            "look_back": look_back,
            "horizon": horizon,
            "normalisation": normalisation,
            "skip": skip,
            **sizes,
        }
        self.look_back, self.horizon = look_back, horizon
        self.n_variates, self.normalisation = n_variates, normalisation
        self.register_buffer("mean", torch.zeros(n_variates))
        self.register_buffer("deviation", torch.ones(n_variates))
        self.register_buffer("measured", torch.tensor(False))
        self.skip = nn.Linear(look_back, horizon) if skip else None
        self.patches = PatchForecaster(n_variates, look_back, horizon, **sizes) if depth else None
        if self.patches is not None and skip:  # the blocks start as nothing beside the linear map
            nn.init.zeros_(self.patches.head.weight)
            nn.init.zeros_(self.patches.head.bias)

    def measure(self, mean: Tensor, deviation: Tensor) -> None:
        """Take mean and standard deviation (C,) of the variates of the training split."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.measured.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Forecast."""
        x = (x - self.mean) / self.deviation
        if self.normalisation == "window":
            centre = x.mean(1, keepdim=True)
            scale = (x.var(1, keepdim=True, unbiased=False) + EPS).sqrt()
        else:
            centre, scale = x[:, -1:], torch.ones_like(x[:, -1:])
        series = ((x - centre) / scale).transpose(1, 2)  # (B, C, N)
        forecast = torch.stack([part(series) for part in (self.skip, self.patches) if part is not None]).sum(0)
        out: Tensor = (forecast.transpose(1, 2) * scale + centre) * self.deviation + self.mean
        return out
