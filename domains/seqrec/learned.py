"""Transitions that the item table has learned, beside those that were observed (Zhu et al., 2024, eq. 9-11)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.common.intervals import Floats
from domains.seqrec.losses import Teacher, Transitions, teacher_excess
from domains.seqrec.packing import Integers
from domains.seqrec.training import SequenceModule
from domains.seqrec.transitions import TransitionMatrix

TAILS = 10  # successors of an item that are looked at
LISTED = 100  # items whose successors are listed
SCORES = 1 << 23  # probabilities that exist at a time: 32 MB


@dataclass(frozen=True)
class Agreement:
    """How the table's successors compare with the observed ones.

    Args:
        heads: number of items compared.
        teacher: probability of each observed transition from the counts.
        student: probability of the same from the table.
        summary: `heads`; `teacher_mass` and `student_mass`, the probability of observed successors, mean over heads;
            `self_mass`, what the table gives to the heads themselves;
            `cross_entropy` of the table and `entropy` of the counts, its lower bound, in nats; `observed_share` of the
            table's ten best successors; `first_choice`, the share of heads one of whose most frequent successors is
            among those.
    """

    heads: int
    teacher: Floats
    student: Floats
    summary: dict[str, float]


@torch.no_grad()
def learned_transitions(module: SequenceModule, matrix: TransitionMatrix, heads: int) -> tuple[pl.DataFrame, Agreement]:
    """Compare the successors of the most frequent items in the table with the observed ones.

    An item that never followed itself is left out of its own list.

    Returns:
        The ten best successors of the first 100 items, best first: columns `head`, `head_id`, `tail`, `tail_id`,
        `place`, `student`, `teacher`, `count`; and the agreement over all `heads`.
    """
    net, tau = module.net, module.options.tau
    table = net.table()
    known = np.flatnonzero(np.diff(matrix.start))[:heads]
    lists, students, teachers = [], [], []
    facts = {name: 0.0 for name in ("teacher_mass", "student_mass", "cross_entropy", "entropy", "self_mass")}
    facts |= {"observed_share": 0.0, "first_choice": 0.0}
    step = max(SCORES // net.n_items, 1)
    for start in range(0, len(known), step):
        part = known[start : start + step]
        rows = matrix.rows(part)
        student = (table[rows.head] * (math.sqrt(net.dim) / tau) @ table.T).log_softmax(1).double()
        teacher = teacher_matrix(rows, net.n_items, tau, module.options.teacher)
        edges, places = (rows.row, rows.tail), torch.arange(len(part))
        observed = torch.zeros_like(teacher).index_put_(edges, rows.transitions.double())
        facts["self_mass"] += float(student[places, rows.head].exp().sum())
        others = student.clone()
        others[places, rows.head] = others[places, rows.head].where(observed[places, rows.head] > 0, -math.inf)
        best, tails = others.topk(min(TAILS, net.n_items), dim=1)
        counts = observed.gather(1, tails)
        facts["teacher_mass"] += float(teacher[edges].sum())
        facts["student_mass"] += float(student[edges].exp().sum())
        facts["cross_entropy"] -= float((teacher * student).sum())
        facts["entropy"] -= float(torch.special.xlogy(teacher, teacher).sum())
        facts["observed_share"] += float((counts > 0).double().mean(1).sum())
        facts["first_choice"] += float((counts == observed.amax(1, keepdim=True)).any(1).sum())
        students.append(student[edges].exp().numpy())
        teachers.append(teacher[edges].numpy())
        if start < LISTED:
            probabilities = teacher[places[:, None], tails]
            lists.append(_listed(part[: LISTED - start], tails, best.exp(), probabilities, counts))
    summary = {"heads": len(known)} | {name: value / max(len(known), 1) for name, value in facts.items()}
    joined = [np.concatenate(values) if values else np.zeros(0) for values in (teachers, students)]
    empty = _listed(known[:0], *(torch.zeros(0, TAILS) for _ in range(4)))
    return pl.concat(lists or [empty]), Agreement(len(known), joined[0], joined[1], summary)


def teacher_matrix(rows: Transitions, n_items: int, tau: float, teacher: Teacher) -> Tensor:
    """Dense rows of the teacher, float64 (H, V)."""
    excess, total = teacher_excess(rows, n_items, tau, teacher)
    weights = torch.ones(len(rows.head), n_items, dtype=torch.float64)
    weights.index_put_((rows.row, rows.tail), excess.double() + 1)
    return weights / total.double()[:, None]


def _listed(heads: Integers, tails: Tensor, student: Tensor, teacher: Tensor, counts: Tensor) -> pl.DataFrame:
    size, width = len(heads), tails.shape[1]
    columns = {name: t[:size].flatten().numpy() for name, t in (("student", student), ("teacher", teacher))}
    head, tail = np.repeat(heads, width), tails[:size].flatten().numpy().astype(np.int64)
    return pl.DataFrame(
        {
            "head": head,
            "head_id": head,
            "tail": tail,
            "tail_id": tail,
            "place": np.tile(np.arange(1, width + 1), size),
            **columns,
            "count": counts[:size].flatten().numpy().astype(np.int64),
        }
    )
