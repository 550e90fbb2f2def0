"""Prepared images of persons as batches: padding, targets, random changes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from data_prep.pose.people import joining
from data_prep.pose.people.prepare import prepare_people
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.loader import mix_seed
from domains.pose.data import Augmentation, PeopleData, augmented, padded, persons
from domains.pose.grouppose import MEAN, STD
from domains.pose.grouppose_transforms import Picture, flipped
from domains.pose.keypoint_ap import Found, evaluate
from domains.pose.people import read_rgb
from tests.data.pose.make_people import crowd, document, pixels, write_coco, write_crowdpose, write_images, write_json

SMALL = Augmentation(before_crop=(40, 60), smallest_crop=30, largest_crop=50, sizes=(32, 48, 64))
SIZES: dict[str, Any] = {"shorter": 48, "longest": 100, "augmentation": SMALL, "workers": 0}


def prepare(dataset: str, raw: Path, out: Path) -> Path:
    prepare_people(dataset, raw, out, executor="serial", progress=False)  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("people")
    return prepare("coco", write_coco(top / "raw", train=9), top / "out")


def batches(data: PeopleData, split: str = "valid", epoch: int | None = None, **options: Any) -> list[dict[str, Any]]:
    loader = data.loader(split, **options)
    if epoch is not None:
        loader.set_epoch(epoch)
    return [data.finish(batch, epoch) for batch in loader]


def test_a_batch_in_evaluation(coco: Path) -> None:
    data = PeopleData(str(coco), batch_size=3, **{**SIZES, "shorter": 24})
    (batch,) = batches(data)
    assert batch["image"].shape == (3, 3, 24, 32) and batch["image"].dtype == torch.float32
    assert not batch["mask"].any() and batch["mask"].shape == (3, 24, 32)
    assert batch["image_id"].tolist() == [101, 102, 103] and batch["size"].tolist() == [[48, 64]] * 3
    assert batch["file"] == ["000101.png", "000102.png", "000103.png"] and batch["row"].tolist() == [0, 1, 2]
    assert [len(each["area"]) for each in batch["targets"]] == [2, 1, 0]
    path = coco.parent / "raw/annotations/person_keypoints_val2017.json"
    first = json.loads(path.read_text())["annotations"][0]
    points = np.array(first["keypoints"], dtype=float).reshape(17, 3)
    target = batch["targets"][0]
    assert np.allclose(target["keypoints"][0], points[:, :2] / [64, 48], atol=1e-6)
    assert target["visible"][0].tolist() == [0.0] + [1.0] * 16 and target["labels"].tolist() == [1, 1]
    assert float(target["area"][0]) == pytest.approx(first["area"] / (64 * 48), rel=1e-6)
    left, top, width, height = first["bbox"]
    wanted = [(left + width / 2) / 64, (top + height / 2) / 48, width / 64, height / 48]
    assert np.allclose(target["boxes"][0], wanted, atol=1e-6)


def test_an_index_in_parts(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "PART_ROWS", 2)
    out = prepare("coco", coco.parent / "raw", tmp_path / "out")
    assert len(list((out / "train").glob("persons-*.parquet"))) == 5
    one, other = (batches(PeopleData(str(root), 9, **SIZES), "train", 0, training=True)[0] for root in (coco, out))
    assert torch.equal(one["image"], other["image"]) and one["row"].tolist() == other["row"].tolist()
    for mine, yours in zip(one["targets"], other["targets"], strict=True):
        assert all(torch.equal(mine[name], yours[name]) for name in mine)


def test_what_a_model_must_know(coco: Path) -> None:
    data = PeopleData(str(coco))
    assert data.n_keypoints == len(data.sigmas) == len(data.keypoint_names) == 17
    assert data.flip_pairs[0] == [1, 2] and data.skeleton[0] == [15, 13] and data.sigmas[0] == 0.026


def test_images_without_padding_are_as_stored(coco: Path) -> None:
    data = PeopleData(str(coco), batch_size=1, **SIZES)
    (batch, *_) = batches(data)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    wanted = torch.from_numpy(pixels(101).copy()).permute(2, 0, 1)
    assert torch.allclose((batch["image"][0] * deviation + mean) * 255, wanted.float(), atol=1e-3)


def test_training_leaves_out_images_without_persons(coco: Path) -> None:
    data = PeopleData(str(coco), batch_size=4, **SIZES)
    rows = torch.cat([batch["row"] for batch in batches(data, "train", 0, training=True)])
    assert sorted(rows.tolist()) == [0, 1, 3, 4, 6, 7]
    data = PeopleData(str(coco), batch_size=4, empty_images=True, **SIZES)
    assert sum(len(batch["row"]) for batch in batches(data, "train", 0, training=True)) == 9


def test_padding(coco: Path) -> None:
    data = PeopleData(str(coco), batch_size=6, **SIZES)
    (batch,) = batches(data, "train", 0, training=True)
    assert batch["mask"].any() and not batch["mask"].all(-1).all(-1).any()
    assert (batch["image"] * batch["mask"][:, None] == 0).all()
    for image, mask in zip(batch["image"], batch["mask"], strict=True):
        height, width = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
        assert not mask[:height, :width].any() and mask[height:].all() and mask[:, width:].all()
        assert (image[:, height - 1, width - 1] != 0).any()
    assert all((each["keypoints"] >= 0).all() and (each["keypoints"] <= 1).all() for each in batch["targets"])


def test_changes_depend_on_seed_epoch_and_row_alone(coco: Path) -> None:
    def images(batch_size: int, seed: int, epoch: int, workers: int = 0) -> dict[int, Tensor]:
        data = PeopleData(str(coco), batch_size=batch_size, seed=seed, **{**SIZES, "workers": workers})
        found = {}
        for batch in batches(data, "train", epoch, training=True):
            for row, image, mask in zip(batch["row"].tolist(), batch["image"], batch["mask"], strict=True):
                found[row] = image[:, ~mask[:, 0]][:, :, ~mask[0]]
        return found

    first = images(6, 1, 3)
    for other in (images(1, 1, 3), images(4, 1, 3, workers=2)):
        assert all(torch.equal(first[row], other[row]) for row in first)
    for other in (images(6, 1, 4), images(6, 2, 3)):
        assert any(first[row].shape != other[row].shape or not torch.equal(first[row], other[row]) for row in first)


def test_two_processes_equal_one(coco: Path) -> None:
    data = PeopleData(str(coco), batch_size=4, **SIZES)
    loader = data.loader("train", training=True)
    whole = [batch["row"].tolist() for batch in loader]
    shares = []
    for rank in (0, 1):
        loader = data.loader("train", training=True)
        loader.rank, loader.world = rank, 2
        shares.append([batch["row"].tolist() for batch in loader])
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(rows) for rows in whole]


def test_a_process_without_a_row(coco: Path) -> None:
    data = PeopleData(str(coco), batch_size=2, **SIZES)
    loader = data.loader("valid")
    loader.rank, loader.world = 1, 2
    *_, last = loader
    batch = data.finish(last)
    assert batch["image"].shape[:2] == (0, 3) and batch["mask"].shape[0] == 0 and batch["targets"] == []
    assert batch["size"].shape == (0, 2) and batch["file"] == []


def test_a_batch_without_persons(coco: Path) -> None:
    data = PeopleData(str(coco), batch_size=1, **SIZES)
    last = batches(data)[-1]
    (found,) = persons(last["targets"])
    assert len(found) == 0 and found.keypoints.shape == (0, 17, 2) and found.classes().shape == (0,)
    assert last["targets"][0]["boxes"].shape == (0, 4)


def dotted(points: list[tuple[int, int]], width: int = 80, height: int = 60) -> Picture:
    """A black image with a channel for each of three points: a white spot of 3 x 3 pixels around it."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (x, y) in enumerate(points):
        image[channel, y - 1 : y + 2, x - 1 : x + 2] = 255
    keypoints = torch.tensor([[[x, y, 2.0] for x, y in points]])
    boxes, area = torch.tensor([[0.0, 0.0, width, height]]), torch.tensor([100.0])
    return Picture(image, keypoints, boxes, area, torch.tensor([1]))


