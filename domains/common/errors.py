"""Errors a user can act on: each message is one line naming the thing, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class HeptadError(Exception):
    """Root of all errors raised by `domains` and `apps`; the command line prints them as one line, exit code 2."""


class PreparedDataError(HeptadError, ValueError):
    """A prepared directory is missing, incomplete, or does not fit the model."""


class ConfigError(HeptadError, ValueError):
    """An option has a value that cannot work, or two options contradict each other."""


class UnsafeFileError(HeptadError, ValueError):
    """A file would execute code when read, or is a URL; neither is ever followed."""


class CheckpointNotFoundError(HeptadError, FileNotFoundError):
    """The named checkpoint or model directory does not exist."""

    def __str__(self) -> str:
        """Return the message alone (FileNotFoundError would print its errno form)."""
        return str(self.args[0])


class CheckpointMismatchError(HeptadError, RuntimeError):
    """Weights do not fit the network.

    Args:
        source: where the weights came from.
        missing: parameter names the network has and the file lacks.
        unexpected: names the file has and the network lacks.
        wrong_shape: `name: file shape != network shape`.
    """

    def __init__(
        self,
        source: str,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        wrong_shape: Iterable[str] = (),
    ) -> None:
        self.missing, self.unexpected, self.wrong_shape = list(missing), list(unexpected), list(wrong_shape)
        parts = [
            f"{title}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
            for title, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("wrong shape", self.wrong_shape),
            )
            if names
        ]
        super().__init__(f"{source}: the weights do not fit this model ({'; '.join(parts)}); check the model's options")


class MissingExtraError(HeptadError, ImportError):
    """An optional dependency is absent.

    Args:
        package: what could not be imported.
        extra: the extra of the heptad distribution that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'heptad[{extra}]'")
