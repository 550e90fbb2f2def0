"""ACMIL as its equations stand, in plain torch: keys and values of each branch, a softmax twice, cosines pair by pair.

The peer of `benchmarks/medical_attention.py`. The maths and the names of the weights are those of the paper (Zhang et
al., ECCV 2024, arXiv 2311.07125) and of its official program; masking and dropout are left out on all sides, so that
results can be compared. Nothing here is from `domains`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.worker import Step, Work

HIDDEN, HEADS, CLASSES = 128, 8, 2
Weights = dict[str, Tensor]
Result = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    """One bag and one network.

    Args:
        attention: gated or multi_head.
        feature_dim: width of an instance.
        dim: width behind the reduction.
        training: forward and backward pass with all losses, else forward alone.
        instances: of the bag.
        branches: of the network.
        seed: of bag and weights.
    """

    attention: str
    feature_dim: int
    dim: int
    training: bool
    instances: int = 20_000
    branches: int = 5
    seed: int = 0


def make_bag(setting: Setting) -> tuple[Tensor, Tensor]:
    """Features (N, D_feat) and label (1,) of the bag."""
    generator = torch.Generator().manual_seed(setting.seed)
    return torch.randn(setting.instances, setting.feature_dim, generator=generator), torch.tensor([1])


def make_weights(setting: Setting) -> Weights:
    """Random weights under the official names; queries as large as trained ones, or attention would be even."""
    generator = torch.Generator().manual_seed(setting.seed + 1)
    weights: Weights = {}

    def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        bound = inputs**-0.5
        weights[f"{name}.weight"] = (torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound
        if bias:
            weights[f"{name}.bias"] = (torch.rand(outputs, generator=generator) * 2 - 1) * bound

    dim, branches = setting.dim, range(setting.branches)
    linear("dimreduction.fc1", dim, setting.feature_dim, bias=False)
    if setting.attention == "gated":
        linear("attention.attention_V.0", HIDDEN, dim)
        linear("attention.attention_U.0", HIDDEN, dim)
        linear("attention.attention_weights", setting.branches, HIDDEN)
    else:
        weights["q"] = torch.randn(1, setting.branches, dim, generator=generator)
        blocks = {f"sub_attention.{i}": ("q_proj", "k_proj", "v_proj", "out_proj") for i in branches}
        for block, maps in {**blocks, "bag_attention": ("v_proj", "out_proj")}.items():
            for name in maps:
                linear(f"{block}.{name}", dim, dim)
            weights |= {f"{block}.layer_norm.weight": torch.ones(dim), f"{block}.layer_norm.bias": torch.zeros(dim)}
    for name in (*(f"classifier.{i}" for i in branches), "Slide_classifier"):
        linear(f"{name}.fc", CLASSES, dim)
    return weights


def apply(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A linear map."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def by_head(x: Tensor) -> Tensor:
    """Split the width into heads: (N, D) -> (H, N, D / H)."""
    return x.view(len(x), HEADS, -1).transpose(0, 1)


def finish(weights: Weights, block: str, values: Tensor) -> Tensor:
    """Join the heads, project, normalise: (H, 1, D / H) -> (1, D)."""
    out = apply(weights, f"{block}.out_proj", values.transpose(0, 1).reshape(1, -1))
    norm = f"{block}.layer_norm"
    return F.layer_norm(out, out.shape[-1:], weights[f"{norm}.weight"], weights[f"{norm}.bias"], 1e-6)


def multi_head(weights: Weights, x: Tensor, branches: int) -> Result:
    """ACMIL_MHA: logits of the branches (K, C), of the bag (1, C), of the attention (H, K, N)."""
    h = apply(weights, "dimreduction.fc1", x).relu()
    features, found = [], []
    for i in range(branches):
        block = f"sub_attention.{i}"
        query = by_head(apply(weights, f"{block}.q_proj", weights["q"][0, i : i + 1]))
        key, value = (by_head(apply(weights, f"{block}.{name}_proj", h)) for name in ("k", "v"))
        logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (H, 1, N)
        features.append(finish(weights, block, logits.softmax(-1) @ value))
        found.append(logits)
    attention = torch.cat(found, 1)
    mean = attention.softmax(-1).mean(1, keepdim=True)
    bag = finish(weights, "bag_attention", mean @ by_head(apply(weights, "bag_attention.v_proj", h)))
    return classify(weights, features), apply(weights, "Slide_classifier.fc", bag), attention


def gated(weights: Weights, x: Tensor, branches: int) -> Result:
    """ACMIL_GA: logits of the branches (K, C), of the bag (1, C), of the attention (1, K, N)."""
    h = apply(weights, "dimreduction.fc1", x).relu()
    gate = apply(weights, "attention.attention_V.0", h).tanh() * apply(weights, "attention.attention_U.0", h).sigmoid()
    attention = apply(weights, "attention.attention_weights", gate).T  # (K, N)
    features = attention.softmax(1) @ h
    bag = attention.softmax(1).mean(0, keepdim=True) @ h
    logits = classify(weights, [features[i : i + 1] for i in range(branches)])
    return logits, apply(weights, "Slide_classifier.fc", bag), attention[None]


def classify(weights: Weights, features: list[Tensor]) -> Tensor:
    """Each branch by its own classifier."""
    return torch.cat([apply(weights, f"classifier.{i}.fc", feature) for i, feature in enumerate(features)])


def total_loss(result: Result, label: Tensor) -> Tensor:
    """Slide, branch and diversity loss (eq. 4 and around)."""
    logits, slide, attention = result
    weights, branches = attention.softmax(-1), attention.shape[1]
    cosines = [
        F.cosine_similarity(weights[:, i], weights[:, j], dim=-1).mean()
        for i in range(branches)
        for j in range(i + 1, branches)
    ]
    return F.cross_entropy(slide, label) + F.cross_entropy(logits, label.repeat(branches)) + torch.stack(cosines).mean()


def build(setting: Setting) -> Step:
    """Return the step of the direct form."""
    x, label = make_bag(setting)
    weights = {name: weight.requires_grad_() for name, weight in make_weights(setting).items()}
    network = gated if setting.attention == "gated" else multi_head

    def train(bag: Tensor) -> float:
        for weight in weights.values():
            weight.grad = None
        loss = total_loss(network(weights, bag, setting.branches), label)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    @torch.no_grad()
    def forward(bag: Tensor) -> float:
        return float(network(weights, bag, setting.branches)[1][0, 0])

    return measured(train if setting.training else forward, x)


def build_products(setting: Setting) -> Step:
    """Return a step that only does the matrix products of ACMIL_GA's forward pass, one after the other."""
    x, _ = make_bag(setting)
    reduce, gate = torch.randn(setting.feature_dim, setting.dim), torch.randn(setting.dim, 2 * HIDDEN)
    score = torch.randn(HIDDEN, setting.branches)

    @torch.no_grad()
    def products(bag: Tensor) -> float:
        h = bag @ reduce
        attention = (h @ gate)[:, :HIDDEN] @ score
        return float((attention.T @ h)[0, 0])

    return measured(products, x)


def measured(run: Callable[[Tensor], float], x: Tensor) -> Step:
    """Return a step over one bag that also tells how far memory has ever risen above what stood before the first.

    A small bag goes first, so that what libraries allocate once is no part of it.
    """
    run(x[:2048])
    before = resident_mib()

    def step(_: int) -> Work:
        value = run(x)
        return Work({"bags": 1}, {"value": value, "extra_mib": resident_mib("VmHWM") - before})

    return step


def resident_mib(kind: str = "VmRSS") -> float:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM), which is set back when asked for now."""
    if kind == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split(f"{kind}:")[1].split()[0]) / 1024
