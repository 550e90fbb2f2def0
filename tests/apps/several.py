"""Several commands in one interpreter: `python -m tests.apps.several [still] A ... then B ...`.

Trained in two processes, all of them need no more than two interpreters. `still` leaves batch statistics out: they are
of each process, so that networks which use them train in another way in two processes than in one.
"""

from __future__ import annotations

import itertools
import sys

import torch.nn.functional as F
from torch import Tensor, nn

from apps import cli


def still(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise by the statistics of the start, in training, too."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def main(arguments: list[str]) -> int:
    """Run them until one fails."""
    if arguments[0] == "still":
        nn.BatchNorm2d.forward = still
        arguments = arguments[1:]
    parts = itertools.groupby(arguments, lambda word: word == "then")
    return max(cli.main(list(words)) for between, words in parts if not between)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
