"""Weights of the official ARBEx program, of POSTER++ and of its backbones for our network, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from domains.common.attention.window import relative_position_index
from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.files import local_path, read_tensors
from domains.common.foreign import read_foreign_tensors
from domains.common.hub import network_tensors
from domains.common.imported import ImportReport
from domains.expression.arbex import ARBEx
from domains.expression.balancing import ReliabilityBalancing
from domains.expression.official_names import UNUSED, official_name, renamed
from domains.expression.poster import POSTERV2

SOURCE = "official weights"
CLASSES = 8  # where no weight tells
INDEX, COUNTER = "index_relative", "num_batches_tracked"
# what a weight's name begins with, in the official program and here
BACKBONES = {
    "the image backbone (IR50)": ("ir.", "extractor.image."),
    "the landmark backbone (MobileFaceNet)": ("landmark.", "extractor.landmarks."),
}
BALANCING = ("head.", "anchors.", "self_attn.")
SCALING = re.compile(r"(?:^|\.)(?:primary|corrected)_scaling\.")  # temperatures, which no official file has
# our options by the names that configurations of the official program have for them
OPTIONS = {
    "attn_heads": "attention_heads",
    "num_heads": "heads",
    "n_anchors": "anchors",
    "attn_anchors": "attention_anchors",
    "dim_emb": "dim",
    "temperature": "temperature",
    "delta": "delta",
    "n_classes": "n_classes",
    "hidden": "hidden",
    "attn_scope": "attn_scope",
    "attention_heads": "attention_heads",
    "heads": "heads",
    "resize": "resize",
    "fuse": "fuse",
    "freeze_backbones": "freeze_backbones",
}


def from_official(
    weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, report: ImportReport | None = None
) -> ARBEx:
    """Build ARBEx from one or more files of the official program, or from a whole POSTER++.

    Sources: takihasan/ARBEx @ b85c37b, Talented-Q/POSTER_V2 @ 18de559. The official program saves extractor, head and
    anchors as three files and the corrector not at all: what `weights` lack of the last three starts at random, and the
    report says so. POSTER++ becomes an ARBEx whose head is one linear map: its prediction is our primary distribution.

    Args:
        weights: state dict of the extractor, with those of the other files, if there are, merged into it; their names
            may have the prefixes `head.`, `anchors.` and `self_attn.`, see `merged`.
        config: what shapes do not show, under our names or the official ones: `attn_heads` 1, `num_heads` 8,
            `temperature` 1, `delta` 1, and `n_classes` where no weight tells. All else is ignored.
        report: gets what became of each weight.

    Raises:
        CheckpointMismatchError: a weight is missing, unknown, or of another shape.
        ConfigError: an option contradicts the shapes.
    """
    report = ImportReport() if report is None else report
    named = renamed(weights)
    if not any(name.startswith(("ir.", "landmark.", "vit.")) for name in named):
        raise CheckpointMismatchError(SOURCE, missing=["ir.input_layer.0.weight", "vit.cls_token"])
    extractor = {name: tensor for name, tensor in named.items() if not name.startswith(BALANCING)}
    sizes = _extractor_sizes(extractor)
    options = _options(named, config)
    net = ARBEx(**(options | sizes))
    state = official_state(net)
    for part in BALANCING:
        if not any(name.startswith(part) for name in named):
            report.fresh += sorted(name for name in state if name.startswith(part))
    found = _checked(named | {name: state[name] for name in report.fresh}, state, report)
    report.loaded += sorted(found.keys() - set(report.fresh))
    _load(net, found)
    return net


def balancing_from_official(
    weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, report: ImportReport | None = None
) -> ReliabilityBalancing:
    """Build head, anchors and corrector alone; the width of the embedding is that of the weights.

    Args:
        weights: of all three parts, see `from_official`.
        config: see `from_official`.
        report: see `from_official`.

    Raises:
        CheckpointMismatchError: see `from_official`.
        ConfigError: see `from_official`.
    """
    report = ImportReport() if report is None else report
    named = renamed(weights)
    options = _options(named, config)
    for name in ("resize", "fuse", "freeze_backbones", "heads"):
        options.pop(name, None)
    net = ReliabilityBalancing(_width(named), **options)
    found = _checked(named, official_state(net), report)
    report.loaded += sorted(found)
    _load(net, found)
    return net


def to_official(net: ARBEx, *, complete: bool = True) -> dict[str, Tensor]:
    """Return the network's weights under the names that `from_official` reads.

    Args:
        net: with the backbone `poster`.
        complete: with zeros for what the official network has and never uses, so that it loads them strictly.

    Raises:
        ConfigError: the official program has no such network.
    """
    if net.arguments["backbone"] != "poster":
        raise ConfigError(f"backbone {net.arguments['backbone']}: the official program has poster only")
    named = {name: tensor.clone() for name, tensor in official_state(net).items()}
    if complete:
        tokens, dim = named["vit.pos_embed"].shape[1:]
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.proj.weight": (dim, 256, 1, 1),
            "patch_embed.proj.bias": (dim,),
        }
        shapes |= {"CON1.weight": (dim, 256, 1, 1), "IRLinear1.weight": (dim, 1024), "IRLinear1.bias": (dim,)}
        shapes |= {"IRLinear2.weight": (512, dim), "IRLinear2.bias": (512,)}
        for i in range(_depth(named)):
            shapes |= {f"blocks.{i}.conv.weight": (tokens, tokens, 1), f"blocks.{i}.conv.bias": (tokens,)}
        zeros = named["vit.pos_embed"].new_zeros
        named |= {f"vit.{name}": zeros(shape) for name, shape in shapes.items()}
    return named


def import_official(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> ARBEx:
    """Import, and print what became of the weights."""
    report = ImportReport()
    net = from_official(weights, options, report=report)
    print("\n".join(report.lines()))
    return net


def merged(*paths: str | Path) -> dict[str, Tensor]:
    """Read the files of one official network: extractor, head, anchors, and corrector where someone saved it.

    Raises:
        UnsafeFileError: a URL, or no readable file of weights; objects in it are never made.
        CheckpointNotFoundError: a file does not exist.
        CheckpointMismatchError: two files have weights of the same name.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        own = renamed(_read(path))
        if twice := sorted(found.keys() & own.keys()):
            raise CheckpointMismatchError(f"{path}, which repeats weights of another file", unexpected=twice)
        found |= own
    return found


