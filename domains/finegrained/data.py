"""Prepared pictures as batches: the only place of this domain that knows their layout on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from domains.common.card import read_card
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.indexed import IndexStore, read_index
from domains.common.loader import Batch
from domains.common.pictures import PicturesData, draw_numbers
from domains.finegrained.augment import Augmentation, DrawnChanges, centre_cut
from domains.finegrained.images import REGION, RegionReader, locations
from domains.finegrained.sampling import IdentitySampling

INDEX = ("row", "name", "image", "stored", *REGION)
CLASSES, IDENTITIES = "classes", "identities"
ROLES = {"": 0, "query": 1, "gallery": 2}
REID = Augmentation(pad=10, erase=0.5)


def read_kind(root: Path, kind: str) -> dict[str, Any]:
    """Read `dataset.json` of a prepared directory of this domain.

    Raises:
        PreparedDataError: it is missing, or holds something else.
    """
    card = read_card(root, "finegrained")
    if card.get("kind") != kind:
        other = "classes" if card.get("kind") == CLASSES else str(card.get("kind"))
        raise PreparedDataError(
            f"{root}: holds {other}, this system needs kind {kind!r}; choose --system or --data.root"
        )
    return card


class PictureData(PicturesData[RegionReader]):
    """Pictures prepared by `heptad finegrained prep`; a subclass says of which kind.

    A batch has `image` (B, 3, *image_size) float32 in [0, 1], `label` (B,) int64, `row` and `name`. Files are decoded
    by threads, and kept in memory where they fit; what is random happens afterwards on the device.

    Args:
        root: prepared directory.
        batch_size: pictures of a global batch over all processes.
        seed: seed of the order and of the augmentation.
        image_size: height and width that the network takes.
        resize: height and width that pictures are brought to before a place is cut out.
        augment: change training pictures at random.
        augmentation: by how much.
        cache_mb: mebibytes that the pictures of a split may take to be kept in memory.
        workers: threads that read and decode ahead of the model.
        drop_last: leave the incomplete last batch of an epoch out.
        predict_root: directory of newly prepared pictures to predict; default the test split of `root`.
        images: folder of the pictures, if they were moved after the preparation.
        kind: of the prepared directory.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind.
        ConfigError: an option is out of range.
    """

    domain = "finegrained"

    def __init__(
        self,
        root: str,
        batch_size: int,
        seed: int,
        image_size: Sequence[int],
        resize: Sequence[int] | None,
        augment: bool,
        augmentation: Augmentation,
        cache_mb: int,
        workers: int,
        drop_last: bool,
        predict_root: str | None,
        images: str | None,
        kind: str,
    ) -> None:
        options: dict[str, Any] = {"drop_last": drop_last, "workers": workers, "predict_root": predict_root}
        super().__init__(root, batch_size, seed, cache_mb, **options)
        self.kind, self.card = kind, read_kind(self.root, kind)
        self.image_size = [int(side) for side in image_size]
        self.resize = self.image_size if resize is None else [int(side) for side in resize]
        if len(self.image_size) != 2 or len(self.resize) != 2 or min(self.image_size) < 1:
            raise ConfigError(
                f"data.image_size {self.image_size}, data.resize {self.resize}: give height and width of each"
            )
        if any(whole < part for whole, part in zip(self.resize, self.image_size, strict=True)):
            raise ConfigError(
                f"data.resize {self.resize} is smaller than data.image_size {self.image_size}; enlarge it"
            )
        self.augment, self.augmentation = augment, augmentation
        self.images = None if images is None else Path(images)

    def index(self, split: str) -> tuple[Path, pl.DataFrame]:
        """Directory and rows of a split; `predict` is `predict_root`, or else the test split.

        The column `path` says where each picture lies.
        """
        root, card, name, moved = self.root, self.card, "test" if split == "predict" else split, self.images
        if split == "predict" and self.predict_root is not None:
            root, card, moved = self.predict_root, read_kind(self.predict_root, self.kind), None
            name = next(iter(card["splits"]))
        frame = read_index(root, card, name, INDEX)
        paths = locations(root, card["image_root"] if moved is None else str(moved), frame)
        return root, frame.with_columns(path=pl.Series(paths, dtype=pl.String))

    def input_rules(self) -> dict[str, Any]:
        """Sides in pixels: what pictures are brought to, and the middle that is cut out of it."""
        return {"channels": "RGB", "resize": self.resize, "image_size": self.image_size}

    def reader(self, split: str) -> RegionReader:
        """Make the reader of the pictures of one split."""
        return RegionReader(IndexStore(*self.index(split), split), self.resize, self.cache_mb)

    def collate_for(self, store: IndexStore) -> Callable[[Batch], Batch]:
        """Make what decodes the pictures of a batch and names them."""
        return PictureCollate(self.reader_of(store))

    def finish(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Cut out what the network takes.

        Args:
            batch: as a loader gives it.
            epoch: of the random changes; None: the middle of the picture, unchanged.
        """
        image = batch["image"]
        if epoch is None or not self.augment or not len(image):
            return {**batch, "image": centre_cut(image, self.image_size)}
        changes = DrawnChanges(self.augmentation, self.seed, epoch, batch["draw"])
        return {**batch, "image": changes.apply(image, self.image_size)}


