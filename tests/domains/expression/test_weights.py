"""Weights of the official program, of POSTER++ and of its backbones, and what a training starts from."""

from __future__ import annotations

import argparse
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.arbex_direct import Setting, make_images, make_parts, state
from domains.common.errors import CheckpointMismatchError, CheckpointNotFoundError, ConfigError, UnsafeFileError
from domains.common.hub import publish
from domains.common.imported import ImportReport
from domains.expression.arbex import ARBEx
from domains.expression.weights import (
    balancing_from_official,
    from_official,
    import_official,
    merged,
    random_backbones,
    start_from,
    start_from_all,
    to_official,
)

Tensors = dict[str, Tensor]
PARTS = ("ir", "landmark")
OTHERS = ("head.", "anchors.", "self_attn.")


@pytest.fixture(scope="module")
def official() -> Tensors:
    """A whole network in the layout of the official program."""
    return state(Setting(classes=7))


def extractor_of(weights: Tensors) -> Tensors:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(OTHERS)}


def files_of(weights: Tensors) -> dict[str, Tensors]:
    """The files that the official program writes, and the corrector's, which it does not."""
    files = {"vit": extractor_of(weights), "anchors": {"anchors": weights["anchors.anchors"]}}
    for part in ("head", "self_attn"):
        files[part] = {n.removeprefix(f"{part}."): t for n, t in weights.items() if n.startswith(f"{part}.")}
    return files


def as_poster(weights: Tensors) -> Tensors:
    """The same extractor with the names of POSTER++, and a linear classifier."""
    rules = [
        (r"landmark\.path_1\.([01])\.net\.", r"face_landback.@\1@."),
        (r"attns\.(\d)\.table", r"attn\1.relative_position_bias_table"),
        (r"attns\.(\d)\.index_relative", r"attn\1.relative_position_index"),
        (r"attns\.(\d)\.linear\.", r"attn\1.proj."),
        (r"attns\.(\d)\.", r"attn\1."),
        (r"window_module\.(\d)\.", r"window\1."),
        (r"convs\.(\d)\.", r"conv\1."),
        (r"ffns\.(\d)\.gamma_(\d)", r"ffn\1.gamma\2"),
        (r"ffns\.(\d)\.mlp\.0\.", r"ffn\1.mlp.fc1."),
        (r"ffns\.(\d)\.mlp\.3\.", r"ffn\1.mlp.fc2."),
        (r"ffns\.(\d)\.", r"ffn\1."),
        (r"embs\.0\.", "embed_q."),
        (r"embs\.1\.", "embed_k.0."),
        (r"embs\.2\.", "embed_v."),
        (r"conv\.", "last_face_conv."),
        (r"vit\.", "VIT."),
    ]
    named = {}
    for name, tensor in weights.items():
        if name.startswith(("landmark.", "ir.")):
            theirs = {"landmark": "face_landback.", "ir": "ir_back."}[name.split(".")[0]] + backbone_name(name)
        else:
            pattern, new = next((p, n) for p, n in rules if re.match(p, name))
            theirs = re.sub(rf"^{pattern}", new, name)
            theirs = re.sub(r"^(attn|window|conv|ffn)(\d)", lambda m: f"{m[1]}{int(m[2]) + 1}", theirs)
        named[f"module.{theirs}"] = tensor
    named["module.VIT.head.linear.weight"] = torch.randn(7, 768, generator=torch.Generator().manual_seed(1)) / 9
    named["module.VIT.head.linear.bias"] = torch.zeros(7)
    return named


PLACES = {"1.0": "conv1", "1.1": "conv2_dw", "1.2": "conv_23", "1.3": "conv_3", "2.0": "conv_34", "2.1": "conv_4"}
UNIT = ("conv", "conv_dw", "project")
PLACES |= {"3.0": "conv_45", "3.1": "conv_5", "3.2": "conv_6_sep"}


