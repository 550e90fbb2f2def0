"""DCAL: sizes and costs of the paper, identities of its branches, gradients, what it refuses."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from domains.common.attention import attention_map, record, rollout_matrix
from domains.common.errors import ConfigError
from domains.common.hub import load_published, publish
from domains.finegrained.dcal import DCAL, class_probabilities, derangement, embedding
from domains.finegrained.losses import dcal_losses

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 8}


def tiny(**options):
    torch.manual_seed(0)
    chosen = {"n_classes": 5, "image_size": (32, 48), "drop_path": 0.0, "backbone_options": TINY, "ratio": 0.3}
    net = DCAL("vit_tiny_patch16_224", **{**chosen, **options})
    with torch.no_grad():  # weights that start small would hide what attention does
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
        net.uncertainty_w.zero_()
    return net


def images(count=4):
    return torch.randn(count, 3, 32, 48)


COUNTS = [
    ("deit_tiny_patch16_224", 448, 200, "fgvc", 5_675_912, 483_848),
    ("deit_small_patch16_224", 448, 200, "fgvc", 21_968_456, 1_852_232),
    ("vit_base_patch16_224", 448, 200, "fgvc", 86_404_040, 7_243_208),
    ("vit_base_patch16_224", 256, 576, "reid", 86_287_680, 7_532_352),
]


@pytest.mark.parametrize(("backbone", "side", "classes", "task", "base", "added"), COUNTS)
def test_parameter_count(backbone, side, classes, task, base, added):
    with torch.device("meta"):
        net = DCAL(backbone, classes, (side, side), task)

    def count(*names):
        return sum(p.numel() for name, p in net.named_parameters() if name.startswith(names))

    dim = net.trunk.embed_dim
    bias_and_necks = classes if task == "reid" else 0  # the table's classifiers have a bias, BNNeck's has none
    norm = 2 * dim if task == "reid" else 0
    assert count("trunk.", "head.") + bias_and_necks - norm == base
    assert count("glca.", "glca_norm.", "glca_head.") + bias_and_necks - norm == added
    assert count("") == base + added + 2 * (norm - bias_and_necks) + 3


def test_cost_of_glca():
    net = DCAL("deit_tiny_patch16_224", 200, (448, 448)).eval()
    tokens, selected = torch.randn(1, 785, 192), torch.arange(79)[None]

    def operations(call):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops() / 2

    def block(x):
        layer = net.trunk.blocks[0]
        return layer.mlp(layer.norm2(x + layer.attn(layer.norm1(x))))

    def explicit(call):
        with record(net):  # the counter knows no fused attention of the CPU
            return operations(call)

    share = explicit(lambda: net.global_local(tokens, selected)) / (12 * explicit(lambda: block(tokens)))
    assert 0.0155 < share < 0.0160, "1.56 % of the 12 blocks"


def test_self_attention_is_timms_transformer():
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), num_classes=5, **TINY).eval()
    net = tiny().eval()
    state = plain.state_dict()
    net.head.load_state_dict({part: state.pop(f"head.{part}") for part in ("weight", "bias")})
    net.trunk.load_state_dict(state)
    pictures = images()
    with torch.no_grad():
        torch.testing.assert_close(net(pictures).self_attention.logits, plain(pictures), atol=1e-5, rtol=1e-5)


def test_rollout_is_the_product_of_all_layers_and_main_path_stays_fused(monkeypatch):
    net, pictures = tiny().eval(), images(2)
    with torch.no_grad(), record(net) as maps:
        recorded = net(pictures)
    whole = rollout_matrix([maps[f"trunk.blocks.{i}.attn"][0].mean(1) for i in range(3)])
    torch.testing.assert_close(recorded.rollout, whole[:, 0], atol=1e-6, rtol=1e-5)
    asked = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def seen(*arguments, **options):
        asked.append(arguments[0].shape[-2])
        return fused(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    monkeypatch.setattr("domains.common.attention.core.suits", lambda *_: False)
    with torch.no_grad():
        quick = net(pictures)
    assert asked == [25, 25, 25, 8] * 2, "each layer and GLCA, image by image"
    torch.testing.assert_close(quick.global_local.logits, recorded.global_local.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(quick.selected, recorded.selected)


@pytest.mark.parametrize("distractor", ["sa", "pwca"])
class TestPairs:
    def test_pair_with_itself_is_self_attention(self, distractor):
        net = tiny(distractor=distractor).eval()
        output = net(images(), torch.arange(4))
        torch.testing.assert_close(output.pairwise.logits, output.self_attention.logits, atol=2e-5, rtol=1e-5)

    def test_pairs_change_neither_branch(self, distractor):
        net, pictures = tiny(distractor=distractor).eval(), images()
        alone, paired = net(pictures), net(pictures, torch.tensor([2, 0, 3, 1]))
        assert alone.pairwise is None
        torch.testing.assert_close(class_probabilities(paired), class_probabilities(alone))
        assert (paired.pairwise.logits - paired.self_attention.logits).abs().max() > 1e-3

    def test_distractor_tokens_are_a_set(self, distractor):
        net, pictures = tiny(distractor=distractor).double().eval(), images().double()
        with torch.no_grad():
            net.trunk.pos_embed.zero_()  # without places, an image's patches are a set, too
        mirrored = torch.cat([pictures[:1], pictures[1:].flip(-1).flip(-2).unfold(-1, 8, 8).unfold(-3, 8, 8)
                              .flip(-1).flip(-2).permute(0, 1, 2, 5, 3, 4).reshape(3, 3, 32, 48)])  # fmt: skip
        pairs = torch.tensor([2, 0, 3, 1])
        before, after = net(pictures, pairs).pairwise.logits[0], net(mirrored, pairs).pairwise.logits[0]
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize("distractor", ["sa", "pwca"])
def test_gradient_reaches_every_parameter(task, distractor):
    net = tiny(task=task, distractor=distractor).train()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    output = net(images(6), torch.tensor([2, 3, 4, 5, 0, 1]))
    losses = dcal_losses(output, labels, net.uncertainty_w, triplet=task == "reid")
    assert sorted(losses) == ["glca", "pwca", "sa", "total"]
    losses["total"].backward()
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    lost = [name for name, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert lost == []
    fixed = ["glca_head.bottleneck.bias", "head.bottleneck.bias"] if task == "reid" else []
    assert sorted(net.state_dict().keys() - learned.keys() - dict(net.named_buffers()).keys()) == fixed


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_image_alone_as_in_any_batch(task):
    net, pictures = tiny(task=task).eval(), images(7)
    with torch.no_grad():
        together, alone = net(pictures), [net(picture[None]) for picture in pictures]
    result = class_probabilities if task == "fgvc" else embedding
    torch.testing.assert_close(torch.cat([result(one) for one in alone]), result(together), atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat([one.selected for one in alone]), together.selected)
    with torch.enable_grad():  # slices are for inference; both ways give the same
        torch.testing.assert_close(result(net(pictures)).detach(), result(together), atol=1e-5, rtol=1e-5)


def test_results_are_those_of_the_paper():
    output = tiny().eval()(images())
    both = class_probabilities(output)
    torch.testing.assert_close(both.sum(1), torch.full((4,), 2.0))
    torch.testing.assert_close(both, class_probabilities(output, "sa") + class_probabilities(output, "glca"))
    assert embedding(output).shape == (4, 48)
    torch.testing.assert_close(embedding(output).norm(dim=1), torch.ones(4))
    features = torch.cat([output.self_attention.features, output.global_local.features], 1)
    torch.testing.assert_close(embedding(output, normalise=False), features)


def test_self_attention_alone_runs_without_rollout():
    net, pictures = tiny().eval(), images()
    output = net(pictures, branches="sa")
    assert output.global_local is None
    torch.testing.assert_close(class_probabilities(output, "sa"), class_probabilities(net(pictures), "sa"))
    with pytest.raises(ConfigError, match="ran without GLCA"):
        class_probabilities(output)


def test_glca_starts_as_the_last_block_or_at_random():
    net = DCAL("vit_tiny_patch16_224", 5, (32, 48), backbone_options=TINY)
    last = net.trunk.blocks[-1].state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in net.glca.state_dict().items())
    other = DCAL("vit_tiny_patch16_224", 5, (32, 48), backbone_options=TINY, glca_start="random")
    assert not torch.equal(other.glca.attn.qkv.weight, other.trunk.blocks[-1].attn.qkv.weight)
    net.glca.attn.qkv.weight.data.zero_()
    assert net.trunk.blocks[-1].attn.qkv.weight.abs().sum() > 0, "weights of its own"


def test_heads_are_fused_by_mean_or_maximum():
    net, other, pictures = tiny().eval(), tiny(fusion="max").eval(), images()
    with torch.no_grad():
        encoded = net.encode(pictures)
        maps = [attention_map(q, k, fusion="max") for q, k, _ in encoded.layers]
        torch.testing.assert_close(other(pictures).rollout, rollout_matrix(maps)[:, 0])


def test_published_network_comes_back(tmp_path):
    net, pictures = tiny(task="reid").eval(), images()
    publish(tmp_path, net, "card")
    back = load_published(tmp_path).eval()
    torch.testing.assert_close(embedding(back(pictures)), embedding(net(pictures)))


@pytest.mark.parametrize("count", [2, 3, 5, 64])
def test_derangement_has_no_fixed_point_and_is_a_permutation(count):
    generator = torch.Generator().manual_seed(count)
    drawn = [derangement(count, generator=generator) for _ in range(20)]
    for pairs in drawn:
        assert (pairs != torch.arange(count)).all()
        assert pairs.sort().values.tolist() == list(range(count))
    assert count == 2 or len({tuple(pairs.tolist()) for pairs in drawn}) > 1
    assert derangement(1) is None


def test_batch_of_one_trains_without_pairs():
    net = tiny().train()
    losses = dcal_losses(net(images(1), derangement(1)), torch.tensor([1]), net.uncertainty_w)
    assert sorted(losses) == ["glca", "sa", "total"]
    losses["total"].backward()
    assert net.uncertainty_w.grad[2] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "x"}, "task is 'x'; choose one of fgvc, reid"),
        ({"distractor": "x"}, "choose one of sa, pwca"),
        ({"ratio": 0.0}, r"the ratio lies in \(0, 1\]"),
        ({"n_classes": 1}, "classes are 2 or more"),
        ({"image_size": (32, 50)}, "take 32 x 48"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="images of 32 x 32: the network was built for 32 x 48"):
        tiny()(torch.randn(1, 3, 32, 32))
