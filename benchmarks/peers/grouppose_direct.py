"""Group Pose as its equations stand, in plain torch: each map by `grid_sample`, every linear map and norm by itself.

The peer of `benchmarks/pose_deformable.py`. The maths and the names of the weights are those of the paper (Liu et al.,
ICCV 2023, arXiv 2308.07313) and of its official program, which has no form for the CPU; for images without padding, and
only what evaluation needs. Nothing here is from `domains`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.deformable_direct import sample

Weights = dict[str, Tensor]
HEADS, POINTS = 8, 4


class Direct:
    """The network.

    Args:
        weights: under the official names.
        queries: N.
    """

    def __init__(self, weights: Weights, queries: int) -> None:
        self.w, self.queries = weights, queries
        self.levels, self.dim = weights["transformer.level_embed"].shape
        self.keypoints = len(weights["transformer.keypoint_embedding.weight"])

    def __call__(self, images: Tensor) -> Tensor:
        """Keypoints (B, N, K, 2) of the last layer."""
        maps = self.project(self.resnet(images))
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        levels = self.w["transformer.level_embed"]
        places = [_places(size) for size in sizes]
        position = torch.cat([_map_waves(size, self.dim) + level for size, level in zip(sizes, levels, strict=True)])
        references = torch.cat(places)[None, :, None].expand(len(images), -1, self.levels, -1)
        for i in range(6):
            name = f"transformer.encoder.layers.{i}"
            attended = self.deformable(f"{name}.self_attn", tokens + position, references, tokens, sizes)
            tokens = self.norm(f"{name}.norm1", tokens + attended)
            tokens = self.norm(f"{name}.norm2", tokens + self.feed_forward(name, tokens))
        return self.decode(tokens, torch.cat(places), sizes)

    def decode(self, memory: Tensor, places: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Select and refine."""
        invalid = ~((places > 0.01) & (places < 0.99)).all(-1)
        proposed = self.linear("transformer.enc_output", memory.masked_fill(invalid[:, None], 0.0))
        proposed = self.norm("transformer.enc_output_norm", proposed)
        scores = self.linear("transformer.enc_out_class_embed", proposed).amax(-1)
        logit = torch.log(places / (1 - places)).masked_fill(invalid[:, None], math.inf)
        offsets = self.mlp("transformer.enc_pose_embed", proposed, 4)
        offsets = offsets.view(*offsets.shape[:2], self.keypoints, 2)
        points: Tensor = (offsets + logit[:, None]).sigmoid()
        chosen = scores.topk(self.queries, 1)[1]
        rows = torch.arange(len(memory))[:, None]
        points, content = points[rows, chosen], proposed[rows, chosen]
        x = content[:, :, None] + self.w["transformer.keypoint_embedding.weight"]
        instance = self.w["transformer.instance_embedding.weight"].expand(*content.shape[:2], -1, -1)
        x = torch.cat([instance, x], 2)
        for i in range(6):
            x = self.decoder_layer(f"transformer.decoder.layers.{i}", x, points, memory, sizes)
            moved = self.mlp(f"pose_embed.{i}", x[:, :, 1:], 3)
            self.linear(f"class_embed.{i}", x[:, :, 0])
            points = (_logit(points) + moved).sigmoid()
        return points

    def decoder_layer(
        self, name: str, x: Tensor, points: Tensor, memory: Tensor, sizes: list[tuple[int, int]]
    ) -> Tensor:
        """One layer."""
        angle = points * (2 * math.pi)
        position = torch.cat([_waves(angle[..., axis], self.dim // 2, 10_000) for axis in (1, 0)], -1)
        position = F.pad(self.mlp("transformer.decoder.half_pose_ref_point_head", position, 2), (0, 0, 1, 0))
        x = x + position
        within = self.attention(f"{name}.within_attn", x.flatten(0, 1)).view_as(x)
        x = self.norm(f"{name}.within_norm", x + within)
        turned = x.transpose(1, 2)
        across = self.attention(f"{name}.across_attn", turned.flatten(0, 1)).view_as(turned).transpose(1, 2)
        x = self.norm(f"{name}.across_norm", x + across) + position
        references = torch.cat([points.mean(2, keepdim=True), points], 2).flatten(1, 2)[:, :, None]
        references = references.expand(-1, -1, self.levels, -1)
        attended = self.deformable(f"{name}.cross_attn", x.flatten(1, 2), references, memory, sizes)
        x = self.norm(f"{name}.norm1", x + attended.view_as(x))
        return self.norm(f"{name}.norm2", x + self.feed_forward(name, x))

    def deformable(
        self, name: str, query: Tensor, references: Tensor, memory: Tensor, sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Multi-scale deformable attention."""
        batch, queries, dim = query.shape
        value = self.linear(f"{name}.value_proj", memory).view(batch, -1, HEADS, dim // HEADS)
        shape = (batch, queries, HEADS, self.levels, POINTS)
        offsets = self.linear(f"{name}.sampling_offsets", query).view(*shape, 2)
        weights = self.linear(f"{name}.attention_weights", query).view(*shape[:3], -1).softmax(-1).view(shape)
        extent = torch.tensor([(w, h) for h, w in sizes], dtype=query.dtype)
        places = references[:, :, None, :, None] + offsets / extent[:, None]
        return self.linear(f"{name}.output_proj", sample(value, sizes, places, weights))

    def attention(self, name: str, x: Tensor) -> Tensor:
        """Multi-head self-attention."""
        q, k, v = F.linear(x, self.w[f"{name}.in_proj_weight"], self.w[f"{name}.in_proj_bias"]).chunk(3, -1)
        q, k, v = (t.reshape(*t.shape[:2], HEADS, -1).transpose(1, 2) for t in (q, k, v))
        return self.linear(f"{name}.out_proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        """Feed-forward network of a layer."""
        return self.linear(f"{name}.linear2", self.linear(f"{name}.linear1", x).relu())

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A linear map."""
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        """A layer norm."""
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def mlp(self, name: str, x: Tensor, depth: int) -> Tensor:
        """Linear maps with ReLU between."""
        for i in range(depth - 1):
            x = self.linear(f"{name}.layers.{i}", x).relu()
        return self.linear(f"{name}.layers.{depth - 1}", x)

    def project(self, maps: list[Tensor]) -> list[Tensor]:
        """All levels at one width."""
        found = []
        for i, (x, stride) in enumerate(zip([*maps, maps[-1]], (1, 1, 1, 2), strict=True)):
            name = f"input_proj.{i}"
            x = F.conv2d(x, self.w[f"{name}.0.weight"], self.w[f"{name}.0.bias"], stride, stride - 1)
            found.append(F.group_norm(x, 32, self.w[f"{name}.1.weight"], self.w[f"{name}.1.bias"]))
        return found

    def resnet(self, x: Tensor) -> list[Tensor]:
        """ResNet-50 with frozen norms."""
        body, maps = "backbone.0.body", []
        x = F.max_pool2d(self.conv(f"{body}.conv1", f"{body}.bn1", x, 2, 3).relu(), 3, 2, 1)
        for stage, depth in enumerate((3, 4, 6, 3)):
            for i in range(depth):
                name, stride = f"{body}.layer{stage + 1}.{i}", 2 if stage and not i else 1
                y = self.conv(f"{name}.conv1", f"{name}.bn1", x).relu()
                y = self.conv(f"{name}.conv2", f"{name}.bn2", y, stride, 1).relu()
                y = self.conv(f"{name}.conv3", f"{name}.bn3", y)
                x = x if i else self.conv(f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
                x = (x + y).relu()
            maps.append(x)
        return maps[1:]

    def conv(self, conv: str, norm: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        """A convolution and its frozen norm."""
        x = F.conv2d(x, self.w[f"{conv}.weight"], None, stride, padding)
        scale = self.w[f"{norm}.weight"] * (self.w[f"{norm}.running_var"] + 1e-5).rsqrt()
        shift = self.w[f"{norm}.bias"] - self.w[f"{norm}.running_mean"] * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def _logit(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))


def _places(size: tuple[int, int]) -> Tensor:
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in size), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _waves(angle: Tensor, dim: int, temperature: float) -> Tensor:
    scaled = angle[..., None] / temperature ** (2 * (torch.arange(dim) // 2) / dim)
    return torch.stack([scaled[..., 0::2].sin(), scaled[..., 1::2].cos()], -1).flatten(-2)


def _map_waves(size: tuple[int, int], dim: int) -> Tensor:
    angles = torch.meshgrid(*((torch.arange(n) + 1.0) / (n + 1e-6) * (2 * math.pi) for n in size), indexing="ij")
    return torch.cat([_waves(angle, dim // 2, 20) for angle in angles], -1).flatten(0, 1)
