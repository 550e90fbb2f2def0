"""Optional dependencies: found missing before anything fails for want of them."""

from __future__ import annotations

from importlib.util import find_spec

from data_prep.common.errors import MissingExtraError


def need(extra: str, purpose: str, *modules: str) -> None:
    """Make sure that modules are installed, without importing them.

    A package calls this in its `__init__`, so that it comes before the imports of its modules.

    Args:
        extra: the extra of heptad that installs them.
        purpose: what needs them, for the message.
        modules: their names.

    Raises:
        MissingExtraError: naming the extra and the first module that is missing.
    """
    for name in modules:
        if find_spec(name) is None:
            raise MissingExtraError(extra, f"{purpose} ({name})")
