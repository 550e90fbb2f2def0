"""Group Pose with a ResNet-50 on the CPU, and its deformable attention alone, beside their plain forms, in one run.

    python -m benchmarks.pose_deformable [--what model core] [--height 512 --width 640]

Every competitor runs in its own process with the same number of threads, on the same input with the same weights; the
processes take turns, so that a slow moment of the machine hits all of them. A ratio is the median over rounds of the
plain form's CPU-seconds to those of the other of the same round, with the quartiles behind it; above 1 the other is
faster. The plain form is the equations as they stand (`benchmarks/peers/grouppose_direct.py`), each map read by
`grid_sample`. `gather` needs nothing compiled; `compiled` needs a C++ compiler when it runs. `core` is the sampling
and weighting of one encoder layer, without its linear maps. The last column is the relative difference of a weighted
sum over what comes out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.peers.deformable_direct import Setting, direct_core, make_input
from benchmarks.peers.grouppose_direct import Direct
from benchmarks.peers.worker import Step, Work


def build(setting: Setting, form: str) -> Step:
    """Return a step of one form: grid_sample, gather, or compiled."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no helpers that outlive the worker
    torch.manual_seed(setting.seed)
    run = _model(setting, form) if setting.what == "model" else _core(setting, form)

    def step(_: int) -> Work:
        with torch.no_grad():
            out = run()
        part = out.flatten()[::101].double()  # a few, so that the sum takes no time
        weighted = part * torch.linspace(1, 2, len(part), dtype=torch.float64)  # order counts
        return Work({"images": 1}, {"sum": float(weighted.sum()), "size": float(weighted.abs().sum())})

    return step


def _model(setting: Setting, form: str) -> Callable[[], Tensor]:
    from domains.pose.grouppose import GroupPose
    from domains.pose.grouppose_weights import to_official

    network = GroupPose(backend="auto" if form == "grid_sample" else form).eval()  # type: ignore[arg-type]
    for parameter in network.parameters():
        if not parameter.any():  # what starts at zero would compare nothing
            torch.nn.init.normal_(parameter, std=0.02)
    image = torch.randn(1, 3, setting.height, setting.width)
    if form == "grid_sample":
        direct = Direct(to_official(network), network.queries)
        return lambda: direct(image)
    return lambda: network(image).final.keypoints


def _core(setting: Setting, form: str) -> Callable[[], Tensor]:
    from domains.common.attention.deformable import sample_gather

    given = make_input(setting)
    if form == "grid_sample":
        return direct_core(given)
    extent = torch.tensor([(w, h) for h, w in given.sizes], dtype=torch.float32)[:, None]
    x, y = (part.contiguous() for part in (given.places * extent - 0.5).unbind(-1))
    return lambda: sample_gather(given.value, given.sizes, x, y, given.weights, compiled=form == "compiled")


def compare(setting: Setting, options: argparse.Namespace) -> list[str]:
    """Let the forms of one setting take turns; return their rows of the table."""
    forms = ["grid_sample", "gather"]
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        forms.append("compiled")
    else:
        print("no C++ compiler: `compiled` is left out")
    entries = [Entry(form, sys.executable, f"benchmarks.pose_deformable:build:{form}", setting) for form in forms]
    plain, *others = take_turns(entries, options)
    rows = []
    for other in others:
        difference = abs(plain.losses["sum"] - other.losses["sum"]) / plain.losses["size"]
        rows.append(
            f"| {setting.what} | {other.entry.name} | {_ms(plain):,.0f} | {_ms(other):,.0f} | {ratio(plain, other)} "
            f"| {difference:.0e} |"
        )
    return rows


def ratio(plain: Competitor, other: Competitor) -> str:
    """Median of the ratios of the rounds, and their quartiles."""
    pairs = [a["cpu"] / b["cpu"] for a, b in zip(plain.answers, other.answers, strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"**{statistics.median(pairs):.2f}** ({low:.2f}-{high:.2f})"


def _ms(competitor: Competitor) -> float:
    return 1000 / statistics.median(competitor.speeds("images"))


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["model", "core"], choices=["model", "core"])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=640)
    add_options(parser, repeats=7, steps=1, warmup=1)
    options = parser.parse_args()
    print(f"{options.height} x {options.width}, {options.threads} threads, {options.repeats} rounds\n")
    print("| what | form | plain CPU ms | its CPU ms | ratio | differ |")
    print("|---|---|---|---|---|---|")
    for what in options.what:
        print("\n".join(compare(Setting(what, options.height, options.width), options)), flush=True)


if __name__ == "__main__":
    main()
