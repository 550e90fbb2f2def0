"""`heptad DOMAIN prep`: raw data set -> prepared directory. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from apps.common.domain import Domain, load


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Parse the options from the signature of the domain's `prepare` and run it."""
    parser = ArgumentParser(
        prog=f"heptad {domain.name} {command} DATASET",
        description=f"Prepare raw data: {domain.title}. Options may be written with - or _.",
    )
    parser.add_function_arguments(load(domain.prepare))
    arguments = parser.instantiate(parser.parse_args(normalise(options))).as_dict()
    card = load(domain.prepare)(**arguments)
    print(summary(Path(arguments["out"]), card))


def normalise(options: Sequence[str]) -> list[str]:
    """`X --raw A B --ratios 0.7 0.2 0.1` -> `--dataset X --raw ["A", "B"] --ratios [0.7,0.2,0.1]`; - becomes _."""
    words: list[str] = []
    rest = list(options)
    if rest and not rest[0].startswith("-"):
        words += ["--dataset", rest.pop(0)]
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            word = name.replace("-", "_").replace("__", "--", 1) + equals + value
        words.append(word)
        if word in ("--raw", "--ratios"):
            given: list[str] = []
            while rest and not rest[0].startswith("--"):
                given.append(rest.pop(0))
            words.append(json.dumps(given) if word == "--raw" else f"[{','.join(given).strip('[]')}]")
    return words


def summary(directory: Path, card: dict[str, Any]) -> str:
    """Say in a few lines what was prepared."""
    splits = ", ".join(f"{name} {entry['rows']:,}" for name, entry in card.get("splits", {}).items())
    rejects = card.get("rejects", {})
    lines = [f"prepared: {directory}", f"rows: {splits}"]
    if rejects.get("count"):
        lines.append(f"rejected: {rejects['count']:,} ({rejects['share']:.3%}), reasons in {directory}/rejects.parquet")
    return "\n".join(lines)
