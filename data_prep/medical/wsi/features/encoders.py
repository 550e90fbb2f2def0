"""Patch encoders: any model of timm with weights from a file, from timm's own hub, or random ones.

Two have names of their own, those of ACMIL's feature files: `medical_ssl` is the ViT-S/16 trained without labels on
pathology (lunit-io/benchmark-ssl-pathology, `dino_vit_small_patch16_ep200.torch`, 384 features), `natural_supervised`
the ResNet-18 trained on ImageNet (global average pool, 512 features).

This is the one part of the preparation which needs torch; it is imported when an encoder is loaded.
"""

from __future__ import annotations

import difflib
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, MissingExtraError, PrepError
from data_prep.medical.wsi.features.encoder_weights import load_weights

if TYPE_CHECKING:
    import torch

ALIASES = {"medical_ssl": "vit_small_patch16_224", "natural_supervised": "resnet18"}
# mean and standard deviation of red, green and blue, of 1
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # published with the weights of lunit-io/benchmark-ssl-pathology
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
}
PRECISIONS = ("fp32", "bf16", "fp16")
Normalisation = Literal["imagenet", "lunit", "model"]
Precision = Literal["fp32", "bf16", "fp16"]
Numbers = tuple[float, float, float]


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that determines what an encoder computes, as plain values that workers can be sent.

    Args:
        name: of a timm model.
        weights: `pretrained`, `random`, or a file.
        seed: of random weights.
        arguments: further arguments of the model, as JSON.
        image_size: side of its input in pixels; None for the model's own.
        normalisation: which statistics.
        mean: in their place, with `std`.
        std: in their place, with `mean`.
        precision: of its arithmetic.
    """

    name: str
    weights: str
    seed: int = 0
    arguments: str = "{}"
    image_size: int | None = None
    normalisation: Normalisation = "imagenet"
    mean: Numbers | None = None
    std: Numbers | None = None
    precision: Precision = "fp32"


class Encoder:
    """A network ready to encode patches.

    Args:
        network: gives (B, D) features of (B, 3, S, S) images.
        device: where it is.
        image_size: S.
        mean: of red, green and blue, of 1.
        std: of red, green and blue.
        precision: of its arithmetic; features come in float32.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        device: torch.device,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        precision: Precision,
    ) -> None:
        import torch

        self.network, self.device, self.image_size, self.precision = network, device, image_size, precision
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        # (x / 255 - mean) / std in one multiplication and one addition.
        self._scale = (1 / (255 * torch.tensor(self.std, device=device))).view(1, 3, 1, 1)
        self._shift = (-torch.tensor(self.mean, device=device) / torch.tensor(self.std, device=device)).view(1, 3, 1, 1)
        with self._arithmetic("fp32"):
            probe = network(torch.zeros(1, 3, image_size, image_size, device=device))
        if probe.ndim != 2:
            raise ConfigError(
                f"encoder: gives features of shape {tuple(probe.shape[1:])} for a patch instead of one vector; "
                "choose a model or arguments with pooling"
            )
        self.dim = int(probe.shape[1])

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode a batch; what a lower precision cannot compute is computed again in float32.

        Shape:
            (B, S, S, 3) uint8, RGB -> (B, D) float32.

        Raises:
            ConfigError: the batch does not fit into the device's memory.
        """
        features = self._encode(images, self.precision)
        if self.precision != "fp32" and not np.isfinite(features).all():
            features = self._encode(images, "fp32")
        return features

    def _encode(self, images: npt.NDArray[np.uint8], precision: Precision) -> npt.NDArray[np.float32]:
        import torch

        try:
            with self._arithmetic(precision):
                pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
                values = torch.addcmul(self._shift, pixels.float(), self._scale).contiguous()
                found: npt.NDArray[np.float32] = self.network(values).float().cpu().numpy()
                return found
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{self.device}: {len(images)} patches of {self.image_size} x {self.image_size} do not fit into its "
                "memory; lower batch_size or use precision bf16"
            ) from error

    def _arithmetic(self, precision: Precision) -> Any:
        """Repeatable kernels in the wanted precision, without gradients."""
        import contextlib

        import torch

        stack = contextlib.ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        )
        if precision != "fp32":
            kind = torch.bfloat16 if precision == "bf16" else torch.float16
            stack.enter_context(torch.autocast(self.device.type, dtype=kind))
        return stack


@functools.lru_cache(maxsize=1)
def load_encoder(spec: EncoderSpec, device: str) -> Encoder:
    """Build the network, give it its weights and move it; a process that asks again gets the same one.

    Args:
        spec: which encoder.
        device: `auto`, `auto:TURN` for one of several processes, or a name of torch such as `cpu` or `cuda:1`.

    Raises:
        ConfigError: no such model, arguments it does not take, or no such device.
        CorruptRecordError: the weights cannot be read, or would have to be executed.
        PrepError: they belong to another model, or cannot be downloaded.
    """
    timm = import_timm()
    import torch

    place = _device(device)
    name = resolve_name(spec.name, spec.weights)
    arguments: dict[str, Any] = {**json.loads(spec.arguments), "num_classes": 0}
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if spec.image_size and config is not None and config.fixed_input_size:
        arguments.setdefault("img_size", spec.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = _create(name, spec, arguments)
    if spec.weights not in ("pretrained", "random"):
        load_weights(network, Path(spec.weights), name)
    known = timm.data.resolve_model_data_config(network)
    mean, std = STATISTICS.get(spec.normalisation, (known["mean"], known["std"]))
    if spec.mean is not None and spec.std is not None:
        mean, std = spec.mean, spec.std
    size = spec.image_size or int(known["input_size"][-1])
    try:
        network = network.eval().requires_grad_(False).to(place)
        return Encoder(network, place, size, mean, std, spec.precision)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"encoder {spec.name!r}: does not take images of {size} x {size} on {place} ({_first_line(error)}); "
            "choose another image_size or device"
        ) from error


def _create(name: str, spec: EncoderSpec, arguments: dict[str, Any]) -> torch.nn.Module:
    import timm

    try:
        network: torch.nn.Module = timm.create_model(name, pretrained=spec.weights == "pretrained", **arguments)
        return network
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise ConfigError(
            f"encoder {spec.name!r}: timm cannot build it with {json.dumps(arguments)} ({_first_line(error)}); "
            "correct encoder_args or image_size"
        ) from error
    except Exception as error:  # the hub's client raises errors of several libraries
        if spec.weights != "pretrained":
            raise ConfigError(f"encoder {spec.name!r}: timm cannot build it ({_first_line(error)})") from error
        raise PrepError(
            f"encoder {spec.name!r}: timm cannot get its pretrained weights ({_first_line(error)}); "
            "download the file on a machine with network access and give it as weights"
        ) from error


def resolve_name(name: str, weights: str) -> str:
    """Find timm's name of an encoder.

    Raises:
        ConfigError: there is no such model; near names are told.
    """
    timm = import_timm()
    known = ALIASES.get(name, name)
    if known.startswith(("hf-hub:", "local-dir:")):
        if weights != "pretrained":
            raise ConfigError(f"encoder {name!r}: comes with its weights; give weights pretrained, or a timm name")
        return known
    if any(mark in known for mark in "/\\:") or not timm.is_model(known):
        near = difflib.get_close_matches(known.split(".")[0], [*timm.list_models(), *ALIASES], n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ConfigError(f"encoder {name!r}: timm has no model of this name; {hint}")
    return known


def import_timm() -> Any:
    """Import timm, and torch with it, now that they are needed.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise MissingExtraError("medical", "feature extraction") from error
    return timm


def say_weights(spec: EncoderSpec) -> None:
    """Tell loudly when features will mean nothing."""
    if spec.weights == "random":
        sys.stderr.write(
            f"encoder {spec.name} has RANDOM weights (seed {spec.seed}): its features are good for demonstrations and "
            "tests only; give --weights FILE or --weights pretrained\n"
        )


def _device(name: str) -> torch.device:
    import torch

    if name.startswith("auto"):  # auto:3 is the fourth of several processes, which take turns at the devices
        count, turn = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
        return torch.device(f"cuda:{turn % count}" if count else "cpu")
    try:
        place = torch.device(name)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r}: cannot be used here ({_first_line(error)}); try cpu or auto") from error
    return place


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
