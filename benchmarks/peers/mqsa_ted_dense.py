"""MQSA-TED in the straightforward dense form of the official maths: yardstick of speed and independent reference.

The maths of Zhu et al. (WSDM 2024, arXiv 2311.01056) with nothing saved: both branches run over all T slots, pads
included; each branch's representations meet the whole catalogue in a product of their own, and the two sets of logits
are mixed; the distillation's teacher is a dense row of the catalogue per input item, made on the host in every step;
the weight penalty is a sum over all tensors. Nothing here comes from `domains`.

Weights have names such as `short.block.0.query.kernel` (input, output), `long.norm_out.gamma`, `item`, `position`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.sequences import Ints, Log, Setting
from benchmarks.peers.worker import Step, Work

BRANCHES = ("short", "long")
DENSE = ("query", "key", "value", "ffn1", "ffn2")
FAR = float(-(2**32) + 1)  # logit of a slot that must not be looked at


@dataclass(frozen=True)
class Options:
    """Sizes and constants; the defaults are the published command for Amazon Beauty.

    Attributes:
        n_items: size V of the catalogue; the pad id is V.
        dim: embedding size D.
        max_len: slots T.
        depth: blocks per branch.
        heads: attention heads.
        window: items L that the long branch's query averages.
        alpha: weight of the short branch.
        distillation: weight of the distillation loss.
        tau: temperature of teacher and student.
        l2: coefficient of half the sum of squares of all weights.
        dropout: rate, everywhere.
        lr: learning rate of Adam.
    """

    n_items: int
    dim: int = 64
    max_len: int = 50
    depth: int = 1
    heads: int = 1
    window: int = 3
    alpha: float = 0.5
    distillation: float = 0.1
    tau: float = 0.1
    l2: float = 1e-4
    dropout: float = 0.5
    lr: float = 1e-3


@dataclass(frozen=True)
class Transitions:
    """How often item j follows item i, as sparse rows.

    Attributes:
        offsets: row i is places offsets[i]:offsets[i + 1], (V + 1,).
        items: j, (N,).
        counts: (N,) float32.
    """

    offsets: Ints
    items: Ints
    counts: npt.NDArray[np.float32]

    @classmethod
    def count(cls, log: Log, max_len: int, span: int = 1) -> Transitions:
        """Count the followers at distance 1 to `span` within the newest `max_len` items of every sequence."""
        log = log.last(max_len)
        owner = np.repeat(np.arange(log.n_users), np.diff(log.offsets))
        pairs = []
        for distance in range(1, span + 1):
            same = owner[distance:] == owner[:-distance]
            pairs.append(log.items[:-distance][same] * log.n_items + log.items[distance:][same])
        keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
        heads, tails = np.divmod(keys, log.n_items)
        offsets = np.searchsorted(heads, np.arange(log.n_items + 1))
        return cls(offsets.astype(np.int64), tails, counts.astype(np.float32))

    def rows(self, heads: Ints) -> Tensor:
        """Return the dense counts of some items, (N, V) float32."""
        rows = np.zeros((len(heads), len(self.offsets) - 1), dtype=np.float32)
        for row, head in zip(rows, heads, strict=True):
            place = slice(self.offsets[head], self.offsets[head + 1])
            row[self.items[place]] = self.counts[place]
        return torch.from_numpy(rows)


def initial(options: Options, seed: int) -> dict[str, Tensor]:
    """Draw weights: embeddings from N(0, 0.01^2), dense layers Glorot uniform, everything else 0 or 1."""
    draw = torch.Generator().manual_seed(seed)
    dim = options.dim
    state = {
        "item": torch.randn(options.n_items, dim, generator=draw) * 0.01,
        "position": torch.randn(options.max_len, dim, generator=draw) * 0.01,
    }
    limit = math.sqrt(6 / (dim + dim))
    for branch in BRANCHES:
        norms = [f"{branch}.norm_out"]
        for block in range(options.depth):
            at = f"{branch}.block.{block}"
            for name in DENSE:
                state[f"{at}.{name}.kernel"] = (torch.rand(dim, dim, generator=draw) * 2 - 1) * limit
                state[f"{at}.{name}.bias"] = torch.zeros(dim)
            norms += [f"{at}.norm_query", f"{at}.norm_attn"]
        for norm in norms:
            state |= {f"{norm}.gamma": torch.ones(dim), f"{norm}.beta": torch.zeros(dim)}
    return state


class DenseMQSATED:
    """The network with its loss and optimiser.

    Args:
        options: sizes and constants.
        state: weights by name; they are copied.
        transitions: what the teacher is made of.

    Shape:
        items, targets (B, T) int64, left padded with V.
    """

    def __init__(self, options: Options, state: dict[str, Tensor], transitions: Transitions) -> None:
        self.options = options
        self.state = {name: tensor.detach().clone().requires_grad_() for name, tensor in state.items()}
        self.transitions = transitions
        self.first = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        self.steps = 0
        self.training = True

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.options.dropout, self.training)

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.kernel"] + self.state[f"{name}.bias"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.gamma"], self.state[f"{name}.beta"], 1e-24)

    def _attend(self, source: Tensor, x: Tensor, name: str) -> Tensor:
        """Mix the values of x (B, T, D) by attention, without residual -> (B, T, D)."""
        heads = [
            self._dense(y, f"{name}.{part}").view(*x.shape[:2], self.options.heads, -1).transpose(1, 2)
            for part, y in (("query", source), ("key", x), ("value", x))
        ]  # 3 times (B, H, T, D / H)
        logits = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(heads[0].shape[-1])  # (B, H, T, T)
        empty = (x == 0).all(-1)[:, None, None, :]
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        weights = logits.masked_fill(empty | later, FAR).softmax(-1)
        weights = weights.masked_fill((source == 0).all(-1)[:, None, :, None], 0.0)
        return (self._drop(weights) @ heads[2]).transpose(1, 2).reshape(x.shape)

    def _branch(self, x: Tensor, mask: Tensor, branch: str) -> Tensor:
        """Run the blocks of one branch on x (B, T, D); mask (B, T, 1) -> (B, T, D)."""
        for block in range(self.options.depth):
            name = f"{branch}.block.{block}"
            query = x
            if branch == "long":
                total, number = torch.zeros_like(x), torch.zeros_like(mask)
                for shift in range(min(self.options.window, x.shape[1])):
                    total = total + F.pad(x, (0, 0, shift, 0))[:, : x.shape[1]]
                    number = number + F.pad(mask, (0, 0, shift, 0))[:, : x.shape[1]]
                query = total / (number + 1e-24)
            query = self._norm(query, f"{name}.norm_query")
            y = self._norm(self._attend(query, x, name) + query, f"{name}.norm_attn")
            hidden = self._drop(self._dense(y, f"{name}.ffn1").relu())
            x = (y + self._drop(self._dense(hidden, f"{name}.ffn2"))) * mask
        return self._norm(x, f"{branch}.norm_out")

    def represent(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the short and the long branch make of the items, 2 times (B, T, D)."""
        scale = math.sqrt(self.options.dim)
        mask = (items != self.options.n_items).float().unsqueeze(-1)
        x = self._drop(self._table()[items] * scale + self.state["position"]) * mask
        return self._branch(x, mask, "short"), self._branch(x, mask, "long")

    def _table(self) -> Tensor:
        """Return the item embeddings and a row of zeros for the pad, (V + 1, D)."""
        return F.pad(self.state["item"], (0, 0, 0, 1))

    def logits(self, items: Tensor) -> Tensor:
        """Return the logits of all items and the pad at all slots, (B, T, V + 1)."""
        short, long = self.represent(items)
        table = self._table().T
        return self.options.alpha * (short @ table) + (1 - self.options.alpha) * (long @ table)

    def scores(self, items: Tensor) -> Tensor:
        """Return the scores of all items after the newest one, (B, V)."""
        return self.logits(items)[:, -1, :-1]

    def losses(self, items: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the losses `rec`, `kd` and their weighted sum with the penalty, `total`."""
        options = self.options
        real = items != options.n_items
        logits = self.logits(items)
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        rec = (each * real.flatten()).sum() / real.sum()

        heads = items[real]
        counts = self.transitions.rows(heads.numpy())
        teacher = (counts / counts.max(-1, keepdim=True).values / options.tau).softmax(-1)
        student = self._drop(self.state["item"][heads] * math.sqrt(options.dim)) @ self.state["item"].T / options.tau
        kd = -(teacher * (student.softmax(-1) + 1e-24).log()).sum(-1).mean()

        penalty = torch.stack([tensor.square().sum() / 2 for tensor in self.state.values()]).sum()
        return {"rec": rec, "kd": kd, "total": rec + options.distillation * kd + options.l2 * penalty}

    def backward(self, items: Tensor, targets: Tensor) -> dict[str, float]:
        """Fill the gradients of all weights; return the losses."""
        for tensor in self.state.values():
            tensor.grad = None
        losses = self.losses(items, targets)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        return {name: float(loss.item()) for name, loss in losses.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move all weights by Adam with epsilon outside the bias correction (Kingma and Ba, section 2, last lines)."""
        self.steps += 1
        rate = self.options.lr * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for name, tensor in self.state.items():
            if tensor.grad is not None:
                self.first[name] = 0.9 * self.first[name] + 0.1 * tensor.grad
                self.second[name] = 0.999 * self.second[name] + 0.001 * tensor.grad.square()
                tensor -= rate * self.first[name] / (self.second[name].sqrt() + 1e-8)

    def step(self, items: Tensor, targets: Tensor) -> dict[str, float]:
        """Train on one batch; return its losses."""
        losses = self.backward(items, targets)
        self.update()
        return losses


def load_state(path: Path) -> dict[str, Tensor]:
    """Read weights that `np.savez` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def build(setting: Setting) -> Step:
    """Return the dense training step."""
    log = Log.load(Path(setting.log))
    options = Options(
        log.n_items,
        dim=setting.dim,
        max_len=setting.max_len,
        window=setting.window,
        alpha=setting.alpha,
        distillation=setting.distillation,
        tau=setting.tau,
        l2=setting.l2,
        dropout=setting.dropout,
        lr=setting.lr,
    )
    state = load_state(Path(setting.state)) if setting.state else initial(options, setting.seed)
    model = DenseMQSATED(options, state, Transitions.count(log, setting.max_len, setting.span))
    torch.manual_seed(setting.seed)

    def step(i: int) -> Work:
        inputs, targets = log.padded(setting.rows(i, log.n_users), setting.max_len)
        losses = model.step(torch.from_numpy(inputs), torch.from_numpy(targets))
        return Work({"rows": len(inputs), "targets": int((inputs != log.n_items).sum())}, losses)

    return step
