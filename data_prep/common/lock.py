"""Exclusive ownership of an output directory which ends with the owning process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.common.errors import BusyError
from data_prep.common.files import translate_os_errors


@contextlib.contextmanager
def own(directory: Path, lock_file: Path, *, shared: bool = False) -> Iterator[None]:
    """Own a directory; the operating system gives it back when the process dies, also by kill -9.

    Args:
        directory: what is owned; only named in the message.
        lock_file: the file the lock is on; created when missing, its folder too.
        shared: let other shared owners in (static shards of one preparation).

    Raises:
        BusyError: another process owns it.
    """
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        with translate_os_errors(lock_file):
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # a finishing owner removed the folder between the two calls
                continue
        try:
            fcntl.flock(handle, mode)
        except OSError as error:
            os.close(handle)
            raise BusyError(
                f"{directory}: another preparation is writing here; wait for it or choose another output directory"
            ) from error
        # A finishing owner removes the lock file: a lock on a removed file guards nothing, so take the new one.
        if lock_file.exists() and os.fstat(handle).st_ino == lock_file.stat().st_ino:
            break
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)
