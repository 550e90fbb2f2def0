"""Prepared images of persons as padded batches with their keypoints: what Group Pose trains on and is tested with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.common.data import HeptadData
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.loader import Batch, mix_seed
from domains.pose.grouppose import MEAN, STD
from domains.pose.grouppose_criterion import Persons
from domains.pose.grouppose_transforms import (
    EVALUATED,
    LONGEST,
    SIZES,
    Picture,
    cropped,
    flipped,
    normalised,
    relative_boxes,
    resized,
    target,
)
from domains.pose.keypoint_ap import Annotations
from domains.pose.people import PeopleStore, read_people

POOL = 1 << 20  # rows of an index that are permuted together: all of it
NOTHING = 32  # side of the empty picture that a batch without rows has


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, in this order: flip, crop or not, size (Group Pose, official code).

    Args:
        flip: probability of a mirrored image.
        crop: probability of a crop.
        before_crop: shorter sides, of which one is drawn before a crop.
        smallest_crop: width and height of a crop are at least this, or the image's.
        largest_crop: and at most this.
        sizes: shorter sides, of which one is drawn at the end.
        drop_outside: keypoints outside a crop count as not labelled; the official code moves them to the border.
    """

    flip: float = 0.5
    crop: float = 0.5
    before_crop: tuple[int, ...] = (400, 500, 600)
    smallest_crop: int = 384
    largest_crop: int = 600
    sizes: tuple[int, ...] = SIZES
    drop_outside: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.flip <= 1 and 0 <= self.crop <= 1):
            raise ConfigError(f"data.augmentation: flip {self.flip}, crop {self.crop}: give probabilities from 0 to 1")
        if not self.sizes or not self.before_crop or min(*self.sizes, *self.before_crop) < 1:
            raise ConfigError("data.augmentation: sizes and before_crop need at least one size, each at least 1 pixel")
        if not 1 <= self.smallest_crop <= self.largest_crop:
            raise ConfigError("data.augmentation: smallest_crop must be at least 1 and at most largest_crop")


class PeopleData(HeptadData):
    """Images of persons prepared by `heptad pose prep`.

    A batch has `image` (B, 3, H, W) float32, normalised and zero where it is padded at the right and the bottom, `mask`
    (B, H, W) bool, true on padding, `targets`, `image_id` (B,), `size` (B, 2) int64, the height and width of the
    original images, `row` (B,), and `file`, their names. `targets` is a list with a dictionary for each image:
    keypoints (M, K, 2) in 0..1 of the image without padding, visible (M, K), area (M,), boxes (M, 4) as centre, width
    and height, all float32, and labels (M,) int64; M may be 0. `persons` makes of them what the criterion takes.

    Files are decoded by threads; scaling and what is random happen on the device. Targets are
    persons with a labelled keypoint and a box in the image, not crowds; training passes over images without any.

    Args:
        root: prepared directory.
        batch_size: images of a global batch over all processes (16 in the paper).
        seed: seed of the order and of the augmentation.
        shorter: shorter side of images that are evaluated, pixels.
        longest: longer side at most, in training, too.
        augment: change training images at random; else they are scaled as in evaluation.
        augmentation: by how much.
        empty_images: train on images without labelled persons, too.
        images: folder of the images, if they were moved after the preparation.
        workers: threads that read and decode ahead of the model.
        drop_last: leave the incomplete last batch of an epoch out.
        predict_root: directory of other prepared images to predict; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind.
        ConfigError: an option is out of range.
    """

    domain = "pose"

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        seed: int = 0,
        shorter: int = EVALUATED,
        longest: int = LONGEST,
        augment: bool = True,
        augmentation: Augmentation = Augmentation(),
        empty_images: bool = False,
        images: str | None = None,
        workers: int = 2,
        drop_last: bool = False,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, POOL, drop_last=drop_last, workers=workers, predict_root=predict_root)
        if not 1 <= shorter <= longest:
            raise ConfigError(f"data.shorter is {shorter}, data.longest {longest}: give sides of at least 1 pixel")
        self.card = read_people(self.root)
        keypoints = self.card["keypoints"]
        # what a model must know: plain values, linked to its constructor
        self.keypoint_names: list[str] = [str(name) for name in keypoints["names"]]
        self.n_keypoints = len(self.keypoint_names)
        self.sigmas: list[float] = [float(sigma) for sigma in keypoints["sigmas"]]
        self.flip_pairs: list[list[int]] = [[int(end) for end in pair] for pair in keypoints["flip_pairs"]]
        self.skeleton: list[list[int]] = [[int(end) for end in pair] for pair in keypoints["skeleton"]]
        self.protocol = str(self.card.get("protocol", "coco"))  # by which areas a test measures: coco or crowdpose
        self.shorter, self.longest = shorter, longest
        self.augment, self.augmentation, self.empty_images = augment, augmentation, empty_images
        self.images = None if images is None else Path(images)
        self._stores: dict[str, PeopleStore] = {}

    def input_rules(self) -> dict[str, Any]:
        """Sides in pixels, what is done to values in [0, 1], and the order of the keypoints that come out."""
        sides = {"shorter_side": self.shorter, "longest_side": self.longest, "padding": "right and bottom, zeros"}
        return {**sides, "channels": "RGB", "mean": MEAN, "std": STD, "keypoints": self.keypoint_names}

    def store(self, split: str) -> PeopleStore:
        """Images of one split; `predict` is `predict_root`, or else the test split."""
        if split not in self._stores:
            other = self.predict_root if split == "predict" else None
            root, card = (self.root, self.card) if other is None else (other, read_people(other))
            if len(card["keypoints"]["names"]) != self.n_keypoints:
                raise PreparedDataError(
                    f"{root}: has {len(card['keypoints']['names'])} keypoints, {self.root} {self.n_keypoints}; prepare "
                    "data of the same kind"
                )
            name = split if split != "predict" or "predict" in card["splits"] else "test"
            store = PeopleStore(root, card, name, self.images if other is None else None)
            self._stores[split] = store.with_persons() if split == "train" and not self.empty_images else store
        return self._stores[split]

    def collate_for(self, store: PeopleStore) -> Callable[[Batch], Batch]:
        """Make what decodes the images of a batch and adds their annotations."""
        return store.read

    def finish(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Scale and pad images, and bring annotations to shares of them.

        Args:
            batch: as a loader gives it.
            epoch: of the random changes; None: images are scaled as in evaluation, and persons that are not trained on
                stay.
        """
        result = {name: value for name, value in batch.items() if name not in ("pixels", "annotations")}
        pictures = []
        for pixels, found, row in zip(batch["pixels"], batch["annotations"], batch["row"].tolist(), strict=True):
            picture = Picture(pixels, found["keypoints"], found["boxes"], found["area"], found["labels"])
            pictures.append(self._changed(picture, epoch, row))
        result["image"], result["mask"] = padded([normalised(picture.image) for picture in pictures])
        area_of_box = self.card["area"] == "box"
        result["targets"] = [_relative(picture, area_of_box=area_of_box) for picture in pictures]
        return result

    def _changed(self, picture: Picture, epoch: int | None, row: int) -> Picture:
        if epoch is None or not self.augment:
            return resized(picture, self.shorter, self.longest)
        draw = torch.Generator().manual_seed(mix_seed(self.seed, epoch, row))
        return augmented(picture, self.flip_pairs, self.augmentation, self.longest, draw)

    def state_dict(self) -> dict[str, Any]:
        """As of every data module, and the keypoints that were trained on."""
        state = super().state_dict()
        return state | {"people": {"keypoints": self.keypoint_names}} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the keypoints with those that the weights are trained on.

        Raises:
            PreparedDataError: they are others, or in another order.
        """
        trained = state_dict.get("people", {}).get("keypoints", self.keypoint_names)
        if trained != self.keypoint_names:
            raise PreparedDataError(
                f"{self.root}: its keypoints are {', '.join(self.keypoint_names)}, those of the weights "
                f"{', '.join(trained)}; prepare data with the keypoints that were trained on"
            )
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "people"})

    def truth(self, split: str) -> tuple[Annotations, pl.DataFrame]:
        """All annotations of a split, crowds too, as the evaluator takes them, and its images."""
        store = self.store(split)
        table = store.persons
        image = store.frame["image_id"].to_numpy()[table["row"].to_numpy().astype(np.int64)]
        points = table["keypoints"].to_numpy().reshape(len(table), self.n_keypoints, 3)
        columns = (table[name].to_numpy() for name in ("box", "area", "crowd", "labelled"))
        return Annotations(image, points, *columns), store.frame


