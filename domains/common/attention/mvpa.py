"""Multi-variate parallel attention: F. Carzaniga, M. Hersche, A. Sebastian, K. Schindler, A. Rahimi (ICLR 2026).

*A foundation model with multi-variate parallel attention to generate neuronal activity*, arXiv 2506.20354. Where paper
and official code differ, the code's maths is the default: IBM/multi-variate-parallel-transformer @ 9f5357b, Apache-2.0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from domains.common.attention.mvpa_flex import flex_attends, flex_mvpa
from domains.common.attention.mvpa_tiles import Inputs, Layout, tiled_attention
from domains.common.attention.recorder import Recordable

RelativeIndex = Literal["from_end", "distance"]
ChannelDistance = Literal["absolute", "signed"]
DropoutKind = Literal["structured", "elementwise"]
Backend = Literal["auto", "tiles", "flex", "explicit"]


class MultiVariateParallelAttention(Recordable):
    """Attention of every channel and segment to all channels of its own and earlier segments (section 3).

    The score of the query of segment t and channel c on the key of segment t' <= t and channel c' is

        (g (q + u) . k + (q + v) . kt[t - t'] + (q + w) . kc[|c - c'|]) / sqrt(D),

    with learned biases u, v, w, keys kt and kc of relative time and channel, and the gate g = 1 where t - t' <= window
    or t is the last segment, else 0: beyond the window the content is not compared, the key stays visible. Queries come
    in groups that share keys and values. Softmax is over all (t', c').

    Args:
        dim: width E of tokens.
        heads: query heads H; divides `dim`.
        kv_heads: key and value heads K; divides `heads`; query head h reads head h // (H / K). Default H.
        window: segments before its own whose content a query compares.
        relative_index: how rows of the tables stand for distances. from_end: distance d is row T - 1 - d (time) and
            C - 1 - d (channels), as in the official code, so that a row's meaning depends on T and C. distance: row d.
        channel_distance: absolute, as in the official code; signed, as the paper writes it: the table of channels has
            2 M - 1 rows for up to M channels, and distance c' - c is row M - 1 + c' - c.
        content: False leaves the content term out (an ablation; `global_att` of the official code).
        divisor: the scores are also divided by it (`scale_attn_by_inverse_layer_idx` of the official code).
        dropout: probability with which a weight is dropped in training.
        dropout_kind: structured: whole segments and whole channels, each with probability 1 - sqrt(1 - p), the same for
            all rows of the batch, heads and queries (the official kernel); elementwise: each weight by itself, on the
            explicit path, whose memory grows with (T C)^2.
        backend: tiles (see `mvpa_tiles`), flex (FlexAttention), explicit, or auto: flex on a GPU that has it, else
            tiles.

    Shape:
        x (B, T, C, E), time (>= T, E), channel (>= C, E; signed: (2 M - 1, E), M >= C) -> (B, T, C, E), or
        (B, 1, C, E) with `last_only`.

    Raises:
        ValueError: numbers that do not divide, or signed distances counted from the end.

    Example:
        >>> import torch
        >>> block = MultiVariateParallelAttention(dim=16, heads=4, kv_heads=2)
        >>> block(torch.randn(1, 12, 3, 16), torch.randn(12, 16), torch.randn(3, 16)).shape
        torch.Size([1, 12, 3, 16])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        window: int = 10,
        relative_index: RelativeIndex = "from_end",
        channel_distance: ChannelDistance = "absolute",
        content: bool = True,
        divisor: float = 1.0,
        dropout: float = 0.0,
        dropout_kind: DropoutKind = "structured",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if dim % heads or heads % kv_heads:
            raise ValueError(f"heads={heads} must divide dim={dim}, and kv_heads={kv_heads} must divide heads={heads}")
        if channel_distance == "signed" and relative_index == "from_end":
            raise ValueError("signed channel distances have no row from the end; use relative_index='distance'")
        if window < 0:
            raise ValueError(f"window={window}; a query compares at least its own segment (0)")
        self.heads, self.kv_heads, self.window = heads, kv_heads, window
        self.head_dim, self.group = dim // heads, heads // kv_heads
        self.relative_index, self.channel_distance = relative_index, channel_distance
        self.content, self.dropout, self.dropout_kind, self.backend = content, dropout, dropout_kind, backend
        self.scale = 1.0 / (math.sqrt(self.head_dim) * divisor)
        width = kv_heads * self.head_dim
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * width, bias=False)
        self.time_key = nn.Linear(dim, width, bias=False)
        self.channel_key = nn.Linear(dim, width, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(3, kv_heads, self.head_dim))  # u, v, w

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
        """Attend.

        Args:
            x: tokens.
            time: table of relative time.
            channel: table of relative channels.
            counts: channels of each row of the batch, where rows are padded to C channels behind them; what comes out
                for padding is to be ignored.
            mask: True where a token is a key; on the explicit path.
            last_only: queries of the last segment alone.

        Shape:
            counts (B,) int, mask (B, T, C) bool.
        """
        batch, segments, channels, dim = x.shape
        queries = x[:, -1:] if last_only else x
        q = self.query(queries).view(batch, -1, channels, self.kv_heads, self.group, self.head_dim)
        q = q.permute(0, 3, 1, 4, 2, 5) * self.scale  # (B, K, Tq, G, C, D)
        # of (B, K, T, C, D) each
        k, v = self.key_value(x).view(batch, segments, channels, 2, self.kv_heads, -1).permute(3, 0, 4, 1, 2, 5)
        dropout = self.dropout if self.training else 0.0
        if dropout and self.dropout_kind == "structured":
            v, dropout = v * self._kept(v, dropout), 0.0
        time_keys = self._time_keys(time, segments)  # (K, T, D)
        channel_keys = self._channel_keys(channel, channels, counts)  # (1 or B, K, 2 C - 1, D)
        keys = None if counts is None else torch.arange(channels, device=x.device) < counts[:, None]  # (B, C)
        # an exported program has no loops over sizes
        asked = self.backend == "explicit" or torch.compiler.is_compiling()
        explicit = dropout > 0.0 or mask is not None or self.recording or asked
        if explicit:
            out = self._explicit(q, k, v, time_keys, channel_keys, _every_mask(mask, keys), dropout)
        elif self.backend == "flex" or (self.backend == "auto" and flex_attends(q)):
            tau, chi = self._terms(q, time_keys, channel_keys)
            chi = chi if keys is None else chi.masked_fill(~keys[:, None, None, None, None, :], -math.inf)
            content = (q + self._biases(0)) if self.content else torch.zeros_like(q)
            out = flex_mvpa(content, k, v, tau, chi, self.window)
        else:
            out = self._tiled(q, k, v, time_keys, channel_keys, keys)
        # (B, K, Tq, G, C, D) -> (B, Tq, C, H D)
        projected: Tensor = self.out(out.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, dim))
        return projected

    def relative_terms(self, x: Tensor, time: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of time and channels of the scores, not divided by sqrt(D); of the future they are 0.

        Shape:
            -> (B, H, T, C, T), (B, H, T, C, C).
        """
        batch, segments, channels, _ = x.shape
        q = self.query(x).view(batch, segments, channels, self.kv_heads, self.group, self.head_dim)
        keys = self._time_keys(time, segments), self._channel_keys(channel, channels, None)
        tau, chi = (term / self.scale for term in self._terms(q.permute(0, 3, 1, 4, 2, 5) * self.scale, *keys))
        past = torch.ones(segments, segments, dtype=torch.bool, device=x.device).tril()
        tau = tau.masked_fill(~past[:, None, None, :], 0.0)
        return tuple(term.permute(0, 1, 3, 2, 4, 5).flatten(1, 2) for term in (tau, chi))  # type: ignore[return-value]

    def _biases(self, which: int) -> Tensor:
        """u, v or w, scaled as queries are, for (B, K, T, G, C, D)."""
        return (self.bias[which] * self.scale)[:, None, None, None, :]

    def _heads(self, keys: Tensor) -> Tensor:
        """(rows, K D) -> (K, rows, D)."""
        return keys.view(len(keys), self.kv_heads, self.head_dim).transpose(0, 1)

    def _time_keys(self, table: Tensor, segments: int) -> Tensor:
        """Keys of relative time; row T - 1 - d is that of distance d."""
        keys = self._heads(self.time_key(table[:segments]))
        return keys if self.relative_index == "from_end" else keys.flip(1)

    def _channel_keys(self, table: Tensor, channels: int, counts: Tensor | None) -> Tensor:
        """Keys of relative channels; row C - 1 + c' - c is that of key channel c' and query channel c."""
        shift = torch.arange(1 - channels, channels, device=table.device)
        if self.channel_distance == "signed":
            middle = len(table) // 2
            return self._heads(self.channel_key(table[middle + 1 - channels : middle + channels]))[None]
        keys = self._heads(self.channel_key(table[:channels]))
        if self.relative_index == "distance":
            return keys[:, shift.abs()][None]
        if counts is None:
            return keys[:, channels - 1 - shift.abs()][None]
        # padding has distances beyond a row's own channels: any row does, as it is no key
        index = (counts[:, None] - 1 - shift.abs()).clamp(min=0)
        return keys[:, index].transpose(0, 1)

    def _kept(self, v: Tensor, dropout: float) -> Tensor:
        """Factors of values under structured dropout: 0 in dropped segments and channels, else 1 / (1 - p)."""
        keep = math.sqrt(1.0 - dropout)
        times, channels = (torch.rand(size, device=v.device) < keep for size in v.shape[2:4])
        return ((times[:, None] & channels)[..., None] / (1.0 - dropout)).to(v.dtype)

    def _tiled(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        time_keys: Tensor,
        channel_keys: Tensor,
        keys: Tensor | None,
    ) -> Tensor:
        batch, _, segments, channels, _ = k.shape
        bias = (self.bias * self.scale).to(q.dtype).transpose(0, 1).expand(batch, -1, -1, -1)
        layout = Layout(segments, channels, self.group, self.window, q.shape[2], self.content)
        inputs = Inputs(
            q.flatten(0, 1),
            k.flatten(0, 1),
            v.flatten(0, 1),
            time_keys.expand(batch, -1, -1, -1).flatten(0, 1),
            channel_keys.expand(batch, -1, -1, -1).flatten(0, 1),
            bias.flatten(0, 1),
            None if keys is None else keys.repeat_interleave(self.kv_heads, dim=0),
        )
        return tiled_attention(inputs, layout).view(q.shape)

    def _terms(self, q: Tensor, time_keys: Tensor, channel_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of time (B, K, Tq, G, C, T) and channels (B, K, Tq, G, C, C); of the future they mean nothing."""
        segments, channels = time_keys.shape[1], q.shape[4]
        device = q.device
        tau = (q + self._biases(1)) @ time_keys[:, None, None].mT
        first = segments - q.shape[2]
        index = segments - 1 - torch.arange(first, segments, device=device)[:, None]
        index = (index + torch.arange(segments, device=device)).clamp(max=segments - 1)  # (Tq, T)
        tau = tau.gather(-1, index[:, None, None, :].expand(tau.shape))
        chi = (q + self._biases(2)) @ channel_keys[:, :, None, None].mT
        places = torch.arange(channels, device=device)
        shift = channels - 1 + places - places[:, None]
        return tau, chi.gather(-1, shift.expand(*chi.shape[:-1], channels))

    def _explicit(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        time_keys: Tensor,
        channel_keys: Tensor,
        visible: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """The formula as it stands, over all pairs of tokens."""
        batch, heads, asked, group, channels, width = q.shape
        segments = k.shape[2]
        tau, chi = self._terms(q, time_keys, channel_keys)
        scores = tau[..., :, None] + chi[..., None, :]  # (B, K, Tq, G, C, T, C)
        own, other = torch.arange(segments - asked, segments, device=q.device)[:, None], torch.arange(segments)
        other = other.to(q.device)
        if self.content:
            content = (q + self._biases(0)).flatten(2, 4) @ k.flatten(2, 3).mT
            gate = (own - other <= self.window) | (own == segments - 1)
            scores = scores + content.view(scores.shape) * gate[:, None, None, :, None]
        mask = (other <= own)[:, None, None, :, None].expand(scores.shape[2:])
        if visible is not None:
            mask = mask & visible[:, None, None, None, None]
        # heads and tokens as everywhere: (B, H, Tq C, T C)
        scores, mask = (
            t.expand(scores.shape).permute(0, 1, 3, 2, 4, 5, 6).reshape(batch, heads * group, asked * channels, -1)
            for t in (scores, mask)
        )
        values = v.flatten(2, 3).repeat_interleave(group, dim=1)
        out, _ = self.weigh(scores, values, mask=mask, dropout=dropout)
        return out.view(batch, heads, group, asked, channels, width).transpose(2, 3)


def _every_mask(mask: Tensor | None, keys: Tensor | None) -> Tensor | None:
    """Keys that both masks leave, (B, T, C) or (B, 1, C); None where nothing is masked."""
    if mask is None or keys is None:
        return mask if keys is None else keys[:, None]
    return mask & keys[:, None]
