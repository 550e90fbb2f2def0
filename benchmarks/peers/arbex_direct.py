"""ARBEx as its program computes it, in plain torch: no fused attention, no folded norms, two resizes, all tokens.

The peer of `benchmarks/expression_inference.py`. Names of modules are those of the official state dict, with the
parameters that the official program has and never uses. The maths is that of POSTER++ (Mao et al., 2023, arXiv
2301.12149) and ARBEx (Wasi et al., 2023, arXiv 2305.01486). Nothing here is from `domains`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.worker import Step, Work

DIM, HEADS, TOKENS, SIDE = 768, 8, 147, 112
LEVELS = ((64, 2, 28), (128, 4, 14), (256, 8, 7))  # channels, heads, window


@dataclass(frozen=True)
class Setting:
    """One batch of images.

    Args:
        batch: images of a step.
        classes: C.
        seed: of weights and images.
    """

    batch: int = 1
    classes: int = 8
    seed: int = 0


def make_images(setting: Setting) -> Tensor:
    """Images (B, 3, 224, 224)."""
    return torch.randn(setting.batch, 3, 224, 224, generator=torch.Generator().manual_seed(setting.seed))


class Net(nn.Module):
    """Layers in a row under the name `net`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        out: Tensor = self.net(x)
        return out


def conv_block(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool = True
) -> Net:
    """Convolution, norm and PReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return Net(conv, nn.BatchNorm2d(outputs), *([nn.PReLU(outputs)] if act else []))


class DepthWise(Net):
    """Expand, convolve each channel, project."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, *, residual: bool = False) -> None:
        super().__init__(
            conv_block(inputs, groups),
            conv_block(groups, groups, 3, stride, groups),
            conv_block(groups, outputs, act=False),
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        out: Tensor = self.net(x)
        return x + out if self.residual else out


def stack(dim: int, groups: int, count: int) -> Net:
    """Residual units of one width."""
    return Net(*(DepthWise(dim, dim, groups, 1, residual=True) for _ in range(count)))


class Landmark(nn.Module):
    """MobileFaceNet's three taps."""

    def __init__(self) -> None:
        super().__init__()
        self.path_1 = nn.Sequential(
            conv_block(3, 64, 3, 2), conv_block(64, 64, 3, 1, 64), DepthWise(64, 64, 128, 2), stack(64, 128, 4)
        )
        self.path_2 = nn.Sequential(DepthWise(64, 128, 256, 2), stack(128, 256, 6))
        self.path_3 = nn.Sequential(DepthWise(128, 128, 512, 2), stack(128, 256, 2), conv_block(128, 512))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Apply."""
        first = self.path_1(x)
        second = self.path_2(first)
        return [first, second, self.path_3(second)]


class Unit(nn.Module):
    """Improved residual unit."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        self.res = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        out: Tensor = self.res(x) + self.shortcut(x)
        return out


class IR(nn.Module):
    """Three stages of IR50."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        for stage, (inputs, outputs, count) in enumerate(((64, 64, 3), (64, 128, 4), (128, 256, 14)), 1):
            units = [Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(count - 1))]
            self.add_module(f"net_{stage}", Net(*units))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Apply."""
        maps = [self.input_layer(x)]
        for stage in (1, 2, 3):
            maps.append(self.get_submodule(f"net_{stage}")(maps[-1]))
        return maps[1:]


class Window(nn.Module):
    """Norm, and one window after the other."""

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window, self.norm = window, nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply."""
        x = self.norm(x.permute(0, 2, 3, 1))
        batch, height, width, dim = x.shape
        m = self.window
        cut = x.view(batch, height // m, m, width // m, m, dim).permute(0, 1, 3, 2, 4, 5)
        return cut.reshape(-1, m * m, dim), x


class Attention(nn.Module):
    """Windows of the image asked by the landmarks."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None]).permute(1, 2, 0) + window - 1
        self.index_relative: Tensor
        self.register_buffer("index_relative", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.qkv = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """Attend; x (B windows, n, D), query (B, 1, heads, n, c)."""
        count, n, dim = x.shape
        k, v = self.qkv(x).view(count, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = query.repeat(1, count // len(query), 1, 1, 1).view(count, self.heads, n, -1)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index_relative.view(-1)].view(n, n, -1).permute(2, 0, 1)
        weights = (scores + bias).softmax(-1)
        out: Tensor = self.linear((weights @ v).transpose(1, 2).reshape(count, n, dim))
        return out


class FeedForward(nn.Module):
    """Back to a map, and a feed-forward network."""

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), 1e-5)) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, windows: Tensor, shortcut: Tensor) -> Tensor:
        """Apply."""
        batch, height, width, dim = shortcut.shape
        m = self.window
        x = windows.view(batch, height // m, width // m, m, m, dim).permute(0, 1, 3, 2, 4, 5).reshape(shortcut.shape)
        x = shortcut + self.gamma_1 * x
        out: Tensor = x + self.gamma_2 * self.mlp(self.norm(x))
        return out


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM, 1e-6)
        self.conv = nn.Conv1d(TOKENS + 1, TOKENS + 1, 1)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(DIM, 3 * DIM), "proj": nn.Linear(DIM, DIM)})
        self.norm2 = nn.LayerNorm(DIM, 1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(DIM, 4 * DIM), "fc2": nn.Linear(4 * DIM, DIM)})

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        batch, n, _ = x.shape
        qkv = self.attn["qkv"](self.norm1(x))
        q, k, v = qkv.view(batch, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (DIM // HEADS) ** -0.5).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return out


class TokenViT(nn.Module):
    """Transformer over the tokens of all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.zeros(1, TOKENS + 1, DIM))
        self.se_block = nn.ModuleDict({"linear1": nn.Linear(DIM, DIM), "linear2": nn.Linear(DIM, DIM)})
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(256, DIM, 1)})
        self.CON1 = nn.Conv2d(256, DIM, 1, bias=False)
        self.IRLinear1, self.IRLinear2 = nn.Linear(1024, DIM), nn.Linear(DIM, 512)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(DIM, 1e-6)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        x = self.norm(self.blocks(x))[:, 0]
        gate = self.se_block["linear2"](self.se_block["linear1"](x).relu()).sigmoid()
        gated: Tensor = x * gate
        return gated


class Extractor(nn.Module):
    """From images (B, 3, 224, 224) to embeddings (B, 768)."""

    def __init__(self) -> None:
        super().__init__()
        self.landmark, self.ir = Landmark(), IR()
        self.conv = nn.Conv2d(512, 256, 3, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, 2, 1) for dim, _, _ in LEVELS)
        self.window_module = nn.ModuleList(Window(dim, window) for dim, _, window in LEVELS)
        self.attns = nn.ModuleList(Attention(*level) for level in LEVELS)
        self.ffns = nn.ModuleList(FeedForward(dim, window) for dim, _, window in LEVELS)
        last = nn.ModuleDict({"proj": nn.Conv2d(256, DIM, 1)})
        first = nn.Sequential(nn.Conv2d(64, DIM, 3, 2, 1), nn.Conv2d(DIM, DIM, 3, 2, 1))
        self.embs = nn.ModuleList([first, nn.Conv2d(128, DIM, 3, 2, 1), last])
        self.vit = TokenViT()

    def forward(self, image: Tensor) -> Tensor:
        """Apply."""
        landmarks = self.landmark(F.interpolate(image, size=SIDE))
        landmarks[2] = self.conv(landmarks[2])
        maps = self.ir(F.interpolate(image, size=SIDE))
        tokens = []
        for i, (_, heads, window) in enumerate(LEVELS):
            windows, shortcut = self.window_module[i](self.convs[i](maps[i]))
            landmark = landmarks[i].permute(0, 2, 3, 1)
            query = landmark.reshape(len(image), 1, window**2, heads, -1).transpose(2, 3)
            x = self.ffns[i](self.attns[i](windows, query), shortcut).permute(0, 3, 1, 2)
            embed = self.embs[i]["proj"] if i == 2 else self.embs[i]  # type: ignore[index]
            tokens.append(embed(x).flatten(2).transpose(1, 2))
        out: Tensor = self.vit(torch.cat(tokens, 1))
        return out


class Balancing(nn.Module):
    """Anchors and self-attention corrector; attention across the batch, as in the program."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.randn(classes, 1, DIM))
        self.Q, self.K, self.V = (nn.Linear(DIM, classes) for _ in range(3))
        self.attn_fn = nn.MultiheadAttention(classes, 1)

    def forward(self, embedding: Tensor, p: Tensor) -> Tensor:
        """Corrected distribution."""
        distances = (embedding[:, None, None] - self.anchors).norm(dim=-1)
        s = (-distances).flatten(1).softmax(1).view(distances.shape).sum(-1)
        attended, _ = self.attn_fn(self.Q(embedding), self.K(embedding), self.V(embedding))
        a = attended.softmax(-1)
        c_p, c_g, c_a = (confidence(x) for x in (p, s, a))
        t = (c_g * s + c_a * a) / (c_g + c_a)
        q: Tensor = c_p * p + (1 - c_p) * t
        return q


def confidence(p: Tensor) -> Tensor:
    """One minus the normalised entropy."""
    return 1 + (p * p.log()).sum(-1, keepdim=True) / torch.tensor(float(p.shape[-1])).log()


def make_head(classes: int) -> nn.Module:
    """Head of hidden sizes 384, 192 and 96."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((768, 384), (384, 192), (192, 96)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs), nn.Dropout(0.5)]
    return Net(*layers, nn.Linear(96, classes))


def make_parts(setting: Setting) -> tuple[Extractor, nn.Module, Balancing]:
    """The three parts with random weights, in evaluation."""
    torch.manual_seed(setting.seed)
    parts = Extractor(), make_head(setting.classes), Balancing(setting.classes)
    for part in parts:
        for name, buffer in part.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    for part in parts:
        part.eval()
    return parts


def state(setting: Setting) -> dict[str, Tensor]:
    """All weights under the official names; those of head, anchors and corrector with a prefix."""
    extractor, head, balancing = make_parts(setting)
    found = dict(extractor.state_dict())
    found |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    for name, tensor in balancing.state_dict().items():
        found["anchors.anchors" if name == "anchors" else f"self_attn.{name}"] = tensor
    return found


def build(setting: Setting) -> Step:
    """Return a step over one batch."""
    extractor, head, balancing = make_parts(setting)
    images = make_images(setting)

    @torch.no_grad()
    def step(_: int) -> Work:
        embedding = extractor(images)
        corrected = balancing(embedding, head(embedding).softmax(-1))
        return Work({"images": setting.batch}, {"value": float(embedding.norm()), "largest": float(corrected.max())})

    return step
