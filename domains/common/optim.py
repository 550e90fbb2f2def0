"""Adam for models most of whose parameters a step does not touch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from domains.common.errors import ConfigError

AdamForm = Literal["torch", "tensorflow"]


class LazyAdam(Optimizer):
    """Adam (Kingma and Ba, 2015, arXiv 1412.6980) that updates only the rows a sparse gradient holds.

    A dense gradient is handled as in `torch.optim.Adam`. Of a sparse one only the rows it holds change, moments
    included: the cost of a step is that of the batch. This is an approximation ("lazy"): in dense Adam the moments of
    untouched rows decay and their rows keep moving. Both agree where every step touches every row.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the denominator.
        weight_decay: L2 coefficient, added to the gradient as `weight_decay * w` (of touched rows only, if sparse).
        form: where eps stands: `torch` `m̂ / (sqrt(v̂) + eps)`, or `tensorflow` (the paper's "epsilon hat", section 2)
            `lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)`.

    Raises:
        ConfigError: a negative learning rate, eps or decay, or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        form: AdamForm = "torch",
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"lr={lr}, eps={eps}, weight_decay={weight_decay}, betas={betas}: out of range")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "form": form})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, first, second = int(state["step"]), state["exp_avg"], state["exp_avg_sq"]
        if not grad.is_sparse:
            _advance(parameter, grad, first, second, step, group)
            return
        grad = coalesced(grad)
        rows = grad.indices()[0]
        touched = [tensor.index_select(0, rows) for tensor in (parameter, first, second)]
        _advance(touched[0], grad.values(), touched[1], touched[2], step, group)
        for tensor, new in zip((parameter, first, second), touched, strict=True):
            tensor.index_copy_(0, rows, new)


def coalesced(grad: Tensor) -> Tensor:
    """Sum a sparse gradient by row.

    Autograd forgets that a gradient was coalesced; ascending rows tell, and looking costs far less than sorting anew.
    """
    if grad.is_coalesced():
        return grad
    rows = grad.detach()._indices()[0]
    if len(rows) < 2 or bool((rows.diff() > 0).all()):
        return torch.sparse_coo_tensor(
            grad._indices(), grad._values(), grad.shape, is_coalesced=True, check_invariants=False
        )
    return grad.coalesce()


def _advance(value: Tensor, grad: Tensor, first: Tensor, second: Tensor, step: int, group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    if group["weight_decay"]:
        grad = grad.add(value, alpha=group["weight_decay"])
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = math.sqrt(1 - beta2**step)
    denominator = second.sqrt()
    rate = group["lr"] / (1 - beta1**step)
    if group["form"] == "torch":
        denominator.div_(root)
    else:
        rate *= root
    value.addcdiv_(first, denominator.add_(group["eps"]), value=-rate)
