"""DCAL beside the plain transformer of timm that it is built on, in one run: CPU time and peak memory.

    python -m benchmarks.finegrained_dcal [--modes infer train] [--backbone deit_small_patch16_224] [--size 448]

Every competitor runs in its own process with the same number of threads; the processes take turns, so that a slow
moment of the machine hits all of them. `infer` compares self-attention and GLCA with timm's forward pass, `train` a
step with all three branches and AdamW with timm's step. A ratio is the median over rounds of ours to timm's of the same
round, in CPU-seconds an image, with the quartiles behind it: below 1 ours is faster. Peak memory is that of the
process, and without what the imports had taken. Stochastic depth is off on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.peers.vit_timm import Setting, make_batch
from benchmarks.peers.worker import Step, Work
from domains.finegrained.dcal import DCAL, class_probabilities, derangement
from domains.finegrained.losses import dcal_losses

PEER, OURS = "benchmarks.peers.vit_timm:build", "benchmarks.finegrained_dcal:build_ours"


def build_ours(setting: Setting, mode: str) -> Step:
    """Return our step: infer or train."""
    torch.manual_seed(setting.seed)
    net = DCAL(setting.backbone, setting.classes, (setting.size, setting.size), drop_path=0.0)
    images, labels = make_batch(setting)
    if mode == "infer":
        net.eval()

        @torch.no_grad()
        def infer(_: int) -> Work:
            return Work({"images": setting.batch}, {"value": float(class_probabilities(net(images)).norm())})

        return infer
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.05)

    def train(_: int) -> Work:
        optimiser.zero_grad()
        loss = dcal_losses(net(images, derangement(setting.batch)), labels, net.uncertainty_w)["total"]
        torch.autograd.backward(loss)
        optimiser.step()
        return Work({"images": setting.batch}, {"loss": float(loss)})

    return train


def compare(setting: Setting, mode: str, options: argparse.Namespace) -> str:
    """Let both take turns; return the row of the table."""
    entries = [Entry(name, sys.executable, f"{who}:{mode}", setting) for name, who in (("timm", PEER), ("DCAL", OURS))]
    timm, ours = take_turns(entries, options)
    pairs = [a / b for a, b in zip(timm.speeds("images"), ours.speeds("images"), strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    memory = f"{ours.peak_mib / timm.peak_mib:.2f} | {_net_mib(ours) / _net_mib(timm):.2f}"
    return (
        f"| {mode} | {setting.batch} | {_ms(timm):.0f} | {_ms(ours):.0f} | **{statistics.median(pairs):.2f}** "
        f"({low:.2f}-{high:.2f}) | {timm.peak_mib:.0f} | {ours.peak_mib:.0f} | {memory} |"
    )


def _ms(competitor: Competitor) -> float:
    return 1000 / statistics.median(competitor.speeds("images"))


def _net_mib(competitor: Competitor) -> float:
    return competitor.peak_mib - competitor.imported_mib


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=["infer", "train"], choices=["infer", "train"])
    parser.add_argument("--backbone", default="deit_small_patch16_224", help="of timm (default: %(default)s)")
    parser.add_argument("--size", type=int, default=448, help="of images (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[4], help="images of a step (default: 4)")
    add_options(parser, repeats=9, steps=1, warmup=1)
    options = parser.parse_args()
    print(f"{options.backbone}, {options.size} px, {options.repeats} rounds, {options.threads} thread(s)\n")
    print("| | batch | timm CPU ms an image | DCAL | ratio | timm peak MiB | DCAL | ratio | without imports |")
    print("|---|---|---|---|---|---|---|---|---|")
    for mode in options.modes:
        for batch in options.batch:
            print(compare(Setting(options.backbone, options.size, batch), mode, options), flush=True)


if __name__ == "__main__":
    main()
