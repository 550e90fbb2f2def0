"""Training speed of AutoInt beside FuxiCTR, DeepCTR-Torch and RecBole, on one CPU, in one run.

Every competitor runs in its own process with its own interpreter, on the same synthetic Criteo-shaped batches, with
the same number of threads. The processes take turns, a few steps each, so that a slow moment of the machine hits all of
them. Counted are samples per CPU-second of a whole step (zero_grad, forward, loss, backward, optimiser; the batch is in
memory) and the peak resident memory. Ours is trained in each peer's own maths. The one deliberate difference: the
peers update every row of the embedding table with dense Adam in every step, ours only the rows that occur in the batch
(lazy Adam).

    python -m benchmarks.ctr_training --peer-python PATH_TO_PEER_PYTHON

`benchmarks/peers/README.md` tells how to make the peers' interpreter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import torch
from torch.optim import Optimizer

from benchmarks.competitors import Entry, add_options, take_turns
from benchmarks.peers.clicks import N_NUMERIC, Setting
from benchmarks.peers.worker import Step, Work
from domains.ctr.autoint import Variant
from domains.ctr.module import AutoIntModule

PEERS: dict[Variant, str] = {
    "fuxictr": "FuxiCTR 2.3.10",
    "deepctr_torch": "DeepCTR-Torch 0.3.0",
    "recbole": "RecBole 1.2.0",
}
DEEP: dict[Variant, tuple[int, ...]] = {"recbole": (128, 128)}  # RecBole's default, which it cannot leave out
CLIP: dict[Variant, float] = {"fuxictr": 10.0}  # FuxiCTR always clips


def build_ours(setting: Setting, variant: Variant, *, sliced: bool = True) -> Step:
    """Return our training step in the maths of `variant`, over the same batches as the peer's.

    Args:
        setting: sizes.
        variant: "fuxictr", "deepctr_torch", "recbole" or "official".
        sliced: losses in slices that stay in the cache, as training does it.
    """
    sizes = setting.field_sizes()
    fields: list[dict[str, Any]] = [{"name": f"n{i}", "kind": "numerical"} for i in range(N_NUMERIC)]
    fields += [{"name": f"c{i}", "kind": "categorical", "size": size} for i, size in enumerate(sizes)]
    module = AutoIntModule(
        fields,
        dim=setting.dim,
        depth=setting.depth,
        width=setting.width,
        heads=setting.heads,
        variant=variant,
        deep=DEEP.get(variant, ()),
    )
    if not sliced:
        module.slice_rows = None
    optimiser = module.configure_optimizers()
    if not isinstance(optimiser, Optimizer):
        raise TypeError("the module was built without a schedule and gave more than an optimiser")
    start = torch.tensor(module.net.layout.offsets[N_NUMERIC:])
    numeric = torch.tensor(module.net.layout.offsets[:N_NUMERIC]).expand(setting.batch, -1)
    ring = []
    for batch in setting.batches():
        ids = torch.cat([numeric, batch.categories + start], dim=1)
        values = torch.cat([batch.numbers, torch.ones(batch.categories.shape)], dim=1)
        ring.append({"ids": ids, "values": values, "label": batch.label})

    def step(i: int) -> Work:
        optimiser.zero_grad()
        loss = module.loss(ring[i % len(ring)])
        loss.backward()  # type: ignore[no-untyped-call]
        if variant in CLIP:
            module.configure_gradient_clipping(optimiser, CLIP[variant], "norm")
        optimiser.step()
        return Work({"samples": setting.batch}, {"loss": float(loss.item())})

    return step


def build_unsliced(setting: Setting, variant: Variant) -> Step:
    """As `build_ours`, but every batch as a whole: what slicing gives is the ratio of the two."""
    return build_ours(setting, variant, sliced=False)


def compare(peer: Variant, setting: Setting, options: argparse.Namespace) -> list[str]:
    """Run one peer and ours in turns; return their rows of the table."""
    entries = [Entry(f"Heptad, {peer} maths", sys.executable, f"{options.ours}:{peer}", setting)]
    if options.peer_python:
        target = f"benchmarks.peers.autoint_{peer.removesuffix('_torch')}:build"
        entries.insert(0, Entry(PEERS[peer], options.peer_python, target, setting))
    competitors = take_turns(entries, options)
    first = statistics.median(competitors[0].speeds("samples"))
    what = f"{setting.vocabulary:,} / {setting.batch} / {setting.width}"
    rows = []
    for competitor in competitors:
        speeds = competitor.speeds("samples")
        median = statistics.median(speeds)
        rows.append(
            f"| {what} | {competitor.entry.name} | {min(speeds):,.0f} | **{median:,.0f}** | {max(speeds):,.0f} "
            f"| {median / first:.2f} | {competitor.peak_mib:,.0f} | {competitor.losses['loss']:.4f} |"
        )
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter which has the peers installed; without it ours runs alone")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--settings",
        nargs="+",
        default=["1000000/4096/16", "5000000/1024/16"],
        help="vocabulary/batch/width triples (default: %(default)s)",
    )
    parser.add_argument(
        "--ours",
        default="benchmarks.ctr_training:build_ours",
        help="MODULE:FUNCTION that builds our step from a Setting and a variant (default: %(default)s)",
    )
    add_options(parser, warmup=3)
    return parser.parse_args(arguments)


def main() -> None:
    """Print a Markdown table with a pair of rows per setting and peer."""
    options = parse()
    settings = []
    for triple in options.settings:
        vocabulary, batch, width = (int(part) for part in triple.split("/"))
        settings.append(Setting(vocabulary=vocabulary, batch=batch, width=width))
    print("| vocabulary / batch / width | system | min | median samples per CPU-s | max | ratio | peak MiB | loss |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in settings:
        for peer in options.peers:
            if peer == "deepctr_torch" and setting.width != setting.dim:
                continue
            print("\n".join(compare(peer, setting, options)), flush=True)


if __name__ == "__main__":
    main()
