"""Weights of other programs for both networks of the domain, and what a training starts from."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from domains.common.errors import CheckpointMismatchError, CheckpointNotFoundError, UnsafeFileError
from domains.common.foreign import read_foreign_tensors
from domains.common.hub import publish
from domains.pose.backbone import make_backbone
from domains.pose.convformer import ConvFormer
from domains.pose.grouppose import GroupPose
from domains.pose.weights import Network, from_official, import_official, start_from, to_official

SMALL = {"queries": 6, "backbone": "small", "dim": 32, "heads": 4, "hidden": 48, "levels": 3}
SMALL |= {"encoder_depth": 1, "decoder_depth": 2}


def group_pose(keypoints: int = 5, seed: int = 0) -> GroupPose:
    torch.manual_seed(seed)
    return GroupPose(keypoints, **SMALL).eval()  # type: ignore[arg-type]


def conv_former() -> ConvFormer:
    torch.manual_seed(0)
    return ConvFormer(frames=9, joints=5, dim=16, spatial_blocks=1, temporal_blocks=1, heads=4)


@pytest.mark.parametrize("net", [group_pose(), conv_former()], ids=["grouppose", "convformer"])
def test_official_weights_come_back(net: Network, capsys: pytest.CaptureFixture[str]) -> None:
    official = to_official(net)
    again = import_official(
        {f"module.{n}": t for n, t in official.items()}, {"nheads": 4, "num_queries": 6, "heads": 4}
    )
    assert type(again) is type(net) and again.arguments == net.arguments
    assert all(torch.equal(tensor, official[name]) for name, tensor in to_official(again).items())
    assert f"loaded: {len(official) if isinstance(net, ConvFormer) else ''}" in capsys.readouterr().out


def test_a_published_file_executes_nothing_hostile(tmp_path: Path) -> None:
    """An official checkpoint pickles its command line beside the weights."""
    net = group_pose()
    args = argparse.Namespace(lr=1e-4)
    torch.save({"model": to_official(net), "epoch": 3, "args": args}, tmp_path / "published.pth")
    again = from_official(read_foreign_tensors(tmp_path / "published.pth"), {"nheads": 4, "num_queries": 6})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images).final.keypoints, net(images).final.keypoints)  # type: ignore[union-attr, operator]


def test_weights_of_neither_network_are_refused() -> None:
    for weights in ({"something": torch.ones(1)}, {"pos_temporal": torch.ones(1)}):
        with pytest.raises(CheckpointMismatchError, match="missing"):
            from_official(weights)


@pytest.mark.parametrize("kind", ["hub", "state dict", "safetensors", "official", "checkpoint"])
def test_a_start_from_the_same_network(kind: str, tmp_path: Path) -> None:
    source, net = group_pose(seed=1), group_pose()
    path = tmp_path / {"hub": "model", "safetensors": "net.safetensors", "checkpoint": "net.ckpt"}.get(kind, "net.pth")
    if kind == "hub":
        publish(path, source, "# card")
    elif kind == "safetensors":
        save_file(source.state_dict(), path)
    elif kind == "checkpoint":
        torch.save({"state_dict": {f"net.{n}": t for n, t in source.state_dict().items()}}, path)
    else:
        torch.save(to_official(source) if kind == "official" else source.state_dict(), path)
    report = start_from(net, str(path))
    assert report.fresh == [] and report.ignored == []
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), source.state_dict().values(), strict=True))


def test_a_start_from_a_network_of_other_keypoints(tmp_path: Path) -> None:
    source, net = group_pose(7, seed=1), group_pose()
    before = net.keypoint_embedding.detach().clone()
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    report = start_from(net, str(tmp_path / "net.safetensors"))
    assert report.fresh == report.ignored
    assert sorted(report.fresh) == [
        "keypoint_embedding",
        "selection_pose.layers.3.bias",
        "selection_pose.layers.3.weight",
    ]
    assert torch.equal(net.keypoint_embedding, before) and torch.equal(net.level_embedding, source.level_embedding)


def test_a_start_from_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = make_backbone("r50")
    torch.save(backbone.body.state_dict(), tmp_path / "resnet50.pth")  # type: ignore[union-attr]
    net = GroupPose(5, **{**SMALL, "backbone": "r50"})  # type: ignore[arg-type]
    report = start_from(net, str(tmp_path / "resnet50.pth"))
    assert net.backbone is not None and report.ignored == []
    assert not any(name.startswith("backbone") for name in report.fresh) and len(report.loaded) > 200
    for name, tensor in net.backbone.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name])


def test_starts_that_cannot_be(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatchError, match=r"other\.pth"):
        start_from(group_pose(), str(tmp_path / "other.pth"))
    with pytest.raises(CheckpointNotFoundError):
        start_from(group_pose(), str(tmp_path / "none.pth"))
    with pytest.raises(UnsafeFileError, match="URL"):
        start_from(group_pose(), "https://example.org/net.pth")
    (tmp_path / "cut.pth").write_bytes(b"cut")
    with pytest.raises(UnsafeFileError, match=r"cut\.pth"):
        start_from(group_pose(), str(tmp_path / "cut.pth"))
