"""`heptad DOMAIN configs`: the shipped configurations, and how `--config NAME` finds them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from apps.common.domain import Domain
from domains.common.errors import ConfigError


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Print name and first comment line of each shipped configuration."""
    if options:
        raise ConfigError(f"heptad {domain.name} {command} takes no options; it lists the configurations")
    for name, path in domain.shipped_configs().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"  {name:28} {first.removeprefix('#').strip()}")


def find_config(domain: Domain, name: str) -> Path:
    """Return the file of `--config NAME`: an existing path, or a shipped configuration.

    Raises:
        ConfigError: there is neither.
    """
    shipped = domain.shipped_configs()
    if Path(name).is_file():
        return Path(name)
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are: {', '.join(shipped)}"
    raise ConfigError(f"--config {name}: no such file nor shipped configuration; {hint}")
