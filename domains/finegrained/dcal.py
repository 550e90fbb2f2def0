"""DCAL: H. Zhu, W. Ke, D. Li, J. Liu, L. Tian, Y. Shan (CVPR 2022), arXiv 2205.02151. There is no official code."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from domains.common.attention import GlobalLocalCrossAttention, gather_tokens, rollout_row, select_tokens, split_heads
from domains.common.attention.pairwise import project_context, project_queries
from domains.common.attention.recorder import Recordable
from domains.common.attention.rollout import HeadFusion
from domains.common.errors import ConfigError
from domains.common.hub import plain
from domains.finegrained.backbone import build_trunk, embed, finish_block, load_trunk
from domains.finegrained.heads import BNNeck, BranchOutput, LinearHead

Task = Literal["fgvc", "reid"]
Distractor = Literal["sa", "pwca"]
Branches = Literal["both", "sa", "glca"]
LayerTensors = tuple[Tensor, Tensor, Any]  # the values may be absent

# what a plain forward pass holds at its peak, in tokens: x, its norm, and the hidden layer twice; images of a slice may
# keep queries and keys until their peak is a quarter above it
PLAIN_PEAK, ALLOWED_PEAK = 10, 1.25


class DCALOutput(NamedTuple):
    """What the branches found.

    Attributes:
        self_attention: of the plain transformer.
        global_local: of the selected tokens; None where only self-attention was asked for.
        pairwise: of images with a distractor; None without pairs.
        rollout: accumulated attention of CLS to every token (B, prefix + N); empty without global_local.
        selected: tokens that asked, CLS first (B, 1 + R) int64; empty without global_local.
    """

    self_attention: BranchOutput
    global_local: BranchOutput | None
    pairwise: BranchOutput | None
    rollout: Tensor
    selected: Tensor


class Encoded(NamedTuple):
    """Self-attention branch, before its final norm.

    Attributes:
        start: tokens that enter the first block (B, L, D).
        tokens: those that leave the last one.
        layers: queries, keys and values of each block, (B, heads, L, c); the values only where pairs will want them,
            of the last block the first query alone.
    """

    start: Tensor
    tokens: Tensor
    layers: list[LayerTensors]


class DCAL(nn.Module):
    """Dual cross-attention learning on a plain vision transformer.

    Self-attention (SA) is the transformer as it is. Global-local cross-attention (GLCA) is one more block with weights
    of its own: the patches to which CLS has attended most through all layers (rollout) ask, all tokens answer.
    Pair-wise cross-attention (PWCA) runs the transformer's own blocks on an image whose keys and values are joined with
    those of another image; it exists in training only.

    Args:
        backbone: name of a plain vision transformer of timm, e.g. `deit_small_patch16_224`; nothing is fetched.
        n_classes: classes, or identities of the training set, C.
        image_size: height and width of images, multiples of the patch.
        task: `fgvc` has a linear classifier a branch, `reid` a BNNeck; SA and PWCA share theirs.
        ratio: part of the patches that ask in GLCA; default 0.1 for `fgvc`, 0.3 for `reid` (section 4.1).
        distractor: whose keys and values PWCA joins: those of the other image's SA branch, which exist already, or
            those of the other image's own PWCA branch. The paper leaves it open.
        fusion: how the heads of a layer become one map for the rollout.
        glca_start: GLCA starts as the last block of the transformer, `last_block`, or `random` (0.02).
        drop_path: stochastic depth of the last block, and of GLCA's; it grows from 0 along the blocks.
        backbone_options: in the place of what the backbone's name says, see `build_trunk`.

    Shape:
        images (B, 3, H, W) float32, normalised as the backbone's weights expect.

    Raises:
        ConfigError: an option that cannot work, see `build_trunk`.

    Example:
        >>> import torch
        >>> from domains.finegrained.dcal import DCAL, class_probabilities
        >>> net = DCAL("deit_tiny_patch16_224", n_classes=5, image_size=(64, 64), backbone_options={"depth": 2}).eval()
        >>> class_probabilities(net(torch.randn(2, 3, 64, 64))).shape
        torch.Size([2, 5])
    """

    trunk: Any
    glca: Any
    glca_norm: Any
    head: Any
    glca_head: Any

    def __init__(
        self,
        backbone: str = "deit_small_patch16_224",
        n_classes: int = 200,
        image_size: Sequence[int] = (448, 448),
        task: Task = "fgvc",
        ratio: float | None = None,
        distractor: Distractor = "sa",
        fusion: HeadFusion = "mean",
        glca_start: Literal["last_block", "random"] = "last_block",
        drop_path: float = 0.1,
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments = plain(arguments)  # what builds this network again, for config.json
        options: dict[str, tuple[str, Sequence[str]]] = {
            "task": (task, ("fgvc", "reid")),
            "distractor": (distractor, ("sa", "pwca")),
        }
        options |= {"fusion": (fusion, ("mean", "max")), "glca_start": (glca_start, ("last_block", "random"))}
        for name, (value, choices) in options.items():
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        self.checkpointing = False  # feed-forward nets are computed anew in the backward pass, for less memory
        self.ratio = {"fgvc": 0.1, "reid": 0.3}[task] if ratio is None else ratio
        if not 0.0 < self.ratio <= 1.0 or n_classes < 2:
            raise ConfigError(
                f"ratio={self.ratio}, n_classes={n_classes}: the ratio lies in (0, 1], classes are 2 or more"
            )
        self.image_size = tuple(image_size)
        self.task, self.distractor, self.fusion, self.glca_start = task, distractor, fusion, glca_start
        self.trunk = build_trunk(backbone, image_size, drop_path=drop_path, options=backbone_options)
        self.glca = copy.deepcopy(self.trunk.blocks[-1])
        self.glca.attn = GlobalLocalCrossAttention.around(self.glca.attn)
        self.glca_norm = copy.deepcopy(self.trunk.norm)
        head = LinearHead if task == "fgvc" else BNNeck
        self.head, self.glca_head = (head(self.trunk.embed_dim, n_classes) for _ in range(2))
        self.uncertainty_w = nn.Parameter(torch.zeros(3))  # of the losses of SA, GLCA and PWCA, section 3.4
        self._start_glca()

    def load_pretrained(self, source: str | Path) -> None:
        """Load a transformer from a local file, see `load_trunk`; GLCA starts anew from its last block."""
        load_trunk(self.trunk, source)
        self._start_glca()

    def _start_glca(self) -> None:
        if self.glca_start == "last_block":
            self.glca.load_state_dict(self.trunk.blocks[-1].state_dict())
            self.glca_norm.load_state_dict(self.trunk.norm.state_dict())
            return
        for module in self.glca.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, pairs: Tensor | None = None, *, branches: Branches = "both") -> DCALOutput:
        """Apply.

        Without gradients and pairs, images go through in slices: queries and keys of all layers, which the rollout
        needs, would otherwise hold several times the memory of the plain transformer.

        Args:
            images: see the class.
            pairs: for each image the number of its distractor in the batch (B,) int64, see `derangement`.
            branches: `sa` leaves out rollout and GLCA.

        Raises:
            ConfigError: images of another size than the network was built for.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            raise ConfigError(
                f"images of {images.shape[-2]} x {images.shape[-1]}: the network was built for "
                f"{' x '.join(map(str, self.image_size))}; resize them, or build it with this image_size"
            )
        if pairs is not None or branches == "sa" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._run(images, pairs, branches)
        if any(module.recording for module in self.modules() if isinstance(module, Recordable)):
            return self._run(images, pairs, branches)
        kept = PLAIN_PEAK + 2 * len(self.trunk.blocks)
        size = max(1, int(len(images) * ALLOWED_PEAK * PLAIN_PEAK / kept))
        parts = [self._run(part, None, branches) for part in torch.split(images, size)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _run(self, images: Tensor, pairs: Tensor | None, branches: Branches) -> DCALOutput:
        encoded = self.encode(images, keep_queries=branches != "sa", keep_values=pairs is not None)
        features = self.trunk.norm(encoded.tokens[:, 0])
        own = BranchOutput(features, self.head(features))
        local, row, selected = None, features.new_empty(0), torch.empty(0, dtype=torch.int64, device=features.device)
        if branches != "sa":
            row = self.rollout(encoded)
            selected = select_tokens(row, self.ratio, prefix=self.trunk.num_prefix_tokens)
            features = self.glca_norm(self.global_local(encoded.tokens, selected)[:, 0])
            local = BranchOutput(features, self.glca_head(features))
        pairwise = None
        if pairs is not None:
            features = self.pairwise(encoded, pairs)
            pairwise = BranchOutput(features, self.head(features))
        return DCALOutput(own, local, pairwise, row, selected)

    def encode(self, images: Tensor, *, keep_queries: bool = True, keep_values: bool = False) -> Encoded:
        """Self-attention branch; keeps what the other branches need of each block."""
        start = x = embed(self.trunk, images)
        layers: list[LayerTensors] = []
        for block in self.trunk.blocks:
            q, k, v = _project(block.attn, block.norm1(x))
            if keep_queries or keep_values:
                layers.append((q, k, v if keep_values else None))
            attended = block.attn.attend(q, k, v)
            del q, k, v  # what is not kept makes room for the hidden layer
            x = self._finish(block, x, attended)
        return Encoded(start, x, layers)

    def rollout(self, encoded: Encoded) -> Tensor:
        """Accumulated attention of CLS to every token (B, L), eq. 2; not differentiable."""
        queries = [layer[0].detach() for layer in encoded.layers]
        keys = [layer[1].detach() for layer in encoded.layers]
        return rollout_row(queries, keys, scale=self.trunk.blocks[0].attn.scale, fusion=self.fusion)

    def global_local(self, tokens: Tensor, selected: Tensor) -> Tensor:
        """GLCA block (B, 1 + R, D), eq. 3: keys and values of all tokens, everything else of the selected ones."""
        return finish_block(
            self.glca, gather_tokens(tokens, selected), self.glca.attn(self.glca.norm1(tokens), selected)
        )

    def pairwise(self, encoded: Encoded, pairs: Tensor) -> Tensor:
        """Features of images with a distractor (B, D), eq. 4.

        The first block's queries, keys and values are those of self-attention; of the last block only CLS is needed.
        """
        x = encoded.start
        for i, block in enumerate(self.trunk.blocks):
            last = i == len(self.trunk.blocks) - 1
            q, k, v = encoded.layers[0] if i == 0 else self._project_pair(block, x, last)
            source = encoded.layers[i][1:] if self.distractor == "sa" else (k, v)
            k2, v2 = (tensor.index_select(0, pairs) for tensor in source)
            if last:
                x, q = x[:, :1], q[:, :, :1]
            x = self._finish(block, x, block.attn.attend(q, k, v, (k2, v2)))
        features: Tensor = self.trunk.norm(x[:, 0])
        return features

    def _finish(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            again: Tensor = checkpoint(finish_block, block, x, attended, use_reentrant=False)
            return again
        return finish_block(block, x, attended)

    @staticmethod
    def _project_pair(block: Any, x: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        normed = block.norm1(x)
        if not last:
            return block.attn.project(normed)  # type: ignore[no-any-return]
        return (project_queries(block.attn, normed[:, :1]), *project_context(block.attn, normed))


def _project(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; at inference values apart, so that they are gone when only the others are kept."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return attention.project(x)  # type: ignore[no-any-return]
    k_dim = attention.qkv.out_features // 3
    weight, bias = attention.qkv.weight, attention.qkv.bias
    both = F.linear(x, weight[: 2 * k_dim], None if bias is None else bias[: 2 * k_dim])
    q, k = both.view(*x.shape[:-1], 2, attention.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    v = F.linear(x, weight[2 * k_dim :], None if bias is None else bias[2 * k_dim :])
    return attention.q_norm(q), attention.k_norm(k), split_heads(v, attention.heads)


def _joined(parts: Sequence[DCALOutput]) -> DCALOutput:
    """Outputs of consecutive images as one; none of them ran without GLCA."""
    own, local = (
        BranchOutput(*(torch.cat(tensors) for tensors in zip(*branches, strict=True)))
        for branches in list(zip(*parts, strict=True))[:2]
    )
    row, selected = torch.cat([part.rollout for part in parts]), torch.cat([part.selected for part in parts])
    return DCALOutput(own, local, None, row, selected)


def class_probabilities(output: DCALOutput, branches: Branches = "both") -> Tensor:
    """Sum of the probabilities of SA and GLCA (section 3.4), or those of one of them (B, C).

    With both a row adds up to 2, as in the paper; the largest entry is the prediction.
    """
    chosen = _chosen(output, branches)
    return torch.stack([branch.logits.softmax(-1) for branch in chosen]).sum(0)


def embedding(output: DCALOutput, branches: Branches = "both", *, normalise: bool = True) -> Tensor:
    """Features of SA and GLCA side by side (B, 2 D), or those of one of them (B, D), of length 1."""
    features = torch.cat([branch.features for branch in _chosen(output, branches)], dim=-1)
    return F.normalize(features, dim=-1) if normalise else features


def _chosen(output: DCALOutput, branches: Branches) -> list[BranchOutput]:
    named = {"sa": output.self_attention, "glca": output.global_local}
    chosen = [named[name] for name in ("sa", "glca") if branches in ("both", name)]
    if any(branch is None for branch in chosen) or not chosen:
        raise ConfigError(f"branches={branches!r}, but the network ran without GLCA; call it with branches='both'")
    return [branch for branch in chosen if branch is not None]


def derangement(count: int, *, generator: torch.Generator | None = None) -> Tensor | None:
    """Random permutation without fixed point, all alike probable: which image distracts which (count,) int64.

    None where there is one image only: it has no pair. On the CPU; not a shift by one, since neighbours of a batch may
    show the same identity.
    """
    if count < 2:
        return None
    own = torch.arange(count)
    while True:  # about one permutation in e has no fixed point
        drawn = torch.randperm(count, generator=generator)
        if not bool((drawn == own).any()):
            return drawn
