"""`dataset.json` of a prepared directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from domains.common.errors import PreparedDataError

FORMAT = "heptad/1"


def read_card(root: Path, domain: str) -> dict[str, Any]:
    """Read and check `dataset.json` of a prepared directory.

    Raises:
        PreparedDataError: the file is missing, is no JSON, or belongs to another domain or format.
    """
    path = root / "dataset.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise PreparedDataError(
            f"{path}: not found; make it with `heptad {domain} prep DATASET --raw PATH --out {root}`"
        ) from None
    except (ValueError, OSError) as error:
        raise PreparedDataError(f"{path}: cannot be read ({error}); prepare the data again") from None
    if card.get("format") != FORMAT or card.get("domain") != domain:
        raise PreparedDataError(
            f"{path}: format {card.get('format')!r} of domain {card.get('domain')!r}, need {FORMAT!r} of {domain!r};"
            " prepare the data with this version"
        )
    return dict(card)
