"""Names and patient ids replaced by keyed hashes: whoever lacks the key can neither read nor guess them."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors

_SHORTEST = 16  # bytes of a key
_LENGTH = 16  # hexadecimal digits of a pseudonym


def read_key(path: Path) -> bytes:
    """The secret of a file, without blanks around it.

    Raises:
        DatasetNotFoundError: there is no such file.
        ConfigError: it is too short to be a secret.
    """
    if not path.is_file():
        raise DatasetNotFoundError(
            f"{path}: no such key file; make one, for example with `openssl rand -hex 32 > {path.name}`, and keep it "
            "away from the prepared data"
        )
    with translate_os_errors(path):
        key = path.read_bytes().strip()
    if len(key) < _SHORTEST:
        raise ConfigError(f"{path}: {len(key)} bytes are no secret; give at least {_SHORTEST} random ones")
    return key


def pseudonym(key: bytes, kind: str, text: str) -> str:
    """HMAC-SHA256 of a text under a key, shortened: the same text has the same pseudonym wherever the key is used.

    Args:
        key: the secret.
        kind: what the text is, so that a name and an id of one spelling differ.
        text: what is replaced.
    """
    return hmac.new(key, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:_LENGTH]


def file_name(key: bytes | None, path: Path) -> str:
    """What a raw file is called in the output: its name, or the pseudonym of its name."""
    return pseudonym(key, "source", path.name) if key else path.name
