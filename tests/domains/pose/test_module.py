"""Training, testing and predicting with Group Pose: learning, resuming, batches without persons, what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image, ImageDraw

from data_prep.pose.people.prepare import prepare_people
from domains.common.callbacks import LastCheckpoint, PredictionTable
from domains.common.errors import CheckpointNotFoundError, ConfigError
from domains.pose.data import PeopleData
from domains.pose.evaluation2d import PCK, split_table
from domains.pose.figures2d import figures
from domains.pose.keypoint_ap import Found, evaluate
from domains.pose.module import GroupPoseModule, NonFiniteLossError
from tests.data.pose.make_people import write_coco, write_crowdpose, write_json

pytestmark = pytest.mark.filterwarnings("ignore")
TINY: dict[str, Any] = {
    "backbone": "small", "dim": 32, "heads": 4, "hidden": 48, "encoder_depth": 1, "decoder_depth": 2, "levels": 3,
    "queries": 8, "lr": 1e-3, "backbone_lr": 1e-3,
}  # fmt: skip
SIZES: dict[str, Any] = {"shorter": 48, "longest": 100, "augment": False, "workers": 0}
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
NAMES = ["head", "left_hand", "right_hand", "left_foot", "right_foot"]


def prepare(dataset: Any, raw: Path, out: Path, **options: Any) -> Path:
    prepare_people(dataset, raw, out, executor="serial", progress=False, **options)
    return out


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("people")
    return prepare("coco", write_coco(top / "raw", train=8, valid=4), top / "out")


def make(data: PeopleData, **options: Any) -> GroupPoseModule:
    seed_everything(0)
    return GroupPoseModule(data.n_keypoints, data.sigmas, data.protocol, **{**TINY, **options})


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(default_root_dir=folder, accelerator="cpu", **{**QUIET, **options})


def batch_of(data: PeopleData, split: str = "valid", **options: Any) -> dict[str, Any]:
    return data.finish(next(iter(data.loader(split, **options))))


def attached(module: GroupPoseModule, data: PeopleData, folder: Path) -> GroupPoseModule:
    module.trainer = trainer(folder)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def test_gradient_reaches_every_parameter(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=4, **SIZES)
    module = attached(make(data), data, tmp_path)
    for name, parameter in module.named_parameters():
        if not parameter.abs().sum() > 0 or "sampling_offsets" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # what starts at zero hides what lies before
    module.training_step(batch_of(data), 0).backward()
    silent = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_a_batch_without_persons_trains(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=1, **SIZES)
    module = attached(make(data), data, tmp_path)
    batch = [data.finish(each) for each in data.loader("valid")][2]
    assert len(batch["targets"][0]["area"]) == 0
    module.training_step(batch, 0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


def test_a_process_without_a_row_of_the_last_batch(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=2, **SIZES)
    module = attached(make(data), data, tmp_path)
    loader = data.loader("valid")
    loader.batch_size, loader.rank, loader.world = 3, 1, 2
    *_, last = loader
    batch = data.finish(last)
    assert not len(batch["row"])
    loss = module.training_step(batch, 0)
    loss.backward()
    assert float(loss) == 0 and all(p.grad is not None for p in module.parameters() if p.requires_grad)
    assert list(module.predict_step(batch, 0)) == ["row"]
    module.validation_step(batch, 0)


def test_a_row_alone_as_in_any_batch(coco: Path) -> None:
    """Images of unlike sizes: padding changes nothing where it is exact."""
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    module = make(data, exact_padding=True, mask_invalid_proposals=True).eval()
    batch = batch_of(data)
    batch["mask"], batch["image"] = batch["mask"].clone(), batch["image"].clone()
    batch["mask"][1, 40:], batch["mask"][1, :, 50:] = True, True
    batch["image"][1] *= ~batch["mask"][1]
    with torch.no_grad():
        together = module(batch)
        for at in range(3):
            high, wide = int((~batch["mask"][at, :, 0]).sum()), int((~batch["mask"][at, 0]).sum())
            alone = {
                "image": batch["image"][at : at + 1, :, :high, :wide],
                "mask": batch["mask"][at : at + 1, :high, :wide],
                "size": batch["size"][at : at + 1],
            }
            for own, wanted in zip(module(alone), together, strict=True):
                torch.testing.assert_close(own[0], wanted[at], rtol=1e-4, atol=1e-4)


def test_resumed_equals_uninterrupted(coco: Path, tmp_path: Path) -> None:
    def run(steps: int, start: Path | None = None) -> GroupPoseModule:
        data = PeopleData(str(coco), batch_size=2, **{**SIZES, "augment": True})
        module = make(data, dropout=0.1)
        limits = {"max_steps": steps, "enable_checkpointing": True, "limit_val_batches": 0, "gradient_clip_val": 0.1}
        own = trainer(tmp_path, callbacks=[LastCheckpoint(tmp_path / f"{steps}.ckpt", 100)], **limits)
        own.fit(module, data, ckpt_path=start, weights_only=False)
        return module

    whole = run(8)
    run(5)  # an epoch has three batches
    continued = run(8, tmp_path / "5.ckpt")
    for (name, one), other in zip(whole.named_parameters(), continued.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_learning_rates(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    module = make(data, lr=1e-3, backbone_lr=1e-4, drop=2, warmup=1)
    seen = []

    def note(*_: Any) -> None:
        seen.append([group["lr"] for group in module.trainer.optimizers[0].param_groups])

    module.on_before_optimizer_step = note  # type: ignore[method-assign]
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(module, data)
    assert np.allclose(seen, [[r, r / 10] for r in (5e-4, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4)])
    named = dict(module.net.named_parameters())
    groups = module.trainer.optimizers[0].param_groups
    inside = {id(p) for name, p in named.items() if name.startswith("backbone.")}
    assert {id(p) for p in groups[1]["params"]} == inside and len(groups[0]["params"]) == len(named) - len(inside)


def test_what_is_not_finite_is_told_with_its_image(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    module = attached(make(data, exact_padding=True), data, tmp_path)
    batch = batch_of(data)
    batch["image"][1] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"^000102\.png \(id 102\): .* not finite in step 0; lower") as error:
        module.training_step(batch, 0)
    assert "\n" not in str(error.value)
    batch = batch_of(data)
    batch["targets"][0]["keypoints"][0, 1] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"^000101\.png \(id 101\): annotations are not finite in step 0"):
        module.training_step(batch, 0)


def test_a_test_writes_what_the_evaluator_says(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    table = PredictionTable(tmp_path / "test", replicates=20)
    module = make(data)
    trainer(tmp_path, callbacks=[table]).test(module, data, verbose=False)
    assert table.frame is not None and table.frame["annotated"].sum() == 6 and table.frame["row"].is_sorted()
    truth, images = data.truth("test")
    own, found = split_table(table.frame, 17)
    for name in ("keypoints", "box", "area", "labelled"):
        assert np.array_equal(getattr(own, name), getattr(truth, name))
    wanted = evaluate(truth, found, images["image_id"].to_numpy(), np.array(data.sigmas))
    for name, value in wanted.items():
        got = table.metrics[name].value
        assert (np.isnan(got) and value == -1) or got == pytest.approx(value, abs=1e-12), name
    assert PCK in table.metrics and table.metrics["AP"].units == 4
    pictures = figures(pl.read_parquet(tmp_path / "test/predictions.parquet"), table.metrics)
    assert [picture.title for picture in pictures][2:] == ["Worst images", "Median images", "Best images"]
    for picture in pictures:
        picture.figure.savefig(tmp_path / "figure.png")
    assert "20 best detections" in module.protocol(data)


def test_crowdpose_is_measured_by_crowds(tmp_path: Path) -> None:
    data = PeopleData(str(prepare("crowdpose", write_crowdpose(tmp_path / "raw"), tmp_path / "out")), 3, **SIZES)
    table = PredictionTable(tmp_path / "test", replicates=5)
    module = make(data)
    trainer(tmp_path, callbacks=[table]).test(module, data, verbose=False)
    assert table.frame is not None
    truth, images = data.truth("test")
    _, found = split_table(table.frame, 14)
    ids, crowds = images["image_id"].to_numpy(), images["crowd_index"].to_numpy()
    wanted = evaluate(truth, found, ids, np.array(data.sigmas), protocol="crowdpose", crowd_index=crowds)
    assert {"AP_easy", "AP_medium", "AP_hard"} <= table.metrics.keys() and set(wanted) | {PCK} == set(table.metrics)
    for name, value in wanted.items():
        got = table.metrics[name].value
        assert (np.isnan(got) and value == -1) or got == pytest.approx(value, abs=1e-12), name
    assert len(figures(table.frame, table.metrics)) >= 3


def test_predictions_are_persons_and_results_of_coco(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    table = PredictionTable(tmp_path / "predict")
    trainer(tmp_path, callbacks=[table]).predict(make(data, select=6), data, return_predictions=False)
    frame = pl.read_parquet(tmp_path / "predict/predictions.parquet")
    assert frame.columns == ["row", "image_id", "file", "width", "height", "score", "keypoints"]
    assert frame["keypoints"].list.len().unique().to_list() == [34]
    results = json.loads((tmp_path / "predict/coco_results.json").read_text())
    assert len(results) == len(frame) and {len(each["keypoints"]) for each in results} == {51}
    first = frame.row(0, named=True)
    assert results[0]["image_id"] == first["image_id"] == 101 and results[0]["category_id"] == 1
    assert np.allclose(results[0]["keypoints"][::3], first["keypoints"][::2], atol=1e-3)


def test_averaged_weights(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    module = make(data)
    trainer(tmp_path, max_epochs=1, callbacks=[EMAWeightAveraging(decay=0.5)]).fit(module, data)
    assert "val/AP" in module.trainer.callback_metrics


def test_pretrained_weights(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    other = make(data, seed=1)
    with torch.no_grad():
        other.net.level_embedding.fill_(7.0)
    torch.save(other.net.state_dict(), tmp_path / "net.pth")
    module = make(data, pretrained=str(tmp_path / "net.pth"), lr=1e-12)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
    assert "start from" in capsys.readouterr().out
    assert torch.allclose(module.net.level_embedding, torch.tensor(7.0), atol=1e-4)
    with pytest.raises(CheckpointNotFoundError):
        trainer(tmp_path, max_steps=1).fit(make(data, pretrained=str(tmp_path / "none.pth")), data)


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"backbone_lr": -1.0}, {"drop": 0}, {"select": 0}, {"warmup": -1}, {"sigmas": [0.1]}]
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\."):
        GroupPoseModule(**{"n_keypoints": 2, "sigmas": [0.1, 0.1], **TINY, **options})


def test_data_of_other_keypoints(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=3, **SIZES)
    with pytest.raises(ConfigError, match="the data have 17 keypoints, the model 5"):
        trainer(tmp_path, max_steps=1).fit(GroupPoseModule(5, [0.05] * 5, **TINY), data)


def write_figures(folder: Path, images: int = 4, side: int = 64) -> Path:
    """Images of one or two stick figures, and their annotations in COCO's form."""
    rng = np.random.default_rng(0)
    listed, annotations = [], []
    for number in range(1, images + 1):
        picture = Image.fromarray(rng.integers(0, 40, (side, side, 3), np.uint8))
        draw = ImageDraw.Draw(picture)
        for place in range(1 + number % 2):
            x, y = int(rng.integers(14, 22)) + 28 * place, int(rng.integers(8, 16))
            points = np.array([[0, 0], [-10, 14], [10, 14], [-7, 38], [7, 38]]) + rng.integers(-3, 4, (5, 2))
            points += np.array([x, y])
            points = points.clip(1, side - 2)
            for end, colour in zip(points[1:], ("red", "lime", "blue", "yellow"), strict=True):
                draw.line([*points[0].tolist(), *end.tolist()], fill=colour, width=3)
            low, high = points.min(0), points.max(0)
            wide, tall = (high - low).tolist()
            entry = {"id": 10 * number + place, "image_id": number, "category_id": 1, "iscrowd": 0, "num_keypoints": 5}
            entry |= {"keypoints": np.c_[points, np.full(5, 2)].reshape(-1).tolist(), "area": wide * tall}
            annotations.append(entry | {"bbox": [*low.tolist(), wide, tall]})
        listed.append({"id": number, "file_name": f"{number}.png", "width": side, "height": side})
        (folder / "images").mkdir(parents=True, exist_ok=True)
        picture.save(folder / "images" / f"{number}.png")
    category = {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3], [1, 4], [1, 5]]}
    write_json(folder / "figures.json", {"images": listed, "annotations": annotations, "categories": [category]})
    return folder


