"""MVPA, and the whole classifier MVPFormer-S, beside braindecode's port, in one run; and how the cost grows.

    python -m benchmarks.ieeg_attention --peer-python PEERS       # attention, forward + backward
    python -m benchmarks.ieeg_attention --peer-python PEERS --whole   # classifier, forward and forward + backward
    python -m benchmarks.ieeg_attention --scaling PICTURE.png      # ours alone, over numbers of tokens

Both sides run in processes of their own with the same number of threads and the same weights, on the same window, and
take turns, so that a slow moment of the machine hits both. A ratio is the median over rounds of theirs to ours of the
same round, in CPU-seconds, with the quartiles behind it; above 1 ours is faster. Extra memory is how far resident
memory rises above what stood before the first step. `differ` is the relative difference of the first number that comes
out, float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.medical_attention import ratio
from benchmarks.peers.mvpa_braindecode import (
    DEPTH,
    DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Setting,
    draw_weights,
    make_input,
    make_tables,
    run,
)
from benchmarks.peers.worker import Step
from domains.common.attention import MultiVariateParallelAttention
from domains.ieeg.weights import from_official

PEER = "benchmarks.peers.mvpa_braindecode:build"
SIZES = ((12, 16), (25, 16), (25, 32), (25, 64), (50, 32), (50, 64), (100, 32), (100, 64), (100, 128))


def build_ours(setting: Setting) -> Step:
    """Return our step with the peer's weights."""
    x = make_input(setting)
    names = {"query": "q_attn", "key_value": "c_attn", "time_key": "position_net", "channel_key": "channel_net"}
    if not setting.whole:
        layer = MultiVariateParallelAttention(DIM, HEADS, KV_HEADS)
        weights = peer_weights(Attention(), setting)
        state = {f"{own}.weight": weights[f"{theirs}.weight"] for own, theirs in (names | {"out": "c_proj"}).items()}
        layer.load_state_dict({**state, "bias": weights["attn_bias"].view(3, KV_HEADS, -1)})
        time, channel = make_tables(setting)
        return run(setting, lambda given: layer(given, time, channel), x, layer)
    network = from_official(peer_weights(Classifier(), setting), {"n_head": HEADS}).eval()
    return run(setting, network, x, network)


def peer_weights(shapes: torch.nn.Module, setting: Setting) -> dict[str, torch.Tensor]:
    """The weights that the peer draws."""
    draw_weights(shapes, setting)
    return {name: parameter.detach() for name, parameter in shapes.named_parameters()}


class Attention(torch.nn.Module):
    """The parameters of braindecode's attention layer, by its names."""

    def __init__(self) -> None:
        super().__init__()
        width = DIM // HEADS * KV_HEADS
        for name, outputs in (("q_attn", DIM), ("c_attn", 2 * width), ("c_proj", DIM)):
            self.add_module(name, torch.nn.Linear(DIM, outputs, bias=False))
        for name in ("position_net", "channel_net"):
            self.add_module(name, torch.nn.Linear(DIM, width, bias=False))
        self.attn_bias = torch.nn.Parameter(torch.zeros(3 * width))


