"""`heptad doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Print devices, versions, extras and disk."""
    console = Console()
    console.print(_machine())
    console.print(_versions())
    console.print(_extras())


def _machine() -> Table:
    import torch

    table = Table("machine", "", title=f"heptad {version('heptad')}", title_justify="left")
    table.add_row("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    table.add_row("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    table.add_row("memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB free")
    table.add_row("disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("accelerators", ", ".join(names) or ("mps" if torch.backends.mps.is_available() else "none"))
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    table.add_row("C++ compiler", compiler or "none: --model.compile is not possible, all else is")
    return table


def _versions() -> Table:
    table = Table("library", "version", "needed")
    for requirement in requires("heptad") or ():
        if "extra ==" not in requirement:
            name = _name(requirement)
            table.add_row(name, _installed(name), requirement.removeprefix(name).strip() or "any")
    return table


def _extras() -> Table:
    table = Table("extra", "state", "to complete it")
    needs: dict[str, list[str]] = {}
    for requirement in requires("heptad") or ():
        found = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if found and _name(requirement) != "heptad":
            needs.setdefault(found[1], []).append(_name(requirement))
    for extra, names in sorted(needs.items()):
        missing = [name for name in names if _installed(name) == "missing"]
        state = "complete" if not missing else f"missing {', '.join(missing)}"
        table.add_row(extra, state, "" if not missing else f"pip install 'heptad\\[{extra}]'")
    return table


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0] if found else requirement


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