def test_learning(tmp_path: Path) -> None:
    """Four images that are learned by heart."""
    raw = write_figures(tmp_path / "raw")
    description = tmp_path / "figures.yaml"
    description.write_text("sigmas: 0.1\nflip: [[left_hand, right_hand], [left_foot, right_foot]]\n")
    options: dict[str, Any] = {"description": description, "ratios": (1.0, 0.0, 0.0), "train_on_valid": False}
    data = PeopleData(str(prepare("coco-json", raw, tmp_path / "out", **options)), 4, **{**SIZES, "shorter": 64})
    module = make(data, lr=2e-3, backbone_lr=2e-3, dim=48, hidden=96)
    losses = []
    module.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))  # type: ignore[method-assign]
    trainer(tmp_path, max_steps=130, max_epochs=-1, limit_val_batches=0, gradient_clip_val=1.0).fit(module, data)
    assert losses[-1] < losses[0] / 3
    module.eval()
    batch = batch_of(data, "train")
    with torch.no_grad():
        score, label, points = module(batch)
    chosen = label == 1
    ids = batch["image_id"].repeat_interleave(score.shape[1])[chosen.flatten()]
    found = Found(ids.numpy(), points[chosen].numpy(), score[chosen].numpy())
    truth, images = data.truth("train")
    scores = evaluate(truth, found, images["image_id"].to_numpy(), np.array(data.sigmas))
    assert scores["AP"] > 0.5
