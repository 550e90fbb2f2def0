"""The error hierarchy of data preparation.

Every message is one line which names the file (and the row, column or key), what is wrong and what to do.
The command line turns `PrepError` into that line and exit status 2.
"""

from __future__ import annotations

from pathlib import Path


class PrepError(Exception):
    """Root of everything a user can cause or repair during preparation.

    Args:
        message: one line: file, what is wrong, what to do.
    """

    def __init__(self, message: str) -> None:
        # Messages quote damaged files: keep their control characters away from the terminal.
        self.message = "".join(mark if mark.isprintable() else "?" for mark in " ".join(message.split()))
        super().__init__(self.message)

    def __str__(self) -> str:
        # OSError and KeyError decorate their text; a user reads the plain line.
        return self.message


class DatasetNotFoundError(PrepError, FileNotFoundError):
    """A raw file, folder or prepared directory is not there."""


class ConfigError(PrepError, ValueError):
    """An option, or a schema file, asks for something that cannot be."""


class CorruptRecordError(PrepError, ValueError):
    """A source file holds bytes which cannot be read.

    Args:
        path: the damaged file.
        position: where, for people: "record 12", "byte 4,096".
        reason: what is wrong and what to do.
    """

    def __init__(self, path: Path | str, position: str, reason: str) -> None:
        self.path, self.position, self.reason = str(path), position, reason
        super().__init__(f"{path}: {position}: {reason}")

    def __reduce__(self) -> tuple[type[CorruptRecordError], tuple[str, str, str]]:
        # Exceptions cross process borders by calling their class with `args`, which holds only the message.
        return type(self), (self.path, self.position, self.reason)


class RejectsExceededError(PrepError, ValueError):
    """More records were unusable than `max_rejects` allows."""


class LabelError(PrepError, ValueError):
    """The labels cannot be learned from: all of one class, or none at all."""


class LeakError(PrepError, ValueError):
    """One group (patient, subject, user, ...) would be on both sides of a split."""


class ManifestError(PrepError, ValueError):
    """A `dataset.json` is damaged or of a format this version does not read."""


class MissingExtraError(PrepError, ImportError):
    """An optional dependency is not installed.

    Args:
        extra: the extra which installs it.
        purpose: what needs it.
    """

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra, self.purpose = extra, purpose
        super().__init__(f"{purpose} needs an optional dependency; install it with: pip install 'heptad[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.extra, self.purpose)


class DiskFullError(PrepError, OSError):
    """No space is left (or the quota is used up) where output is written."""


class BusyError(PrepError, RuntimeError):
    """Another preparation owns the output directory."""


class WorkerLostError(PrepError, RuntimeError):
    """A worker process ended without a word, mostly killed for want of memory."""


class IncompleteError(PrepError, RuntimeError):
    """A static shard did its share, and the other shards still have to do theirs."""
