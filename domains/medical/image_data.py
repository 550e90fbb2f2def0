"""Prepared chest X-rays as batches of two views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from domains.common.errors import ConfigError, PreparedDataError
from domains.common.indexed import IndexStore, read_index
from domains.common.loader import Batch
from domains.common.pictures import PicturesData, draw_numbers
from domains.medical.augment import Augmentation, DrawnChanges
from domains.medical.bags import NAMES
from domains.medical.data import read_kind
from domains.medical.images import ViewReader, z_scores
from domains.medical.sampling import BalancedSampling

INDEX = ("row", "name", "patient", "image")
SIDES = {"side": 480, "gray_side": 256}  # where no network tells its own


class ImageData(PicturesData[ViewReader]):
    """Chest X-rays prepared by `heptad medical prep`.

    A batch has `image` (B, channels, side, side) float32 in [0, 1] for the classification network, `gray` (B, 1,
    gray_side, gray_side) float32 z-scores of each image for the attention body, `label` (B,) int64, `row`, the names
    of its rows and, with `masks`, `mask` (B, 1, gray_side, gray_side) float32 and `has_mask` (B,) bool. Files are
    decoded by threads; what is random happens afterwards on the device, to all views alike.

    Args:
        root: prepared directory.
        batch_size: images of a global batch over all processes.
        seed: seed of the order and of the augmentation.
        side: of the view for the classification network, pixels; default the network's own (480, `medusa_tiny` 28).
        gray_side: of the view for the body; default the network's own (256, `medusa_tiny` 28).
        channels: 1 for grey, 3 for RGB; default as the images were prepared.
        balanced: batches with as many images of each class; an epoch is then a pass over the first class.
        augment: change training images at random.
        augmentation: by how much.
        masks: read lung masks where there are some.
        cache_mb: mebibytes that the decoded views of a split may take to be kept in memory.
        workers: threads that read and decode ahead of the model.
        drop_last: leave the incomplete last batch of an epoch out.
        predict_root: directory of newly prepared images to predict; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind.
        ConfigError: an option is out of range.
    """

    domain = "medical"

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        seed: int = 0,
        side: int | None = None,
        gray_side: int | None = None,
        channels: int | None = None,
        balanced: bool = False,
        augment: bool = True,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (it is frozen)
        masks: bool = False,
        cache_mb: int = 1024,
        workers: int = 2,
        drop_last: bool = False,
        predict_root: str | None = None,
    ) -> None:
        options: dict[str, Any] = {"drop_last": drop_last, "workers": workers, "predict_root": predict_root}
        super().__init__(root, batch_size, seed, cache_mb, **options)
        for name, value in {"side": side, "gray_side": gray_side}.items():
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} is {value}; it must be at least 1 pixel")
        if channels not in (None, 1, 3):
            raise ConfigError(f"data.channels is {channels}; images are grey (1) or RGB (3)")
        self.card = read_kind(self.root, "images")
        # what a model must know: plain values, linked to its constructor
        self.classes: list[str] = [str(name) for name in self.card["classes"]]
        self.side, self.gray_side = side, gray_side
        self.channels = int(self.card.get("channels", 1)) if channels is None else channels
        self.balanced, self.augment, self.augmentation = balanced, augment, augmentation
        self.masks = masks

    def setup(self, stage: str) -> None:
        """Leave sides that were not given to the network that is trained or used."""
        del stage
        if self.trainer is not None:
            self.take_sides(self.trainer.lightning_module)

    def take_sides(self, module: Any) -> None:
        """Take the sides that were not given from the network of a module."""
        net = getattr(module, "net", None)
        for name in SIDES:
            if getattr(self, name) is None and hasattr(net, name):
                setattr(self, name, getattr(net, name))

    def input_rules(self) -> dict[str, Any]:
        """Both views: sides in pixels, channels, and what is done to values in [0, 1]."""
        side, gray_side = self.side or SIDES["side"], self.gray_side or SIDES["gray_side"]
        image = {"height": side, "width": side, "channels": self.channels, "values": "0 to 1"}
        gray = {"height": gray_side, "width": gray_side, "channels": 1, "values": "z-scores of each image"}
        return {"image": image, "gray": gray}

    def index(self, split: str) -> tuple[Path, pl.DataFrame]:
        """Directory and rows of a split; `predict` is `predict_root`, or else the test split."""
        if split == "predict" and self.predict_root is not None:
            card = read_kind(self.predict_root, "images")
            return self.predict_root, read_index(self.predict_root, card, next(iter(card["splits"])), INDEX)
        name = "test" if split == "predict" else split
        return self.root, read_index(self.root, self.card, name, INDEX)

    def reader(self, split: str) -> ViewReader:
        """Make the reader of the views of one split."""
        side, gray_side = self.side or SIDES["side"], self.gray_side or SIDES["gray_side"]
        store = IndexStore(*self.index(split))
        return ViewReader(store, self.channels, side, gray_side, masks=self.masks, cache_mb=self.cache_mb)

    def collate_for(self, store: IndexStore) -> Callable[[Batch], Batch]:
        """Make what decodes the images of a batch and names them."""
        return ImageCollate(self.reader_of(store))

    def order_for(self, store: IndexStore) -> BalancedSampling | None:
        """Equal shares of the classes in each batch, where they are asked for."""
        if not self.balanced:
            return None
        labels = store.load(0).get("label")
        if labels is None:
            raise PreparedDataError(f"{self.root}: data.balanced needs labels; prepare the data with them")
        return BalancedSampling(labels, len(self.classes), self.batch_size, self.seed)

    def _order(self) -> dict[str, Any]:
        return super()._order() | {"balanced": self.balanced}

    def finish(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Turn pixels into what the network takes.

        Args:
            batch: as a loader gives it.
            epoch: of the random changes; None: the images stay as they are.
        """
        result = dict(batch)
        changes = None
        if epoch is not None and self.augment and len(batch["draw"]):  # a process may have no row of the last batch
            changes = DrawnChanges(self.augmentation, self.seed, epoch, batch["draw"])
        image = batch["image"].float() / 255
        gray = batch["gray"].float() / 255 if "gray" in batch else image
        if changes is not None:
            same = gray is image
            image = changes.image(image)
            gray = image if same else changes.image(gray)
        result["image"], result["gray"] = image, z_scores(gray)
        if "mask" in batch:
            mask = batch["mask"].float()
            result["mask"] = mask if changes is None else changes.mask(mask)
        return result