def backbone_name(name: str) -> str:
    """The name in `ir50.pth` or `mobilefacenet_model_best.pth.tar`."""
    if found := re.fullmatch(r"ir\.net_(\d)\.net\.(\d+)\.(res|shortcut)\.(.*)", name):
        return f"body{found[1]}.{found[2]}.{found[3]}_layer.{found[4]}"
    found = re.fullmatch(r"landmark\.path_(\d\.\d)\.(.*)", name)
    if found is None:
        return name.removeprefix("ir.")
    rest = found[2]
    if PLACES[found[1]] in ("conv_3", "conv_4", "conv_5"):
        rest = re.sub(
            r"^net\.(\d+)\.net\.(\d)\.", lambda m: f"model.{m[1]}.{('conv', 'conv_dw', 'project')[int(m[2])]}.", rest
        )
    elif rest.count("net.") == 2:
        rest = re.sub(r"^net\.(\d)\.", lambda m: f"{UNIT[int(m[1])]}.", rest)
    rest = re.sub(r"net\.(\d)\.", lambda m: f"{('conv', 'bn', 'prelu')[int(m[1])]}.", rest)
    return f"{PLACES[found[1]]}.{rest}"


@torch.no_grad()
def test_our_network_is_the_direct_one(official):
    setting = Setting(batch=2, classes=7)
    extractor, head, balancing = make_parts(setting)
    images = make_images(setting)
    net = from_official(official, {"attn_scope": "batch"}).eval()
    embedding = extractor(images)
    p = head(embedding).softmax(-1)
    output = net(images)
    assert (output.embedding - embedding).norm() < 1e-5 * embedding.norm()
    torch.testing.assert_close(output.primary, p, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.corrected, balancing(embedding, p), atol=1e-5, rtol=1e-4)


def test_official_weights_come_back(official, capsys):
    net = import_official({f"module.{name}": tensor for name, tensor in official.items()}, {})
    assert "unused by the model: vit.CON1.weight" in capsys.readouterr().out
    back = to_official(net)
    assert back.keys() == official.keys()
    unused = re.compile(r"vit\.(?:CON1|IRLinear|patch_embed|blocks\.\d\.conv)")
    assert all(torch.equal(back[n], t) for n, t in official.items() if not unused.match(n))
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in official.items()}
    assert not any(unused.match(n) for n in to_official(net, complete=False))


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_the_files_of_the_official_program(official, tmp_path, kind):
    paths = []
    for name, weights in files_of(official).items():
        paths.append(tmp_path / f"{name}.{kind}")
        if kind == "pth":
            torch.save(weights, paths[-1])
        else:
            save_file({n: t.contiguous() for n, t in weights.items()}, paths[-1])
    found = merged(*paths)
    assert found.keys() == official.keys()
    with pytest.raises(CheckpointMismatchError, match="repeats"):
        merged(paths[0], paths[0])
    report = ImportReport()
    from_official(merged(paths[0]), {"n_classes": 5}, report=report)
    assert {name.split(".")[0] for name in report.fresh} == {"head", "anchors", "self_attn"}


def test_a_published_file_executes_nothing_hostile(official, tmp_path):
    torch.save({"state_dict": official, "args": argparse.Namespace(lr=1.0)}, tmp_path / "model.pth.tar")
    assert merged(tmp_path / "model.pth.tar").keys() == official.keys()
    for name, error in (("https://host/model.pth", UnsafeFileError), (tmp_path / "no.pth", CheckpointNotFoundError)):
        with pytest.raises(error):
            merged(name)


def test_a_whole_poster_network(official):
    poster = as_poster(extractor_of(official))
    report = ImportReport()
    net = from_official(poster, report=report)
    assert net.arguments["hidden"] == [] and net.n_classes == 7
    assert {name.split(".")[0] for name in report.fresh} == {"anchors", "self_attn"}
    back = to_official(net, complete=False)
    assert all(torch.equal(back[n], t) for n, t in extractor_of(official).items() if n in back)
    assert torch.equal(back["head.net.0.weight"], poster["module.VIT.head.linear.weight"])


@pytest.mark.parametrize(("part", "own"), [("ir", "image"), ("landmark", "landmarks")])
def test_a_start_from_the_file_of_a_backbone(official, tmp_path, part, own):
    weights = {backbone_name(n): t for n, t in official.items() if n.startswith(f"{part}.")}
    weights["output_layer.0.weight"] = torch.ones(3)
    torch.save(weights if part == "ir" else {"state_dict": weights, "epoch": 3}, tmp_path / "backbone.pth")
    net = ARBEx(7)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = start_from(net, tmp_path / "backbone.pth")
    assert len(report.loaded) == len(weights) - 1 and len(report.ignored) == 1
    back = to_official(net)
    assert all(torch.equal(back[name], official[name]) for name in report.loaded)
    others = [name for name in before if not name.startswith(f"extractor.{own}.")]
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in others)


