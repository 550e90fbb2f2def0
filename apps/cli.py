"""The `heptad` command: finds the domain and the command, then imports what they need and nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

# name -> what its line in the help says; the entry is apps.<name>.DOMAIN
DOMAINS = {
    "ctr": "click-through rate of ads and items: AutoInt, AutoInt+",
    "seqrec": "what a user takes next: MQSA-TED, SASRec",
    "expression": "expressions of faces in photographs and videos: ARBEx",
    "ieeg": "seizures and forecasts from intracranial EEG: MVPFormer",
    "medical": "diagnoses from whole slides and chest X-rays: ACMIL, MEDUSA",
    "finegrained": "fine-grained classes and re-identification: DCAL",
    "pose": "2D poses of several persons and 3D poses from 2D: Group Pose, ConvFormer",
}

# name -> (module with `main(domain, command, options)`, what its line in the help says)
COMMANDS = {
    "prep": ("apps.common.prep", "raw data set -> prepared directory"),
    "fit": ("apps.common.run", "train; resume with --ckpt_path"),
    "validate": ("apps.common.run", "metrics on the validation split"),
    "test": ("apps.common.run", "metrics with intervals, predictions and report.html"),
    "predict": ("apps.common.run", "predictions for prepared or, with --raw, new raw data"),
    "explain": ("apps.common.explain", "attention maps and what the predictions depend on"),
    "demo": ("apps.common.demo", "the whole way on generated or embedded data"),
    "import-weights": ("apps.common.weights", "weights of other programs -> a model directory"),
    "export": ("apps.common.export", "checkpoint -> model directory, torch.export or ONNX"),
    "summary": ("apps.common.seeds", "mean and deviation of the test metrics of several runs"),
    "configs": ("apps.common.configs", "list the shipped configurations"),
}

USAGE = "usage: heptad [--version] DOMAIN COMMAND [options]\n       heptad doctor"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (2 for an error the user can mend, told in one line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("heptad: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in ("apps", "domains", "data_prep"):
            raise
        extra = words[0] if words and words[0] in DOMAINS else "all"
        hint = f"run: pip install 'heptad[{extra}]', or 'heptad[all]'"
        print(f"heptad: {error.name} is not installed; {hint}", file=sys.stderr)
        return 2
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        print(f"heptad: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(f"{USAGE}\n\ndomains:\n{_table(DOMAINS)}\n\ncommands of every domain:\n{_commands()}\n")
        print("heptad DOMAIN COMMAND --help lists the options; heptad doctor looks at this machine")
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"heptad {version('heptad')}")
        return 0
    if words[0] == "doctor":
        importlib.import_module("apps.common.doctor").main()
        return 0
    if words[0] not in DOMAINS:
        return _unknown("domain", words[0], DOMAINS)
    name, *rest = words
    domain = importlib.import_module(f"apps.{name}").DOMAIN
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(f"usage: heptad {name} COMMAND [options]\n\n{DOMAINS[name]}\n\ncommands:\n{_commands()}")
        if domain.commands:
            print("\n" + _table({command: text for command, (_, text) in domain.commands.items()}))
        return 0
    command, *options = rest
    if command in COMMANDS:
        importlib.import_module(COMMANDS[command][0]).main(domain, command, options)
        return 0
    if command not in domain.commands:
        return _unknown("command", command, {**COMMANDS, **domain.commands})
    reference, title = domain.commands[command]
    module, _, function = reference.partition(":")
    run = getattr(importlib.import_module(module), function)
    importlib.import_module("apps.common.function").call(run, f"heptad {name} {command}", title, options)
    return 0


def _table(entries: dict[str, str]) -> str:
    return "\n".join(f"  {name:15} {text}" for name, text in entries.items())


def _commands() -> str:
    return _table({name: text for name, (_, text) in COMMANDS.items()})


def _unknown(what: str, word: str, known: Mapping[str, object]) -> int:
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    print(f"heptad: unknown {what} {word!r}; {hint}", file=sys.stderr)
    return 2


def _is_for_the_user(error: Exception) -> bool:
    roots = (
        ("domains.common.errors", "HeptadError"),
        ("data_prep.common.errors", "PrepError"),
        ("lightning.fabric.utilities.exceptions", "MisconfigurationException"),  # contradictory trainer options
    )
    loaded = [getattr(sys.modules[module], name) for module, name in roots if module in sys.modules]
    return isinstance(error, tuple(loaded))


if __name__ == "__main__":
    sys.exit(main())