@pytest.mark.parametrize("seed", range(12))
def test_keypoints_stay_on_their_pixels(seed: int) -> None:
    picture = dotted([(20, 30), (60, 25), (40, 45)])
    changes = Augmentation(0.5, 0.7, (60, 90), 40, 70, (48, 96, 120))
    draw = torch.Generator().manual_seed(mix_seed(seed))
    found = augmented(picture, [], changes, 400, draw)
    seen = 0
    for channel in range(3):
        spot = found.image[channel].float()
        if spot.max() < 200:  # cut off
            continue
        y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in spot.shape), indexing="ij")
        centre = torch.stack([(x * spot).sum(), (y * spot).sum()]) / spot.sum()
        border = min(found.image.shape[-2:]) / 12
        if (centre < border).any() or (centre > centre.new_tensor(spot.shape[::-1]) - border).any():
            continue  # partly cut off
        # the official code scales places, not the centres of pixels: half of a scaled pixel is lost
        assert (centre - found.keypoints[0, channel, :2]).abs().max() <= found.image.shape[-1] / 40
        seen += 1
    assert seen


def test_flips_are_involutions(coco: Path) -> None:
    data = PeopleData(str(coco))
    generator = torch.Generator().manual_seed(0)
    pairs = [(pair[0], pair[1]) for pair in data.flip_pairs]
    assert len({end for pair in pairs for end in pair}) == 16
    image = torch.randint(0, 256, (3, 20, 30), generator=generator, dtype=torch.uint8)
    keypoints = torch.rand(4, 17, 3, generator=generator).mul(20).round()
    boxes = torch.tensor([[1.0, 2.0, 10.0, 12.0]]).repeat(4, 1)
    picture = Picture(image, keypoints, boxes, torch.ones(4), torch.ones(4, dtype=torch.int64))
    once = flipped(picture, pairs)
    twice = flipped(once, pairs)
    assert torch.equal(twice.image, image) and torch.equal(twice.keypoints, keypoints)
    assert torch.equal(twice.boxes, boxes) and not torch.equal(once.keypoints, keypoints)
    left_eye, right_eye = (data.keypoint_names.index(name) for name in ("left_eye", "right_eye"))
    assert torch.equal(once.keypoints[:, right_eye, 1], keypoints[:, left_eye, 1])


