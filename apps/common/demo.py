"""`heptad DOMAIN demo`: the whole way from raw data to report on data the project makes itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from apps.common.domain import Domain, load


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Run the domain's demo."""
    parser = argparse.ArgumentParser(prog=f"heptad {domain.name} {command}")
    parser.add_argument("--run", type=Path, default=Path("runs") / f"{domain.name}-demo", help="folder to write")
    load(domain.demo)(parser.parse_args(options).run)
