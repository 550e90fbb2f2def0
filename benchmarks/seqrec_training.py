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
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.mqsa_ted_dense import Options, initial
from benchmarks.peers.sequences import Log, Setting
from benchmarks.seqrec_steps import export, synthetic

OURS = "benchmarks.seqrec_steps"
DENSE = "benchmarks.peers.mqsa_ted_dense:build"
RECBOLE = "benchmarks.peers.sasrec_recbole:build"
RECBOLE_BATCH = 2048  # its default
BEAUTY = (22_363, 12_101)  # users and items of Amazon Beauty, whose users have 8.9 events on average


@dataclass(frozen=True)
class Entry:
    """Who takes part.

    Attributes:
        name: as printed.
        python: interpreter.
        target: `MODULE:FUNCTION[:VARIANT]` that builds a step.
        setting: sizes.
        rows: rows of an epoch.
        targets: targets of an epoch.
    """

    name: str
    python: str
    target: str
    setting: Setting
    rows: int = 0
    targets: int = 0


@dataclass
class Competitor:
    """A worker process and what it has measured so far.

    Attributes:
        entry: who it is.
        process: the worker.
        answers: one per round that counts, see `benchmarks.peers.sequences`.
    """

    entry: Entry
    process: subprocess.Popen[str]
    answers: list[dict[str, Any]] = field(default_factory=list)

    def run(self, steps: int, *, keep: bool = True) -> dict[str, Any]:
        """Do some steps; without `keep` they only warm up."""
        if self.process.stdin is None or self.process.stdout is None:
            msg = f"{self.entry.name}: the worker has no pipes"
            raise RuntimeError(msg)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            msg = f"{self.entry.name}: the worker ended with status {self.process.wait()}; --verbose shows why"
            raise RuntimeError(msg)
        answer: dict[str, Any] = json.loads(line)
        if keep:
            self.answers.append(answer)
        return answer

    def total(self, what: str) -> float:
        """Sum over the rounds."""
        return float(sum(answer[what] for answer in self.answers))

    def epoch(self) -> float:
        """CPU-seconds of an epoch."""
        return self.total("cpu") / self.total("rows") * self.entry.rows


@contextlib.contextmanager
def start(entry: Entry, options: argparse.Namespace) -> Iterator[Competitor]:
    """Start a worker, and end it afterwards."""
    threads = str(options.threads)
    process = subprocess.Popen(
        [entry.python, "-m", "benchmarks.peers.sequences", entry.target, json.dumps(asdict(entry.setting))],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "POLARS_MAX_THREADS": threads},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if options.verbose else subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Competitor(entry, process)
    finally:
        process.kill()
        process.wait()


def measure(entry: Entry, options: argparse.Namespace) -> dict[str, Any]:
    """Let one worker do a single step."""
    with start(entry, options) as competitor:
        return competitor.run(1)


def entries(setting: Setting, log: Log, options: argparse.Namespace) -> list[tuple[Entry, Entry]]:
    """Return the pairs that run in turns: a peer, and ours."""
    users = int((np.minimum(np.diff(log.offsets), setting.max_len) - 1).clip(0).sum())
    ours = Entry("Heptad MQSA-TED", sys.executable, f"{OURS}:build_ours", setting, log.n_users, users)
    pairs = [(replace(ours, name="MQSA-TED, dense form", target=DENSE), ours)]
    if options.peer_python:
        prefixes = len(log.items) - log.n_users
        larger = replace(setting, batch=RECBOLE_BATCH)
        pairs.append((Entry("RecBole 1.2.0 SASRec", options.peer_python, RECBOLE, larger, prefixes, prefixes), ours))
    return pairs


def compare(pair: tuple[Entry, Entry], options: argparse.Namespace) -> list[str]:
    """Run a peer and ours in turns; return their rows of the table."""
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(start(entry, options)) for entry in pair]
        for competitor in both:
            competitor.run(options.warmup, keep=False)
        for _ in range(options.repeats):
            for competitor in both:
                competitor.run(options.steps)
    rows = []
    for competitor in both:
        speeds = [answer["targets"] / answer["cpu"] for answer in competitor.answers]
        last, epoch, ratio = competitor.answers[-1], competitor.epoch(), both[0].epoch() / competitor.epoch()
        rows.append(
            f"| {competitor.entry.name} | {competitor.entry.targets:,} | {min(speeds):,.0f} "
            f"| **{statistics.median(speeds):,.0f}** | {max(speeds):,.0f} | {epoch:,.1f} | {ratio:.2f} "
            f"| {last['peak_mib']:,.0f} ({last['imported_mib']:,.0f}) | {last['losses'][-1]['rec']:.4f} |"
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
        with start(entry, options) as competitor:
            competitor.run(1, keep=False)
            found = competitor.run(1)
        print(
            f"| {verb} | {found['rows']:,} | {log.n_items:,} | {options.threads} | {found['wall']:.2f} "
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
        print(
            f"| {users:,} | {items:,} | {events:,} | {found['targets']:,} | {loss} | {found['cpu']:.1f} "
            f"| {found['targets'] / found['cpu']:,.0f} | {found['peak_mib']:,.0f} |",
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
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps per round and competitor (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the first round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each competitor (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
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
