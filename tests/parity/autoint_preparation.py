"""Replays the official AutoInt preparation scripts on raw lines, through the reproduction layout."""

from __future__ import annotations

from functools import partial
from typing import Any

from data_prep.ctr.reproduction import rows_of, scale

EXPECTED = {"index", "value", "label", "value_scaled"}


def replay_json(case: dict[str, Any]) -> dict[str, Any]:
    """Index, value, label (and for Criteo value_scaled) of each data set of a case.

    Args:
        case: per data set raw_lines, and profile_lines for kdd12; the expected parts are not needed.
    """
    result: dict[str, Any] = {}
    for name in ("criteo", "avazu", "kdd12"):
        if name not in case:
            continue
        lines = case[name]["raw_lines"]
        rows = list(rows_of(name, partial(list, lines), case[name].get("profile_lines", ())))
        parts: dict[str, Any] = {
            "index": [row[0] for row in rows],
            "value": [row[1] for row in rows],
            "label": [row[2] for row in rows],
        }
        if name == "criteo":
            parts["value_scaled"] = [[scale(number) for number in row[1]] for row in rows]
        result[name] = parts
    return result
