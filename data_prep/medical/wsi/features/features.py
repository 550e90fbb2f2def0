"""Slides and coordinates -> features of every patch: the function behind `heptad medical features`.

One task per slide, resumable; a slide that cannot be encoded keeps no other from being so. A finished directory takes
new, repaired and failed slides on: the same command again encodes these and keeps the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.executors import default_workers
from data_prep.common.extras import need
from data_prep.common.files import sha256_file
from data_prep.common.manifest import NAME, read_manifest, tool_version
from data_prep.common.mapping import Shard
from data_prep.common.run import Settings, open_run
from data_prep.medical.wsi.features.encoder_weights import weights_file
from data_prep.medical.wsi.features.encoders import (
    PRECISIONS,
    STATISTICS,
    Encoder,
    EncoderSpec,
    Normalisation,
    Numbers,
    Precision,
    load_encoder,
    resolve_name,
    say_weights,
)
from data_prep.medical.wsi.features.extract import Job
from data_prep.medical.wsi.features.native import Stored
from data_prep.medical.wsi.features.plan import find_coords, patched_before, patching_of, plan
from data_prep.medical.wsi.features.run import PAYLOAD, check_failures, encode, find_earlier, summary, take_over
from data_prep.medical.wsi.slides.find import find_slides


def features(
    patches: Path,
    slides: list[Path] | Path,
    out: Path,
    *,
    encoder: str,
    weights: str,
    encoder_args: dict[str, Any] | None = None,
    seed: int = 0,
    image_size: int | None = None,
    normalisation: Normalisation = "imagenet",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    precision: Precision = "fp32",
    dtype: Stored = "float16",
    batch_size: int = 64,
    device: str = "auto",
    threads: int | None = None,
    max_bad: float = 0.01,
    workers: int | None = None,
    executor: str = "serial",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode the patches of slides.

    A slide that cannot be encoded, or has no patches, does not stop the others: they are finished and published, then
    the command fails and names it. Run again after a repair: only what is new or failed is encoded.

    Args:
        patches: what `heptad medical patch` made, or a folder of coordinates of CLAM or TRIDENT.
        slides: the slides, or folders of them.
        out: output directory; new, or begun before with the same options.
        encoder: a model of timm, or medical_ssl (ViT-S/16) or natural_supervised (ResNet-18) as in ACMIL.
        weights: a file (safetensors or a torch state dict), pretrained (timm downloads them), or random (for tests).
        encoder_args: further arguments of the timm model, as JSON: '{"init_values": 1e-5}'.
        seed: of random weights.
        image_size: side in pixels to which patches are resized; the model's own by default.
        normalisation: statistics of colours: imagenet (which ACMIL uses with every encoder), lunit (published with
            the ViT-S/16 of medical_ssl), or model (those timm keeps with the model).
        mean: of red, green and blue, of 1; in place of normalisation, with std.
        std: of red, green and blue, of 1.
        precision: of the arithmetic; what bf16 or fp16 cannot compute is computed again in fp32.
        dtype: to store; a slide whose features exceed float16 is stored in float32, and told.
        batch_size: patches encoded at a time.
        device: auto (a GPU if there is one; shards take turns at several), cpu, cuda, cuda:1, ...
        threads: that read patches; all cores by default.
        max_bad: share of unreadable patches above which a slide is given up; up to it they are left out and listed.
        workers: processes or jobs of the executors other than serial; each has its own copy of the encoder.
        executor: serial (one process, one device), local, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: encode only this share of the slides, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end.
        max_rejects: share of slides that may fail without the command failing.
        progress: show progress bars and a summary.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    need("medical", "encoding of patches", "timm", "torchvision")
    spec = EncoderSpec(
        *(encoder, weights, seed, json.dumps(encoder_args or {}, sort_keys=True), image_size, normalisation),
        *(_numbers(mean), _numbers(std), precision),
    )
    share = Shard.parse(shard, shard_patience) if shard else None
    place = f"auto:{share.index}" if share and device == "auto" else device
    count = threads or max(1, default_workers() // (1 if executor == "serial" else workers or default_workers()))
    job = Job(spec, place, batch_size, count, dtype, max_bad)
    _check(job, max_rejects)
    command = _command(job)
    planned, failed = plan(find_slides(slides), find_coords(patches), patched_before(patches))
    if not planned:
        what = failed[0]["reason"] if failed else "all of them are skipped"
        raise PrepError(f"{patches}: none of the slides has both, a file and coordinates of patches: {what}")
    before = (out / NAME).read_bytes() if (out / NAME).exists() else None
    earlier = find_earlier(out, command)
    if earlier is not None and earlier.is_of(planned, failed):
        return _end(out, read_manifest(out), max_rejects, progress)
    say_weights(spec)
    about = {"command": command, **_about(patches, job, _prove(job, executor))}
    fingerprint = {"command": command, "tools": [tool_version(), version("torch"), version("timm")]}
    try:
        with open_run(out, fingerprint, Settings(executor, workers, share, progress), PAYLOAD) as run:
            if earlier is not None:
                take_over(run, planned, earlier)
            card = encode(run, job, planned, failed, about)
    except (PrepError, OSError):
        # Another shard may have finished, and removed the scratch folder, while this one looked at it.
        if share is None or not (out / NAME).exists() or (out / NAME).read_bytes() == before:
            raise
        card = read_manifest(out)
    return _end(out, card, max_rejects, progress)


def _end(out: Path, card: dict[str, Any], max_rejects: float, progress: bool) -> dict[str, Any]:
    if progress:
        print(summary(out, card))
    check_failures(out, card, max_rejects)
    return card


def _check(job: Job, max_rejects: float) -> None:
    spec = job.encoder
    if job.batch_size < 1 or job.threads < 1 or not 0 <= job.max_bad <= 1 or not 0 <= max_rejects <= 1:
        raise ConfigError(
            f"batch_size {job.batch_size}, threads {job.threads}, max_bad {job.max_bad}, max_rejects {max_rejects}: "
            "give at least 1 patch and 1 thread, and shares from 0 to 1"
        )
    if (spec.mean is None) != (spec.std is None) or (spec.std is not None and min(spec.std) <= 0):
        raise ConfigError(f"mean {spec.mean}, std {spec.std}: give both, three numbers each, std above 0")
    if spec.image_size is not None and spec.image_size < 1:
        raise ConfigError(f"image_size {spec.image_size}: give at least 1 pixel")
    if spec.precision not in PRECISIONS or job.dtype not in ("float16", "float32"):
        raise ConfigError(f"precision {spec.precision!r}, dtype {job.dtype!r}: see the choices with --help")
    if spec.normalisation not in (*STATISTICS, "model"):
        raise ConfigError(f"normalisation {spec.normalisation!r}: choose {', '.join(STATISTICS)} or model")
    resolve_name(spec.name, spec.weights)


def _command(job: Job) -> dict[str, Any]:
    """What was asked for, without the places of this machine."""
    spec = asdict(job.encoder)
    spec["arguments"] = json.loads(job.encoder.arguments)
    # The checksum tells weights from others, whatever their file is called.
    spec["weights"] = {name: value for name, value in _weights(job.encoder).items() if name != "file"}
    del spec["seed"]
    for name in ("mean", "std"):
        spec[name] = list(spec[name]) if spec[name] else None
    return {"encoder": spec, "dtype": job.dtype, "batch_size": job.batch_size, "max_bad": job.max_bad}


def _numbers(values: Sequence[float] | None) -> Numbers | None:
    if values is None:
        return None
    if len(values) != 3:
        raise ConfigError(f"mean or std {list(values)}: give three numbers, of red, green and blue")
    return (float(values[0]), float(values[1]), float(values[2]))


def _weights(spec: EncoderSpec) -> dict[str, Any]:
    if spec.weights == "pretrained":
        return {"kind": "pretrained"}
    if spec.weights == "random":
        return {"kind": "random", "seed": spec.seed}
    path = weights_file(spec.weights)
    return {"kind": "file", "file": path.name, "sha256": sha256_file(path)}


def _patching(patches: Path) -> dict[str, Any] | None:
    """How the patches were made, if `heptad medical patch` made them."""
    manifest = patching_of(patches)
    if not manifest:
        return None
    # A default resolution is recorded with the slides that needed it.
    defaults = {source.get("default_mpp") for source in manifest.get("sources", [])} - {None}
    return {**manifest.get("command", {}), "default_mpp": min(defaults, default=None)}


def _prove(job: Job, executor: str) -> Encoder:
    """Load the encoder here, so that a mistake shows at once; other processes will load their own."""
    encoder = load_encoder(job.encoder, job.device if executor == "serial" else "cpu")
    if executor != "serial":
        load_encoder.cache_clear()
    return encoder


def _about(patches: Path, job: Job, encoder: Encoder) -> dict[str, Any]:
    """Entries of `dataset.json`: the encoder, and what does the same to other slides."""
    spec = job.encoder
    options = {**asdict(spec), "arguments": json.loads(spec.arguments)}
    if spec.weights not in ("pretrained", "random"):
        path = weights_file(spec.weights)
        options |= {"weights": str(path.resolve()), "weights_sha256": sha256_file(path)}
    options |= {name: list(options[name]) for name in ("mean", "std") if options[name]}
    storage = {"dtype": job.dtype, "batch_size": job.batch_size, "max_bad": job.max_bad}
    return {
        "encoder": {
            "name": spec.name,
            "weights": _weights(spec),
            "image_size": encoder.image_size,
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "precision": spec.precision,
        },
        "feature_dim": encoder.dim,
        "preparation": {"patching": _patching(patches), "features": options | storage},
    }
