"""Group Pose: sizes, gradients, padding, options, weights there and back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from domains.common.attention import record
from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.hub import load_published, publish
from domains.common.imported import ImportReport
from domains.pose.backbone import make_backbone
from domains.pose.grouppose import GroupPose
from domains.pose.grouppose_criterion import GroupPoseCriterion, Persons
from domains.pose.grouppose_weights import from_official, import_official, initialise, to_official
from domains.pose.swin import PatchMerging, Swin

SMALL = {"keypoints": 5, "queries": 6, "backbone": "small", "dim": 32, "heads": 4, "hidden": 48}
SMALL |= {"encoder_depth": 2, "decoder_depth": 2}


def make(**options):
    torch.manual_seed(0)
    net = GroupPose(**{**SMALL, **options})
    for name, parameter in net.named_parameters():
        # what starts at zero would hide mistakes
        if not parameter.abs().sum() > 0 or "sampling_offsets" in name:
            nn.init.normal_(parameter, std=0.1)
    return net.eval()


def batch_of_two():
    """Two images of unlike sizes, their batch, and its padding."""
    torch.manual_seed(1)
    alone = [torch.randn(3, 100, 130), torch.randn(3, 90, 77)]
    batch, padding = torch.zeros(2, 3, 100, 130), torch.ones(2, 100, 130, dtype=torch.bool)
    for i, image in enumerate(alone):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
        padding[i, : image.shape[1], : image.shape[2]] = False
    return alone, batch, padding


def compare(got, want, rows=slice(None), **tolerance):
    for name in ("logits", "keypoints"):
        torch.testing.assert_close(getattr(got.final, name)[rows], getattr(want.final, name), **tolerance)


@pytest.mark.parametrize(
    ("backbone", "keypoints", "total", "trained"),
    [("r50", 17, 49_318_396, 49_095_996), ("swin_t", 17, 49_861_430, None), ("swin_l", 14, 219_651_434, None)],
)
def test_parameter_count(backbone, keypoints, total, trained):
    with torch.device("meta"):
        net = GroupPose(keypoints, backbone=backbone)
    assert sum(p.numel() for p in net.parameters()) == total
    if trained is not None:
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained


def test_parameter_count_of_the_parts():
    with torch.device("meta"):
        net = GroupPose()
    parts = {"backbone": 23_454_912, "projection": 5_639_168, "encoder": 7_693_056, "selection_pose": 674_338}
    for name, count in parts.items():
        assert sum(p.numel() for p in getattr(net, name).parameters()) == count, name
    assert sum(p.numel() for p in net.decoder.parameters()) == 11_784_472


def test_gradient_reaches_every_parameter():
    _, images, padding = batch_of_two()
    net = make().train()
    criterion = GroupPoseCriterion([0.05] * 5)
    targets = [Persons(torch.rand(n, 5, 2), torch.ones(n, 5), torch.rand(n)) for n in (2, 1)]
    criterion(net(images, padding), targets)["total"].backward()
    silent = [
        n for n, p in net.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.abs().sum() > 0)
    ]
    assert silent == []


@pytest.mark.parametrize("backbone", ["r50", "swin_t"])
def test_gradient_reaches_every_parameter_of_the_backbone(backbone):
    torch.manual_seed(0)
    net = make_backbone(backbone).eval()  # nothing is left out by chance
    sum(x.square().mean() for x in net(torch.randn(1, 3, 64, 96))).backward()
    silent = [
        n for n, p in net.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_an_image_alone_as_in_any_batch_without_padding():
    net, images = make(), torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together = net(images)
        for i in range(3):
            compare(together, net(images[i : i + 1]), slice(i, i + 1), atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing_where_that_is_asked():
    alone, images, padding = batch_of_two()
    net = make(exact_padding=True, mask_invalid_proposals=True)
    with torch.no_grad():
        together = net(images, padding)
        for i, image in enumerate(alone):
            compare(together, net(image[None]), slice(i, i + 1), atol=1e-5, rtol=1e-4)
            official = make()(images, padding)
            assert not torch.allclose(official.final.logits[1], make()(alone[1][None]).final.logits[0], atol=1e-4)


def test_padding_proposes_nothing_when_masked():
    padding = torch.ones(1, 64, 64, dtype=torch.bool)
    padding[:, :40, :40] = False
    net = make(mask_invalid_proposals=True)
    with torch.no_grad():
        output = net(torch.randn(1, 3, 64, 64), padding)
    assert not output.memory.padding[0, output.selected[0]].any()


def test_inference_equals_training_forms():
    _, images, padding = batch_of_two()
    net = make()
    want = net(images, padding)
    with torch.no_grad():
        got = net(images, padding)
        with record(net.encoder, "layers.0.attention") as maps:
            recorded = net(images, padding)
    compare(got, want, atol=1e-5, rtol=1e-4)
    compare(recorded, want, atol=1e-5, rtol=1e-4)
    assert len(maps["layers.0.attention"]) == 1


def test_fused_norms_equal_plain_ones_and_follow_changes():
    torch.manual_seed(0)
    net, x = make_backbone("r50").eval(), torch.randn(1, 3, 64, 96)
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    for _ in range(2):
        want = net(x)
        with torch.no_grad():
            for got, plain in zip(net(x), want, strict=True):
                assert (got - plain).norm() < 1e-5 * plain.norm()
            net.body.layer3[0].bn2.running_var.mul_(3)
            net.body.layer4[0].conv1.weight.add_(0.01)


def test_auxiliary_outputs_differ_by_their_option_alone():
    _, images, padding = batch_of_two()
    official, clean = make(decoder_depth=3), make(decoder_depth=3, aux_hidden_inplace=False)
    with torch.no_grad():
        a, b = official(images, padding), clean(images, padding)
    compare(a, b)
    for x, y in zip(a.auxiliary, b.auxiliary, strict=True):
        assert torch.equal(x.logits, y.logits)
        assert not torch.allclose(x.keypoints, y.keypoints)


def test_bfloat16_stays_near_and_learns():
    net, images = make(), torch.randn(1, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(images)
    output.final.keypoints.sum().backward()
    assert output.final.keypoints.dtype == torch.float32
    with torch.no_grad():
        want = net(images)
    difference = output.memory.tokens.float() - want.memory.tokens
    assert difference.norm() < 0.05 * want.memory.tokens.norm()


@pytest.mark.parametrize("keypoints", [1, 2, 16, 21])
def test_any_number_of_keypoints_and_queries(keypoints):
    with torch.no_grad():
        output = make(keypoints=keypoints, queries=3)(torch.randn(1, 3, 33, 47))
    assert output.final.keypoints.shape == (1, 3, keypoints, 2)
    assert output.final.keypoints.min() >= 0
    assert output.final.keypoints.max() <= 1


def test_dilation_and_backbones_tell_their_channels():
    x = torch.randn(1, 3, 70, 50)
    for name, options in (("small", {}), ("r50", {"dilation": True}), ("r50", {}), ("swin_t", {})):
        net = make_backbone(name, **options).eval()
        with torch.no_grad():
            maps = net(x)
        assert [m.shape[1] for m in maps] == net.channels
        last = (5, 4) if options else (3, 2)
        assert name == "small" or tuple(maps[-1].shape[2:]) == last


def test_checkpointing_changes_nothing_but_memory():
    torch.manual_seed(0)
    plain = Swin(16, (1, 1, 2, 1), (1, 2, 4, 8), 4, drop_path=0.0).train()
    again = Swin(16, (1, 1, 2, 1), (1, 2, 4, 8), 4, drop_path=0.0, checkpointing=True).train()
    again.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 45, 67)
    for net in (plain, again):
        sum(m.square().mean() for m in net(x)).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    net = Swin(16, (1, 1, 2, 1), (1, 2, 4, 8), 4, drop_path=0.5).train()
    drop = net.stages[3][0].drop_path
    out = drop(torch.ones(4000, 2, 3))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert 0.9 < out.mean() < 1.1
    assert net.stages[0][0].drop_path.probability == 0.0


def test_merging_pads_odd_sizes():
    x = torch.randn(1, 3, 5, 4)
    merging = PatchMerging(4)
    padded = torch.zeros(1, 4, 6, 4)
    padded[:, :3, :5] = x
    torch.testing.assert_close(merging(x), merging(padded))


class TestWeights:
    def test_weights_come_back(self):
        net = make(keypoints=4, decoder_depth=3, classes=3)
        official = to_official(net)
        report = ImportReport()
        again = from_official(official, {"nheads": 4, "num_queries": 6}, report=report)
        assert again.arguments == net.arguments
        assert all(torch.equal(tensor, official[name]) for name, tensor in to_official(again).items())
        assert (
            len(report.loaded) == len([n for n in official if not n.startswith("transformer.decoder.class_embed")]) - 18
        )
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            compare(again.eval()(images), net(images))

    @pytest.mark.parametrize("backbone", ["r50", "swin_t"])
    def test_weights_come_back_with_each_backbone(self, backbone):
        small = {"encoder_depth": 1, "decoder_depth": 1, "hidden": 8}
        net = GroupPose(17, backbone=backbone, **small)
        official = to_official(net)
        again = from_official(official)
        assert again.arguments == net.arguments
        assert all(torch.equal(tensor, official[name]) for name, tensor in to_official(again).items())

    def test_either_name_of_the_heads_and_the_prefix_of_parallel_training(self):
        official = to_official(make())
        for kept in ("class_embed.", "transformer.decoder.class_embed."):
            other = {"class_embed.", "transformer.decoder.class_embed."} - {kept}
            some = {f"module.{n}": t for n, t in official.items() if not n.startswith(tuple(other))}
            again = to_official(from_official(some, {"nheads": 4}))
            assert all(torch.equal(again[name], tensor) for name, tensor in official.items())

    def test_heads_that_differ_by_name_are_refused(self):
        official = to_official(make())
        official["transformer.decoder.class_embed.0.bias"] += 1
        with pytest.raises(CheckpointMismatchError, match=r"not the same as class_embed\.0\.bias"):
            from_official(official, {"nheads": 4})

    def test_nothing_loads_silently(self):
        official = to_official(make())
        lacking = {n: t for n, t in official.items() if n != "transformer.enc_output.bias"}
        with pytest.raises(CheckpointMismatchError, match=r"missing: transformer\.enc_output\.bias") as caught:
            from_official(lacking, {"nheads": 4})
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointMismatchError, match=r"unexpected: transformer\.more"):
            from_official(official | {"transformer.more": torch.ones(1)}, {"nheads": 4})
        official["transformer.enc_output.bias"] = torch.ones(3)
        with pytest.raises(CheckpointMismatchError, match=r"wrong shape: transformer\.enc_output\.bias"):
            from_official(official, {"nheads": 4})
        with pytest.raises(CheckpointMismatchError, match="missing"):
            from_official({"something": torch.ones(1)})
        with pytest.raises(ConfigError, match="nheads"):
            from_official(to_official(make()), {"nheads": 5})
        with pytest.raises(ConfigError, match="no number"):
            from_official(to_official(make()), {"nheads": "many"})

    def test_another_index_of_window_positions_is_refused(self):
        small = {"encoder_depth": 1, "decoder_depth": 1, "hidden": 8}
        official = to_official(GroupPose(backbone="swin_t", **small))
        name = "backbone.0.layers.1.blocks.0.attn.relative_position_index"
        official[name] = official[name].flip(0)
        with pytest.raises(CheckpointMismatchError, match="numbers places otherwise"):
            from_official(official)

    def test_another_number_of_keypoints_starts_at_random_and_says_so(self):
        official = to_official(make())
        with pytest.warns(UserWarning, match="keypoint_embedding"):
            net = from_official(official, {"nheads": 4, "num_body_points": 7})
        assert net.keypoints == 7
        again = to_official(net)
        changed = [n for n, t in again.items() if t.shape != official[n].shape]
        assert sorted(changed) == [
            "transformer.enc_pose_embed.layers.3.bias",
            "transformer.enc_pose_embed.layers.3.weight",
            "transformer.keypoint_embedding.weight",
        ]

    def test_content_that_is_learned_nowhere_comes_back(self):
        net = make(learnable_tgt_init=True)
        with torch.no_grad():
            assert net(torch.randn(1, 3, 64, 64)).final.logits.shape == (1, 6, 2)
        again = from_official(to_official(net), {"nheads": 4})
        assert again.arguments == net.arguments

    def test_import_says_what_it_did(self, capsys):
        import_official(to_official(make()), {"nheads": 4})
        assert "loaded: " in capsys.readouterr().out

    def test_published_network_is_built_again(self, tmp_path):
        net = make()
        publish(tmp_path, net, "card")
        again = load_published(tmp_path)
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            compare(again.eval()(images), net(images))
        json.loads((tmp_path / "config.json").read_text())


class TestStart:
    def test_from_resnet_of_torchvision(self):
        from torchvision.models import resnet50

        state = resnet50(weights=None).state_dict()
        net = GroupPose(encoder_depth=1, decoder_depth=1, hidden=8)
        report = initialise(net, state)
        assert torch.equal(net.backbone.body.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
        assert sorted(report.ignored) == ["backbone.0.body.fc.bias", "backbone.0.body.fc.weight"]
        assert all(not name.startswith("backbone") for name in report.fresh)

    def test_from_swin_of_timm(self):
        from timm import create_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = create_model("swin_tiny_patch4_window7_224", pretrained=False).state_dict()
        net = GroupPose(backbone="swin_t", encoder_depth=1, decoder_depth=1, hidden=8)
        report = initialise(net, state)
        assert torch.equal(net.backbone.merging[0].reduction.weight, state["layers.1.downsample.reduction.weight"])
        fresh = [name for name in report.fresh if name.startswith("backbone")]
        assert fresh == [f"backbone.0.norm{i}.{part}" for i in (1, 2, 3) for part in ("bias", "weight")]

    def test_from_the_encoder_of_a_relative(self):
        source, net = make(keypoints=3), make()
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        state = {n: t for n, t in to_official(source).items() if "encoder" in n}
        report = initialise(net, state | {"label_enc.weight": torch.ones(2)})
        assert report.ignored == ["label_enc.weight"]
        assert torch.equal(net.encoder.layers[1].norm1.weight, source.encoder.layers[1].norm1.weight)
        assert not torch.equal(net.selection.weight, source.selection.weight)

    def test_from_nothing_that_fits(self):
        with pytest.raises(CheckpointMismatchError, match="start from"):
            initialise(make(), {"something": torch.ones(1)})


def test_impossible_options_and_inputs():
    for options, message in (
        ({"backbone": None}, "either a backbone"),
        ({"backbone": "r51"}, "choose one of r50"),
        ({"channels": [3]}, "either a backbone"),
        ({"dim": 30}, "multiple of heads"),
        ({"levels": 2}, "already has 3 maps"),
        ({"keypoints": 0}, "keypoints 0"),
        ({"classes": 1}, "class 1 is a person"),
        ({"dilation": True}, "no dilation"),
        ({"backbone": None, "channels": [8], "exact_padding": True}, "needs a backbone"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)
    with pytest.raises(ConfigError, match="cannot fill 500 queries"):
        make(queries=500)(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"give \(B, 3, H, W\)"):
        make()(torch.randn(1, 1, 32, 32))
    with pytest.raises(ConfigError, match="no backbone"):
        make(backbone=None, channels=[8, 8])(torch.randn(1, 3, 32, 32))


@pytest.mark.shared
def test_official_names_and_shapes():
    path = Path(__file__).parents[4] / "shared" / "golden" / "grouppose_state_dict_keys.json"
    if not path.exists():
        pytest.skip("no shared folder")
    listed = json.loads(path.read_text())
    for backbone, keypoints, part in (
        ("r50", 17, "resnet50_K17"),
        ("swin_t", 17, "swin_T_K17_backbone_and_proj"),
    ):
        state = to_official(GroupPose(keypoints, backbone=backbone))
        got = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in state.items()}
        for name, want in listed[part].items():
            assert got[name] == want, name
        backbones = {name for name in got if name.startswith(("backbone", "input_proj"))}
        assert backbones == {name for name in listed[part] if name.startswith(("backbone", "input_proj"))}
