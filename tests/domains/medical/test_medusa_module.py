from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet50

from domains.common.classification import choose_threshold
from domains.common.errors import CheckpointMismatchError, ConfigError, UnsafeFileError
from domains.common.files import read_checkpoint
from domains.common.hub import publish
from domains.medical.explain_images import explain_images
from domains.medical.figures import figures
from domains.medical.image_data import ImageData, LungData
from domains.medical.medusa_module import MEDUSAModule, load_backbone
from domains.medical.segmentation import LungSegmenter, MEDUSABodyModule, lung_loss, overlaps
from tests.domains.medical.xray_helpers import write_images

VIEWS = ("image", "gray")
TINY = {"configuration": "medusa_tiny", "side": 28, "gray_side": 28}

# Lightning's use of torch's tree utilities, and its advice about warm-ups of a few steps
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated, use `isinstance"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("prepared"), {"train": 24, "valid": 12, "test": 12}, masks=True)


def data(root, **options):
    return ImageData(str(root), **{"side": 28, "gray_side": 28, "batch_size": 8, "workers": 1} | options)


def module(**options):
    torch.manual_seed(0)
    return MEDUSAModule(["nothing", "disc"], **TINY | options)


def trainer(tmp_path, **options):
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, use_distributed_sampler=False,
        **{"max_epochs": 1} | options,
    )  # fmt: skip


class TestStart:
    @pytest.mark.parametrize("kind", ["pth", "safetensors"])
    def test_imagenet_weights_fill_all_but_the_last_layer(self, tmp_path, kind):
        source = resnet50(num_classes=1000)
        path = tmp_path / f"resnet50.{kind}"
        state = {name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name}
        save_file(state, path) if kind == "safetensors" else torch.save(state, path)
        net = MEDUSAModule(["a", "b"], backbone_weights=str(path)).net
        assert net.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
        before = net.backbone.fc.weight.clone()
        load_backbone(net, str(path))
        assert torch.equal(net.backbone.layer3[4].conv2.weight, source.layer3[4].conv2.weight)
        assert torch.equal(net.backbone.fc.weight, before)

    def test_other_networks_and_hostile_files_are_refused(self, tmp_path):
        net = MEDUSAModule(["a", "b"]).net
        torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
        with pytest.raises(CheckpointMismatchError, match=r"resnet18\.pth"):
            load_backbone(net, str(tmp_path / "resnet18.pth"))
        torch.save(resnet18(), tmp_path / "pickled.pth")
        with pytest.raises(UnsafeFileError, match="was not executed"):
            load_backbone(net, str(tmp_path / "pickled.pth"))

    def test_body_starts_from_the_first_step_and_says_so(self, root, tmp_path, capsys):
        body = LungSegmenter(8, 3)
        publish(tmp_path / "model", body, "card")
        net = module(body_weights=str(tmp_path / "model"))
        trainer(tmp_path, max_steps=0).fit(net, data(root))
        assert torch.equal(net.net.body.dec[0][0].weight, body.body.dec[0][0].weight)
        assert f"attention body from {tmp_path / 'model'}" in capsys.readouterr().out

    def test_a_body_of_another_size_is_refused(self, root, tmp_path):
        publish(tmp_path / "model", LungSegmenter(4, 3), "card")
        with pytest.raises(CheckpointMismatchError, match="wrong shape"):
            trainer(tmp_path).fit(module(body_weights=str(tmp_path / "model")), data(root))

    def test_weights_given_for_the_whole_network_win_and_need_no_other_file(self, root, tmp_path):
        net = module(body_weights=str(tmp_path / "is moved away"))
        other = module().net.state_dict()
        net.net.load_state_dict(other)  # --init_from
        trainer(tmp_path, max_steps=0).fit(net, data(root))
        assert torch.equal(net.net.body.dec[0][0].weight, other["body.dec.0.0.weight"])

    def test_no_weights_are_said_to_be_random(self, root, tmp_path, capsys):
        trainer(tmp_path, max_steps=1).fit(module(), data(root))
        out = capsys.readouterr().out
        assert "classification network from random numbers" in out
        assert "attention body from random numbers, without lung segmentation" in out


class TestJointTraining:
    def test_body_learns_slowly_in_the_first_third(self, root, tmp_path):
        rates = []

        class Watched(MEDUSAModule):
            def on_train_batch_end(self, *args):
                rates.append([group["lr"] for group in self.optimizers().param_groups])

        net = Watched(["nothing", "disc"], **TINY, warmup=1.0, lr=1e-3)
        trainer(tmp_path, max_epochs=6, limit_val_batches=0).fit(net, data(root, batch_size=12))
        ratios = [body / other for other, body in rates[:-1]]
        assert ratios == pytest.approx([0.1] * 3 + [1.0] * 8)
        assert max(other for other, _ in rates) == pytest.approx(1e-3)
        assert rates[0][0] < 1e-3 > rates[-2][0]

    def test_segmentation_loss_trains_the_bodys_output(self, root, tmp_path):
        net = module(segmentation=0.5)
        before = net.net.body.seg.weight.clone()
        trainer(tmp_path).fit(net, data(root, masks=True))
        assert not torch.equal(net.net.body.seg.weight, before)
        still = module()
        trainer(tmp_path).fit(still, data(root, masks=True))
        assert torch.equal(still.net.body.seg.weight, before)

    def test_segmentation_without_masks_is_refused(self, root, tmp_path):
        with pytest.raises(ConfigError, match=r"data\.masks"):
            trainer(tmp_path).fit(module(segmentation=0.5), data(root))

    def test_threshold_of_averaged_weights_is_chosen_with_them(self, root, tmp_path):
        net, images = module(lr=2e-3, warmup=0), data(root, augment=False)

        class Save(Callback):
            def on_validation_end(self, trainer, pl_module):
                if not trainer.sanity_checking:
                    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)

        fit = trainer(tmp_path, max_epochs=3, callbacks=[EMAWeightAveraging(decay=0.5), Save()])
        fit.fit(net, images)
        stored = read_checkpoint(tmp_path / "a.ckpt")
        again = MEDUSAModule(**stored["hyper_parameters"])
        again.load_state_dict(stored["state_dict"])
        again.eval()
        batches = [images.finish(batch) for batch in images.val_dataloader()]
        with torch.no_grad():
            scores = torch.cat([again(batch).softmax(-1)[:, 1] for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
        assert float(again.threshold) == pytest.approx(choose_threshold(labels.numpy(), scores.numpy()), abs=1e-5)
        assert float(again.threshold) != 0.5

    def test_it_learns_the_discs(self, root, tmp_path):
        net, images = module(lr=2e-3, warmup=0), data(root, augment=False)
        fit = trainer(tmp_path, max_epochs=8)
        fit.fit(net, images)
        assert fit.callback_metrics["val/auroc"] > 0.9

    @pytest.mark.parametrize("given", [{}, {"gray_side": 20}])
    def test_sides_that_are_not_given_are_those_of_the_configuration(self, root, tmp_path, given):
        """A `medusa_tiny` of 480 pixels would take hours instead of minutes, without a word."""
        images = ImageData(str(root), batch_size=8, workers=1, **given)
        net = MEDUSAModule(["nothing", "disc"], images.side, images.gray_side, configuration="medusa_tiny")
        seen = []
        net.register_forward_pre_hook(lambda _, args: seen.append({name: args[0][name].shape[-1] for name in VIEWS}))
        trainer(tmp_path, max_steps=1).fit(net, images)
        wanted = {"image": 28, "gray": given.get("gray_side", 28)}
        assert seen[0] == wanted == {"image": net.net.side, "gray": net.net.gray_side}

    def test_images_with_more_channels_than_the_network_are_refused(self, tmp_path):
        write_images(tmp_path, {"train": 4, "valid": 4}, channels=3)
        with pytest.raises(ConfigError, match="3 channels"):
            trainer(tmp_path).fit(module(), data(tmp_path))

    @pytest.mark.parametrize(
        "options", [{"body_lr": -1.0}, {"label_smoothing": 1.0}, {"taps": [], "segmentation": 1.0}]
    )
    def test_options_out_of_range_are_named(self, options):
        with pytest.raises(ConfigError):
            module(**options)

    def test_example_inputs_fit_the_network(self):
        net = module()
        assert net.net(*net.example_inputs(rows=3)).shape == (3, 2)
        assert len(net.free_axes()) == len(net.example_inputs())


class SecondOfTwo:
    """Loaders as the second of two processes has them, whose last batch is empty where one row is left."""

    def loader(self, split, *, training=False):
        loader = super().loader(split, training=training)
        loader.rank, loader.world = 1, 2
        return loader


@pytest.mark.parametrize("system", ["medusa", "medusa-body"])
def test_a_process_without_a_row_of_the_last_batch_goes_on(tmp_path, system):
    root = write_images(tmp_path, {"train": 9, "valid": 9, "test": 9}, masks=True)
    if system == "medusa":
        images = type("Data", (SecondOfTwo, ImageData), {})(str(root), side=28, gray_side=28, batch_size=8, masks=True)
        net = module(segmentation=0.5)
    else:
        images = type("Data", (SecondOfTwo, LungData), {})(str(root), gray_side=28, batch_size=7)  # of 8 with masks
        net = MEDUSABodyModule(gray_side=28, width=4, levels=3)
    fit = trainer(tmp_path)
    fit.fit(net, images)
    *_, last = [images.finish(batch, epoch=0) for batch in images.train_dataloader()]
    assert len(last["row"]) == 0 and last["has_mask"].dtype == torch.bool
    assert fit.global_step == 2 and all(p.isfinite().all() for p in net.parameters())
    fit.validate(net, images, verbose=False)
    tables = fit.predict(net, images)
    assert [len(table["row"]) for table in tables] == [len(b["row"]) for b in images.test_dataloader()]
    assert len(tables[-1]["row"]) == 0


class TestBody:
    def test_it_learns_where_the_discs_are(self, tmp_path):
        write_images(tmp_path, {"train": 40, "valid": 20, "test": 10}, masks=True, share=1.0)
        torch.manual_seed(0)
        net = MEDUSABodyModule(gray_side=28, width=4, levels=3, lr=1e-2)
        images = LungData(str(tmp_path), gray_side=28, batch_size=8)
        fit = trainer(tmp_path, max_epochs=10)
        fit.fit(net, images)
        assert fit.callback_metrics["val/dice"] > 0.7
        assert fit.callback_metrics["val/iou"] < fit.callback_metrics["val/dice"]
        pictures = explain_images(net, images, tmp_path)
        assert [picture.title.split(":")[0] for picture in pictures] == ["Worst", "Middle", "Best"]

    def test_gradient_reaches_every_parameter(self):
        net = MEDUSABodyModule(gray_side=20, width=4, levels=3)
        lung_loss(net.net(torch.randn(2, 1, 20, 20)), torch.ones(2, 1, 20, 20)).backward()
        assert [name for name, p in net.net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_loss_is_cross_entropy_and_soft_dice(self):
        logits, mask = torch.randn(3, 1, 6, 6), (torch.rand(3, 1, 6, 6) > 0.5).float()
        p = logits.sigmoid()
        dice = (2 * (p * mask).sum((1, 2, 3)) + 1e-5) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1e-5)
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask) + (1 - dice).mean()
        torch.testing.assert_close(lung_loss(logits, mask), wanted)

    def test_overlaps_of_known_masks(self):
        mask = torch.zeros(3, 1, 4, 4)
        mask[0, 0, :2] = mask[1, 0, 0] = 1
        logits = torch.full((3, 1, 4, 4), -1.0)
        logits[0, 0, 1:3] = 1
        found = overlaps(logits, mask)
        assert found["dice"].tolist() == pytest.approx([0.5, 0.0, 1.0])  # half, nothing, rightly nothing
        assert found["iou"].tolist() == pytest.approx([1 / 3, 0.0, 1.0])

    def test_metrics_are_means_over_images_with_masks(self):
        frame = pl.DataFrame({"dice": [0.5, 1.0, np.nan], "iou": [0.25, 1.0, np.nan], "patient": ["a", "b", "c"]})
        found = MEDUSABodyModule(width=2, levels=1).evaluate(frame, replicates=50, seed=0)
        assert (found["dice"].value, found["iou"].value) == (0.75, 0.625)
        assert found["dice"].units == 3
        assert len(figures(frame, found)) == 1


class TestExplain:
    def test_gates_of_best_and_worst_images_are_drawn(self, root, tmp_path):
        net = module(segmentation=0.1)
        with torch.no_grad():
            net.net.heads[2].gate.bias.fill_(-1.0)
        pictures = explain_images(net, data(root, masks=True), tmp_path)
        assert len(pictures) == 1 + 2 * 2
        assert {"best", "worst"} == {p.title.split(" of the split")[0].split(", ")[1] for p in pictures[1:]}
        table = pl.read_parquet(tmp_path / "gates.parquet")
        assert len(table) == 12 * 4
        by_stage = dict(table.group_by("stage").agg(pl.col("mean").mean()).iter_rows())
        assert by_stage == pytest.approx({1: 1.0, 2: 1.0, 3: 2 * torch.tensor(-1.0).sigmoid().item(), 4: 1.0})
        with np.load(tmp_path / "maps.npz", allow_pickle=False) as maps:
            assert {name.split("/")[1] for name in maps.files} == {
                "image", "body", "lungs", "gate 1", "gate 2", "gate 3", "gate 4",
            }  # fmt: skip
        pictures[1].figure.savefig(tmp_path / "picture.png")

    def test_networks_without_gates_are_named(self, root, tmp_path):
        with pytest.raises(ConfigError, match="taps"):
            explain_images(module(taps=[]), data(root), tmp_path)
