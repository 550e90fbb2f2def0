"""Cost of Group Pose's decoder over the number of persons N and of keypoints K, and of ConvFormer over its frames T.

    python -m benchmarks.pose_scaling [--picture benchmarks/pose_scaling.png]

CPU-seconds of one thread, the least of the rounds; sizes take turns within a round. The decoder is that of the
published network (256 wide, six layers) behind random weights and a small backbone, on an image of 256 x 320: N x (K +
1) queries look at 1,700 tokens. ConvFormer's operations are counted (2 for a multiply-add) beside those that the paper
prints.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from domains.pose.convformer import ConvFormer
from domains.pose.grouppose import GroupPose

PERSONS, KEYPOINTS = (25, 50, 100, 200, 400), (4, 8, 17, 34, 68)
USUAL = (100, 17)
PAPER = {9: 100, 27: 360, 81: 1600, 143: 4220, 243: 10000}  # MFLOP of one window


def decoder_seconds(net: GroupPose, image: torch.Tensor) -> float:
    """CPU-seconds that the decoder takes of a forward pass."""
    began: list[float] = []
    spent: list[float] = []
    hooks = [
        net.decoder.register_forward_pre_hook(lambda *_: began.append(time.process_time())),
        net.decoder.register_forward_hook(lambda *_: spent.append(time.process_time() - began[-1])),
    ]
    with torch.inference_mode():
        net(image)
    for hook in hooks:
        hook.remove()
    return spent[-1]


def measure_decoder(rounds: int) -> dict[tuple[int, int], float]:
    """Least CPU-seconds of (N, K)."""
    sizes = list(dict.fromkeys([*((n, USUAL[1]) for n in PERSONS), *((USUAL[0], k) for k in KEYPOINTS)]))
    nets = {size: GroupPose(size[1], size[0], "small").eval() for size in sizes}
    image = torch.randn(1, 3, 256, 320)
    found = {size: [decoder_seconds(net, image) for _ in range(1)] for size, net in nets.items()}  # warm
    for _ in range(rounds):
        for size, net in nets.items():
            found[size].append(decoder_seconds(net, image))
    return {size: min(values[1:]) for size, values in found.items()}


def count_operations(frames: int) -> float:
    """MFLOP of ConvFormer for one window, every branch computed."""
    net = ConvFormer(frames, path="branches").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, frames, 17, 2))
    return float(counter.get_total_flops()) / 1e6


def draw(seconds: dict[tuple[int, int], float], operations: dict[int, float], path: Path) -> None:
    """Draw the three curves."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    lines = {
        "persons N, at K = 17": [(n, seconds[n, USUAL[1]]) for n in PERSONS],
        "keypoints K + 1, at N = 100": [(k + 1, seconds[USUAL[0], k]) for k in KEYPOINTS],
    }
    for panel, (label, line) in zip(panels, lines.items(), strict=False):
        panel.plot(*zip(*line, strict=True), marker="o")
        last = line[-1]
        panel.plot([0, last[0]], [0, last[1]], ":", color="#8a94a3")
        panel.set(xlabel=label, ylabel="decoder, CPU s", xlim=(0, None), ylim=(0, None))
    frames = list(operations)
    panels[2].plot(frames, [operations[t] for t in frames], marker="o", label="ours")
    panels[2].plot(frames, [PAPER[t] for t in frames], "x", color="#444444", label="paper")
    panels[2].set(xscale="log", yscale="log", xlabel="frames T", ylabel="ConvFormer, MFLOP a window")
    panels[2].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = measure_decoder(options.rounds)
    print("| N | K | decoder CPU ms | ms per 1,000 queries |\n|---|---|---|---|")
    for (n, k), value in seconds.items():
        print(f"| {n} | {k} | {1000 * value:.0f} | {1e6 * value / (n * (k + 1)):.1f} |")
    operations = {frames: count_operations(frames) for frames in PAPER}
    print("\n| T | ours, MFLOP | paper |\n|---|---|---|")
    for frames, count in operations.items():
        print(f"| {frames} | {count:,.0f} | {PAPER[frames]:,} |")
    if options.picture:
        draw(seconds, operations, options.picture)


if __name__ == "__main__":
    main()