class ClassData(PictureData):
    """Pictures of fine-grained classes, see `PictureData`.

    Args:
        root: prepared directory.
        batch_size: pictures of a global batch over all processes.
        seed: seed of the order and of the augmentation.
        image_size: height and width that the network takes.
        resize: height and width that pictures are brought to before a place is cut out; default 550/448 of image_size.
        augment: change training pictures at random.
        augmentation: by how much.
        cache_mb: mebibytes that the pictures of a split may take to be kept in memory.
        workers: threads that read and decode ahead of the model.
        drop_last: leave the incomplete last batch of an epoch out.
        predict_root: directory of newly prepared pictures to predict; default the test split of `root`.
        images: folder of the pictures, if they were moved after the preparation.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        seed: int = 0,
        image_size: tuple[int, int] = (448, 448),
        resize: tuple[int, int] | None = None,
        augment: bool = True,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (it is frozen)
        cache_mb: int = 1024,
        workers: int = 2,
        drop_last: bool = True,
        predict_root: str | None = None,
        images: str | None = None,
    ) -> None:
        before = tuple(round(side * 550 / 448) for side in image_size) if resize is None else resize
        super().__init__(
            root, batch_size, seed, image_size, before, augment, augmentation, cache_mb, workers, drop_last,
            predict_root, images, CLASSES,
        )  # fmt: skip
        # what a model must know: plain values, linked to its constructor
        self.classes: list[str] = [str(name) for name in self.card["classes"]]


class IdentityData(PictureData):
    """Pictures of people or objects that are to be found again, see `PictureData`; tests have queries and a gallery.

    A batch also has `role` (B,) int64 (0 trained on, 1 query, 2 gallery) and `camera` (B,) int64, a number that stands
    for the name of a camera, -1 where unknown.

    Args:
        root: prepared directory.
        batch_size: pictures of a global batch over all processes: identities times `instances`.
        instances: pictures of each identity in a batch; 0: every picture once an epoch, in any order.
        seed: seed of the order and of the augmentation.
        image_size: height and width that the network takes; 256 x 128 for persons, 256 x 256 for vehicles.
        resize: height and width that pictures are brought to before a place is cut out; default image_size.
        augment: change training pictures at random.
        augmentation: by how much; default that of TransReID.
        cache_mb: mebibytes that the pictures of a split may take to be kept in memory.
        workers: threads that read and decode ahead of the model.
        drop_last: leave the incomplete last batch of an epoch out, without `instances`.
        predict_root: directory of newly prepared pictures to predict; default the test split of `root`.
        images: folder of the pictures, if they were moved after the preparation.
        ignore_camera: pictures by the query's own camera are matches, too; default what the preparation says, which
            ignores cameras that are not known.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        instances: int = 4,
        seed: int = 0,
        image_size: tuple[int, int] = (256, 128),
        resize: tuple[int, int] | None = None,
        augment: bool = True,
        augmentation: Augmentation = REID,
        cache_mb: int = 1024,
        workers: int = 2,
        drop_last: bool = True,
        predict_root: str | None = None,
        images: str | None = None,
        ignore_camera: bool | None = None,
    ) -> None:
        super().__init__(
            root, batch_size, seed, image_size, resize, augment, augmentation, cache_mb, workers, drop_last,
            predict_root, images, IDENTITIES,
        )  # fmt: skip
        if instances < 0:
            raise ConfigError(f"data.instances is {instances}; give 0 or more pictures of each identity")
        self.instances = instances
        self.identities: list[str] = [str(name) for name in self.card["identities"]]
        said = bool(self.card["evaluation"]["ignore_camera"])
        self.ignore_camera = said if ignore_camera is None else ignore_camera

    def index(self, split: str) -> tuple[Path, pl.DataFrame]:
        """Directory and rows of a split, see `PictureData.index`; the column `camera_name` says what the data call it.

        It is empty where the camera is not known.
        """
        root, frame = super().index(split)
        names = {code: str(name) for code, name in enumerate(self.card.get("cameras", []))}
        called = [names.get(code, "" if code < 0 else f"number {code}") for code in frame["camera"].to_list()]
        return root, frame.with_columns(camera_name=pl.Series(called, dtype=pl.String))

    def order_for(self, store: IndexStore) -> IdentitySampling | None:
        """Batches of P identities with K pictures each."""
        if not self.instances:
            return None
        return IdentitySampling(store.load(0)["label"], self.batch_size, self.instances, self.seed)

    def _order(self) -> dict[str, Any]:
        return super()._order() | {"instances": self.instances}


class PictureCollate:
    """Rows of an `IndexStore` -> pictures, names, and the number that their random changes are drawn with."""

    def __init__(self, reader: RegionReader) -> None:
        self.reader = reader

    def __call__(self, batch: Batch) -> Batch:
        """Decode; `draw` (B,) int64 differs for each time that a picture is taken in an epoch."""
        result = {name: value for name, value in batch.items() if name != "position"}
        table = self.reader.store.at(batch["row"])
        result |= {**self.reader.read(batch["row"]), "name": table["name"].to_list()}
        result["draw"] = draw_numbers(batch, len(self.reader.paths))
        if "role" in table.columns:
            result["role"] = torch.tensor([ROLES[role or ""] for role in table["role"]], dtype=torch.int64)
            result["camera"] = torch.from_numpy(table["camera"].to_numpy().astype("int64"))
        return result
