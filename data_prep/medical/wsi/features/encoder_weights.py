"""Weights of encoders from files: safetensors or torch state dicts, read without executing anything in them.

Published files hold the network bare, with a classifier, or inside a checkpoint under names with a prefix
(`teacher.backbone.`, `module.`); whichever names end like the network's own are taken, all of them or none.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, PrepError
from data_prep.common.files import translate_os_errors

if TYPE_CHECKING:
    import torch

# Where checkpoints keep the network, most wanted first; the teacher is what self-distillation is after.
_NESTED = ("teacher", "model", "state_dict", "net", "network", "params", "module", "student")
# What sits on top of an encoder and is not part of it: classifiers, projections of self-supervised training.
_TOPS = ("head", "head_dist", "fc", "classifier", "mask_token", "projector", "prototypes", "last_linear")


def weights_file(given: str) -> Path:
    """The file that a user means: itself, or `model.safetensors` in a model directory.

    Raises:
        ConfigError: it is a URL.
        DatasetNotFoundError: it does not exist.
    """
    if "://" in given:
        raise ConfigError(f"weights {given!r}: is a URL; download the file first and give its path")
    path = Path(given)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise DatasetNotFoundError(
            f"{path}: no such file of weights; give a file, or one of the words pretrained and random"
        )
    return path


def load_weights(network: torch.nn.Module, path: Path, name: str) -> None:
    """Fill an encoder from a file, all of it or nothing.

    Args:
        network: a timm model without classifier.
        path: `.safetensors`, or what `torch.save` wrote.
        name: of the model, for messages.

    Raises:
        CorruptRecordError: the file is damaged, holds no tensors, or would have to be executed.
        PrepError: the weights are those of another model, or of several that fit equally.
    """
    state, own, tops = read_tensors(path), network.state_dict(), _tops(network)
    fitting: dict[str, dict[str, Any]] = {}
    nearest = (-1, "")
    for prefix in _prefixes(own, state):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for variant in _variants(network, part):
            found, problem = _fit(own, variant, tops)
            if not problem:
                fitting.setdefault(prefix, found)
            nearest = max(nearest, (len(found), problem), key=lambda item: item[0])
    chosen = [prefix for prefix in fitting if not prefix or "teacher" in prefix] or list(fitting)
    if len(chosen) > 1:
        raise PrepError(f"{path}: holds several networks that fit {name}: {', '.join(chosen)}; save one of them alone")
    if not chosen:
        raise PrepError(
            f"{path}: these are not the weights of {name}: {nearest[1]}; choose the encoder (and encoder_args) they fit"
        )
    network.load_state_dict(fitting[chosen[0]])


def read_tensors(path: Path) -> dict[str, Any]:
    """Named tensors of a file, and those of its parts, flat.

    Raises:
        CorruptRecordError: the file is damaged, holds no tensors, or would have to be executed.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with translate_os_errors(path):
        try:
            if path.suffix == ".safetensors":
                return dict(load_file(path))
            # Training programs commonly store their options in a namespace beside the tensors; it does nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CorruptRecordError(
                path,
                "weights",
                "holds more than tensors and was not executed; ask for safetensors, or save the state dict alone",
            ) from error
        except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise CorruptRecordError(
                path, "weights", f"no readable file of weights ({reason}); copy it again"
            ) from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)} if content else {}
    if not found:
        raise CorruptRecordError(path, "weights", "holds no named tensors; save the state dict of the network")
    return found


def _prefixes(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """What may stand before the network's own names, nothing first."""
    names = list(own)
    ends = (*names[:3], names[-1])
    found = {key[: -len(end)] for key in state for end in ends if key.endswith(f".{end}")}
    return ["", *sorted(found)]


def _variants(network: torch.nn.Module, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tensors as they are, and as timm translates names and shapes of other programs for this family."""
    yield part
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return
    # Whatever it raises over tensors that it was not written for means that they are none of its own.
    with contextlib.suppress(Exception):
        yield dict(translate(part, network))


def _fit(own: Mapping[str, Any], part: Mapping[str, Any], tops: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The tensors that are the network's, and what is wrong with them (empty: nothing)."""
    found = {name: part[name] for name in own if name in part}
    # Older files have no such counters; nothing is computed from them.
    counters = {name: own[name] for name in own.keys() - found.keys() if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in found and name not in counters]
    strange = sorted(name for name in part.keys() - own.keys() if name.split(".")[0] not in tops)
    wrong = [name for name, value in found.items() if value.shape != own[name].shape]
    problem = ""
    if missing:
        problem = f"{len(missing)} of its {len(own)} tensors are missing, such as {missing[0]!r}"
    elif wrong:
        shapes = f"{tuple(found[wrong[0]].shape)} instead of {tuple(own[wrong[0]].shape)}"
        problem = f"{len(wrong)} tensors have another shape, such as {wrong[0]!r}: {shapes}"
    elif strange:
        problem = f"{len(strange)} tensors have no place in it, such as {strange[0]!r}"
    return {**found, **counters}, problem


def _tops(network: torch.nn.Module) -> tuple[str, ...]:
    named = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    named = (named,) if isinstance(named, str) else tuple(named)
    return (*_TOPS, *(name.split(".")[0] for name in named))