def start_from(net: ARBEx, source: str | Path) -> ImportReport:
    """Load what fits by name and shape of a file or model directory, and say what.

    Understood are our own files, those of the official program, POSTER++, and those of its backbones, `ir50.pth` and
    `mobilefacenet_model_best.pth.tar`.

    Args:
        net: the network.
        source: a model directory, checkpoint or safetensors file, or a torch file of another program, whose objects
            are never made.

    Raises:
        CheckpointMismatchError: nothing fits.
        UnsafeFileError: it is a URL, or no readable file of weights.
        CheckpointNotFoundError: it does not exist.
    """
    weights = _read(source)
    own = net.state_dict()
    if own.keys() & weights.keys():
        fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
        if fitting:
            net.load_state_dict(own | fitting)
            return _told(fitting, weights, own)
    named, state = renamed(weights), official_state(net) if net.arguments["backbone"] == "poster" else {}
    found = {name: tensor for name, tensor in named.items() if name in state and state[name].shape == tensor.shape}
    if not any(not name.endswith((INDEX, COUNTER)) for name in found):
        raise CheckpointMismatchError(str(source), unexpected=sorted(weights)[:8])
    _load(net, state | found)
    return _told(found, named, state)


def start_from_all(net: ARBEx, sources: Iterable[str | Path]) -> list[str]:
    """`start_from` of several files, for a training; returns what to say of them, line by line.

    Raises:
        ConfigError: frozen backbones would stay at random.
        CheckpointMismatchError: see `start_from`.
        UnsafeFileError: see `start_from`.
        CheckpointNotFoundError: see `start_from`.
    """
    reports = {str(source): start_from(net, source) for source in sources}
    if at_random := random_backbones(net, reports.values()):
        raise ConfigError(
            f"model.freeze_backbones: {' and '.join(at_random)} would stay random and untrained; give local files by"
            " --model.pretrained '[ir50.pth, mobilefacenet_model_best.pth.tar]' (the readme of Talented-Q/POSTER_V2"
            " says where they are; a whole POSTER++ does, too), or train them: --model.freeze_backbones false"
        )
    return [line for source, report in reports.items() for line in (f"start: {source}", *report.lines())]


def random_backbones(net: ARBEx, reports: Iterable[ImportReport]) -> list[str]:
    """Frozen backbones that no file has filled, which nothing would ever train.

    Args:
        net: the network, in which nothing was loaded but what is reported.
        reports: of `start_from`.

    Returns:
        What they are; nothing where backbones are trained, or there are none to freeze.
    """
    if not isinstance(net.extractor, POSTERV2) or not net.extractor.freeze_backbones:
        return []
    found = list(reports)
    return [
        title
        for title, names in BACKBONES.items()
        if not any(
            any(name.startswith(names) for name in report.loaded)
            and not any(name.startswith(names) for name in report.fresh)
            for report in found
        )
    ]


