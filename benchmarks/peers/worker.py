"""One competitor in its own interpreter: builds its training step, then times it on request.

Started as `python -m benchmarks.peers.worker MODULE:FUNCTION[:VARIANT] SETTING` in the repository root. The function
takes a Setting (and the variant) and returns a Step; SETTING is a JSON object. Each line on standard input holds a
number of steps; the answer is one line of JSON on standard output. What the peer itself prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time

import torch

from benchmarks.peers.clicks import Setting, Step


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Serve timing requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    setting = Setting(**json.loads(sys.argv[2]))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module, function, *variant = sys.argv[1].split(":")
    idle = _peak_mib()
    step: Step = getattr(importlib.import_module(module), function)(setting, *variant)
    done = 0
    for line in sys.stdin:
        count = int(line)
        cpu, wall = time.process_time(), time.perf_counter()
        losses = [step(done + i) for i in range(count)]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        done += count
        answer = {"samples": count * setting.batch, "cpu": cpu, "wall": wall, "loss": losses[-1]}
        answers.write(json.dumps(answer | {"peak_mib": _peak_mib(), "idle_mib": idle}) + "\n")


if __name__ == "__main__":
    main()
