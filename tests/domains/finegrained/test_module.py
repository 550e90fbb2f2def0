"""The training modules: losses, distractors, the optimiser, and what they refuse."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from domains.common.errors import ConfigError
from domains.finegrained.module import ClassModule, ReIDModule

NET = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_options": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "drop_path": 0.0,
}


def made(kind=ClassModule, **options):
    names = {ClassModule: "classes", ReIDModule: "identities"}[kind]
    torch.manual_seed(0)
    module = kind(**{names: ["a", "b", "c"]}, image_size=[16, 16], **NET, **options)
    module.trainer = SimpleNamespace(
        world_size=1, global_step=3, global_rank=0, sanity_checking=False, accumulate_grad_batches=1,
        strategy=SimpleNamespace(root_device="cpu"),
    )  # fmt: skip
    module.log_dict = lambda *args, **kwargs: None
    return module


def batch(count=6):
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(count, 3, 16, 16, generator=generator),
        "label": torch.arange(count) % 3,
        "row": torch.arange(count),
        "global_size": torch.tensor(count),
    }


@pytest.mark.parametrize("kind", [ClassModule, ReIDModule])
def test_the_loss_is_that_of_the_paper(kind):
    module, given = made(kind), batch()
    with torch.no_grad():
        module.net.uncertainty_w.copy_(torch.tensor([0.3, -0.2, 0.1]))
    pairs = module.draw_pairs(6, 0)
    module.eval()  # statistics of a batch norm would change between both
    output, labels = module(given, pairs), given["label"]
    wanted = 0.0
    for branch, w in zip((output.self_attention, output.global_local, output.pairwise), (0.3, -0.2, 0.1), strict=True):
        loss = -branch.logits.log_softmax(1)[torch.arange(6), labels].mean()
        if kind is ReIDModule:
            apart, same = torch.cdist(branch.features, branch.features), labels[:, None] == labels
            hardest = apart.masked_fill(~same, 0).amax(1) - apart.masked_fill(same, torch.inf).amin(1)
            loss = loss + hardest.exp().log1p().mean()
        wanted = wanted + 0.5 * (math.exp(-w) * loss + w)
    torch.testing.assert_close(module.training_step(given, 0), wanted, rtol=1e-4, atol=1e-5)


def test_distractors_depend_on_seed_step_and_batch_alone_and_are_never_the_same_picture():
    module = made()
    first = module.draw_pairs(9, 0)
    assert first.equal(module.draw_pairs(9, 0))
    assert not first.equal(module.draw_pairs(9, 1))
    assert (first != torch.arange(9)).all()
    assert sorted(first.tolist()) == list(range(9))
    shares = made(pair_shares=2).draw_pairs(9, 0)
    assert (shares % 2 == torch.arange(9) % 2).all()
    assert module.draw_pairs(1, 0).tolist() == [0]


def test_a_process_without_rows_takes_part_and_adds_nothing():
    module = made()
    empty = {name: values[:0] for name, values in batch().items() if name != "global_size"}
    loss = module.training_step({**empty, "global_size": torch.tensor(6)}, 0)
    loss.backward()
    assert all(p.grad is not None for name, p in module.net.named_parameters() if p.requires_grad)
    changed = [name for name, p in module.net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert changed == ["uncertainty_w"]


def test_checkpointing_changes_nothing_but_memory():
    grads = []
    for checkpointing in (False, True):
        module, given = made(checkpointing=checkpointing), batch()
        module.training_step(given, 0).backward()
        grads.append([p.grad for p in module.net.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_the_plain_backbone_has_a_plain_loss():
    module, given = made(branches="sa", pairwise=False), batch()
    loss = module.training_step(given, 0)
    wanted = torch.nn.functional.cross_entropy(module(given).self_attention.logits, given["label"])
    torch.testing.assert_close(loss, wanted)
    trained = {name.split(".")[0] for name, p in module.net.named_parameters() if p.requires_grad}
    assert trained == {"trunk", "head"}
    assert made(branches="sa").inference == "sa"


def test_the_learning_rate_is_scaled_by_the_batch():
    module = made(lr=5e-4, layer_decay=0.5)
    module.trainer.datamodule = SimpleNamespace(batch_size=16)
    module.trainer.fit_loop = SimpleNamespace(setup_data=lambda: None)
    module.trainer.num_training_batches, module.trainer.estimated_stepping_batches = 10, 100
    found = module.configure_optimizers()["optimizer"]
    rates = sorted({group["initial_lr"] for group in found.param_groups}, reverse=True)
    assert rates[0] == pytest.approx(1.5625e-5)
    assert rates[1] == pytest.approx(rates[0] / 2)


def test_pictures_are_normalised_as_the_weights_expect():
    assert made().mean.flatten().tolist() == [0.5] * 3
    assert made(normalisation="imagenet").std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    module = made()
    images = torch.rand(2, 3, 16, 16)
    exported = module.eval().exportable()(images)
    output = module({"image": images})
    torch.testing.assert_close(exported, module._probabilities(output))


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"label_smoothing": 1.0}, {"pair_shares": 0}, {"min_lr": 2.0}, {"lr_batch": 0}]
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=r"model\."):
        made(**options)
    with pytest.raises(ConfigError, match="two are needed"):
        ClassModule(["one"], [16, 16], **NET)
