"""Competitors of a benchmark: a process each, in an interpreter of its own, that take turns.

    peer = Entry("Peer 1.0", options.peer_python, "benchmarks.peers.NAME:build", setting)
    ours = Entry("Heptad", sys.executable, "benchmarks.NAME:build_ours", setting)
    for competitor in take_turns((peer, ours), options):
        print(competitor.entry.name, competitor.speeds("samples"), competitor.peak_mib)

`build` takes the setting and returns a `benchmarks.peers.worker.Step`. A slow moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Entry:
    """Who takes part.

    Attributes:
        name: as printed.
        python: interpreter.
        target: `MODULE:FUNCTION[:VARIANT]` that builds a step.
        setting: what the step is built for: plain values, of a class that every interpreter can import.
        epoch: how much work an epoch is, by the names of `Work.counts`, where that is known.
    """

    name: str
    python: str
    target: str
    setting: DataclassInstance
    epoch: dict[str, int] = field(default_factory=dict)


@dataclass
class Competitor:
    """A worker process and what it has measured so far.

    Attributes:
        entry: who it is.
        process: the worker.
        answers: of each round that counts, see `benchmarks.peers.worker.measure`.
    """

    entry: Entry
    process: subprocess.Popen[str]
    answers: list[dict[str, Any]] = field(default_factory=list)

    def run(self, steps: int, *, keep: bool = True) -> dict[str, Any]:
        """Do some steps; without `keep` they only warm up.

        Raises:
            RuntimeError: the worker has ended.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError(f"{self.entry.name}: the worker has no pipes")
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(f"{self.entry.name}: the worker ended with status {code}; --verbose shows why")
        answer: dict[str, Any] = json.loads(line)
        if keep:
            self.answers.append(answer)
        return answer

    def speeds(self, what: str) -> list[float]:
        """How much per CPU-second, round by round; `what` is a name of `Work.counts`."""
        return [answer["counts"][what] / answer["cpu"] for answer in self.answers]

    def epoch_seconds(self, what: str) -> float:
        """CPU-seconds of an epoch, from all rounds."""
        done = sum(answer["counts"][what] for answer in self.answers)
        return float(sum(answer["cpu"] for answer in self.answers) / done * self.entry.epoch[what])

    @property
    def peak_mib(self) -> float:
        """Peak resident memory."""
        return float(self.answers[-1]["peak_mib"])

    @property
    def imported_mib(self) -> float:
        """What of it the imports had taken."""
        return float(self.answers[-1]["imported_mib"])

    @property
    def losses(self) -> dict[str, float]:
        """Losses of the last step."""
        return dict(self.answers[-1]["losses"][-1])


@contextlib.contextmanager
def start(entry: Entry, options: argparse.Namespace) -> Iterator[Competitor]:
    """Start a worker, and end it afterwards.

    Args:
        entry: who it is.
        options: with those of `add_options`.
    """
    kind, threads = type(entry.setting), str(options.threads)
    words = [entry.target, f"{kind.__module__}:{kind.__qualname__}", json.dumps(asdict(entry.setting))]
    process = subprocess.Popen(
        [entry.python, "-m", "benchmarks.peers.worker", *words],
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
        process.communicate()  # waits and closes the pipes


def measure(entry: Entry, options: argparse.Namespace, *, warmup: int = 0) -> dict[str, Any]:
    """Let one worker do a single step, after some that do not count."""
    with start(entry, options) as competitor:
        if warmup:
            competitor.run(warmup, keep=False)
        return competitor.run(1)


def take_turns(entries: Sequence[Entry], options: argparse.Namespace) -> list[Competitor]:
    """Let all entries do their rounds, one after the other in each; the workers have ended when this returns."""
    with contextlib.ExitStack() as stack:
        competitors = [stack.enter_context(start(entry, options)) for entry in entries]
        for competitor in competitors:
            competitor.run(options.warmup, keep=False)
        for _ in range(options.repeats):
            for competitor in competitors:
                competitor.run(options.steps)
    return competitors


def add_options(parser: argparse.ArgumentParser, *, repeats: int = 7, steps: int = 2, warmup: int = 1) -> None:
    """Add the options of `take_turns` to a command line, with these defaults."""
    default = "(default: %(default)s)"
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds {default}")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps per round and competitor {default}")
    parser.add_argument("--warmup", type=int, default=warmup, help=f"steps before the first round {default}")
    parser.add_argument("--threads", type=int, default=1, help=f"threads of each competitor {default}")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
