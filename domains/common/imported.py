"""What became of weights that were read from another program's file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ImportReport:
    """What became of each weight.

    Attributes:
        loaded: names, as in the file, of what is in the network now.
        ignored: names in the file that nothing uses.
        fresh: names, as the file would have them, of what keeps its random start.
    """

    loaded: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Say it."""
        said = [f"loaded: {len(self.loaded)} tensors"]
        for what, names in (("ignored, unused by the model", self.ignored), ("not loaded, at random", self.fresh)):
            if names:
                said.append(f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}")
        return said