def official_state(net: nn.Module, own: str = "", official: str = "") -> dict[str, Tensor]:
    """Weights under the official names, without those that are never used.

    Args:
        net: `ARBEx`, `ReliabilityBalancing`, or a part of one.
        own: where the part is: what its names begin with in `POSTERV2` or `ReliabilityBalancing`.
        official: what the official names begin with there; it is left out.
    """
    packed: dict[str, list[Tensor]] = {}
    for name, tensor in _official_part(net).items():
        theirs = official_name(own + re.sub(r"^(?:extractor|balancing)\.", "", name))
        packed.setdefault(theirs.removeprefix(official), []).append(tensor.detach())
    state = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in packed.items()}
    for name in [name for name in state if re.search(r"(?:^|attns\.\d\.)table$", name)]:
        table = state[name]
        index = relative_position_index((int(len(table) ** 0.5) + 1) // 2, table.device)
        state[f"{name.removesuffix('table')}{INDEX}"] = index
    return state


def fill_part(part: nn.Module, weights: Mapping[str, Tensor], own: str = "", official: str = "") -> None:
    """Copy official weights of a part of the network into it, all or none.

    Args:
        part: a block.
        weights: under official names behind `official`.
        own: see `official_state`.
        official: see `official_state`.

    Raises:
        CheckpointMismatchError: names or shapes differ.
    """
    used = {name: tensor for name, tensor in weights.items() if not UNUSED.match(official + name)}
    found = _checked(used, official_state(part, own, official), ImportReport())
    _load(part, found, own, official)


def _official_part(net: nn.Module) -> dict[str, Tensor]:
    """Weights of a network that the official program has, too."""
    return {name: tensor for name, tensor in net.state_dict().items() if not SCALING.search(name)}


def _load(net: nn.Module, named: Mapping[str, Tensor], own: str = "", official: str = "") -> None:
    """Copy weights of fitting names and shapes; packed ones are taken apart in the order of our parameters."""
    taken: dict[str, int] = {}
    with torch.no_grad():
        for name, tensor in _official_part(net).items():
            theirs = official_name(own + re.sub(r"^(?:extractor|balancing)\.", "", name)).removeprefix(official)
            source = named[theirs]
            if source.shape == tensor.shape:
                tensor.copy_(source)
                continue
            first = taken.get(theirs, 0)
            taken[theirs] = first + len(tensor)
            tensor.copy_(source[first : first + len(tensor)])


def _checked(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], report: ImportReport) -> dict[str, Tensor]:
    """Weights without unused ones; counters of steps may be missing, and places must be numbered as ours."""
    report.ignored += sorted(name for name in weights if UNUSED.match(name))
    named = {name: tensor for name, tensor in weights.items() if not UNUSED.match(name)}
    named = {name: tensor for name, tensor in own.items() if name.endswith((COUNTER, INDEX))} | named
    missing, unexpected = sorted(own.keys() - named.keys()), sorted(named.keys() - own.keys())
    wrong = [
        f"{name}: {tuple(named[name].shape)} != {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in named and named[name].shape != tensor.shape
    ]
    wrong += [
        f"{name}: numbers places otherwise"
        for name, tensor in own.items()
        if name.endswith(INDEX) and not wrong and not torch.equal(named[name].cpu(), tensor.cpu())
    ]
    if missing or unexpected or wrong:
        raise CheckpointMismatchError(SOURCE, missing, unexpected, wrong)
    return named


def _extractor_sizes(named: Mapping[str, Tensor]) -> dict[str, Any]:
    positions = named.get("vit.pos_embed")
    if positions is None or positions.ndim != 3:
        raise CheckpointMismatchError(SOURCE, missing=["vit.pos_embed"])
    return {"dim": positions.shape[-1], "depth": _depth(named)}


def _depth(named: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in named if name.startswith("vit.blocks.")})


def _width(named: Mapping[str, Tensor]) -> int:
    """Width of the embedding that head, anchors and corrector take."""
    for name in ("head.net.0.weight", "anchors.anchors", "self_attn.Q.weight"):
        if name in named:
            return named[name].shape[-1]
    raise CheckpointMismatchError(SOURCE, missing=["head.net.0.weight", "anchors.anchors", "self_attn.Q.weight"])


def _options(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of head, anchors and corrector; shapes win over the configuration."""
    options = {OPTIONS[name]: value for name, value in (config or {}).items() if name in OPTIONS}
    options.pop("dim", None)
    linear = {
        int(found[1]): tensor
        for name, tensor in named.items()
        if tensor.ndim == 2 and (found := re.fullmatch(r"head\.net\.(\d+)\.weight", name))
    }
    sizes = [len(linear[i]) for i in sorted(linear)]
    if sizes:
        options |= {"n_classes": sizes[-1], "hidden": sizes[:-1], "head_norm": "head.net.2.running_mean" in named}
    if "anchors.anchors" in named:
        options["n_classes"], options["anchors"] = named["anchors.anchors"].shape[:2]
    options.setdefault("n_classes", CLASSES)
    if "self_attn.Q.weight" in named:
        width = len(named["self_attn.Q.weight"])
        if width % int(options["n_classes"]):
            raise ConfigError(
                f"corrector of width {width}: no multiple of {options['n_classes']} classes; check n_classes"
            )
        options["attention_anchors"] = width // int(options["n_classes"])
    return options


def _read(source: str | Path) -> dict[str, Tensor]:
    path = local_path(source)
    if path.suffix == ".ckpt":
        return network_tensors(path)
    return read_tensors(path) if path.is_dir() or path.suffix == ".safetensors" else read_foreign_tensors(path)


def _told(found: Mapping[str, Any], given: Mapping[str, Any], own: Mapping[str, Any]) -> ImportReport:
    fresh = sorted(name for name in own.keys() - found.keys() if not name.endswith((INDEX, COUNTER)))
    return ImportReport(sorted(found), sorted(given.keys() - found.keys()), fresh)
