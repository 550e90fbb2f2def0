"""Training speed of MQSA-TED beside its own dense form and RecBole's SASRec, on one CPU, in one run.

Every competitor runs in its own process with the same number of threads on the same training sequences. The processes
take turns, a few steps each, so that a slow moment of the machine hits all of them. Counted are targets per CPU-second
of whole steps (making the batch, zero_grad, forward, loss, backward, optimiser) and the peak resident memory, of which
the imports had taken what stands in brackets; the seconds of an epoch are those of the steps taken times the rows of an
epoch over the rows of those steps. A target is a position whose next item is predicted. RecBole makes every prefix a
row of its own.

    python -m benchmarks.seqrec_training --prepared PREPARED --peer-python PATH_TO_PEER_PYTHON
    python -m benchmarks.seqrec_training --prepared PREPARED --losses     # ours and the dense form, equal weights
    python -m benchmarks.seqrec_training --ranking --threads 2            # all users against all items, metrics
    python -m benchmarks.seqrec_training --scaling                        # an epoch of 1, 2 and 4 times the events
    python -m benchmarks.seqrec_training --catalogue 1000000              # an epoch with sampled softmax

PREPARED is a directory of `heptad seqrec prep`; without it the log is a synthetic one in the shape of Amazon Beauty.
`benchmarks/peers/README.md` tells how to make the peers' interpreter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.competitors import Entry, add_options, measure, start, take_turns
from benchmarks.peers.mqsa_ted_dense import Options, initial
from benchmarks.peers.sequences import Log, Setting
from benchmarks.seqrec_steps import export, synthetic

OURS = "benchmarks.seqrec_steps"
DENSE = "benchmarks.peers.mqsa_ted_dense:build"
RECBOLE = "benchmarks.peers.sasrec_recbole:build"
RECBOLE_BATCH = 2048  # its default
BEAUTY = (22_363, 12_101)  # users and items of Amazon Beauty, whose users have 8.9 events on average


def entries(setting: Setting, log: Log, options: argparse.Namespace) -> list[tuple[Entry, Entry]]:
    """Return the pairs that run in turns: a peer, and ours."""
    targets = int((np.minimum(np.diff(log.offsets), setting.max_len) - 1).clip(0).sum())
    epoch = {"rows": log.n_users, "targets": targets}
    ours = Entry("Heptad MQSA-TED", sys.executable, f"{OURS}:build_ours", setting, epoch)
    pairs = [(replace(ours, name="MQSA-TED, dense form", target=DENSE), ours)]
    if options.peer_python:
        prefixes = len(log.items) - log.n_users
        larger, epoch = replace(setting, batch=RECBOLE_BATCH), {"rows": prefixes, "targets": prefixes}
        pairs.append((Entry("RecBole 1.2.0 SASRec", options.peer_python, RECBOLE, larger, epoch), ours))
    return pairs


def compare(pair: tuple[Entry, Entry], options: argparse.Namespace) -> list[str]:
    """Run a peer and ours in turns; return their rows of the table."""
    both = take_turns(pair, options)
    seconds = [competitor.epoch_seconds("rows") for competitor in both]
    rows = []
    for competitor, epoch in zip(both, seconds, strict=True):
        speeds = competitor.speeds("targets")
        rows.append(
            f"| {competitor.entry.name} | {competitor.entry.epoch['targets']:,} | {min(speeds):,.0f} "
            f"| **{statistics.median(speeds):,.0f}** | {max(speeds):,.0f} | {epoch:,.1f} | {seconds[0] / epoch:.2f} "
            f"| {competitor.peak_mib:,.0f} ({competitor.imported_mib:,.0f}) | {competitor.losses['rec']:.4f} |"
        )
    return rows


def print_pairs(setting: Setting, log: Log, options: argparse.Namespace) -> None:
    """Print a pair of rows per peer."""
    print(
        f"{options.repeats} rounds of {options.steps} steps, dropout {setting.dropout}, {options.threads} thread(s)\n"
    )
    print(
        "| system | targets of an epoch | min | median targets per CPU-s | max | CPU-s of an epoch | ratio | peak MiB ",
        end="",
    )
    print("| loss |\n|---|---|---|---|---|---|---|---|---|")
    for pair in entries(setting, log, options):
        print("\n".join(compare(pair, options)), flush=True)


def print_losses(setting: Setting, log: Log, folder: Path, options: argparse.Namespace) -> None:
    """Print the losses of ours and of the dense form from equal weights, without dropout, step by step.

    The embeddings start three times as large as usual, so that the softmax is not flat.
    """
    state = initial(Options(log.n_items, setting.dim, setting.max_len), setting.seed)
    state |= {name: state[name] * 3 for name in ("item", "position")}
    path = folder / "state.npz"
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in state.items()}
    np.savez(path, **arrays)
    exact = replace(setting, dropout=0.0, state=str(path))
    (dense, ours), *_ = entries(exact, log, options)
    found = []
    for entry in (dense, ours):
        with start(entry, options) as competitor:
            found.append(competitor.run(options.steps)["losses"])
    print("| step | loss | dense form | Heptad | relative difference |\n|---|---|---|---|---|")
    for i, (theirs, mine) in enumerate(zip(*found, strict=True)):
        for name in ("rec", "kd", "total"):
            difference = abs(mine[name] / theirs[name] - 1)
            print(f"| {i + 1} | {name} | {theirs[name]:.6f} | {mine[name]:.6f} | {difference:.1e} |")


def print_ranking(setting: Setting, log: Log, options: argparse.Namespace) -> None:
    """Print how long the full ranking of a split takes."""
    print("| verb | users | items | threads | wall s | CPU-s | peak MiB | ndcg@10 |\n|---|---|---|---|---|---|---|---|")
    for verb in ("validate", "test"):
        entry = Entry(verb, sys.executable, f"{OURS}:build_ranking:{verb}", setting)
        found = measure(entry, options, warmup=1)
        print(
            f"| {verb} | {found['counts']['rows']:,} | {log.n_items:,} | {options.threads} | {found['wall']:.2f} "
            f"| {found['cpu']:.2f} | {found['peak_mib']:,.0f} | {found['losses'][0]['ndcg@10']:.4f} |",
            flush=True,
        )


def print_epochs(sizes: list[tuple[int, int]], loss: str, folder: Path, options: argparse.Namespace) -> None:
    """Print what a whole epoch of the trainer costs on synthetic logs.

    Args:
        sizes: users and items of each log.
        loss: `full` or `sampled`.
        folder: where the logs go.
        options: of the command line.
    """
    print("| users | items | events | targets | loss | CPU-s of an epoch | targets per CPU-s | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for users, items in sizes:
        prepared = folder / f"{users}-{items}"
        synthetic(prepared, users, items)
        events = json.loads((prepared / "dataset.json").read_text())["n_events"]
        setting = Setting(log="", prepared=str(prepared), dropout=options.dropout)
        found = measure(Entry("Heptad", sys.executable, f"{OURS}:build_epochs:{loss}", setting), options)
        targets = found["counts"]["targets"]
        print(
            f"| {users:,} | {items:,} | {events:,} | {targets:,} | {loss} | {found['cpu']:.1f} "
            f"| {targets / found['cpu']:,.0f} | {found['peak_mib']:,.0f} |",
            flush=True,
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, help="directory of `heptad seqrec prep`; default: a synthetic log")
    parser.add_argument("--peer-python", help="interpreter which has RecBole installed; without it RecBole is left out")
    section = parser.add_mutually_exclusive_group()
    section.add_argument("--losses", action="store_true", help="compare losses with the dense form's")
    section.add_argument("--ranking", action="store_true", help="time the full ranking of all users")
    section.add_argument("--scaling", action="store_true", help="time epochs of 1, 2 and 4 times the events")
    section.add_argument("--catalogue", type=int, help="time an epoch over so many items with sampled softmax")
    parser.add_argument("--users", type=int, default=100_000, help="of --catalogue (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.5, help="default: %(default)s")
    add_options(parser)
    return parser.parse_args(arguments)


def main() -> None:
    """Print one Markdown table."""
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.scaling:
            users, items = BEAUTY
            print_epochs([(users * factor, items) for factor in (1, 2, 4)], "full", folder, options)
            return
        if options.catalogue:
            print_epochs([(options.users, options.catalogue)], "sampled", folder, options)
            return
        prepared = options.prepared
        if prepared is None:
            prepared = folder / "prepared"
            synthetic(prepared, *BEAUTY)
        log = export(prepared, folder / "training.npz")
        setting = Setting(str(folder / "training.npz"), prepared=str(prepared.resolve()), dropout=options.dropout)
        if options.losses:
            print_losses(setting, log, folder, options)
        elif options.ranking:
            print_ranking(setting, log, options)
        else:
            print_pairs(setting, log, options)


if __name__ == "__main__":
    main()
