"""One competitor in its own interpreter: builds its step, then times it on request.

`benchmarks/competitors.py` starts it as `python -m benchmarks.peers.worker TARGET SETTING VALUES` in the repository
root. TARGET is MODULE:FUNCTION[:VARIANT]; the function takes a setting (and the variant) and returns a Step. SETTING is
MODULE:CLASS of the setting, VALUES a JSON object of its arguments. Each line on standard input holds a number of steps;
the answer is one line of JSON on standard output. What the peer itself prints goes to standard error.

Needs nothing but the standard library, so that every peer's interpreter can run it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """What one step did.

    Attributes:
        counts: what the speed is counted in, by name: samples, targets, bags.
        losses: by name.
    """

    counts: dict[str, int]
    losses: dict[str, float]


Step = Callable[[int], Work]
"""Do step number i of an endless run."""


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    try:  # getrusage would count what the parent held when it started this process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cpu_seconds() -> float:
    """CPU time of all threads of this process, and of those of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(step: Step, first: int, count: int) -> dict[str, Any]:
    """Do some steps; the sums of their counts, their losses, seconds, and the peak memory so far."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    work = [step(first + i) for i in range(count)]
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    counts = {name: sum(w.counts[name] for w in work) for name in work[0].counts}
    return {"counts": counts, "cpu": cpu, "wall": wall, "losses": [w.losses for w in work], "peak_mib": peak_mib()}


def _load(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def main() -> None:
    """Serve timing requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    target, setting, values = sys.argv[1:]
    module, function, *variant = target.split(":")
    make = _load(f"{module}:{function}")
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    imported = peak_mib()
    step: Step = make(_load(setting)(**json.loads(values)), *variant)
    done = 0
    for line in sys.stdin:
        answer = measure(step, done, int(line))
        done += int(line)
        answers.write(json.dumps(answer | {"imported_mib": imported}) + "\n")


if __name__ == "__main__":
    main()
