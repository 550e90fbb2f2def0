"""ConvFormer over a video, a pose for every frame, beside its equations as they stand, in one run.

    python -m benchmarks.pose_convformer [--frames 243 27]

Every competitor runs in its own process with the same number of threads, on the same video with the same weights; the
processes take turns, so that a slow moment of the machine hits all of them. `direct` is plain torch with every branch a
convolution, and `branches` the same form by our block: both window by window. `fused` is window by window, too, with
one convolution in the place of the branches; `video` computes the spatial stage once a frame and several windows at a
time. A ratio is the median over rounds of theirs to ours of the same round, in CPU-seconds a frame, with the quartiles
behind it; above 1 ours is faster. The last column is the relative difference of a pose's length.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.peers.convformer_direct import BLOCKS, HEADS, KERNELS, Setting, make_video, make_weights, window_of
from benchmarks.peers.worker import Step, Work
from domains.pose.convformer import ConvFormer
from domains.pose.convformer_weights import from_official
from domains.pose.lifting import lift

PEER, OURS = "benchmarks.peers.convformer_direct:build", "benchmarks.pose_convformer:build_ours"
PAIRS = (("branches", "fused"), ("direct", "fused"), ("branches", "video"), ("direct", "video"), ("fused", "video"))


def build_ours(setting: Setting, form: str) -> Step:
    """Return our step with the peer's weights: branches, fused or video."""
    options = {"heads": HEADS, "path": "branches" if form == "branches" else "merged"}
    network = from_official(make_weights(setting), options).eval()
    if list(network.arguments["kernels"]) != list(KERNELS) or network.arguments["temporal_blocks"] != BLOCKS:
        raise ValueError("the weights tell another network than the peer's")
    return video_step(network, setting) if form == "video" else window_step(network, setting, form)


def video_step(network: ConvFormer, setting: Setting) -> Step:
    """Return a step over the whole video."""
    video, network = make_video(setting), network.reparameterise()

    def step(_: int) -> Work:
        poses = lift(network, video)
        return Work({"frames": len(poses)}, {"value": float(poses[0].norm())})

    return step


def window_step(network: ConvFormer, setting: Setting, form: str) -> Step:
    """Return a step over a few windows, one after the other."""
    video = make_video(setting)
    network = network.reparameterise() if form == "fused" else network

    @torch.no_grad()
    def step(_: int) -> Work:
        poses = [network(window_of(video, i, setting.frames)[None]) for i in range(setting.sample)]
        return Work({"frames": setting.sample}, {"value": float(poses[0].norm())})

    return step


def compare(setting: Setting, options: argparse.Namespace) -> list[str]:
    """Let all forms of one setting take turns; return the rows of the table."""
    entries = [Entry("direct", sys.executable, PEER, setting)]
    entries += [Entry(form, sys.executable, f"{OURS}:{form}", setting) for form in ("branches", "fused", "video")]
    found = {competitor.entry.name: competitor for competitor in take_turns(entries, options)}
    rows = []
    for first, second in PAIRS:
        theirs, ours = found[first], found[second]
        differ = abs(ours.losses["value"] / theirs.losses["value"] - 1)
        rows.append(
            f"| {setting.frames} | {first} | {second} | {_ms(theirs):.2f} | {_ms(ours):.2f} | {ratio(theirs, ours)} "
            f"| {differ:.0e} |"
        )
    return rows


def ratio(theirs: Competitor, ours: Competitor) -> str:
    """Median of the ratios of the rounds, and their quartiles."""
    pairs = [b / a for a, b in zip(theirs.speeds("frames"), ours.speeds("frames"), strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"**{statistics.median(pairs):.2f}** ({low:.2f}-{high:.2f})"


def _ms(competitor: Competitor) -> float:
    return 1000 / statistics.median(competitor.speeds("frames"))


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[243], help="T of windows (default: 243)")
    parser.add_argument("--video", type=int, default=32, help="frames of the video (default: %(default)s)")
    add_options(parser, repeats=11, steps=1, warmup=1)
    options = parser.parse_args()
    print(f"J = 17, d = 32, kernels {KERNELS}, {options.repeats} rounds, {options.threads} thread(s)\n")
    print("| T | theirs | ours | their CPU ms a frame | our CPU ms | ratio | differ |\n|---|---|---|---|---|---|---|")
    for frames in options.frames:
        print("\n".join(compare(Setting(frames, video=options.video), options)), flush=True)


if __name__ == "__main__":
    main()
