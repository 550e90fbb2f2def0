"""Functions as commands: the signature gives the options, the docstring their help. Does not import torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser


def call(
    function: Callable[..., Any],
    prog: str,
    title: str,
    options: Sequence[str],
    fixed: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
) -> tuple[dict[str, Any], Any]:
    """Parse the options of a function, and call it.

    Args:
        function: annotated and documented.
        prog: how the command is called, for its help.
        title: what it does, for its help.
        options: words of the command line.
        fixed: arguments that are known already, and are no options.
        skip: arguments that keep their defaults, and are no options.

    Returns:
        The arguments, and what the function returned.
    """
    parser = ArgumentParser(prog=prog, description=f"{title}. Options may be written with - or _.")
    known = dict(fixed or {})
    parser.add_function_arguments(function, skip={*known, *skip})
    words = gather_lists(options, inspect.signature(function))
    arguments = known | parser.instantiate(parser.parse_args(words)).as_dict()
    return arguments, function(**arguments)


def gather_lists(options: Sequence[str], signature: inspect.Signature) -> list[str]:
    """`--raw A B --ratios 0.7 0.2 0.1` -> `--raw ["A", "B"] --ratios [0.7,0.2,0.1]`; - in names becomes _.

    Lists are the options whose annotation says `list` or `tuple`; numbers are those of `float` or `int`.
    """
    words: list[str] = []
    rest = list(options)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace("-", "_").replace("__", "--", 1)
            plain = name.replace(".", "_")  # --data.root, as the commands that train call it
            word = (plain if plain[2:] in signature.parameters else name) + equals + value
        words.append(word)
        parameter = signature.parameters.get(word.removeprefix("--"))
        kind = "" if parameter is None else str(parameter.annotation)
        if "list[" in kind or "tuple[" in kind:
            given: list[str] = []
            while rest and not rest[0].startswith("--"):
                given.append(rest.pop(0))
            numbers = "float" in kind or "int" in kind
            words.append(f"[{','.join(given).strip('[]')}]" if numbers else json.dumps(given))
    return words