def augmented(
    picture: Picture,
    pairs: Sequence[Sequence[int]],
    augmentation: Augmentation,
    longest: int,
    draw: torch.Generator,
) -> Picture:
    """Flip, crop and scale an image at random, its annotations with it.

    Args:
        picture: to change.
        pairs: keypoints that change places in a mirror.
        augmentation: what may happen.
        longest: longer side at most, pixels.
        draw: where chance comes from; so many numbers are taken whatever happens.
    """
    chance = torch.rand(6, generator=draw).tolist()

    def pick(sizes: Sequence[int], number: float) -> int:
        return sizes[min(int(number * len(sizes)), len(sizes) - 1)]

    if chance[0] < augmentation.flip:
        picture = flipped(picture, [(pair[0], pair[1]) for pair in pairs])
    if chance[1] < augmentation.crop:
        picture = resized(picture, pick(augmentation.before_crop, chance[2]), longest)
        places = torch.rand(2, generator=draw).tolist()
        cuts = []
        for side, size, place in zip(picture.size, chance[3:5], places, strict=True):
            low, high = min(augmentation.smallest_crop, side), min(augmentation.largest_crop, side)
            length = pick(range(low, high + 1), size)
            cuts.append((pick(range(side - length + 1), place), length))
        (top, height), (left, width) = cuts
        picture = cropped(picture, top, left, height, width, drop_outside=augmentation.drop_outside)
    return resized(picture, pick(augmentation.sizes, chance[5]), longest)


def padded(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One batch of images of any size, with zeros at the right and the bottom.

    Shape:
        each (3, h, w) -> (B, 3, H, W) and (B, H, W) bool, true on padding; H and W are the largest.
    """
    if not images:  # a process may have no row of the last batch
        return torch.zeros(0, 3, NOTHING, NOTHING), torch.zeros(0, NOTHING, NOTHING, dtype=torch.bool)
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    batch = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[-2], : image.shape[-1]] = image
        mask[index, : image.shape[-2], : image.shape[-1]] = False
    return batch, mask


def _relative(picture: Picture, *, area_of_box: bool) -> dict[str, Tensor]:
    found = target(picture, area_of_box=area_of_box)
    return {
        "keypoints": found.keypoints,
        "visible": found.visible,
        "area": found.area,
        "boxes": relative_boxes(picture),
        "labels": found.classes(),
    }


def persons(targets: Sequence[Mapping[str, Tensor]]) -> list[Persons]:
    """The targets of a batch as the criterion takes them."""
    return [Persons(each["keypoints"], each["visible"], each["area"], each["labels"]) for each in targets]
