"""Encoders: names, weights from every kind of file, and what they compute."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, PrepError
from data_prep.medical.wsi.features.encoder_weights import load_weights, weights_file
from data_prep.medical.wsi.features.encoders import Encoder, EncoderSpec, load_encoder, resolve_name


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """Weights of a small ViT with a classifier."""
    torch.manual_seed(1)
    return dict(timm.create_model("test_vit", num_classes=4).state_dict())


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)


def bare(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


@pytest.mark.parametrize("kind", ["classifier", "bare", "prefixed", "training", "teacher", "safetensors", "folder"])
def test_weights_are_found_in_every_kind_of_file(
    tmp_path: Path, published: dict[str, torch.Tensor], images: Any, kind: str
) -> None:
    path = tmp_path / "weights.torch"
    wanted = timm.create_model("test_vit", num_classes=0)
    wanted.load_state_dict(bare(published))
    if kind == "classifier":
        torch.save(published, path)
    elif kind == "bare":
        torch.save(bare(published), path, _use_new_zipfile_serialization=False)
    elif kind == "prefixed":
        torch.save({f"module.backbone.{name}": tensor for name, tensor in published.items()}, path)
    elif kind == "training":
        extra = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: torch.zeros(3)}}}
        torch.save({"model": published, **extra}, path)
    elif kind == "teacher":
        other = {f"backbone.{name}": tensor + 1 for name, tensor in published.items()}
        right = {f"backbone.{name}": tensor for name, tensor in bare(published).items()}
        torch.save({"student": other, "teacher": {**right, "head.mlp.0.weight": torch.zeros(2, 2)}}, path)
    elif kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(published, path)
    else:
        save_file(published, tmp_path / "model.safetensors")
        path = tmp_path
    encoder = load_encoder(EncoderSpec("test_vit", str(weights_file(str(path)))), "cpu")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    values = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        np.testing.assert_allclose(encoder(images), wanted.eval()(values).numpy(), rtol=1e-4, atol=1e-5)


def test_the_released_pathology_vit_fits_the_encoder_named_after_it(tmp_path: Path) -> None:
    # Shapes of dino_vit_small_patch16_ep200.torch as its loader has them: a ViT-S/16 of timm without classifier.
    network = timm.create_model("vit_small_patch16_224", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "dino_vit_small_patch16_ep200.torch")
    spec = EncoderSpec("medical_ssl", str(tmp_path / "dino_vit_small_patch16_ep200.torch"), normalisation="lunit")
    encoder = load_encoder(spec, "cpu")
    assert (encoder.dim, encoder.image_size) == (384, 224)
    assert encoder.mean == (0.70322989, 0.53606487, 0.66096631)
    assert load_encoder(EncoderSpec("natural_supervised", "random"), "cpu").dim == 512


def test_position_embeddings_are_resized_to_other_images(tmp_path: Path, published: dict[str, torch.Tensor]) -> None:
    torch.save(published, tmp_path / "w.pth")
    encoder = load_encoder(EncoderSpec("test_vit", str(tmp_path / "w.pth"), image_size=96), "cpu")
    assert encoder(np.zeros((2, 96, 96, 3), np.uint8)).shape == (2, encoder.dim)


def test_batch_norm_counters_of_old_files_are_not_missed(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", "test_resnet")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda state: {**state, "cls_token": torch.zeros(1, 1, 7)},
            r"1 tensors have another shape, such as 'cls_token'",
        ),
        (
            lambda state: {**state, "blocks.0.ls1.gamma": torch.ones(64)},
            r"no place in it, such as 'blocks.0.ls1.gamma'",
        ),
        (lambda state: {"x.weight": torch.zeros(2)}, r"tensors are missing, such as 'cls_token'"),
        (
            lambda state: {k: v for k, v in state.items() if k != "norm.weight"},
            "1 of its .* missing, such as 'norm.wei",
        ),
        (
            lambda state: {f"{p}.{k}": v for k, v in state.items() for p in "ab"},
            r"several networks that fit test_vit: a",
        ),
    ],
)
def test_weights_of_another_model_are_refused(
    tmp_path: Path, published: dict[str, torch.Tensor], change: Any, reason: str
) -> None:
    network = timm.create_model("test_vit", num_classes=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.save(change(published), tmp_path / "w.pth")
    with pytest.raises(PrepError, match=f"w.pth: .*{reason}"):
        load_weights(network, tmp_path / "w.pth", "test_vit")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class _Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_hostile_weights_are_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"cls_token": torch.zeros(1), "x": _Hostile(mark)}, tmp_path / "w.pth")
    with pytest.raises(CorruptRecordError, match=r"w.pth: weights: holds more than tensors and was not executed"):
        load_encoder(EncoderSpec("test_vit", str(tmp_path / "w.pth")), "cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>404</html>" * 9)
    with pytest.raises(CorruptRecordError, match=f"{name}: weights: "):
        load_encoder(EncoderSpec("test_vit", str(tmp_path / name)), "cpu")
    with pytest.raises(ConfigError, match="is a URL; download the file first"):
        weights_file("https://example.org/w.pth")
    with pytest.raises(DatasetNotFoundError, match="no such file of weights"):
        weights_file(str(tmp_path / "absent.pth"))


def test_near_names_are_suggested() -> None:
    with pytest.raises(ConfigError, match="no model of this name; did you mean vit_small_patch16_224"):
        resolve_name("vit_smal_patch16_224", "random")
    with pytest.raises(ConfigError, match="no model of this name; did you mean medical_ssl"):
        resolve_name("medical-ssl", "random")
    for name in ("../x", "MahmoodLab/UNI", "zzzz"):
        with pytest.raises(ConfigError, match="no model of this name"):
            resolve_name(name, "random")
    with pytest.raises(ConfigError, match="comes with its weights"):
        resolve_name("hf-hub:x/y", "random")


def test_mistakes_in_options_are_told() -> None:
    with pytest.raises(ConfigError, match=r"timm cannot build it with .*foo"):
        load_encoder(EncoderSpec("test_vit", "random", arguments='{"foo": 1}'), "cpu")
    with pytest.raises(ConfigError, match="device 'nonsense': cannot be used here"):
        load_encoder(EncoderSpec("test_vit", "random"), "nonsense")
    with pytest.raises(ConfigError, match=r"instead of one vector"):
        load_encoder(EncoderSpec("test_resnet", "random", arguments='{"global_pool": ""}'), "cpu")


def test_without_network_pretrained_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(PrepError, match=r"timm cannot get its pretrained weights .*give it as weights"):
        load_encoder(EncoderSpec("test_vit", "pretrained"), "cpu")


def test_random_weights_repeat_and_leave_the_generator_alone(images: Any) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    load_encoder.cache_clear()
    first = load_encoder(EncoderSpec("test_vit", "random"), "cpu")(images)
    assert torch.equal(torch.rand(1), wanted)
    load_encoder.cache_clear()
    assert np.array_equal(load_encoder(EncoderSpec("test_vit", "random"), "cpu")(images), first)
    assert not np.allclose(load_encoder(EncoderSpec("test_vit", "random", seed=1), "cpu")(images), first)


class _Overflowing(torch.nn.Module):
    """Beyond the range of float16 in the middle, within it at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
        torch.nn.init.constant_(self.up.weight, 4e5)
        torch.nn.init.constant_(self.down.weight, 1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self.up(images.mean(dim=(2, 3))))
        return out


def test_what_fp16_cannot_compute_is_computed_in_fp32(images: Any) -> None:
    network = _Overflowing().requires_grad_(False)
    arguments = (network, torch.device("cpu"), 160, (0.5, 0.5, 0.5), (0.01, 0.01, 0.01))
    with torch.autocast("cpu", dtype=torch.float16):
        assert not torch.isfinite(network(torch.ones(1, 3, 2, 2))).all()
    images = np.full_like(images, 200)
    assert np.array_equal(Encoder(*arguments, "fp16")(images), Encoder(*arguments, "fp32")(images))
