"""FER+ (Barsoum et al., 2016, arXiv 1608.01041): ten votes for each image, and the four ways to learn from them.

The rules are those of section 3.2 as the authors' program carries them out (microsoft/FERPlus, `src/ferplus.py`): a
class with one single vote counts as none; an image whose most likely class is `unknown` or `not a face` is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
UNKNOWN, NOT_A_FACE = 8, 9  # places of the last two votes
MODES = ("majority", "probability", "crossentropy", "multi_target", "argmax")
_ENOUGH, _MOST = 0.75, 3  # votes that are gathered, of how many classes at most (probability)
_SHARE = 0.3  # of the votes, from which a class is a target (multi_target)
I64 = npt.NDArray[np.int64]


class Decided(NamedTuple):
    """What images are learned as.

    Args:
        label: most likely class, or UNKNOWN or NOT_A_FACE of images that are left out.
        target: share of each class; zero for images that are left out.
        ties: whether several classes have most votes (argmax: the first of them is taken).

    Shape:
        label (N,) int64, target (N, 8) float32, ties (N,) bool.
    """

    label: I64
    target: npt.NDArray[np.float32]
    ties: npt.NDArray[np.bool_]


def decide(votes: I64, mode: str) -> Decided:
    """Labels and targets of votes.

    - majority: the class with more than half of the votes; else unknown.
    - probability, crossentropy: shares of the classes with most votes, until they have three quarters; unknown if they
      have not more than half, or are more than three. Training draws a class (probability) or uses the shares.
    - multi_target: shares of the classes with at least 30 %; unknown if they have not more than half.
    - argmax: the class with most votes of the eight, single votes too, whatever unknown and not a face have; this is
      not the authors' rule, but that of papers which keep nearly all test images.

    Args:
        votes: counts in the order of `CLASSES`, unknown, not a face.
        mode: one of `MODES`.

    Shape:
        votes (N, 10) int64.
    """
    if mode == "argmax":
        kept = votes[:, :UNKNOWN].astype(np.float64)
        first = kept.argmax(axis=1)
        label = np.where(kept.max(axis=1, initial=0) > 0, first, UNKNOWN)
        shares = np.zeros_like(kept)
        shares[np.arange(len(kept)), first] = kept.max(axis=1, initial=0)
        ties = (kept == kept.max(axis=1, keepdims=True, initial=0)).sum(axis=1) > 1
    else:
        counted = np.where(votes > 1, votes, 0).astype(np.float64)
        gather = {"majority": _majority, "multi_target": _multi_target}.get(mode, _probability)
        every = gather(counted)
        label = np.where(every.any(axis=1), every.argmax(axis=1), UNKNOWN)
        shares = every[:, :UNKNOWN]
        ties = (counted == counted.max(axis=1, keepdims=True, initial=0)).sum(axis=1) > 1
    shares = np.where((label < UNKNOWN)[:, None], shares, 0)
    target = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)
    return Decided(label.astype(np.int64), target.astype(np.float32), ties)


def _majority(counted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    most = counted.max(axis=1, keepdims=True)
    return np.where((counted == most) & (most > 0.5 * counted.sum(axis=1, keepdims=True)), counted, 0)


def _multi_target(counted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = counted.sum(axis=1, keepdims=True)
    kept = np.where(counted >= _SHARE * total, counted, 0)
    return np.where(kept.sum(axis=1, keepdims=True) > 0.5 * total, kept, 0)


def _probability(counted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    result = np.zeros_like(counted)
    for row, votes in enumerate(counted):
        result[row] = _gather(votes.copy())
    return result


def _gather(left: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Classes of one image in the order of their votes, ties together; unknown and not a face end the gathering."""
    total, found = left.sum(), np.zeros_like(left)
    gathered, classes, open_ = 0.0, 0, True
    while gathered < _ENOUGH * total and classes < _MOST and open_:
        for place in np.flatnonzero(left == left.max()):
            gathered += left[place]
            found[place], left[place] = left[place], 0
            classes += 1
            if place >= UNKNOWN:
                open_ = False
                if found.sum() > found[place]:  # behind expressions it counts for nothing
                    found[place] = 0
                    classes -= 1
                break
    return np.zeros_like(found) if found.sum() <= 0.5 * total or classes > _MOST else found
