"""Prepared faces as batches: the only place of this domain that knows their layout on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from domains.common.card import read_card
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.folds import apply_split_file
from domains.common.indexed import IndexStore, read_index
from domains.common.loader import Batch
from domains.common.pictures import PicturesData, draw_numbers
from domains.expression.augment import Augmentation, DrawnChanges
from domains.expression.images import FaceReader
from domains.expression.sampling import BalancedEpochs

INDEX = ("row", "name", "subject", "image", "at")
NAMES = ("name", "subject", "source", "frame", "time_s")  # that predictions keep
# of ImageNet, which all published weights were trained with; grey is the mean of the colours
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_faces_card(root: Path) -> dict[str, Any]:
    """Read `dataset.json` of prepared faces.

    Raises:
        PreparedDataError: it is missing, or holds something else.
    """
    card = read_card(root, "expression")
    if card.get("kind") != "faces":
        raise PreparedDataError(f"{root}: holds {card.get('kind')!r}, this system needs faces; choose --data.root")
    return card


def normalise(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation; of grey images those of the mean of the colours.

    Shape:
        (B, 1 or 3, H, W) float32 in [0, 1] -> same, about 0.
    """
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    if images.shape[1] == 1:
        mean, std = mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
    return (images - mean) / std


class ExpressionData(PicturesData[FaceReader]):
    """Faces prepared by `heptad expression prep`.

    A batch has `image` (B, channels, side, side) float32, normalised, `label` (B,) int64, `row`, the names of its rows
    and, where labels are votes, `target` (B, C) float32. Faces are decoded by threads, and kept in memory where they
    fit; what is random happens afterwards on the device.

    Args:
        root: prepared directory.
        batch_size: images of a global batch over all processes.
        seed: seed of the order and of the augmentation.
        per_class: images of each class that an epoch draws (500 in the paper); 0: every image once.
        per_source: most frames of one video that an epoch draws from; 0: all.
        augment: change training images at random.
        augmentation: by how much.
        soft_targets: train on the shares of votes, where the preparation kept them.
        fold: number of the fold of cross-validation to use in the place of the split (`prep --folds`).
        cache_mb: mebibytes that the faces of a split may take to be kept in memory.
        workers: threads that read and decode ahead of the model.
        drop_last: leave the incomplete last batch of an epoch out.
        predict_root: directory of newly prepared faces to predict; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind.
        ConfigError: an option is out of range.
    """

    domain = "expression"

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        seed: int = 0,
        per_class: int = 0,
        per_source: int = 0,
        augment: bool = True,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (it is frozen)
        soft_targets: bool = True,
        fold: int | None = None,
        cache_mb: int = 1024,
        workers: int = 1,
        drop_last: bool = False,
        predict_root: str | None = None,
    ) -> None:
        options: dict[str, Any] = {"drop_last": drop_last, "workers": workers, "predict_root": predict_root}
        super().__init__(root, batch_size, seed, cache_mb, **options)
        if per_class < 0 or per_source < 0:
            raise ConfigError("data.per_class and data.per_source must be 0 or more")
        self.card = read_faces_card(self.root)
        # what a report must know to tell the numbers of this run, and what it did not try
        self.card["used"] = {"fold": fold, "per_class": per_class, "balanced_loss": False}
        # what a model must know: plain values, linked to its constructor
        self.classes: list[str] = [str(name) for name in self.card["classes"]]
        self.side, self.channels = int(self.card.get("side") or 48), int(self.card["channels"])
        self.per_class, self.per_source = per_class, per_source
        self.augment, self.augmentation, self.soft_targets = augment, augmentation, soft_targets
        self.fold = fold

    def setup(self, stage: str) -> None:
        """Take the size and the channels that the network takes, which is trained or used."""
        del stage
        if self.trainer is not None:
            self.take_shape(self.trainer.lightning_module)

    def take_shape(self, module: Any) -> None:
        """Take size and channels from the network of a module; without one they are those of the prepared faces."""
        self.side, self.channels = module.net.image_size, module.net.channels
        self.card["used"]["balanced_loss"] = module.balanced_loss

    def input_rules(self) -> dict[str, Any]:
        """Side in pixels, and what is subtracted from values in [0, 1] and they are divided by."""
        mean, std = (statistic if self.channels == 3 else [sum(statistic) / 3] for statistic in (MEAN, STD))
        channels = "RGB" if self.channels == 3 else "grey"
        return {"height": self.side, "width": self.side, "channels": channels, "mean": mean, "std": std}

    def index(self, split: str) -> tuple[Path, pl.DataFrame]:
        """Directory and rows of a split; `predict` is `predict_root`, or else the test split."""
        if split == "predict" and self.predict_root is not None:
            card = read_faces_card(self.predict_root)
            return self.predict_root, read_index(self.predict_root, card, next(iter(card["splits"])), INDEX)
        name = "test" if split == "predict" else split
        if self.fold is None:
            return self.root, read_index(self.root, self.card, name, INDEX)
        path = self.root / "folds" / f"splits_{self.fold}.csv"
        if not path.is_file():
            count = int(self.card.get("folds") or 0)
            has = f"it has folds 0 to {count - 1}" if count else "prepare the data with --folds 10"
            raise ConfigError(f"data.fold {self.fold}: {self.root} has no such fold; {has}")
        rule = "`heptad expression prep --folds`"
        unit = "subject" if self.card["group"]["kept_apart"] else "name"
        return self.root, apply_split_file(self.root, path, name, unit=unit, item="image", remedy=rule)

    def reader(self, split: str) -> FaceReader:
        """Make the reader of the faces of one split."""
        return FaceReader(IndexStore(*self.index(split), split), self.channels, self.side, cache_mb=self.cache_mb)

    def collate_for(self, store: IndexStore) -> Callable[[Batch], Batch]:
        """Make what reads the faces of a batch and names them."""
        return FaceCollate(self.reader_of(store), soft_targets=self.soft_targets, n_classes=len(self.classes))

    def order_for(self, store: IndexStore) -> BalancedEpochs | None:
        """Equal shares of the classes in each epoch, and no more of a video than its share, where asked for."""
        if not self.per_class and not self.per_source:
            return None
        sources = store.frame["source"].fill_null("").to_list() if "source" in store.frame.columns else []
        labels = store.load(0)["label"]
        return BalancedEpochs(
            labels, len(self.classes), self.per_class, self.seed, per_source=self.per_source, sources=sources
        )

    def _order(self) -> dict[str, Any]:
        return super()._order() | {"per_class": self.per_class, "per_source": self.per_source, "fold": self.fold}

    def finish(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Turn pixels into what the network takes.

        Args:
            batch: as a loader gives it.
            epoch: of the random changes; None: the images stay as they are.
        """
        image = batch["image"].float() / 255
        if epoch is not None and self.augment and len(image):
            image = DrawnChanges(self.augmentation, self.seed, epoch, batch["draw"]).apply(image)
        return {**batch, "image": normalise(image)}


class FaceCollate:
    """Rows of an `IndexStore` -> faces, names, and the number that their random changes are drawn with.

    Args:
        reader: of the faces.
        soft_targets: give the shares of votes.
        n_classes: C.
    """

    def __init__(self, reader: FaceReader, *, soft_targets: bool, n_classes: int) -> None:
        self.reader = reader
        frame = reader.store.frame
        self.names = [name for name in NAMES if name in frame.columns and frame[name].is_not_null().any()]
        self.targets: Tensor | None = None
        if soft_targets and "target" in frame.columns and reader.store.split == "train":
            one_hot = torch.eye(n_classes)[torch.from_numpy(frame["label"].to_numpy().astype("int64"))]
            known = frame["target"].is_not_null().to_list()
            given = [row if row is not None else [0.0] * n_classes for row in frame["target"].to_list()]
            self.targets = torch.where(torch.tensor(known)[:, None], torch.tensor(given), one_hot)

    def __call__(self, batch: Batch) -> Batch:
        """Read; `draw` (B,) int64 differs for each time that an image is taken in an epoch."""
        result = {name: value for name, value in batch.items() if name != "position"}
        rows = batch["row"]
        table = self.reader.store.at(rows)
        for name in self.names:
            blank = "" if table[name].dtype == pl.String else -1
            result[name] = table[name].fill_null(blank).to_list()
        if self.targets is not None:
            result["target"] = self.targets[rows]
        return {**result, **self.reader.read(rows), "draw": draw_numbers(batch, len(self.reader.images))}
