"""ARBEx: A. T. Wasi, K. Serbetar, R. Islam, T. H. Rafi, D.-K. Chae.

*ARBEx: Attentive feature extraction with reliability balancing for robust facial expression learning* (2023), arXiv
2305.01486; rewritten as *GReFEL*, arXiv 2410.15927. Official code: takihasan/ARBEx @ b85c37b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from domains.common.attention.reliability import Scope
from domains.common.errors import ConfigError
from domains.common.hub import plain
from domains.expression.balancing import AnchorStart, ARBExOutput, ReliabilityBalancing
from domains.expression.light import LightExtractor
from domains.expression.poster import POSTERV2, RESIZES, Resize

POSTER, SMALL = "poster", "small"
# of each backbone, where the option is not given
SIZES: dict[str, dict[str, Any]] = {
    POSTER: {"image_size": 224, "channels": 3, "dim": 768, "depth": 2, "heads": 8, "hidden": [384, 192, 96]},
    SMALL: {"image_size": 48, "channels": 1, "dim": 128, "depth": 1, "heads": 4, "hidden": [96, 48]},
}


class ARBEx(nn.Module):
    """Distribution over facial expressions, corrected where the network is uncertain.

    An extractor gives an embedding e; a head its primary distribution p; anchors of the classes and an attention give
    two more, which correct p the more the less confident it is: `q = c(p) p + (1 - c(p)) t`.

    Args:
        n_classes: C.
        backbone: `poster`, the network of the paper; `small`, one that trains on a CPU (`LightExtractor`); or the name
            of a network of timm in the place of the latter's backbone.
        image_size: side of images; default 224, and 48 without `poster`.
        channels: of the image: 3, of `poster` always, or 1; default 1 without `poster`.
        dim: width D of the embedding; default 768, and 128.
        depth: blocks of the transformer; default 2, and 1.
        heads: of their attention; default 8, and 4.
        hidden: of the head; default 384, 192, 96, and 96, 48.
        dropout: of the head.
        head_norm: whether the head has batch norms.
        drop_path: of `poster`, a factor on its rates 0, 0.125, 0.25; of others, the rate.
        resize: see `POSTERV2`.
        freeze_backbones: see `POSTERV2`; of no effect on others.
        anchors: K of each class.
        anchor_init: see `Anchors`.
        attention_anchors: K_a of each class; see `ReliabilityAttention`.
        attention_heads: see `ReliabilityAttention`.
        attn_scope: see `ReliabilityAttention`.
        temperature: T of the primary distribution.
        delta: temperature of the similarities to anchors.
        fuse: see `POSTERV2`.

    Shape:
        image (B, channels, S, S) float, normalised -> see `ARBExOutput`.

    Raises:
        ConfigError: an option that cannot be.
        MissingExtraError: timm is needed and not installed.

    Example:
        >>> import torch
        >>> net = ARBEx(7, backbone="small").eval()
        >>> net(torch.randn(2, 1, 48, 48)).corrected.shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        n_classes: int = 8,
        backbone: str = POSTER,
        image_size: int | None = None,
        channels: int | None = None,
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: Sequence[int] | None = None,
        dropout: float = 0.5,
        head_norm: bool = True,
        drop_path: float | None = None,
        resize: Resize = "nearest",
        freeze_backbones: bool = True,
        anchors: int = 1,
        anchor_init: AnchorStart = "normal",
        attention_anchors: int = 1,
        attention_heads: int = 1,
        attn_scope: Scope = "auto",
        temperature: float = 1.0,
        delta: float = 1.0,
        fuse: bool = True,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        chosen = SIZES.get(backbone, SIZES[SMALL]) | {k: v for k, v in arguments.items() if v is not None}
        self.arguments: dict[str, Any] = plain(arguments)  # what builds this network again
        _check(chosen)
        self.image_size, self.channels, self.n_classes = chosen["image_size"], chosen["channels"], n_classes
        sizes = [chosen[name] for name in ("dim", "depth", "heads")]
        self.extractor: POSTERV2 | LightExtractor
        if backbone == POSTER:
            drop_path = 1.0 if drop_path is None else drop_path
            self.extractor = POSTERV2(
                *sizes, drop_path=drop_path, resize=resize, freeze_backbones=freeze_backbones, fuse=fuse
            )
        else:
            drop_path = drop_path or 0.0
            self.extractor = LightExtractor(
                backbone, self.channels, self.image_size, *sizes, drop_path=drop_path, fuse=fuse
            )
        self.balancing = ReliabilityBalancing(
            chosen["dim"],
            n_classes,
            chosen["hidden"],
            head_norm=head_norm,
            dropout=dropout,
            anchors=anchors,
            anchor_init=anchor_init,
            attention_anchors=attention_anchors,
            attention_heads=attention_heads,
            attn_scope=attn_scope,
            temperature=temperature,
            delta=delta,
        )

    def forward(self, image: Tensor, *, trust: float = 1.0) -> ARBExOutput:
        """Apply.

        Args:
            image: a batch.
            trust: see `ReliabilityBalancing`.
        """
        output: ARBExOutput = self.balancing(self.extractor(image), trust=trust)
        return output

    @property
    def anchor_points(self) -> Tensor:
        """Anchors (C, K, D), which the anchor loss is of."""
        return self.balancing.anchors.points


def _check(chosen: dict[str, Any]) -> None:
    """Refuse options that cannot be."""
    if chosen["n_classes"] < 2:
        raise ConfigError(f"n_classes {chosen['n_classes']}: a classifier needs 2 or more")
    for name in ("image_size", "dim", "depth", "heads"):
        if chosen[name] < 1:
            raise ConfigError(f"{name} {chosen[name]}: must be at least 1")
    if chosen["dim"] % chosen["heads"]:
        raise ConfigError(f"heads {chosen['heads']}: does not divide dim {chosen['dim']}")
    if chosen["channels"] not in (1, 3) or (chosen["backbone"] == POSTER and chosen["channels"] != 3):
        raise ConfigError(f"channels {chosen['channels']}: 3 of backbone {POSTER}, 1 or 3 of others")
    if chosen["resize"] not in RESIZES:
        raise ConfigError(f"resize {chosen['resize']!r}: choose one of {', '.join(RESIZES)}")
    if any(size < 1 for size in chosen["hidden"]):
        raise ConfigError(f"hidden {list(chosen['hidden'])}: sizes are at least 1")
    for name in ("dropout", "drop_path"):
        value = chosen.get(name, 0.0)
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"{name} {value}: a probability from 0 to 1")
