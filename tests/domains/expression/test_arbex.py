"""ARBEx: sizes, gradients, forms for inference, independence of the batch."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from domains.common.attention import record
from domains.common.derived import Derived
from domains.common.errors import ConfigError
from domains.common.hub import load_published, publish
from domains.expression import winograd
from domains.expression.arbex import ARBEx
from domains.expression.balancing import ReliabilityBalancing, confidence, euclidean_distances
from domains.expression.fusion import TokenEmbedding
from domains.expression.losses import arbex_losses
from domains.expression.token_vit import ViTBlock
from domains.expression.weights import to_official

LIGHT = {"small": 847_218, "resnet10t": None, "mobilenetv3_small_050": None}


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """Scales, norms and statistics away from what they start with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith(("gamma_1", "gamma_2", "running_var")) or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.endswith(("running_mean", "bias", "table", "points")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 5)
    return net


@pytest.fixture(scope="module")
def full() -> ARBEx:
    torch.manual_seed(0)
    net = ARBEx(7, anchors=3)
    stirred(net)
    return net.eval()


def small(**options) -> ARBEx:
    torch.manual_seed(0)
    net = ARBEx(7, "small", anchors=3, **options)
    stirred(net)
    return net.eval()


class TestSize:
    def test_parameter_count_of_the_paper(self):
        net = ARBEx(8)
        used = sum(p.numel() for p in net.extractor.parameters())
        trained = sum(p.numel() for p in net.extractor.parameters() if p.requires_grad)
        assert (used, trained) == (43_748_558, 25_225_358)
        buffers = ("running_mean", "running_var", "num_batches_tracked", "index_relative")
        others = ("head.", "anchors.", "self_attn.")
        official = {n: t for n, t in to_official(net).items() if not n.endswith(buffers) and not n.startswith(others)}
        assert sum(t.numel() for t in official.values()) == 45_367_574

    @pytest.mark.parametrize(
        ("part", "count"),
        [("landmarks", 911_232), ("image", 17_611_968), ("landmark_conv", 1_179_904), ("vit", 17_091_912 - 1_619_016)],
    )
    def test_parameter_count_of_parts(self, full, part, count):
        assert sum(p.numel() for p in getattr(full.extractor, part).parameters()) == count

    def test_parameter_count_of_levels(self, full):
        kinds = {"conv.": 0, "norm.": 0, "attention.": 0, "feed_forward.": 0, "embedding.": 0}
        for name, parameter in full.extractor.levels.named_parameters():
            kinds[next(kind for kind in kinds if name[2:].startswith(kind))] += parameter.numel()
        assert list(kinds.values()) == [774_592, 896, 269_710, 692_160, 6_835_200]

    def test_parameter_count_of_the_small_network(self):
        assert sum(p.numel() for p in ARBEx(7, "small").parameters()) == LIGHT["small"]


def gradients_missing(net: ARBEx, images: torch.Tensor) -> list[str]:
    net.train()
    labels = torch.arange(len(images)) % 7
    net.zero_grad()
    losses = arbex_losses(net(images, trust=0.5), labels, net.anchor_points, trust=0.5, kind="official")
    losses["total"].backward()
    return [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]


# a constant in all keys changes no weight of a softmax
NO_EFFECT = ("attention.key.bias", "attention.inner_key.bias")


@pytest.mark.parametrize("backbone", list(LIGHT))
def test_gradient_reaches_every_parameter_of_light_networks(backbone):
    net = ARBEx(7, backbone, image_size=48)
    stirred(net)  # some networks of timm start with norms of weight 0
    assert [n for n in gradients_missing(net, torch.randn(4, 1, 48, 48)) if not n.endswith(NO_EFFECT)] == []


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_reaches_every_parameter_that_is_trained(frozen):
    net = ARBEx(7, anchors=2, freeze_backbones=frozen)
    before = copy.deepcopy(net.extractor.image.state_dict())
    missing = gradients_missing(net, torch.randn(3, 3, 224, 224))
    assert [n for n in missing if not n.endswith(NO_EFFECT)] == []
    same = all(torch.equal(t, before[n]) for n, t in net.extractor.image.state_dict().items())
    assert same is frozen, "norm statistics of frozen backbones stay"


def test_frozen_backbones_stay_in_evaluation(full):
    net = copy.deepcopy(full).train()
    modes = {n: m.training for n, m in net.extractor.named_modules() if n}
    assert not any(mode for n, mode in modes.items() if n.startswith(("image", "landmarks")))
    assert all(mode for n, mode in modes.items() if not n.startswith(("image", "landmarks")))
    with torch.no_grad():
        landmarks, _ = net.extractor.streams(torch.randn(1, 3, 112, 112))
    assert [x.shape[1:] for x in landmarks] == [(64, 28, 28), (128, 14, 14), (256, 7, 7)]


