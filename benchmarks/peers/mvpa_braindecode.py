"""MVPFormer as braindecode has it (class `MVPFormer`, Apache-2.0): its attention layer, and its whole classifier.

The peer of `benchmarks/ieeg_attention.py`. Weights are drawn here under braindecode's names, so that both sides compute
the same numbers. Nothing here is from `domains`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.peers.acmil_direct import resident_mib
from benchmarks.peers.worker import Step, Work

DIM, DEPTH, HEADS, KV_HEADS, HIDDEN, SAMPLES = 768, 12, 12, 4, 1728, 2560
SEGMENTS, CHANNELS = 110, 128


@dataclass(frozen=True)
class Setting:
    """One window and what is done with it; all sizes are those of MVPFormer-S.

    Args:
        segments: T.
        channels: C.
        whole: the whole classifier; else one attention layer.
        training: forward and backward pass, else forward alone.
        seed: of window and weights.
    """

    segments: int
    channels: int
    whole: bool = False
    training: bool = True
    seed: int = 0


def make_input(setting: Setting) -> Tensor:
    """Tokens (1, T, C, E) of the attention layer, or signal (1, T, C, L) of the classifier, like microvolts."""
    generator = torch.Generator().manual_seed(setting.seed)
    shape = (1, setting.segments, setting.channels, SAMPLES if setting.whole else DIM)
    return torch.randn(shape, generator=generator) * (50.0 if setting.whole else 1.0)


def make_tables(setting: Setting) -> tuple[Tensor, Tensor]:
    """Tables of relative time and channels of the attention layer."""
    generator = torch.Generator().manual_seed(setting.seed + 1)
    return torch.randn(SEGMENTS, DIM, generator=generator), torch.randn(CHANNELS, DIM, generator=generator)


def draw_weights(module: nn.Module, setting: Setting) -> None:
    """Draw all weights anew in the order of their names, which both sides share."""
    generator = torch.Generator().manual_seed(setting.seed + 2)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            norm = ".ln_" in f".{name}" or ".ln." in f".{name}"
            parameter.copy_(1 + 0.1 * drawn if norm else drawn * (0.5 if name.endswith("attn_bias") else 0.03))


def run(setting: Setting, compute: object, x: Tensor, module: nn.Module) -> Step:
    """Make the step of one side."""
    if not callable(compute):
        raise TypeError("compute is no function")

    def train(given: Tensor) -> float:
        module.zero_grad()
        given = given.requires_grad_(not setting.whole)
        given.grad = None
        out = compute(given)
        out.square().mean().backward()
        return float(out.detach().flatten()[0])

    @torch.no_grad()
    def forward(given: Tensor) -> float:
        return float(compute(given).flatten()[0])

    compute_once = train if setting.training else forward
    # what libraries allocate once is no part of a step
    torch.mm(*torch.randn(2, 512, 512))
    before = resident_mib()

    def step(_: int) -> Work:
        value = compute_once(x)
        return Work({"windows": 1}, {"value": value, "extra_mib": resident_mib("VmHWM") - before})

    return step


def build(setting: Setting) -> Step:
    """Return braindecode's step."""
    from braindecode.models import MVPFormer
    from braindecode.models.mvpformer import _MVPAttention

    x = make_input(setting)
    if not setting.whole:
        layer = _MVPAttention(DIM, HEADS, KV_HEADS)
        draw_weights(layer, setting)
        time, channel = make_tables(setting)
        tables = time[None, : setting.segments], channel[None, : setting.channels]
        return run(setting, lambda given: layer(given, *tables), x, layer)
    network = MVPFormer(
        n_outputs=2,
        n_chans=setting.channels,
        n_times=setting.segments * SAMPLES,
        sfreq=512,
        d_model=DIM,
        n_layers=DEPTH,
        n_heads=HEADS,
        n_head_kv=KV_HEADS,
        d_inner=HIDDEN,
        drop_prob=0.0,
    )
    draw_weights(network, setting)
    signal = x.permute(0, 2, 1, 3).flatten(2).contiguous()
    return run(setting, network, signal, network)
