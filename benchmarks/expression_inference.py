"""ARBEx at inference, from images to corrected distributions, beside the form of the official program, in one run.

    python -m benchmarks.expression_inference [--batches 1 8]

Every competitor runs in its own process with the same number of threads, on the same images with the same weights; the
processes take turns, so that a slow moment of the machine hits all of them. `direct` is plain torch as the program
computes it (`benchmarks/peers/arbex_direct.py`), `plain` our network with `fuse=False`, `fused` our network as users
get it. A ratio is the median over rounds of theirs to ours of the same round, in CPU-seconds an image, with the
quartiles behind it; above 1 ours is faster. The last column is the relative difference of the embeddings' length.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.peers.arbex_direct import Setting, make_images, state
from benchmarks.peers.worker import Step, Work
from domains.expression.weights import from_official

PEER, OURS = "benchmarks.peers.arbex_direct:build", "benchmarks.expression_inference:build_ours"
PAIRS = (("direct", "fused"), ("plain", "fused"))


def build_ours(setting: Setting, form: str) -> Step:
    """Return our step with the peer's weights: plain or fused."""
    network = from_official(state(setting), {"attn_scope": "batch", "fuse": form == "fused"}).eval()
    images = make_images(setting)

    @torch.no_grad()
    def step(_: int) -> Work:
        output = network(images)
        value = {"value": float(output.embedding.norm()), "largest": float(output.corrected.max())}
        return Work({"images": setting.batch}, value)

    return step


def compare(setting: Setting, options: argparse.Namespace) -> list[str]:
    """Let all forms take turns on one size of batches; return the rows of the table."""
    entries = [Entry("direct", sys.executable, PEER, setting)]
    entries += [Entry(form, sys.executable, f"{OURS}:{form}", setting) for form in ("plain", "fused")]
    found = {competitor.entry.name: competitor for competitor in take_turns(entries, options)}
    rows = []
    for first, second in PAIRS:
        theirs, ours = found[first], found[second]
        differ = abs(ours.losses["value"] / theirs.losses["value"] - 1)
        rows.append(
            f"| {setting.batch} | {first} | {second} | {_ms(theirs):.0f} | {_ms(ours):.0f} | {ratio(theirs, ours)} "
            f"| {differ:.0e} |"
        )
    return rows


def ratio(theirs: Competitor, ours: Competitor) -> str:
    """Median of the ratios of the rounds, and their quartiles."""
    pairs = [b / a for a, b in zip(theirs.speeds("images"), ours.speeds("images"), strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"**{statistics.median(pairs):.2f}** ({low:.2f}-{high:.2f})"


def _ms(competitor: Competitor) -> float:
    return 1000 / statistics.median(competitor.speeds("images"))


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images of a step (default: 1 8)")
    add_options(parser, repeats=11, steps=2, warmup=1)
    options = parser.parse_args()
    print(f"224 x 224, C = 8, {options.repeats} rounds of {options.steps} steps, {options.threads} thread(s)\n")
    print(
        "| batch | theirs | ours | their CPU ms an image | our CPU ms | ratio | differ |\n|---|---|---|---|---|---|---|"
    )
    for batch in options.batches:
        print("\n".join(compare(Setting(batch), options)), flush=True)


if __name__ == "__main__":
    main()