@torch.no_grad()
def test_fused_equals_explicit(full):
    plain = ARBEx(**(full.arguments | {"fuse": False})).eval()
    plain.load_state_dict(full.state_dict())
    images = torch.randn(2, 3, 224, 224)
    a, b = full(images), plain(images)
    assert (a.embedding - b.embedding).norm() < 1e-5 * b.embedding.norm()
    torch.testing.assert_close(a.corrected, b.corrected, atol=1e-5, rtol=1e-5)
    with record(full) as maps:
        recorded = full(images)
    torch.testing.assert_close(recorded.embedding, a.embedding, atol=1e-4, rtol=1e-4)
    assert maps["extractor.levels.1.attention"][0].shape == (2, 4, 196, 196)
    assert maps["extractor.vit.blocks.1.attention"][0].shape == (2, 8, 1, 148)


@torch.no_grad()
@pytest.mark.parametrize("side", [8, 12, 28])
def test_two_convolutions_as_one(side):
    torch.manual_seed(0)
    block = TokenEmbedding((5, 6, 7), (3, 3)).eval()
    x = torch.randn(2, 5, side, side)
    fused = block(x)
    block.fuse = False
    torch.testing.assert_close(fused, block(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "height", "width", "bias"), [(1, 14, 14, True), (6, 4, 6, False), (5, 2, 2, True)])
def test_convolution_by_tiles(batch, height, width, bias):
    torch.manual_seed(0)
    conv, kept = nn.Conv2d(256, 260, 3, padding=1, bias=bias), Derived()
    x = torch.randn(batch, 256, height, width)
    want = conv.double()(x.double())
    conv.float()
    assert winograd.suits(conv, x)
    got = winograd.convolution(conv, kept, x)
    assert got.shape == want.shape and (got - want).norm() < 1e-6 * want.norm()
    conv.weight.mul_(2)
    torch.testing.assert_close(winograd.convolution(conv, kept, x), conv(x), atol=1e-4, rtol=1e-4)


def test_other_convolutions_are_left_to_torch():
    x = torch.randn(1, 256, 4, 4)
    assert not winograd.suits(nn.Conv2d(256, 256, 3, 2, 1), x)
    assert not winograd.suits(nn.Conv2d(256, 256, 3, padding=1), x[..., :3])
    assert not winograd.suits(nn.Conv2d(256, 256, 3, padding=1).double(), x.double())
    assert not winograd.suits(nn.Conv2d(256, 64, 3, padding=1), x)
    narrow = nn.Conv2d(4, 5, 3, padding=1)
    assert torch.equal(winograd.convolution(narrow, Derived(), x[:, :4]), narrow(x[:, :4]))


@pytest.mark.parametrize("sides", [(6, 6), (7, 9), (8, 10)])
def test_other_sides_take_both_convolutions(sides):
    block = TokenEmbedding((2, 3, 4), (3, 3)).eval()
    x = torch.randn(1, 2, *sides)
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.convs[1](block.convs[0](x)).flatten(2).mT)


def test_first_token_alone_equals_the_first_of_all_with_its_gradients():
    torch.manual_seed(0)
    block = stirred(ViTBlock(16, 4)).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    grads = [
        [out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])]
        for out in (block(x)[:, :1], block(x, first=True))
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


class TestBatch:
    @torch.no_grad()
    def test_alone_as_in_any_batch(self, full):
        images = torch.randn(3, 3, 224, 224)
        together, alone = full(images), full(images[1:2])
        assert (together.embedding[1:2] - alone.embedding).norm() < 1e-5 * alone.embedding.norm()
        torch.testing.assert_close(together.corrected[1:2], alone.corrected, atol=1e-6, rtol=1e-5)

    @torch.no_grad()
    def test_small_alone_as_in_any_batch(self):
        net, images = small(), torch.randn(5, 1, 48, 48)
        together = net(images)
        for i in range(5):
            torch.testing.assert_close(
                net(images[i : i + 1]).corrected, together.corrected[i : i + 1], atol=1e-6, rtol=0
            )

    @torch.no_grad()
    def test_the_official_scope_depends_on_the_batch(self):
        net, images = small(attn_scope="batch"), torch.randn(4, 1, 48, 48)
        nn.init.normal_(net.balancing.attention.inner_query.weight, std=3.0)
        nn.init.normal_(net.balancing.attention.value.weight, std=3.0)
        assert not torch.allclose(net(images).attention[:2], net(images[:2]).attention, atol=1e-4)


def test_images_of_another_size_and_number_of_channels(full):
    with torch.no_grad():
        other = full(nn.functional.interpolate(torch.randn(1, 3, 112, 112), size=224))
    assert other.corrected.shape == (1, 7)
    with pytest.raises(ValueError, match=r"give \(B, 3, H, W\)"):
        full(torch.randn(1, 1, 224, 224))
    with pytest.raises(ValueError, match="sides of 48"):
        small()(torch.randn(1, 1, 50, 48))
    colour = ARBEx(7, "small", channels=3).eval()
    grey = torch.randn(1, 1, 48, 48)
    assert torch.equal(colour(grey).logits, colour(grey.expand(-1, 3, -1, -1)).logits)