class Classifier(torch.nn.Module):
    """The parameters of braindecode's classifier, by its names."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = torch.nn.Module()
        self.patch_embed.ln, self.patch_embed.proj = torch.nn.RMSNorm(2610), torch.nn.Linear(2610, DIM, bias=False)
        self.positional_embedding = torch.nn.Embedding(110, DIM)
        self.channel_embedding = torch.nn.Embedding(128, DIM)
        self.blocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(DEPTH))
        for block in self.blocks:
            block.ln_1, block.attn, block.mlp = torch.nn.RMSNorm(DIM), Attention(), torch.nn.Module()
            block.mlp.gate_proj = torch.nn.Linear(DIM, HIDDEN, bias=False)
            block.mlp.up_proj = torch.nn.Linear(DIM, HIDDEN, bias=False)
            block.mlp.down_proj = torch.nn.Linear(HIDDEN, DIM, bias=False)
        self.ln_f = torch.nn.RMSNorm(DIM)
        self.final_layer = torch.nn.Linear(DIM, 2, bias=False)


def compare(setting: Setting, options: argparse.Namespace) -> str:
    """Let both take turns; return their row of the table."""
    ours = Entry("ours", sys.executable, "benchmarks.ieeg_attention:build_ours", setting)
    if options.peer_python is None:
        (found,) = take_turns((ours,), options)
        return f"| {_title(setting)} | - | {_ms(found):,.0f} | - | - | {_extra(found):,.0f} | |"
    peer = Entry("braindecode", options.peer_python, PEER, setting)
    theirs, mine = take_turns((peer, ours), options)
    values = [competitor.losses["value"] for competitor in (theirs, mine)]
    return (
        f"| {_title(setting)} | {_ms(theirs):,.0f} | {_ms(mine):,.0f} | {ratio(theirs, mine)} | {_extra(theirs):,.0f} "
        f"| {_extra(mine):,.0f} | {abs(values[1] / values[0] - 1):.0e} |"
    )


def _title(setting: Setting) -> str:
    kind = "forward + backward" if setting.training else "forward"
    return f"{setting.segments} x {setting.channels} | {'classifier' if setting.whole else 'attention'}, {kind}"


def _ms(competitor: Competitor) -> float:
    return 1000 / statistics.median(competitor.speeds("windows"))


def _extra(competitor: Competitor) -> float:
    return max(float(loss["extra_mib"]) for answer in competitor.answers for loss in answer["losses"])


def scaling(path: Path, options: argparse.Namespace) -> None:
    """Measure ours over sizes, print the table, and draw it."""
    rows = []
    print("| segments x channels | tokens | CPU s | CPU ms per token | extra MiB |\n|---|---|---|---|---|")
    for segments, channels in SIZES:
        entry = Entry("ours", sys.executable, "benchmarks.ieeg_attention:build_ours", Setting(segments, channels))
        (found,) = take_turns((entry,), options)
        rows.append((segments, channels, _ms(found) / 1000, _extra(found)))
        print(
            f"| {segments} x {channels} | {segments * channels:,} | {rows[-1][2]:.2f} "
            f"| {1000 * rows[-1][2] / (segments * channels):.2f} | {rows[-1][3]:,.0f} |",
            flush=True,
        )
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    # per token: what is outside the window costs each query a product over all tokens before it, and nothing more
    for panel, column, label in zip(figure.subplots(1, 2), (2, 3), ("CPU ms per token", "extra MiB"), strict=True):
        values = {row[:2]: row[column] * (1000 / (row[0] * row[1]) if column == 2 else 1) for row in rows}
        for count in sorted({channels for _, channels in values}):
            line = [(t * c, value) for (t, c), value in values.items() if c == count]
            panel.plot(*zip(*line, strict=True), marker="o", label=f"{count} channels")
        tokens = [t * c for t, c in values]
        scale = values[SIZES[3]] / (SIZES[3][0] * SIZES[3][1])
        ends = [min(tokens), max(tokens)]
        panel.plot(ends, [scale * end for end in ends], ":", color="#8a94a3", label="linear in the tokens")
        panel.set(xscale="log", yscale="log", xlabel="tokens (segments x channels)", ylabel=label)
        panel.legend(frameon=False, fontsize=8)
    figure.suptitle("MVPA, forward + backward, one thread", fontsize=11)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter with braindecode")
    parser.add_argument("--sizes", nargs="+", default=["25x64", "100x32"], help="SEGMENTSxCHANNELS")
    parser.add_argument("--whole", action="store_true", help="the whole classifier")
    parser.add_argument("--scaling", type=Path, metavar="PICTURE", help="measure ours over sizes, and draw it")
    add_options(parser, repeats=5, steps=1, warmup=1)
    options = parser.parse_args()
    if options.scaling:
        scaling(options.scaling, options)
        return
    print("| segments x channels | what | braindecode CPU ms | ours | ratio | extra MiB | ours | differ |")
    print("|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        segments, channels = map(int, size.split("x"))
        for training in (False, True) if options.whole else (True,):
            print(compare(Setting(segments, channels, options.whole, training), options), flush=True)


if __name__ == "__main__":
    main()
