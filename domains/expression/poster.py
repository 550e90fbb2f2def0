"""The feature extractor of ARBEx, which is POSTER++ without its classifier.

J. Mao, R. Xu, X. Yin, Y. Chang, B. Nie, A. Huang, *POSTER++: A simpler and stronger facial expression recognition
network* (2023), arXiv 2301.12149. Official code: Talented-Q/POSTER_V2 @ 18de559; as in takihasan/ARBEx @ b85c37b.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.expression.fusion import CrossFusion
from domains.expression.ir50 import IR50, WIDTHS
from domains.expression.mobilefacenet import MobileFaceNet
from domains.expression.token_vit import TokenViT

Resize = Literal["nearest", "bilinear", "area"]
RESIZES = ("nearest", "bilinear", "area")
SIDE = 112  # of what the backbones get
HEADS, WINDOWS, DROP_PATHS = (2, 4, 8), (28, 14, 7), (0.0, 0.125, 0.25)  # of the levels
TOKENS = 3 * 49


class POSTERV2(nn.Module):
    """Embedding of a face from an image stream and a landmark stream.

    Args:
        dim: width D of the embedding.
        depth: blocks of the transformer.
        heads: of their attention.
        drop_path: factor on the rates 0, 0.125 and 0.25 of the levels.
        resize: how images of another size get 112 x 112 pixels; `nearest` in all published weights.
        freeze_backbones: both backbones are not trained: they stay in evaluation, norm statistics too, and compute no
            gradients.
        fuse: at inference fold norms into convolutions and join the convolutions of an embedding; the last block
            computes the class token only, in training too. The numbers are the same but for rounding.

    Shape:
        image (B, 3, H, W) float, normalised by ImageNet's statistics, 224 x 224 in all published work -> (B, D).
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 2,
        heads: int = 8,
        *,
        drop_path: float = 1.0,
        resize: Resize = "nearest",
        freeze_backbones: bool = True,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.resize, self.fuse, self.freeze_backbones = dim, resize, fuse, freeze_backbones
        self.landmarks = MobileFaceNet(fuse=fuse)
        self.image = IR50(fuse=fuse)
        self.landmark_conv = nn.Conv2d(512, WIDTHS[-1], 3, 1, 1)
        embeddings = ((dim, dim), (dim,), (dim,)), ((3, 3), (3,), (1,))
        self.levels = nn.ModuleList(
            CrossFusion(*sizes, widths, kernels, drop_path=drop_path * rate, fuse=fuse)
            for sizes, widths, kernels, rate in zip(
                zip(WIDTHS, HEADS, WINDOWS, strict=True), *embeddings, DROP_PATHS, strict=True
            )
        )
        self.vit = TokenViT(TOKENS, dim, depth, heads, fuse=fuse)
        if freeze_backbones:
            for backbone in (self.landmarks, self.image):
                backbone.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        self.train(self.training)

    def train(self, mode: bool = True) -> POSTERV2:
        """Set the mode of all but frozen backbones, which stay in evaluation."""
        super().train(mode)
        if self.freeze_backbones:
            self.landmarks.eval()
            self.image.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Apply."""
        landmarks, maps = self.streams(image)
        tokens = [level(*pair) for level, *pair in zip(self.levels, maps, landmarks, strict=True)]
        embedding: Tensor = self.vit(torch.cat(tokens, 1))
        return embedding

    def streams(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of landmarks, and of the image, of three levels.

        Raises:
            ValueError: it is no batch of colour images.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"images of shape {tuple(image.shape)}; give (B, 3, H, W)")
        if image.shape[2:] != (SIDE, SIDE):
            image = F.interpolate(image, size=(SIDE, SIDE), mode=self.resize)
        if image.device.type == "cpu" and self.fuse:
            image = image.contiguous(memory_format=torch.channels_last)
        # exported programs cannot be saved with a switch of gradients inside, and compute none anyway
        frozen = self.freeze_backbones and not torch.compiler.is_compiling()
        with torch.no_grad() if frozen else nullcontext():
            landmarks, maps = self.landmarks(image), self.image(image)
        landmarks[-1] = self.landmark_conv(landmarks[-1])
        return landmarks, maps