@pytest.mark.parametrize(("backbone", "size"), [("small", 112), ("resnet10t", 112), ("mobilenetv3_small_050", 96)])
def test_light_networks_of_other_sizes(backbone, size):
    assert ARBEx(5, backbone, size, 3).eval()(torch.randn(1, 3, size, size)).corrected.shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_classes": 1}, "2 or more"),
        ({"heads": 5}, "does not divide"),
        ({"channels": 1}, "channels 1"),
        ({"resize": "lanczos"}, "choose one of nearest"),
        ({"anchors": 0}, "anchors 0"),
        ({"attention_heads": 3}, "does not divide"),
        ({"delta": 0.0}, "above 0"),
        ({"anchor_init": "ones"}, "choose normal"),
        ({"attn_scope": "all"}, "choose auto"),
        ({"dropout": 1.5}, "a probability"),
        ({"hidden": [0]}, "at least 1"),
        ({"backbone": "small", "image_size": 50}, "multiple of 8"),
        ({"backbone": "resnet_of_nobody"}, "no network of timm"),
        ({"backbone": "resnet10t", "image_size": 10}, "choose a multiple of 16"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ConfigError, match=message):
        ARBEx(**options)


def test_published_networks_come_back(tmp_path):
    net, images = small(), torch.randn(2, 1, 48, 48)
    publish(tmp_path / "model", net, "# card")
    again = load_published(tmp_path / "model").eval()
    json.dumps(net.arguments)
    with torch.no_grad():
        assert torch.equal(again(images).corrected, net(images).corrected)


class Corrected(nn.Module):
    """The prediction alone, which is what an exported program gives."""

    def __init__(self, net: ARBEx):
        super().__init__()
        self.net = net

    def forward(self, image):
        return self.net(image).corrected


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("backbone", ["small", "poster"])
def test_exported_programs_take_batches_of_any_size(backbone):
    net = ARBEx(7, backbone).eval()
    images = torch.randn(3, net.channels, net.image_size, net.image_size)
    alone = Corrected(net).eval()
    program = torch.export.export(alone, (images[:2],), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    torch.testing.assert_close(program.module()(images), alone(images), atol=1e-5, rtol=1e-5)


class TestBalancing:
    def test_everything_is_a_distribution_and_confidences_lie_between_0_and_1(self):
        torch.manual_seed(0)
        output = ReliabilityBalancing(16, 5, (8,), anchors=4, attention_anchors=2, attention_heads=2)(
            torch.randn(9, 16)
        )
        for p in (output.primary, output.similarities, output.attention, output.correction, output.corrected):
            torch.testing.assert_close(p.sum(-1), torch.ones(9))
            assert (p >= 0).all()
        for c in (output.confidence, output.confidence_geometric, output.confidence_attention):
            assert c.shape == (9, 1) and ((c >= 0) & (c <= 1)).all()

    def test_trust_goes_from_primary_to_balanced(self):
        torch.manual_seed(0)
        net, x = ReliabilityBalancing(16, 5, (8,)).eval(), torch.randn(3, 16)
        none, half, whole = (net(x, trust=trust) for trust in (0.0, 0.5, 1.0))
        assert torch.equal(none.corrected, none.primary)
        torch.testing.assert_close(whole.corrected, whole.balanced)
        torch.testing.assert_close(half.corrected, (half.primary + half.balanced) / 2)

    def test_uniform_distributions_have_no_confidence_and_no_nan(self):
        net = ReliabilityBalancing(16, 5, (8,), anchor_init="zeros").eval()
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        output = net(torch.randn(3, 16))
        assert output.confidence.abs().max() < 1e-6
        torch.testing.assert_close(output.corrected, torch.full((3, 5), 0.2))

    def test_certainty_is_left_alone(self):
        p = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
        c = confidence(p)
        c.sum().backward()
        assert c.item() == 1.0 and p.grad is not None and p.grad.isfinite().all()

    def test_zero_anchors_stay_alike_and_normal_ones_are_nearly_undecided(self):
        torch.manual_seed(0)
        zeros = ReliabilityBalancing(768, 7, anchor_init="zeros", anchors=2)
        assert not zeros.anchors.points.any()
        normal = ReliabilityBalancing(768, 7, anchors=2).eval()(torch.randn(5, 768) / 2)
        assert normal.confidence_geometric.max() < 0.1

    def test_distances_of_exported_programs_are_the_same_with_their_gradients(self, monkeypatch):
        torch.manual_seed(0)
        e, anchors = torch.randn(5, 8), torch.randn(6, 8)
        anchors[2] = e[3]  # no distance, no gradient
        found = []
        for exported in (False, True):
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda exported=exported: exported)
            one, other = e.clone().requires_grad_(), anchors.clone().requires_grad_()
            d = euclidean_distances(one, other)
            found.append([d, *torch.autograd.grad(d.sin().sum(), [one, other])])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        assert found[0][0][3, 2] == 0.0

    def test_a_batch_of_one_trains(self):
        net = ReliabilityBalancing(16, 5, (8,)).train()
        net(torch.randn(1, 16)).corrected.sum().backward()


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_equals_cpu(full):
    images = torch.randn(2, 3, 224, 224)
    here, there = full(images), copy.deepcopy(full).cuda()(images.cuda())
    torch.testing.assert_close(there.embedding.cpu(), here.embedding, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(there.corrected.cpu(), here.corrected, atol=1e-4, rtol=1e-3)
