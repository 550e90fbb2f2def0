r"""Any CSV, TSV or Parquet log, described by a short YAML file.

name: shop
licence: CC BY 4.0, A. Author, 2024
separator: ","          # "\t" for tabs
header: true            # false: `fields` names all columns, in order
quote: '"'              # "" for formats without quotes
encoding: utf-8         # or latin-1
missing: ["NA", "-"]    # besides the empty value
fields:
  - {name: click, role: label}                       # 0 and 1; or `threshold: 3`, with `drop_equal: true`
  - {name: visitor, type: categorical, role: [user, feature]}
  - {name: when, role: time}                         # a number or ISO 8601
  - {name: fold, role: split}                        # train, valid or test
  - {name: price, type: numerical, transform: log_square}
  - {name: brand, type: categorical, min_count: 5}
  - {name: tags, type: multi, separator: ";"}
  - {name: comment, role: ignore}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.ctr.schema import Label, RawField, Schema, TextFormat

ROLES = ("label", "feature", "user", "time", "split", "ignore")
_TOP = {"name", "licence", "separator", "header", "quote", "encoding", "missing", "fields"}
_FIELD = {"name", "type", "role", "column", "min_count", "transform", "separator", "threshold", "drop_equal"}


def load_schema(path: Path) -> Schema:
    """Read a schema file.

    Raises:
        DatasetNotFoundError: it is not there.
        ConfigError: it is not YAML, or a key or value is unknown; the message names it.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{path}: no such schema file; check --schema")
    try:
        with translate_os_errors(path):
            content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("fields"), list):
        raise ConfigError(f"{path}: the key `fields` with a list of columns is missing")
    _known(path, "file", content, _TOP)
    return parse_schema(content, path)


def parse_schema(content: dict[str, Any], path: Path) -> Schema:
    """The content of a schema file -> schema.

    Args:
        content: keys as in the module's description.
        path: for messages.

    Raises:
        ConfigError: naming the field and the key.
    """
    text = TextFormat(
        separator=_typed(path, content, "separator", str, ","),
        header=_typed(path, content, "header", bool, True),
        quote=_typed(path, content, "quote", str, '"'),
        encoding=_choice(path, content, "encoding", ("utf-8", "latin-1")),
        missing=tuple(str(item) for item in _typed(path, content, "missing", list, [])),
    )
    if not text.separator or len(text.quote) > 1 or not (text.separator + text.quote).isascii():
        raise ConfigError(
            f"{path}: separator {text.separator!r}, quote {text.quote!r}: give ASCII characters, the quote at most one"
        )
    fields: list[RawField] = []
    roles: dict[str, str] = {}
    label: Label | None = None
    for item in content["fields"]:
        name, given = _field_roles(path, item)
        for role in given:
            if role in ("label", "user", "time", "split"):
                if role in roles:
                    raise ConfigError(
                        f"{path}: fields {roles[role]!r} and {name!r} both have the role {role}; keep one"
                    )
                roles[role] = name
        if "label" in given:
            threshold = item.get("threshold")
            if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
                raise ConfigError(f"{path}: field {name!r}: threshold {threshold!r} is not a number")
            label = Label(
                name, None if threshold is None else float(threshold), _typed(path, item, "drop_equal", bool, False)
            )
        if "feature" in given:
            fields.append(_feature(path, item, name))
    if label is None:
        raise ConfigError(f"{path}: no field has the role label; mark one with `role: label`")
    return Schema(
        name=_typed(path, content, "name", str, path.stem),
        fields=tuple(fields),
        label=label,
        columns=() if text.header else tuple(item["name"] for item in content["fields"]),
        text=text,
        user=roles.get("user", ""),
        time=roles.get("time", ""),
        split=roles.get("split", ""),
        licence=_typed(path, content, "licence", str, "not stated"),
    ).check(str(path))


def _feature(path: Path, item: dict[str, Any], name: str) -> RawField:
    if "type" not in item:
        raise ConfigError(f"{path}: field {name!r} has no type; give numerical, categorical or multi")
    return RawField(
        name=name,
        kind=item["type"],
        column=_typed(path, item, "column", str, ""),
        min_count=_typed(path, item, "min_count", int, 1),
        transform=item.get("transform", "none"),
        separator=_typed(path, item, "separator", str, "|"),
    )


def _field_roles(path: Path, item: Any) -> tuple[str, list[str]]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ConfigError(f"{path}: field {item!r}: give a mapping with at least a name")
    _known(path, f"field {item['name']!r}", item, _FIELD)
    role = item.get("role", "feature")
    roles = role if isinstance(role, list) else [role]
    for one in roles:
        if one not in ROLES:
            raise ConfigError(f"{path}: field {item['name']!r}: role {one!r} is unknown; choose {', '.join(ROLES)}")
    return item["name"], roles


def _known(path: Path, where: str, values: dict[str, Any], known: set[str]) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: {where}: unknown key {key!r}; known are {', '.join(sorted(known))}")


def _typed(path: Path, values: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = values.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: {key} {value!r} is not of type {kind.__name__}")
    return value


def _choice(path: Path, values: dict[str, Any], key: str, choices: tuple[str, ...]) -> Any:
    value = values.get(key, choices[0])
    if value not in choices:
        raise ConfigError(f"{path}: {key} {value!r} is unknown; choose {' or '.join(choices)}")
    return value