class LungData(ImageData):
    """The images that have a lung mask, for the first step of MEDUSA's training; labels play no part.

    Args:
        root: prepared directory.
        gray_side: of the view and of the mask, pixels.
        **options: other options of `ImageData`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, of another kind, or has no masks.
        ConfigError: an option is out of range.
    """

    def __init__(self, root: str, gray_side: int = 256, **options: Any) -> None:
        super().__init__(root, side=gray_side, gray_side=gray_side, channels=1, balanced=False, masks=True, **options)

    def index(self, split: str) -> tuple[Path, pl.DataFrame]:
        """Rows with a mask; for `predict` all rows of `predict_root`."""
        root, frame = super().index(split)
        if split == "predict" and self.predict_root is not None:
            return root, frame
        masked = frame.filter(pl.col("mask").is_not_null()) if "mask" in frame.columns else frame.clear()
        if not len(masked):
            raise PreparedDataError(
                f"{root}: split {split!r} has no lung masks; prepare the data with masks, or train without this step"
            )
        return root, masked


class ImageCollate:
    """Rows of an `IndexStore` -> views, names, and the number that their random changes are drawn with."""

    def __init__(self, reader: ViewReader) -> None:
        self.reader = reader

    def __call__(self, batch: Batch) -> Batch:
        """Decode; `draw` (B,) int64 differs for each time that an image is taken in an epoch."""
        result = {name: value for name, value in batch.items() if name != "position"}
        table = self.reader.store.at(batch["row"])
        names = {name: table[name].fill_null("").to_list() for name in NAMES if name in table.columns}
        draw = draw_numbers(batch, len(self.reader.images))
        return {**result, **names, **self.reader.read(batch["row"]), "draw": draw}