def test_crowds_and_persons_without_a_box_are_no_targets(tmp_path: Path) -> None:
    content = document(2)
    content["annotations"][0]["bbox"] = [70, 50, 10, 10]
    content["annotations"][1] |= {"keypoints": [0] * 51, "num_keypoints": 0}
    content["annotations"].append(crowd(900, 2))
    write_images(tmp_path / "raw", content)
    write_json(tmp_path / "raw/person_keypoints_val2017.json", content)
    data = PeopleData(str(prepare("coco", tmp_path / "raw", tmp_path / "out")), batch_size=2, **SIZES)
    (batch,) = batches(data)
    assert [len(each["area"]) for each in batch["targets"]] == [0, 1]
    truth, images = data.truth("valid")
    assert len(truth.image) == 4 and truth.crowd.tolist() == [False, False, False, True] and len(images) == 2
    assert truth.labelled.tolist() == [16, 0, 16, 0]


def test_crowdpose_takes_areas_of_boxes(tmp_path: Path) -> None:
    data = PeopleData(str(prepare("crowdpose", write_crowdpose(tmp_path / "raw"), tmp_path / "out")), 3, **SIZES)
    (batch,) = batches(data, "test")
    for each in batch["targets"]:
        assert torch.allclose(each["area"], each["boxes"][:, 2] * each["boxes"][:, 3])
    assert data.truth("test")[1]["crowd_index"].to_list() == [0.0, 0.25, 0.5] and data.n_keypoints == 14


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(pixels(1)).convert("L").save(tmp_path / "grey.png")
    found = read_rgb(tmp_path / "grey.png")
    assert found.shape == (3, 48, 64) and torch.equal(found[0], found[2])


def test_moved_missing_damaged_and_changed_images(tmp_path: Path) -> None:
    raw = write_coco(tmp_path / "raw")
    out = prepare("coco", raw, tmp_path / "out")
    raw.rename(tmp_path / "moved")
    with pytest.raises(PreparedDataError, match=r"000101\.png: the image is not there; .* as data\.images"):
        batches(PeopleData(str(out), **SIZES))
    data = PeopleData(str(out), batch_size=3, images=str(tmp_path / "moved"), **SIZES)
    assert len(batches(data)) == 1
    path = tmp_path / "moved/val2017/000101.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(PreparedDataError, match=r"000101\.png: cannot be read"):
        batches(data)
    Image.fromarray(pixels(101, 32, 24)).save(path)
    with pytest.raises(PreparedDataError, match=r"000101\.png: has 32 x 24 pixels, 64 x 48 when it was prepared"):
        batches(data)


