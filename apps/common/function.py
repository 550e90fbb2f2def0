"""Functions as commands: the signature gives the options, the docstring their help. Does not import torch."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from domains.common.errors import ConfigError


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
    described = f"{title}. Options may be written with - or _."
    parser = ArgumentParser(prog=prog, description=described, exit_on_error=False)
    known = dict(fixed or {})
    parser.add_function_arguments(function, skip={*known, *skip})
    words = gather_lists(options, inspect.signature(function))
    arguments = known | parser.instantiate(parse(parser, words, prog)).as_dict()
    return arguments, function(**arguments)


def parse(parser: ArgumentParser, words: Sequence[str], prog: str, known: Sequence[str] = ()) -> Namespace:
    """Parse the command line; what is wrong with it is one line instead of the whole usage.

    Args:
        parser: made with `exit_on_error=False`.
        words: of the command line.
        prog: how the command is called.
        known: names of options besides those of the parser itself.

    Raises:
        ConfigError: an option is unknown, lacks its value, or has one that it cannot have.
    """
    try:
        return parser.parse_args(list(words))
    except argparse.ArgumentError as error:
        said = re.sub(r"(are required: )\w+\.(?=\w+\.)", r"\1--", " ".join(str(error).split()))  # of a verb's parser
        wrong = re.search(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)", said)
        names = [word[2:] for action in parser._actions for word in action.option_strings] + list(known)
        near = difflib.get_close_matches(wrong[1], names, n=1) if wrong else []
        hint = f"did you mean --{near[0]}? " if near else ""
        raise ConfigError(f"{said.rstrip('.')}; {hint}{prog} --help lists the options") from None


def gather_lists(options: Sequence[str], signature: inspect.Signature) -> list[str]:
    """`--raw A B --ratios 0.7 0.2 0.1` -> `--raw ["A", "B"] --ratios [0.7,0.2,0.1]`; - in names becomes _.

    Lists are the options whose annotation says `list` or `tuple`; numbers are those of `float` or `int`. A list of
    words that is given again, `--raw A --raw B`, goes on.
    """
    words: list[str] = []
    places: dict[str, int] = {}  # of the lists of words
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
            if "float" in kind or "int" in kind:
                words.append(f"[{','.join(given).strip('[]')}]")
            elif word in places:
                words.pop()
                words[places[word]] = json.dumps(json.loads(words[places[word]]) + given)
            else:
                places[word] = len(words)
                words.append(json.dumps(given))
    return words
