"""ConvFormer: its counts against the paper's tables, its forms against each other, its errors."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from domains.common.attention import record
from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.hub import load_published, publish
from domains.pose.convformer import ConvFormer, DropPath
from domains.pose.convformer_weights import from_official, to_official
from domains.pose.metrics3d import mpjpe

# options -> parameters, and millions as the paper prints them (tables of sections 4.3 and 4.4)
TABLE = [
    ({}, 2_560_533, 2.56),
    ({"frames": 27}, 2_653_647, 2.65),
    ({"frames": 81}, 3_430_653, 3.43),
    ({"frames": 143}, 5_243_347, 5.24),
    ({"frames": 243}, 10_240_647, 10.24),
    ({"temporal_blocks": 4}, 4_946_203, 4.95),
    ({"spatial_blocks": 4}, 2_700_903, 2.70),
    ({"kernels": (3,)}, 2_440_677, 2.44),
    ({"kernels": (3, 3)}, 2_460_825, 2.46),
    ({"kernels": (3, 3, 3)}, 2_480_973, 2.48),
    ({"kernels": (5, 5)}, 2_487_345, 2.49),
    ({"kernels": (5, 5, 5)}, 2_520_753, 2.52),
    ({"kernels": (7,)}, 2_467_197, 2.47),
    ({"kernels": (7, 7)}, 2_513_865, 2.51),
    ({"kernels": (9,)}, 2_480_457, 2.48),
    ({"kernels": (9, 9)}, 2_540_385, 2.54),
    ({"kernels": (9, 9, 9)}, 2_600_313, 2.60),
    ({"kernels": (3, 5, 7)}, 2_520_753, 2.52),
    ({"kernels": (5, 7, 9)}, 2_560_533, 2.56),
    ({"dim": 16, "spatial_blocks": 4}, 694_279, 0.69),
    ({"heads": 1}, 2_560_533, 2.56),
    ({"heads": 4}, 2_560_533, 2.56),
]
# cells that no reading meets together with those above: three by 0.01, and d = 64, which the others contradict
UNMET = [
    ({"kernels": (5,)}, 2_453_937, 2.46),
    ({"dim": 16}, 658_901, 0.65),
    ({"dim": 16, "temporal_blocks": 4}, 1_265_147, 1.26),
    ({"dim": 64}, 10_123_925, 9.97),
]
# what the reading of the paper gives a parameter, and no effect
WITHOUT_EFFECT = [
    # within frames a key's bias is the same for all joints: it moves all scores of a query alike, and softmax none
    r"spatial\.\d\.attn\.k\.\d\.bias",
    # a number for each frame, added to all its features alike, which every norm behind takes away
    r"temporal\.\d\.attn\.proj\.bias",
]
READINGS = [
    {},
    {"mixing": "sum"},
    {"mixing": "free"},
    {"centring": "shifted"},
    {"activation": "relu"},
    {"final_norms": False},
    {"kernels": [3], "spatial_blocks": 1, "temporal_blocks": 3},
    {"joints": 15, "ratio": 3},
    {"joints": 1},
    {"frames": 1},
]


def make(frames=9, joints=17, dim=8, heads=4, **options):
    torch.manual_seed(0)
    net = ConvFormer(frames, joints, dim, heads, **options).eval()
    for name, parameter in net.named_parameters():
        if name.startswith("pos") or ".eta" in name:
            nn.init.normal_(parameter.data, mean=1.0 if options.get("mixing") == "sum" else 0.0, std=0.3)
    return net


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def on_meta(**options):
    with torch.device("meta"):
        return ConvFormer(**options).eval()


@pytest.mark.parametrize(("options", "parameters", "printed"), TABLE, ids=lambda value: str(value))
def test_parameter_count_is_that_of_the_paper(options, parameters, printed):
    assert count(on_meta(**options)) == parameters
    assert round(parameters / 1e6, 2) == printed


@pytest.mark.parametrize(("options", "parameters", "printed"), UNMET, ids=lambda value: str(value))
def test_parameter_counts_that_the_paper_prints_otherwise(options, parameters, printed):
    assert count(on_meta(**options)) == parameters
    assert round(parameters / 1e6, 2) != printed
    assert options == {"dim": 64} or abs(parameters / 1e6 - printed) < 0.01


def test_reparameterised_parameter_count():
    assert count(on_meta(frames=243, reparameterised=True)) == 5_191_179


@pytest.mark.parametrize(
    ("frames", "products", "merged"),
    [(9, 97, 64), (27, 359, 218), (81, 1685, 883), (143, 4210, 2023), (243, 10539, 4706)],
)
def test_operations_are_those_of_the_table(frames, products, merged):
    found = []
    for options in ({"path": "branches"}, {"reparameterised": True}):
        net = on_meta(frames=frames, **options)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, frames, 17, 2, device="meta"))
        found.append(counter.get_flop_counts()["Global"])
    # the paper counts convolutions and linear maps, not the two products of attention
    attention = sum(flops for name, flops in found[0].items() if str(name) == "aten.bmm")
    assert round((sum(found[0].values()) - attention) / 1e6) == products
    assert round(sum(found[1].values()) / 1e6) == merged


@pytest.mark.parametrize("options", READINGS, ids=str)
def test_reparameterised_equals_branches(options):
    net = make(path="branches", **options)
    x = torch.randn(3, net.frames, net.joints, 2)
    with torch.no_grad():
        want = net(x)
        assert want.shape == (3, 1, net.joints, 3) and want.isfinite().all()
        one = net.reparameterise()
        torch.testing.assert_close(one(x), want, atol=1e-5, rtol=1e-5)
        assert one.reparameterise() is one and not one.training
        merged = ConvFormer(**{**net.arguments, "path": "merged"}).eval()
        merged.load_state_dict(net.state_dict())
        torch.testing.assert_close(merged(x), want, atol=1e-5, rtol=1e-5)


def test_full_size_reparameterised_equals_branches():
    net = make(frames=81, dim=32, heads=8, path="branches")
    x = torch.randn(1, 81, 17, 2)
    with torch.no_grad():
        want = net(x)
        assert (net.reparameterise()(x) - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize(
    "options", [{}, {"path": "branches"}, {"reparameterised": True}, {"mixing_per_head": True}], ids=str
)
def test_gradient_reaches_every_parameter(options):
    net = make(**options).double().train()
    net(torch.randn(4, 9, 17, 2, dtype=torch.float64)).square().sum().backward()
    still = [name for name, p in net.named_parameters() if not p.grad.abs().max() > 1e-12]
    assert [name for name in still if not any(re.fullmatch(pattern, name) for pattern in WITHOUT_EFFECT)] == []


def test_without_final_norms_the_temporal_map_has_a_bias():
    net = make(final_norms=False).double()
    net(torch.randn(4, 9, 17, 2, dtype=torch.float64)).square().sum().backward()
    assert all(block.attn.proj.bias.grad.abs().min() > 1e-9 for block in net.temporal)


def test_a_window_alone_as_in_any_batch():
    net, x = make(), torch.randn(6, 9, 17, 2)
    with torch.no_grad():
        together = net(x)
        for i in range(6):
            torch.testing.assert_close(net(x[i : i + 1])[0], together[i], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(torch.cat([net(part) for part in x.split(4)]), together, atol=1e-6, rtol=1e-5)


def test_every_frame_reaches_the_pose_and_spatial_stage_sees_one():
    net, x = make(), torch.randn(1, 9, 17, 2)
    x.requires_grad_()
    net(x).square().sum().backward()
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()
    other = x.detach().clone()
    other[:, 3] += 1.0
    with torch.no_grad():
        changed = (net.encode_frames(other) - net.encode_frames(x)).abs().sum((0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [3]


def test_attention_of_both_stages_can_be_recorded():
    net, x = make(), torch.randn(2, 9, 17, 2)
    with torch.no_grad(), record(net) as maps:
        net(x)
    assert {name: tuple(found[0].shape) for name, found in maps.items()} == {
        "spatial.0.attn": (18, 4, 17, 17),
        "spatial.1.attn": (18, 4, 17, 17),
        "temporal.0.attn": (2, 4, 9, 9),
        "temporal.1.attn": (2, 4, 9, 9),
    }


def test_embeddings_start_at_zero_and_stochastic_depth_grows():
    net = ConvFormer(spatial_blocks=3, temporal_blocks=2)
    assert not net.pos_spatial.any() and not net.pos_temporal.any()
    assert [block.drop_path.rate for block in net.spatial] == pytest.approx([0.0, 0.1, 0.2])
    assert [block.drop_path.rate for block in net.temporal] == pytest.approx([0.0, 0.2])


def test_stochastic_depth_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (out[:, :1] == out).all() and abs(float(out.mean()) - 1.0) < 0.05
    assert drop.eval()(x) is x


@pytest.mark.parametrize(
    "options", [{}, {"reparameterised": True}, {"kernels": [3, 5], "mixing_per_head": True}], ids=str
)
def test_weights_come_back(options):
    net = make(joints=15, **options)
    weights = {f"module.{name}": tensor for name, tensor in to_official(net).items()}
    again = from_official(weights, {"heads": 4, "activation": "gelu (erf)", "layer_norm_eps": 1e-6, "seed": 3}).eval()
    x = torch.randn(2, 9, 15, 2)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_weights_that_do_not_fit_are_named():
    weights = to_official(make())
    with pytest.raises(CheckpointMismatchError, match=r"missing: pos_temporal"):
        from_official({name: t for name, t in weights.items() if name != "pos_temporal"})
    with pytest.raises(CheckpointMismatchError, match=r"temporal\.0\.attn\.proj\.weight: \(5, 5\) != \(9, 9\)"):
        from_official({**weights, "temporal.0.attn.proj.weight": torch.zeros(5, 5)}, {"heads": 4})


def test_published_and_loaded_again(tmp_path):
    net = make(kernels=[3, 5])
    x = torch.randn(1, 9, 17, 2)
    for name, each in (("whole", net), ("merged", net.reparameterise())):
        publish(tmp_path / name, each, "card")
        again = load_published(tmp_path / name).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(x), net(x), atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["arguments"]["reparameterised"] is True
    assert len(load_file(tmp_path / "merged" / "model.safetensors")) < len(net.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 8}, "frames 8: .* odd"),
        ({"heads": 3}, "heads 3 must divide dim 8"),
        ({"kernels": (2,)}, "odd sizes"),
        ({"kernels": ()}, "one or more"),
        ({"joints": 0}, "positive"),
        ({"mixing_per_head": True, "reparameterised": True}, "no re-parameterised form"),
    ],
)
def test_impossible_options_are_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 9, 15, 2), "17 joints"),
        ((1, 9, 17, 3), "leave confidences out"),
        ((1, 27, 17, 2), r"reads windows \(batch, 9\)"),
        ((9, 17, 2), "weights fit no other number of frames"),
    ],
)
def test_keypoints_that_do_not_fit_are_one_line(shape, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make()(torch.zeros(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frames", [9, 81])
def test_exported_with_any_batch(frames):
    net, x = make(frames).reparameterise(), torch.randn(3, frames, 17, 2)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        for size in (1, 2, 3):
            torch.testing.assert_close(program.module()(x[:size]), net(x[:size]), atol=1e-5, rtol=1e-5)


def test_half_precision_stays_near():
    net, x = make(), torch.randn(3, 9, 17, 2)
    with torch.no_grad():
        want = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(x)
        half = net.bfloat16()(x.bfloat16())
    for got in (mixed, half):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 0.05 * want.norm()


def test_a_few_steps_learn_a_turn():
    torch.manual_seed(0)
    net = ConvFormer(frames=3, joints=5, dim=8, heads=4, dropout=0.0, drop_path=0.0)
    x = torch.randn(64, 3, 5, 2)
    target = torch.stack([x[:, 1, :, 1], -x[:, 1, :, 0], x[:, 1, :, 0]], dim=-1)
    optimiser, losses = torch.optim.Adam(net.parameters(), lr=3e-3, amsgrad=True), []
    for _ in range(60):
        loss = mpjpe(net(x)[:, 0], target).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
