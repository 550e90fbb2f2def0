"""The network: its size, its promises of padding and time, adapters, and weights that come and go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from domains.common.errors import CheckpointMismatchError, ConfigError
from domains.common.hub import load_published, publish
from domains.common.lora import LowRankLinear
from domains.ieeg.mvpformer import GenerativeMVPFormer, MVPFormer, MVPFormerClassifier
from domains.ieeg.weights import Report, from_official, to_official

SMALL = {"samples": 64, "dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "max_segments": 12}
SMALL |= {"max_channels": 6, "dropout": 0.0}
BUFFERS = ("time_bias", "masked_bias")


def signal(windows=2, segments=12, channels=3):
    return torch.randn(windows, segments, channels, SMALL["samples"]) * 50


def test_parameter_count_of_the_published_sizes():
    large = {"dim": 2048, "depth": 24, "heads": 16, "kv_heads": 8, "hidden": 5632}
    for sizes, published, adapters in (({}, 74_184_498, 245_760), (large, 1_243_336_754, 1_376_256)):
        with torch.device("meta"):
            net, adapted = GenerativeMVPFormer(**sizes), GenerativeMVPFormer(**sizes, lora_rank=8)
            named = to_official(net)
        assert sum(tensor.numel() for name, tensor in named.items() if not name.endswith(BUFFERS)) == published
        ours, theirs = (sum(p.numel() for p in network.parameters()) for network in (net, adapted))
        assert theirs - ours == adapters


@pytest.mark.parametrize("kind", [GenerativeMVPFormer, MVPFormerClassifier])
def test_gradient_reaches_every_parameter(kind):
    net = kind(**SMALL)
    (net(signal()) ** 2).sum().backward()
    rows = {"backbone.channel": 3}  # of the table only distances that occur
    for name, parameter in net.named_parameters():
        used = parameter.grad[: rows.get(name, len(parameter.grad))]
        assert used.abs().sum() > 0, name


def test_padding_changes_nothing():
    net = MVPFormerClassifier(**SMALL).eval()
    x = signal(channels=3)
    padded = torch.cat([x, torch.full((2, 12, 3, 64), 1e4)], dim=2)
    torch.testing.assert_close(net(padded, torch.tensor([3, 3])), net(x), atol=1e-5, rtol=1e-5)


def test_a_window_alone_as_in_any_batch():
    net = MVPFormerClassifier(**SMALL).eval()
    x, counts = signal(windows=3, channels=5), torch.tensor([5, 1, 3])
    together = net(x, counts)
    for i, count in enumerate(counts.tolist()):
        torch.testing.assert_close(together[i : i + 1], net(x[i : i + 1, :, :count]), atol=1e-5, rtol=1e-5)


def test_the_last_segment_alone_is_that_of_all():
    backbone = MVPFormer(**SMALL).eval()
    tokens = backbone.encode(signal())
    whole, last = backbone.contextualise(tokens), backbone.contextualise(tokens, last_only=True)
    torch.testing.assert_close(whole[:, -1:], last)


def test_computing_blocks_again_gives_the_same_gradients():
    torch.manual_seed(0)
    net, x, found = GenerativeMVPFormer(**SMALL), signal(), []
    for checkpointing in (False, True):
        net.backbone.checkpointing = checkpointing
        net.zero_grad()
        net(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_signals_in_volts_are_not_those_in_microvolts():
    net = MVPFormer(**SMALL)
    x = signal()
    assert net.encode(x * 1e-6).std() < 0.1 * net.encode(x).std()


def test_what_does_not_fit_is_told():
    net = MVPFormer(**SMALL)
    with pytest.raises(ValueError, match="segments of 32 samples; the model reads 64"):
        net(torch.zeros(1, 2, 2, 32))
    with pytest.raises(ValueError, match="max_segments"):
        net(torch.zeros(1, 13, 2, 64))
    with pytest.raises(ValueError, match="max_channels"):
        net(torch.zeros(1, 2, 7, 64))


def official(kind=GenerativeMVPFormer, **options):
    net = kind(**{**SMALL, **options})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net, to_official(net)


CONFIG = {"n_head": 4, "size_input": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.mark.parametrize("kind", [GenerativeMVPFormer, MVPFormerClassifier])
@pytest.mark.parametrize("layout", ["program", "published", "braindecode"])
def test_official_weights_come_back(kind, layout):
    net, weights = official(kind)
    if layout == "published":
        weights = {name.replace("mvpformer.", "genie."): tensor for name, tensor in weights.items()}
    elif layout == "braindecode":
        renamed = {"encoder.": "patch_embed.", "mvpformer.h.": "blocks.", "head.head.": "final_layer."}
        renamed |= {"mvpformer.": "", "_embedding.weight": "_embedding"}
        for theirs, port in renamed.items():
            weights = {name.replace(theirs, port): tensor for name, tensor in weights.items()}
        unused = ("ln_2.weight", "seizure_embeddings", *BUFFERS)
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith(unused)}
    report = Report()
    again = from_official(weights, CONFIG, report=report)
    assert type(again) is kind
    assert again.arguments == net.arguments
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert len(report.loaded) == len(list(net.parameters()))
    assert bool(report.ignored) == (layout != "braindecode")


def test_a_base_file_without_the_norm_of_the_encoder_gets_ones():
    _, weights = official()
    del weights["encoder.ln.weight"]
    report = Report()
    net = from_official(weights, CONFIG, report=report)
    assert report.filled == ["encoder.ln.weight"]
    assert (net.backbone.encoder.norm.weight == 1).all()


def test_fine_tuned_files_need_their_base():
    _, base = official()
    net, whole = official(MVPFormerClassifier, lora_rank=2)
    tuned = {name: tensor for name, tensor in whole.items() if "lora" in name or "head" in name}
    with pytest.raises(CheckpointMismatchError, match="without its base"):
        from_official(tuned, CONFIG)
    found = from_official(tuned, CONFIG, base=base)
    assert found.arguments == {**net.arguments, "lora_alpha": 16.0}
    assert torch.equal(found.head.weight, net.head.weight)
    assert torch.equal(found.backbone.layers[1].attention.query.up, net.backbone.layers[1].attention.query.up)
    own = to_official(found)
    assert torch.equal(own["mvpformer.h.0.attn.q_attn.weight"], base["mvpformer.h.0.attn.q_attn.weight"])


def test_nothing_loads_silently():
    _, weights = official()
    for broken, message in (
        ({name: t for name, t in weights.items() if "q_attn" not in name}, "missing: mvpformer.h.0.attn.q_attn.weight"),
        ({**weights, "mvpformer.extra": torch.zeros(1)}, "unexpected: mvpformer.extra"),
        ({**weights, "mvpformer.ln_f.weight": torch.zeros(3)}, "wrong shape: mvpformer.ln_f.weight"),
        ({f"other.{name}": t for name, t in weights.items()}, "missing"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            from_official(broken, CONFIG)
    with pytest.raises(ConfigError, match="size_input 77"):
        from_official(weights, {**CONFIG, "size_input": 77})
    with pytest.raises(ConfigError, match="n_head"):
        from_official(weights, {**CONFIG, "n_head": 3})


def test_adapters_start_as_nothing_and_merge_once():
    torch.manual_seed(0)
    plain = MVPFormerClassifier(**SMALL).eval()
    adapted = MVPFormerClassifier(**SMALL, lora_rank=3, lora_alpha=6).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    x = signal()
    torch.testing.assert_close(adapted(x), plain(x))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"head.weight"} | {
        f"backbone.blocks.{i}.attention.{linear}.{part}"
        for i in range(2)
        for linear in ("query", "key_value")
        for part in ("up", "down")
    }
    for name, parameter in adapted.named_parameters():
        if name.endswith(("up", "down")):
            nn.init.normal_(parameter)
    want = adapted(x)
    merged = from_official(to_official(adapted, merge=True), CONFIG)
    torch.testing.assert_close(merged.eval()(x), want, atol=1e-5, rtol=1e-4)
    unmerged = from_official(to_official(adapted), {**CONFIG, "lora_alpha": 6})
    torch.testing.assert_close(unmerged.eval()(x), want)
    assert isinstance(unmerged.backbone.layers[0].attention.query, LowRankLinear)


def test_published_networks_load_again(tmp_path):
    net = MVPFormerClassifier(**SMALL, lora_rank=2)
    publish(tmp_path, net, "card")
    again = load_published(tmp_path).eval()
    torch.testing.assert_close(again(x := signal()), net.eval()(x))
