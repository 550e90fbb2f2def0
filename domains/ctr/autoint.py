"""AutoInt and AutoInt+ (Song et al., CIKM 2019, arXiv 1810.11921)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.common.attention import FieldAttention
from domains.common.attention.field import Norm, Residual, map_channels
from domains.common.errors import ConfigError
from domains.common.hub import plain
from domains.common.sharded import Placement
from domains.common.table import Table, make_table
from domains.ctr.fields import FieldLayout

Variant = Literal["official", "paper", "fuxictr", "deepctr_torch", "recbole"]


class _BlockOptions(TypedDict):
    bias: bool
    activated: bool
    scaled: bool
    residual: Residual
    norm: Norm
    norm_eps: float
    output_projection: bool
    output_activated: bool


def _block(
    *,
    bias: bool = False,
    activated: bool = False,
    scaled: bool = False,
    residual: Residual = "projected",
    norm: Norm = "none",
    norm_eps: float = 1e-5,
    output_projection: bool = False,
    output_activated: bool = True,
) -> _BlockOptions:
    return {
        "bias": bias,
        "activated": activated,
        "scaled": scaled,
        "residual": residual,
        "norm": norm,
        "norm_eps": norm_eps,
        "output_projection": output_projection,
        "output_activated": output_activated,
    }


# How each published program reads the interacting layer; the README has the table with sources.
BLOCKS: dict[Variant, _BlockOptions] = {
    "official": _block(bias=True, activated=True, scaled=True, residual="activated", norm="after", norm_eps=1e-8),
    "paper": _block(),
    "fuxictr": _block(residual="identity"),
    "deepctr_torch": _block(),
    "recbole": _block(bias=True, scaled=True, residual="none", output_projection=True, output_activated=False),
}
WIDE: frozenset[Variant] = frozenset({"deepctr_torch", "recbole"})


class AutoInt(nn.Module):
    """Click-through rate by self-attention over fields; with `deep` layers it is AutoInt+ (section 5.5).

    Every field becomes a vector: a category its row of the table, a number its field's one row times the number, a
    bag the mean of its rows weighted by the values (eq. 2-4); a missing entry (value 0) the zero vector. `depth`
    interacting layers (eq. 5-8) mix them; the logit is a linear map of all resulting vectors (eq. 9), plus, where
    present, that of a feed-forward net on the embeddings and a linear (wide) term.

    Args:
        fields: the fields as `dataset.json` lists them (see `FieldLayout`); their order is part of the weights.
        dim: embedding size d.
        depth: number of interacting layers L.
        width: width D of each layer, or one width per layer.
        heads: attention heads H.
        variant: whose reading of the maths: `official` (the authors' program), `paper`, or that of the peers
            `fuxictr`, `deepctr_torch` (numerical fields outside the attention), `recbole` (residual once, at the end).
        deep: widths of the feed-forward net; empty for AutoInt without it.
        deep_batch_norm: batch normalisation in it (momentum 0.005, eps 1e-3, as the official program).
        wide: linear term over all fields; default as the variant has it.
        residual: False leaves the residual maps out.
        scaled: scores scaled by 1 / sqrt(D / H); default as the variant has it.
        layer_norm: layer normalisation; default as the variant has it.
        dropout: probability of dropping an attention weight.
        embedding_dropout: probability of dropping an element of the embeddings.
        deep_dropout: probability of dropping an activation of the feed-forward net.
        sparse: whether the table's gradient holds touched rows only (needs an optimiser that knows sparse gradients).
        rows: number of table rows where ids come from an index of their own (the official preparation's); default the
            sum of the fields' sizes.
        placement: whether each process has the whole tables (`replicated`) or its share (`sharded`); no part of the
            model, so that published weights and checkpoints are the same.

    Shape:
        ids (B, S) int rows of the table, values (B, S) float32 (1 category, x number, 0 missing), slot_field (S,) int
        field of each slot, or None when there is no bag and slot = field -> logits (B,) float32.

    Raises:
        ConfigError: contradictory widths or heads.

    Example:
        >>> import torch
        >>> net = AutoInt([{"name": "ad", "kind": "categorical", "size": 10}, {"name": "age", "kind": "numerical"}])
        >>> net(torch.tensor([[3, 10]]), torch.tensor([[1.0, 0.42]])).shape
        torch.Size([1])
    """

    bags: Tensor

    def __init__(
        self,
        fields: Sequence[Mapping[str, Any]],
        dim: int = 16,
        depth: int = 3,
        width: int | Sequence[int] = 64,
        heads: int = 2,
        variant: Variant = "official",
        deep: Sequence[int] = (),
        deep_batch_norm: bool = False,
        wide: bool | None = None,
        residual: bool = True,
        scaled: bool | None = None,
        layer_norm: bool | None = None,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        deep_dropout: float = 0.0,
        sparse: bool = False,
        rows: int | None = None,
        placement: Placement = "replicated",
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "placement")}
        super().__init__()
        self.arguments = plain(arguments)  # what builds this network again, for config.json
        self.layout = FieldLayout(fields)
        self.variant: Variant = variant
        self.dim = dim
        self.attended = self.layout.of_kind("categorical", "multi")
        if variant != "deepctr_torch":
            self.attended = list(range(len(self.layout)))
        self.numerical = self.layout.of_kind("numerical") if variant == "deepctr_torch" else []
        widths = _widths(width, depth, heads, variant)

        bags = torch.zeros(len(self.layout), dtype=torch.bool)
        bags[self.layout.of_kind("multi")] = True
        self.register_buffer("bags", bags, persistent=False)
        rows = self.layout.rows if rows is None else rows
        self.table = make_table(rows, dim, sparse=sparse, placement=placement)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.entry = nn.Linear(dim, widths[0]) if variant == "recbole" and widths else None
        options = _options(variant, residual, scaled, layer_norm)
        incoming = [dim if self.entry is None else widths[0], *widths]
        self.blocks = nn.ModuleList(
            FieldAttention(a, b, heads, dropout=dropout, **options) for a, b in zip(incoming, widths, strict=False)
        )
        self.exit_residual = nn.Linear(dim, widths[-1]) if self.entry is not None and residual else None
        joint = variant == "deepctr_torch"  # one output map, without bias, over both parts
        flat = len(self.attended) * (widths[-1] if widths else 0)
        self.output = nn.Linear(flat, 1, bias=not joint) if widths else None
        inputs = len(self.attended) * dim + len(self.numerical)
        self.deep = DeepTower(inputs, deep, deep_dropout, bias=not joint) if deep else None
        if self.deep is not None and deep_batch_norm:
            # the official program's eps and momentum; the peers keep torch's
            self.deep.add_batch_norm(*((1e-3, 0.005) if variant in ("official", "paper") else (1e-5, 0.1)))
        has_wide = variant in WIDE if wide is None else wide
        self.wide = make_table(rows, 1, sparse=sparse, placement=placement) if has_wide else None
        self.bias = nn.Parameter(torch.zeros(())) if has_wide and variant != "fuxictr" else None
        if self.output is None and self.deep is None and self.wide is None:
            raise ConfigError("depth is 0 and there is no deep nor wide part; the model would have no output")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the official program does: N(0, 2 / (in + out)) output kernel, N(0, 1) bias."""
        if self.wide is not None:
            self.wide.reset_parameters(std=1e-4)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=math.sqrt(2.0 / (self.output.in_features + 1)))
            if self.output.bias is not None and self.variant == "official":
                nn.init.normal_(self.output.bias)
            elif self.output.bias is not None:
                nn.init.zeros_(self.output.bias)

    def embed(self, ids: Tensor, values: Tensor, slot_field: Tensor | None = None) -> Tensor:
        """Look the fields up; ids, values (B, S) -> embeddings (B, M, d), eq. 2-4."""
        return _lookup(self.table, self.bags, ids, values, slot_field)

    def lookup(self, ids: Tensor, values: Tensor, slot_field: Tensor | None = None) -> tuple[Tensor, ...]:
        """Read what a batch needs from the tables; this is what `score` takes, the batch as first axis.

        Only the attended fields are looked up, (B, M', d).
        """
        if len(self.attended) == len(self.layout):
            parts = [self.embed(ids, values, slot_field)]
        elif slot_field is None:
            parts = [self.embed(ids[:, self.attended], values[:, self.attended])]
        else:
            parts = [self.embed(ids, values, slot_field)[:, self.attended]]
        if self.wide is not None:
            # a bag enters the linear term as a sum; DeepCTR-Torch alone takes the mean here, too
            owner = slot_field if self.variant == "deepctr_torch" else None
            parts.append(_lookup(self.wide, self.bags, ids, values, owner).sum(dim=(1, 2)))
        if self.numerical:
            parts.append(values[:, self.numerical])
        return tuple(parts)

    def interact(self, embeddings: Tensor) -> Tensor:
        """Run the interacting layers; embeddings (B, M', d) of the attended fields -> (B, M', D), eq. 5-8."""
        return self._interact(embeddings)[:, : embeddings.shape[1]]

    def _interact(self, x: Tensor) -> Tensor:
        """As `interact`, with padding fields behind an odd number of fields and feature-major in memory."""
        padding = 0 if any(block.recording for block in self.blocks) else -x.shape[1] % 4 * (x.shape[1] % 2)
        mask = None
        if padding:  # odd sizes are slow in the vendors' libraries
            mask = torch.arange(x.shape[1] + padding, device=x.device) < x.shape[1]
        start = F.pad(x.transpose(1, 2), (0, padding))  # (B, d, M)
        y = start if self.entry is None else map_channels(self.entry.weight, self.entry.bias, start)
        y = y.transpose(1, 2)
        for block in self.blocks:
            y = block(y, mask=mask)
        if self.exit_residual is not None:
            y = y + map_channels(self.exit_residual.weight, self.exit_residual.bias, start).transpose(1, 2)
        return F.relu(y) if self.entry is not None else y

    def compile_interaction(self) -> None:
        """Compile what lies behind the table; the lookup stays outside, where its gradient may be sparse."""
        self.score = torch.compile(self.score, dynamic=False)  # type: ignore[method-assign]

    def score(self, embeddings: Tensor, *others: Tensor) -> Tensor:
        """Logit from what `lookup` read.

        Shape:
            embeddings (B, M', d) of the attended fields, then where present the linear term (B,) and, where numerical
            fields bypass the attention, their values (B, n) -> (B,).
        """
        x = self.embedding_dropout(embeddings)
        logits = x.new_zeros(x.shape[0]) if self.bias is None else self.bias.expand(x.shape[0])
        if self.output is not None:
            y = self._interact(x).transpose(1, 2)  # (B, D, M)
            kernel = self.output.weight.view(x.shape[1], -1).T  # the flat vector is (field, dim) in every checkpoint
            kernel = F.pad(kernel, (0, y.shape[2] - x.shape[1]))
            logits = logits + F.linear(y.flatten(1), kernel.reshape(1, -1)).squeeze(1)  # eq. 9
            if self.output.bias is not None:
                logits = logits + self.output.bias
        if self.deep is not None:
            flat = x.flatten(1)
            logits = logits + self.deep(torch.cat([flat, others[-1]], dim=1) if self.numerical else flat)
        return logits if self.wide is None else logits + others[0]

    def forward(self, ids: Tensor, values: Tensor, slot_field: Tensor | None = None) -> Tensor:
        """Return logits (B,); the probability of a click is their sigmoid."""
        return self.score(*self.lookup(ids, values, slot_field))


class DeepTower(nn.Module):
    """Feed-forward net of AutoInt+: per layer linear, optional batch norm, ReLU, dropout; then a linear map to 1.

    Shape:
        (B, inputs) -> (B,).
    """

    def __init__(self, inputs: int, widths: Sequence[int], dropout: float, *, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise([inputs, *widths]):
            layers += [_official_linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.output = _official_linear(widths[-1], 1, bias=bias)

    def add_batch_norm(self, eps: float, momentum: float) -> None:
        """Normalise between each linear map and its ReLU."""
        layers: list[nn.Module] = []
        for layer in self.layers:
            layers.append(layer)
            if isinstance(layer, nn.Linear):
                layers.append(nn.BatchNorm1d(layer.out_features, eps=eps, momentum=momentum))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return this part's logit."""
        logit: Tensor = self.output(self.layers(x)).squeeze(1)
        return logit

    def kernels(self) -> list[Tensor]:
        """Weight matrices that the official L2 penalty covers (those of the hidden layers)."""
        return [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)]


def _official_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    std = math.sqrt(2.0 / (inputs + outputs))
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=std)
    return layer


def _widths(width: int | Sequence[int], depth: int, heads: int, variant: Variant) -> list[int]:
    widths = [width] * depth if isinstance(width, int) else list(width)
    if len(widths) != depth:
        raise ConfigError(f"width lists {len(widths)} layers and depth is {depth}; make them agree")
    for one in widths:
        if one % heads:
            raise ConfigError(f"heads={heads} does not divide width={one}; choose a multiple")
    if variant == "recbole" and len(set(widths)) > 1:
        raise ConfigError(f"variant recbole has one width for all layers, not {widths}")
    return widths


def _options(variant: Variant, residual: bool, scaled: bool | None, layer_norm: bool | None) -> _BlockOptions:
    options = BLOCKS[variant].copy()
    if not residual:
        options["residual"] = "none"
    if scaled is not None:
        options["scaled"] = scaled
    if layer_norm is not None:
        # the official program normalises behind the ReLU, FuxiCTR's option before it
        behind: Norm = "after" if variant in ("official", "paper") else "before"
        options["norm"] = behind if layer_norm else "none"
    return options


def _lookup(table: Table, bags: Tensor, ids: Tensor, values: Tensor, slot_field: Tensor | None) -> Tensor:
    if slot_field is None:
        looked: Tensor = table(ids, values)
        return looked
    totals = values.new_zeros(values.shape[0], bags.shape[0]).index_add(1, slot_field, values)  # (B, M)
    # a bag is a weighted mean (eq. 4), an empty one the zero vector; other fields keep their value
    divisors = torch.where(bags & (totals != 0), totals, torch.ones_like(totals))
    weighted: Tensor = table(ids, values / divisors[:, slot_field])  # (B, S, d)
    return weighted.new_zeros(ids.shape[0], bags.shape[0], weighted.shape[-1]).index_add(1, slot_field, weighted)
