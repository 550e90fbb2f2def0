"""Backbones of timm by name, weights from local files, and the layout of a whole DCAL."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from domains.common.errors import CheckpointMismatchError, CheckpointNotFoundError, ConfigError, UnsafeFileError
from domains.finegrained.dcal import DCAL
from domains.finegrained.weights import from_official, import_official, to_official

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def net_of(backbone="vit_tiny_patch16_224", size=(32, 48), **options):
    return DCAL(backbone, 5, size, drop_path=0.0, **{"backbone_options": TINY, **options})


def plain(size=(32, 48), **options):
    return timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=7, **{**TINY, **options})


@pytest.mark.parametrize("kind", ["safetensors", "pth", "model", "lightning"])
def test_checkpoint_of_timm_loads_untouched(tmp_path, kind):
    trunk = plain()
    state = trunk.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        wrapped = {"pth": state, "model": {"model": state, "epoch": 3}}
        wrapped["lightning"] = {"state_dict": {f"network.trunk.{name}": t for name, t in state.items()}}
        torch.save(wrapped[kind], path)
    net = net_of()
    net.load_pretrained(path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.trunk.state_dict().items())
    assert torch.equal(net.glca.mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"]), (
        "GLCA starts anew from the last block"
    )
    assert torch.equal(net.glca_norm.weight, state["norm.weight"])


def test_published_network_of_ours_is_a_start(tmp_path):
    net, other = net_of(), net_of()
    save_file({name: t.contiguous() for name, t in net.state_dict().items()}, tmp_path / "model.safetensors")
    other.load_pretrained(tmp_path)
    assert torch.equal(other.trunk.pos_embed, net.trunk.pos_embed)


def test_places_are_resampled_for_another_size(tmp_path):
    trunk = plain((64, 64))
    with torch.no_grad():  # places that grow along the width
        trunk.pos_embed[0, 1:] = torch.arange(4.0).repeat(4)[:, None]
    save_file(trunk.state_dict(), tmp_path / "square.safetensors")
    net = net_of(size=(32, 128))
    net.load_pretrained(tmp_path / "square.safetensors")
    grid = net.trunk.pos_embed[0, 1:, 0].view(2, 8)
    assert torch.equal(net.trunk.pos_embed[0, 0], trunk.pos_embed[0, 0])
    assert (grid.diff(dim=1) > 0).all()
    torch.testing.assert_close(grid[0], grid[1], atol=1e-5, rtol=1e-5)


def test_layer_scale_registers_and_norm_behind_pooling(tmp_path):
    net = net_of("vit_small_patch14_reg4_dinov2", (28, 42), ratio=0.5)
    output = net.eval()(torch.randn(2, 3, 28, 42))
    assert output.selected.min(1).values.tolist() == [0, 0]
    assert (output.selected[:, 1:] >= 5).all(), "registers are not ranked"
    pooled = plain(global_pool="avg")
    save_file(pooled.state_dict(), tmp_path / "pooled.safetensors")
    other = net_of()
    other.load_pretrained(tmp_path / "pooled.safetensors")
    assert torch.equal(other.trunk.norm.weight, pooled.fc_norm.weight)


def test_archive_of_google_loads(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {"embedding/kernel": draw(16, 16, 3, 24), "embedding/bias": draw(24), "cls": draw(1, 1, 24)}
    arrays["Transformer/posembed_input/pos_embedding"] = draw(1, 7, 24)
    arrays |= {"Transformer/encoder_norm/scale": draw(24), "Transformer/encoder_norm/bias": draw(24)}
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}/{norm}/scale": draw(24), f"{block}/{norm}/bias": draw(24)}
        for part in ("query", "key", "value"):
            name = f"{block}/MultiHeadDotProductAttention_1/{part}"
            arrays |= {f"{name}/kernel": draw(24, 3, 8), f"{name}/bias": draw(3, 8)}
        name = f"{block}/MultiHeadDotProductAttention_1/out"
        arrays |= {f"{name}/kernel": draw(3, 8, 24), f"{name}/bias": draw(24)}
        for j, (a, b) in enumerate(((24, 96), (96, 24))):
            arrays |= {
                f"{block}/MlpBlock_3/Dense_{j}/kernel": draw(a, b),
                f"{block}/MlpBlock_3/Dense_{j}/bias": draw(b),
            }
    np.savez(tmp_path / "vit.npz", **arrays)
    net = net_of()
    net.load_pretrained(tmp_path / "vit.npz")
    query = arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"].reshape(24, 24).T
    torch.testing.assert_close(net.trunk.blocks[1].attn.qkv.weight[:24], torch.from_numpy(query))
    assert torch.equal(net.trunk.norm.bias, torch.from_numpy(arrays["Transformer/encoder_norm/bias"]))
    before = net.trunk.norm.bias.clone()
    np.savez(tmp_path / "cut.npz", **{name: a for name, a in arrays.items() if "encoderblock_1" not in name})
    with pytest.raises(UnsafeFileError, match=r"cut\.npz: no readable weights"):
        net.load_pretrained(tmp_path / "cut.npz")
    assert torch.equal(net.trunk.norm.bias, before), "all of it or nothing"


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_weights_come_back(task):
    net = net_of(task=task, backbone_options={**TINY, "init_values": 0.1})
    torch.nn.init.normal_(net.uncertainty_w)
    named = to_official(net)
    expected = {"blocks.1.attn.qkv.weight", "glca.mlp.fc2.bias", "glca_norm.weight", "uncertainty_w", "cls_token"}
    heads = (
        {"head.weight", "glca_head.bias"} if task == "fgvc" else {"classifier.weight", "glca_bottleneck.running_var"}
    )
    assert expected | heads <= named.keys()
    assert not any(name.startswith(("trunk.", "head.bottleneck")) for name in named)
    back = from_official(named, {"heads": 3, "img": [32, 48], "ratio": 0.2})
    assert back.task == task
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert back.ratio == 0.2


def test_weights_that_do_not_fit():
    named = to_official(net_of())
    config = {"heads": 3, "img": [32, 48]}
    with pytest.raises(CheckpointMismatchError, match=r"missing: pos_embed"):
        import_official({}, {})
    with pytest.raises(CheckpointMismatchError, match=r"missing: glca\.norm1\.bias"):
        import_official({name: t for name, t in named.items() if name != "glca.norm1.bias"}, config)
    with pytest.raises(CheckpointMismatchError, match=r"unexpected: trunk\.x"):
        import_official(named | {"x": torch.zeros(1)}, config)
    with pytest.raises(ConfigError, match="heads is 'many'"):
        import_official(named, {"heads": "many"})
    del named["uncertainty_w"]
    assert import_official(named, config).uncertainty_w.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("deit_smal_patch16_224", "no such model; near are .*deit_small_patch16_224"),
        ("hf-hub:timm/x", "no such model"),
        ("resnet18", "of another family of networks .*resnet"),
        ("swin_tiny_patch4_window7_224", "of another family of networks .*swin_transformer"),
        ("vit_base_patch16_siglip_224", "no class token"),
        ("vit_base_patch16_siglip_gap_224", "no class token"),
        ("beit_base_patch16_224", "of another family of networks .*beit"),
        ("vit_srelpos_small_patch16_224", "of another family of networks .*relpos"),
        ("vit_base_patch16_xp_224", "not attention followed by a feed-forward network"),
        ("deit_tiny_distilled_patch16_224", r"distillation token .* \(deit_tiny_patch16_224\)"),
    ],
)
def test_backbones_that_are_refused(backbone, message):
    options = {} if backbone == "resnet18" else {"depth": 2}
    with pytest.raises(ConfigError, match=message) as error:
        DCAL(backbone, 5, (224, 224), backbone_options=options)
    assert "\n" not in str(error.value)
    assert "no such model" in message or "; take " in str(error.value)
    assert "__init__" not in str(error.value)


def test_options_that_no_backbone_has():
    with pytest.raises(ConfigError, match=r"cannot be built .* backbone_options .*num_heads.*; correct them"):
        net_of(backbone_options={**TINY, "num_heads": 5})


def test_resnet_in_front(tmp_path):
    """R50-ViT-B of the paper: patches of the features of a ResNet-50 of three stages."""
    whole = timm.create_model("vit_base_r50_s16_224", img_size=(64, 64), num_classes=7, **TINY)
    save_file(whole.state_dict(), tmp_path / "hybrid.safetensors")
    net = net_of("vit_base_r50_s16_224", (32, 48), ratio=0.4).eval()
    net.load_pretrained(tmp_path / "hybrid.safetensors")
    assert torch.equal(net.trunk.patch_embed.proj.weight, whole.patch_embed.proj.weight)
    with torch.no_grad():
        output = net(torch.randn(2, 3, 32, 48), torch.tensor([1, 0]))
    assert output.rollout.shape == (2, 7)
    assert output.selected.shape == (2, 3)
    assert output.pairwise.logits.shape == (2, 5)
    with torch.device("meta"):
        paper = DCAL("vit_base_r50_s16_224", 200, (448, 448))
    base = sum(p.numel() for name, p in paper.named_parameters() if name.startswith(("trunk.", "head.")))
    assert base == 98_495_496
    with pytest.raises(ConfigError, match=r"patches of 16 x 16 .* do not fill it; take 32 x 32"):
        net_of("vit_base_r50_s16_224", (40, 32))


@pytest.mark.parametrize(("backbone", "size"), [("vit_tiny_patch16_224", (40, 32)), ("vit_tiny_patch16_224", (8, 32))])
def test_sizes_that_patches_do_not_fill(backbone, size):
    with pytest.raises(ConfigError, match=r"patches of 16 x 16 .* do not fill it; take"):
        DCAL(backbone, 5, size, backbone_options=TINY)


def test_files_that_are_refused(tmp_path):
    net = net_of()
    with pytest.raises(UnsafeFileError, match="URLs are refused"):
        net.load_pretrained("https://example.org/vit.pth")
    with pytest.raises(CheckpointNotFoundError, match=r"nowhere\.pth"):
        net.load_pretrained(tmp_path / "nowhere.pth")
    state = plain().state_dict()
    distilled = tmp_path / "distilled.safetensors"
    save_file(state | {"dist_token": torch.zeros(1, 1, 24)}, distilled)
    with pytest.raises(CheckpointMismatchError, match="a distilled DeiT"):
        net.load_pretrained(distilled)
    save_file(plain(embed_dim=48).state_dict(), tmp_path / "wider.safetensors")
    with pytest.raises(CheckpointMismatchError, match="wider"):
        net.load_pretrained(tmp_path / "wider.safetensors")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UnsafeFileError, match=r"cut\.pth"):
        net.load_pretrained(tmp_path / "cut.pth")
