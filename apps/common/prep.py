"""`heptad DOMAIN prep`: raw data set -> prepared directory. Does not import torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.common.domain import Domain, load
from apps.common.function import call
from domains.common.errors import ConfigError


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Parse the options from the signature of the preparation and run it."""
    words = list(options)
    name = words.pop(0) if words and not words[0].startswith("-") else ""
    if not isinstance(domain.prepare, str) and name not in domain.prepare:
        _choose(domain, command, name, words)
        return
    prog = f"heptad {domain.name} {command} {name or 'DATASET'}"
    fixed = {"dataset": name} if name else {}
    function = load(preparation_of(domain, name))
    skip = domain.foreign_options.get(name, ())
    arguments, card = call(function, prog, f"Prepare {name or 'raw data'}: {domain.title}", words, fixed, skip)
    print(summary(Path(arguments["out"]), card))


def preparation_of(domain: Domain, dataset: str) -> str:
    """Name the function that prepares a data set."""
    return domain.prepare if isinstance(domain.prepare, str) else domain.prepare[dataset]


def _choose(domain: Domain, command: str, name: str, words: Sequence[str]) -> None:
    known = list(domain.prepare)
    near = difflib.get_close_matches(name, known, n=1)
    if not name and ("--help" in words or "-h" in words):
        print(f"usage: heptad {domain.name} {command} DATASET --raw PATH --out DIR [options]")
        print(f"\ndata sets: {', '.join(known)}; heptad {domain.name} {command} DATASET --help lists its options")
        return
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    raise ConfigError(f"heptad {domain.name} {command} {name or 'DATASET'}: name a data set; {hint}")


def summary(directory: Path, card: dict[str, Any]) -> str:
    """Say in a few lines what was prepared."""
    splits = ", ".join(f"{name} {entry['rows']:,}" for name, entry in card.get("splits", {}).items())
    rejects = card.get("rejects", {})
    lines = [f"prepared: {directory}"]
    if splits:
        lines.append(f"rows: {splits}")
    if rejects.get("count"):
        lines.append(f"rejected: {rejects['count']:,} ({rejects['share']:.3%}), reasons in {directory}/rejects.parquet")
    return "\n".join(lines)
