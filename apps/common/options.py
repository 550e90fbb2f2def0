"""Reading a few options before the full parser exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from apps.common.configs import find_config
from apps.common.domain import Domain
from domains.common.errors import ConfigError

BEST = "checkpoints/best.ckpt"
CONFIG = ("--config", "-c")


def values(options: Sequence[str], *names: str) -> list[str]:
    """Return the values of `NAME VALUE` and `NAME=VALUE`, in order."""
    found = []
    for i, word in enumerate(options):
        if word in names and i + 1 < len(options):
            found.append(options[i + 1])
        elif word.startswith(tuple(f"{name}=" for name in names if name.startswith("--"))):
            found.append(word.partition("=")[2])
    return found


def option(options: Sequence[str], name: str) -> str | None:
    """Return the last value of `--name`."""
    found = values(options, f"--{name}")
    return found[-1] if found else None


def resolve_configs(domain: Domain, options: Sequence[str]) -> list[str]:
    """Replace names of shipped configurations behind `--config` and `-c` by their files."""
    resolved = []
    after = False
    for word in options:
        if after:
            word = str(find_config(domain, word))
        elif word.startswith("--config="):
            word = f"--config={find_config(domain, word.partition('=')[2])}"
        after = word in CONFIG and not after
        resolved.append(word)
    return resolved


def from_run(domain: Domain, options: Sequence[str]) -> list[str]:
    """Let `--run DIR` alone suffice after training: its configuration, its best checkpoint.

    Raises:
        ConfigError: neither weights nor a run that has some are named.
    """
    words = resolve_configs(domain, options)
    run = option(words, "run")
    directory = Path(run) if run else None
    if directory is not None and not values(words, *CONFIG) and (directory / "fit.yaml").is_file():
        words = ["--config", str(directory / "fit.yaml"), *words]
    if option(words, "ckpt_path") is None and option(words, "init_from") is None:
        best = directory / BEST if directory is not None else None
        if best is None or not best.is_file():
            given = "" if directory is None else f" ({directory} {_lacks(directory)})"
            raise ConfigError(
                f"no weights to use{given}: name a finished run (--run DIR), a checkpoint (--ckpt_path FILE), or"
                " published weights (--init_from DIR)"
            )
        words += ["--ckpt_path", str(best)]
    return words


def _lacks(directory: Path) -> str:
    return f"holds no {BEST}; run fit first" if directory.is_dir() else "is no folder"


def system_of(domain: Domain, options: Sequence[str]) -> str:
    """Name of the system: `--system`, else what the configurations say (later wins), else the domain's default.

    Raises:
        ConfigError: there is no such system.
    """
    name = option(options, "system")
    if name is None:
        for config in values(options, *CONFIG):
            content: Any = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
            name = content.get("system", name) if isinstance(content, dict) else name
    name = name or domain.default_system
    if name not in domain.systems:
        raise ConfigError(f"--system {name}: unknown; {domain.name} has: {', '.join(domain.systems)}")
    return name