def test_frozen_backbones_that_no_file_fills_are_named(official, tmp_path):
    net, reports = ARBEx(7, dim=64, depth=1), []
    assert len(random_backbones(net, [])) == 2
    for part, rest in (("ir", ["the landmark backbone (MobileFaceNet)"]), ("landmark", [])):
        weights = {backbone_name(n): t for n, t in official.items() if n.startswith(f"{part}.")}
        lacking = dict(list(weights.items())[: len(weights) // 2])
        torch.save(lacking, tmp_path / "half.pth")
        half = start_from(net, tmp_path / "half.pth")
        assert len(random_backbones(net, [*reports, half])) == len(rest) + 1, "half of a backbone is none"
        torch.save(weights, tmp_path / f"{part}.pth")
        reports.append(start_from(net, tmp_path / f"{part}.pth"))
        assert random_backbones(net, reports) == rest
    with pytest.raises(
        ConfigError, match=r"freeze_backbones: the landmark backbone \(MobileFaceNet\) would stay random"
    ):
        start_from_all(ARBEx(7, dim=64, depth=1), [tmp_path / "ir.pth"])
    said = start_from_all(ARBEx(7, dim=64, depth=1), [tmp_path / "ir.pth", tmp_path / "landmark.pth"])
    assert [line for line in said if line.startswith("start: ")] == [
        f"start: {tmp_path / f'{part}.pth'}" for part in PARTS
    ]
    torch.save(net.state_dict(), tmp_path / "own.pth")
    assert random_backbones(net, [start_from(ARBEx(7, dim=64, depth=1), tmp_path / "own.pth")]) == []
    assert random_backbones(ARBEx(7, dim=64, depth=1, freeze_backbones=False), []) == []
    assert random_backbones(ARBEx(7, "small"), []) == []


@pytest.mark.parametrize("kind", ["hub", "state dict", "safetensors", "checkpoint"])
def test_a_start_from_the_same_network(tmp_path, kind):
    torch.manual_seed(1)
    source, net = ARBEx(7, "small"), ARBEx(5, "small")
    path = tmp_path / {"hub": "model", "safetensors": "net.safetensors", "checkpoint": "net.ckpt"}.get(kind, "net.pth")
    if kind == "hub":
        publish(path, source, "# card")
    elif kind == "safetensors":
        save_file({n: t.contiguous() for n, t in source.state_dict().items()}, path)
    elif kind == "checkpoint":
        torch.save({"state_dict": {f"net.{n}": t for n, t in source.state_dict().items()}}, path)
    else:
        torch.save(source.state_dict(), path)
    report = start_from(net, path)
    assert all(name.startswith("balancing.") for name in report.fresh), "five classes instead of seven"
    assert torch.equal(net.extractor.vit.class_token, source.extractor.vit.class_token)


class TestWeightsThatDoNotFit:
    def test_missing_unknown_and_of_another_shape(self, official):
        lacking = {n: t for n, t in official.items() if n != "convs.1.bias"}
        for weights, message in (
            (lacking, "missing: convs.1.bias"),
            (official | {"more": torch.ones(1)}, "unexpected: more"),
            (official | {"convs.1.bias": torch.ones(3)}, r"wrong shape: convs.1.bias: \(3,\) != \(128,\)"),
            (official | {"attns.2.index_relative": torch.zeros(49, 49).long()}, "numbers places otherwise"),
            ({"something": torch.ones(1)}, "missing: ir.input_layer"),
        ):
            with pytest.raises(CheckpointMismatchError, match=message):
                from_official(weights)

    def test_counters_of_steps_may_be_missing(self, official):
        from_official({n: t for n, t in official.items() if not n.endswith("num_batches_tracked")})

    def test_options_that_contradict_shapes(self, official):
        with pytest.raises(ConfigError, match="does not divide"):
            from_official(official, {"attn_heads": 3})
        with pytest.raises(ConfigError, match="poster only"):
            to_official(ARBEx(7, "small"))

    def test_nothing_fits_a_start(self, tmp_path):
        torch.save({"something": torch.ones(1)}, tmp_path / "other.pth")
        with pytest.raises(CheckpointMismatchError, match=r"other\.pth"):
            start_from(ARBEx(7, "small"), tmp_path / "other.pth")


def test_balancing_alone(official):
    net = balancing_from_official({n: t for n, t in official.items() if n.startswith(OTHERS)}, {"delta": 2.0})
    assert net.anchors.delta == 2.0
    assert net(torch.randn(3, 768)).corrected.shape == (3, 7)
