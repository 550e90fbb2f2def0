"""ACMIL on one large bag, beside its equations as they stand and beside the bare matrix products, in one run.

    python -m benchmarks.medical_attention [--attention multi_head gated] [--sizes 384/128 1024/512]

Every competitor runs in its own process with the same number of threads, on the same bag with the same weights, without
masking and dropout; the processes take turns, so that a slow moment of the machine hits all of them. A ratio is the
median over rounds of theirs to ours of the same round, in CPU-seconds, with the quartiles behind it; above 1 ours is
faster. Extra memory is how far resident memory rises above what stood before the first step: network, bag, and
libraries that have run. `products` are the four products of the forward pass of ACMIL_GA and nothing else: no bias,
sigmoid, or softmax. The last column is the largest relative difference of what comes out: a logit, or in training the
sum of all three losses.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.peers.acmil_direct import Setting, make_bag, make_weights, measured
from benchmarks.peers.worker import Step
from domains.medical.losses import bag_losses
from domains.medical.weights import from_official

DIRECT = "benchmarks.peers.acmil_direct"


def build_ours(setting: Setting) -> Step:
    """Return our step with the peer's weights."""
    x, label = make_bag(setting)
    network = from_official(make_weights(setting))
    network.masking, network.dropout = None, 0.0

    def train(bag: torch.Tensor) -> float:
        network.zero_grad()
        losses = bag_losses(network.pool(bag), label)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    @torch.no_grad()
    def forward(bag: torch.Tensor) -> float:
        return float(network(bag)[0, 0])

    network.train(setting.training)
    return measured(train if setting.training else forward, x)


def compare(setting: Setting, options: argparse.Namespace) -> list[str]:
    """Let the competitors of one setting take turns; return their rows of the table."""
    entries = [
        Entry("direct", sys.executable, f"{DIRECT}:build", setting),
        Entry("ours", sys.executable, "benchmarks.medical_attention:build_ours", setting),
    ]
    if setting.attention == "gated" and not setting.training:
        entries.append(Entry("products", sys.executable, f"{DIRECT}:build_products", setting))
    found = {competitor.entry.name: competitor for competitor in take_turns(entries, options)}
    ours, rows = found.pop("ours"), []
    for name, theirs in found.items():
        memory = [_extra(competitor) for competitor in (theirs, ours)]
        values = [competitor.losses["value"] for competitor in (theirs, ours)]
        same = f"{abs(values[1] / values[0] - 1):.0e}" if name == "direct" else ""
        kind = "forward + backward" if setting.training else "forward"
        rows.append(
            f"| {setting.attention} | {setting.feature_dim}/{setting.dim} | {kind} | {name} | {_ms(theirs):,.1f} "
            f"| {_ms(ours):,.1f} | {ratio(theirs, ours)} | {memory[0]:,.0f} | {memory[1]:,.0f} "
            f"| {memory[1] / memory[0]:.0%} | {same} |"
        )
    return rows


def ratio(theirs: Competitor, ours: Competitor) -> str:
    """Median of the ratios of the rounds, and their quartiles."""
    pairs = [a["cpu"] / b["cpu"] for a, b in zip(theirs.answers, ours.answers, strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"**{statistics.median(pairs):.2f}** ({low:.2f}-{high:.2f})"


def _ms(competitor: Competitor) -> float:
    return 1000 / statistics.median(competitor.speeds("bags"))


def _extra(competitor: Competitor) -> float:
    return max(float(loss["extra_mib"]) for answer in competitor.answers for loss in answer["losses"])


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", nargs="+", default=["multi_head", "gated"], choices=["multi_head", "gated"])
    parser.add_argument("--sizes", nargs="+", default=["384/128", "1024/512"], help="FEATURE_DIM/DIM")
    parser.add_argument("--instances", type=int, default=20_000)
    parser.add_argument("--branches", type=int, default=5)
    add_options(parser, repeats=15, steps=1, warmup=2)
    options = parser.parse_args()
    print(f"N = {options.instances:,}, K = {options.branches}, {options.repeats} rounds of {options.steps} steps\n")
    print(
        "| attention | features | pass | peer | their CPU ms | our CPU ms | ratio | extra MiB | ours | share | differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for attention in options.attention:
        for size in options.sizes:
            feature_dim, dim = map(int, size.split("/"))
            for training in (False, True):
                setting = Setting(attention, feature_dim, dim, training, options.instances, options.branches)
                print("\n".join(compare(setting, options)), flush=True)


if __name__ == "__main__":
    main()
