"""Where each field of a click log lives in the one embedding table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from domains.common.errors import ConfigError

Kind = Literal["numerical", "categorical", "multi"]


@dataclass(frozen=True)
class Field:
    """One field of a click log.

    Args:
        name: column name.
        kind: `numerical` (one value), `categorical` (one id) or `multi` (a bag of ids).
        size: number of ids 0..size-1; a numerical field has one row in the table, its size is 1.
    """

    name: str
    kind: Kind
    size: int = 1


class FieldLayout:
    """Fields in their fixed order, and the row range of each in one table over all fields.

    The order is part of every checkpoint, since the output layer is a flat vector over (field, dim).

    Args:
        fields: mappings with keys `name`, `kind` and, unless numerical, `size` (further keys are ignored), as in the
            `fields` of a prepared `dataset.json`.

    Attributes:
        fields: the fields.
        offsets: first table row of each field.
        rows: number of table rows.

    Raises:
        ConfigError: no field, an unknown kind, a size below 1, or a name twice.
    """

    def __init__(self, fields: Sequence[Mapping[str, Any]]) -> None:
        self.fields = [_field(entry) for entry in fields]
        if not self.fields:
            raise ConfigError("a model needs at least one field; the prepared data set names none")
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"field {twice!r} is listed twice; rename one of them")
        self.offsets: list[int] = []
        self.rows = 0
        for field in self.fields:
            self.offsets.append(self.rows)
            self.rows += field.size

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def names(self) -> list[str]:
        """Field names in order."""
        return [field.name for field in self.fields]

    def of_kind(self, *kinds: Kind) -> list[int]:
        """Positions of the fields of these kinds, in order."""
        return [i for i, field in enumerate(self.fields) if field.kind in kinds]


def _field(entry: Mapping[str, Any]) -> Field:
    kind, name = entry["kind"], str(entry["name"])
    if kind not in get_args(Kind):
        raise ConfigError(f"field {name!r}: kind is {kind!r}; use one of {', '.join(get_args(Kind))}")
    size = 1 if kind == "numerical" else int(entry["size"])
    if size < 1:
        raise ConfigError(f"field {name!r}: size is {size}; it needs at least one id")
    return Field(name, kind, size)
