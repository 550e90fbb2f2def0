"""What a domain tells the command line about itself: names only, so that nothing heavy is imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class System:
    """One trainable system of a domain; both are `module:attribute`.

    Args:
        module: its `HeptadModule`.
        data: its `HeptadData`.
        links: (source, target) options that its data determine, besides those of the domain.
        mode: `min` or `max`, where its first validation metric stands for the domain's `monitor`.
    """

    module: str
    data: str
    links: tuple[tuple[str, str], ...] = ()
    mode: str = ""


@dataclass(frozen=True)
class Domain:
    """A domain's entry; every reference is `module:attribute` and imported when used.

    Args:
        name: as in `heptad NAME`.
        title: one line for the help.
        systems: name -> system; the first is the default of `--system`.
        monitor: validation metric that chooses the best checkpoint; of a system that lacks it, its own first one.
        mode: `min` or `max`.
        links: (source, target) options that the data of all its systems determine, such as the fields.
        prepare: function behind `prep`, or data set -> function; the signature becomes the options.
        apply: function (preparation, raw, out) that encodes new raw data for `predict --raw`.
        figures: function (predictions, metrics) -> list of `Picture` for the report of a test; with an argument `card`,
            it gets `dataset.json`.
        tables: function (predictions, metrics) -> heading -> rows, for the same report.
        explain: function (module, data, directory) -> list of `Picture`.
        importers: name -> function (weights, options) -> network, for `import-weights`.
        demo: function (directory) behind `demo`.
        commands: name -> (function, line of the help) of what this domain has beside the commands of every domain; the
            signature becomes the options.
        foreign_options: data set -> options of its preparation that are for other data sets.
    """

    name: str
    title: str
    systems: Mapping[str, System]
    monitor: str
    mode: str
    links: tuple[tuple[str, str], ...] = ()
    prepare: str | Mapping[str, str] = ""
    apply: str = ""
    figures: str = ""
    tables: str = ""
    explain: str = ""
    importers: Mapping[str, str] = field(default_factory=dict)
    demo: str = ""
    commands: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    foreign_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def default_system(self) -> str:
        """Name of the first system."""
        return next(iter(self.systems))

    @property
    def preparations(self) -> tuple[str, ...]:
        """The functions behind `prep`."""
        return (self.prepare,) if isinstance(self.prepare, str) else tuple(dict.fromkeys(self.prepare.values()))

    @property
    def config_directory(self) -> Path:
        """Folder of the shipped configurations."""
        return Path(__file__).parents[1] / self.name / "configs"

    def shipped_configs(self) -> dict[str, Path]:
        """Name -> file of the shipped configurations."""
        return {path.stem: path for path in sorted(self.config_directory.glob("*.yaml"))}


def load(reference: str) -> Any:
    """Import `module:attribute`."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