def test_flipped_bits_give_one_line_or_an_image(tmp_path: Path) -> None:
    Image.fromarray(pixels(1)).save(tmp_path / "image.png")
    whole = (tmp_path / "image.png").read_bytes()
    for at in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        (tmp_path / "image.png").write_bytes(damaged)
        try:
            assert read_rgb(tmp_path / "image.png").shape[0] == 3
        except PreparedDataError as error:
            assert "\n" not in str(error) and "image.png" in str(error)


def test_directories_of_another_kind(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparedDataError, match="not found; make it with `heptad pose prep"):
        PeopleData(str(tmp_path))
    copy = shutil.copytree(coco, tmp_path / "copy")
    card = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**card, "kind": "sequences"}))
    with pytest.raises(PreparedDataError, match="holds 'sequences', Group Pose needs kind 'people'"):
        PeopleData(str(copy))
    (copy / "dataset.json").write_text(json.dumps(card))
    (copy / "valid/persons-00000.parquet").write_bytes(b"cut")
    with pytest.raises(PreparedDataError, match=r"persons-00000\.parquet: cannot be read"):
        PeopleData(str(copy)).store("valid")


def test_other_prepared_images_are_predicted(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), predict_root=str(coco), **SIZES)
    assert len(data.loader("predict")) == 1
    other = prepare("crowdpose", write_crowdpose(tmp_path / "raw"), tmp_path / "out")
    with pytest.raises(PreparedDataError, match=r"has 14 keypoints, .* 17"):
        PeopleData(str(coco), predict_root=str(other)).store("predict")


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.5},
        {"crop": -0.1},
        {"sizes": ()},
        {"before_crop": (0,)},
        {"smallest_crop": 0},
        {"smallest_crop": 9, "largest_crop": 8},
    ],
)
def test_augmentations_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.augmentation"):
        Augmentation(**options)


def test_options_that_cannot_be(coco: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.shorter"):
        PeopleData(str(coco), shorter=900, longest=800)
    with pytest.raises(ConfigError, match=r"data\.batch_size"):
        PeopleData(str(coco), batch_size=0)


def test_no_images_make_an_empty_batch() -> None:
    image, mask = padded([])
    assert image.shape[0] == 0 and mask.shape[0] == 0


class Watching(LightningModule):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        self.seen.append(batch)
        return (self.weight * batch["image"].mean()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_gets_changed_images_of_its_epoch(coco: Path, tmp_path: Path) -> None:
    data = PeopleData(str(coco), batch_size=6, **SIZES)
    module = Watching()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", limit_val_batches=0, **quiet).fit(module, data)
    assert len(module.seen) == 2
    wanted = [batches(PeopleData(str(coco), batch_size=6, **SIZES), "train", at, training=True)[0] for at in (0, 1)]
    for seen, own in zip(module.seen, wanted, strict=True):
        assert torch.equal(seen["image"], own["image"]) and seen["row"].tolist() == own["row"].tolist()


@pytest.mark.shared
def test_real_images_and_perfect_detections(tmp_path: Path, shared: Path) -> None:
    data = PeopleData(str(prepare("coco", shared / "pose/coco_mini", tmp_path / "out")), batch_size=7)
    batch = data.finish(next(iter(data.loader("train", training=True))), 0)
    assert max(batch["image"].shape[-2:]) <= 1333 and min(batch["image"].shape[-2:]) >= 480
    truth, images = data.truth("valid")
    kept = ~truth.crowd & (truth.labelled > 0)
    found = Found(truth.image[kept], truth.keypoints[kept], np.ones(int(kept.sum())))
    scores = evaluate(truth, found, images["image_id"].to_numpy(), np.array(data.sigmas))
    assert scores["AP"] == pytest.approx(1.0)


def test_weights_of_other_keypoints_are_refused(coco: Path) -> None:
    data = PeopleData(str(coco), **SIZES)
    trained = [*data.keypoint_names[1:], data.keypoint_names[0]]
    with pytest.raises(PreparedDataError, match=r"its keypoints are nose, .* those of the weights left_eye"):
        data.load_state_dict({"people": {"keypoints": trained}})
