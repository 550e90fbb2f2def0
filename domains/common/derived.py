"""Tensors that are computed from weights, kept until one of the weights changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class Derived:
    """One such group of tensors, for inference: what is kept has no gradient.

    Example:
        >>> import torch
        >>> weight, doubled = torch.ones(2), Derived()
        >>> doubled((weight,), lambda: (2 * weight,))
        (tensor([2., 2.]),)
        >>> weight.zero_()
        tensor([0., 0.])
        >>> doubled((weight,), lambda: (2 * weight,))
        (tensor([0., 0.]),)
    """

    def __init__(self) -> None:
        self._kept: tuple[Hashable, tuple[Tensor, ...]] | None = None

    def __call__(
        self, sources: Sequence[Tensor], make: Callable[[], tuple[Tensor, ...]], form: Hashable = None
    ) -> tuple[Tensor, ...]:
        """Return the tensors.

        Args:
            sources: the weights; inference tensors do not count their changes, so that nothing is kept of them.
            make: computes the tensors.
            form: what else they depend on.
        """
        if torch.compiler.is_compiling() or any(source.is_inference() for source in sources):
            return make()
        state = form, *((source.data_ptr(), source._version, source.dtype, source.device) for source in sources)
        if self._kept is None or self._kept[0] != state:
            with torch.no_grad():
                self._kept = state, make()
        return self._kept[1]

    def __deepcopy__(self, memo: object) -> Derived:
        return Derived()

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        return Derived, ()
