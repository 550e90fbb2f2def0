from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from domains.common.attention import record
from domains.common.errors import ConfigError
from domains.common.hub import load_published, publish
from domains.medical.medusa import IMAGENET_MEAN, IMAGENET_STD, MEDUSA, UNetBody


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def tiny(**options):
    torch.manual_seed(0)
    return MEDUSA(configuration="medusa_tiny", **options)


def views(rows, side=28):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(rows, 1, side, side, generator=generator) for _ in range(2))


def stir(net):
    """Random statistics and gates, as after training."""
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    with torch.no_grad():
        for head in net.heads:
            head.gate.weight.normal_(0, 0.3, generator=generator)
            head.gate.bias.normal_(0, 0.3, generator=generator)
    return net.eval()


@pytest.mark.parametrize(
    ("width", "total"), [(24, 28_578_907), (26, 29_341_333), (28, 30_164_351), (32, 31_992_163)]
)  # fmt: skip
def test_parameter_count_of_medusa_resnet50(width, total):
    with torch.device("meta"):
        net = MEDUSA(width=width)
    assert count(net) == total
    assert count(net.backbone) == 23_512_130
    if width == 24:
        assert (count(net.body), count(net.body.seg), count(net.heads)) == (4_367_641, 25, 699_136)


def test_parameter_count_of_medusa_tiny():
    net = tiny()
    assert (count(net.backbone), count(net.body), count(net.heads)) == (2_794_978, 29_481, 29_920)
    assert count(net) == 2_854_379


@pytest.mark.parametrize(("width", "total", "body"), [(24, 27.39e9, 6.771e9), (32, 32.74e9, None)])
def test_macs_are_those_of_the_arithmetic(width, total, body):
    """The paper's only figure is 29.1 GMACs at 480 x 480; torch counts two operations for each."""
    with torch.device("meta"):
        net = MEDUSA(width=width).eval()
        inputs = torch.zeros(1, 3, 480, 480), torch.zeros(1, 1, 256, 256)
    for module, given, wanted in ((net, inputs, total), (net.body, inputs[1:], body)):
        if wanted is not None:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                module(*given)
            assert counter.get_total_flops() / 2 == pytest.approx(wanted, rel=0.005)


def test_fresh_network_equals_plain_resnet50():
    torch.manual_seed(0)
    plain = resnet50(num_classes=2).eval()
    net = MEDUSA().eval()
    assert set(net.backbone.state_dict()) == set(plain.state_dict())
    net.backbone.load_state_dict(plain.state_dict())
    image, gray = torch.rand(2, 3, 96, 96), torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(image, gray), plain(image), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(net.backbone(image), plain(image), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("gate", "equal"), [("channel", True), ("spatial", True), ("sigmoid", False)])
def test_identity_start(gate, equal):
    net = tiny(gate=gate).eval()
    image, gray = views(3)
    assert torch.allclose(net(image, gray), net.backbone(image), atol=1e-6) == equal
    if equal:  # what the body says does not matter yet
        torch.testing.assert_close(net(image, gray), net(image, -gray))


def test_gates_are_recorded_at_every_scale_and_the_body_reaches_the_logits():
    net = stir(tiny())
    image, gray = views(2)
    with record(net) as maps:
        logits = net(image, gray)
    shapes = [tuple(maps[f"heads.{j}.gate"][0].shape[1:]) for j in range(4)]
    assert shapes == [(32, 28, 28), (64, 14, 14), (128, 7, 7), (256, 4, 4)]
    assert not torch.allclose(logits, net(image, gray.flip(2)))


def test_gradient_reaches_every_parameter():
    net = stir(tiny()).train()
    image, gray = views(4)
    logits, body = net.with_body(image, gray)
    (logits.square().sum() + net.body.segment(body).square().mean()).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_an_image_alone_as_in_any_batch():
    net = stir(tiny())
    image, gray = views(5)
    with torch.no_grad():
        together = net(image, gray)
        for i in range(5):
            torch.testing.assert_close(net(image[i : i + 1], gray[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [28, 17, 48])
def test_body_crops_its_padding(side):
    body = UNetBody(width=4, levels=3).eval()
    gray = torch.randn(1, 1, side, side - 3)
    out = body(gray)
    assert out.shape == (1, 4, side, side - 3)
    right, bottom = -(side - 3) % 16, -side % 16
    padded = body(torch.nn.functional.pad(gray, (0, right, 0, bottom)))
    torch.testing.assert_close(out, padded[..., :side, : side - 3])


def test_deep_bodies_pad_to_what_their_pooling_divides():
    assert UNetBody(width=2, levels=6).multiple == 32
    assert UNetBody(width=2, levels=6)(torch.randn(2, 1, 33, 20)).shape == (2, 2, 33, 20)
    assert UNetBody(width=2, levels=1)(torch.randn(2, 1, 5, 5)).shape == (2, 2, 5, 5)


def test_imagenet_statistics_are_subtracted_inside_and_grey_images_repeated():
    torch.manual_seed(0)
    net = MEDUSA(configuration="medusa_tiny", channels=3, imagenet_statistics=True).eval()
    image, gray = torch.rand(2, 1, 28, 28), torch.randn(2, 1, 28, 28)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(net(image, gray), net.backbone((image - mean) / std))
    assert not any(name in ("mean", "std") for name in net.state_dict())


def test_state_dict_has_the_names_of_the_layout():
    names = {name.rsplit(".", 1)[0] for name in tiny().state_dict()}
    for wanted in (
        "backbone.layer4.1.conv2", "backbone.layer2.0.downsample.1", "backbone.fc", "body.enc.2.4", "body.up.1",
        "body.dec.0.0", "body.seg", "heads.3.proj.1", "heads.0.mix.0", "heads.0.gate",
    ):  # fmt: skip
        assert wanted in names


def test_plain_resnet_has_no_body():
    net = tiny(taps=[])
    assert count(net) == 2_794_978
    image, gray = views(2)
    torch.testing.assert_close(net.eval()(image, gray), net.backbone(image))


def test_published_network_comes_back(tmp_path):
    net = stir(tiny(n_classes=3, width=4, hidden=6, gate="spatial", taps=[2, 4]))
    publish(tmp_path, net, "card")
    again = load_published(tmp_path).eval()
    image, gray = views(2)
    assert torch.equal(again(image, gray), net(image, gray))


@pytest.mark.parametrize(
    "options", [{"configuration": "large"}, {"n_classes": 1}, {"taps": [5]}, {"gate": "hard"}, {"width": 0},
                {"imagenet_statistics": True}]
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError):
        MEDUSA(**{"configuration": "medusa_tiny"} | options)
