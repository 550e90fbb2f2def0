"""Prepared slides and chest X-rays as batches: the only place of this domain that knows their layout on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from domains.common.card import read_card
from domains.common.data import HeptadData
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.folds import apply_split_file
from domains.common.indexed import IndexStore, read_index
from domains.common.loader import Batch
from domains.medical.bags import INDEX, BagReader

POOL = 1 << 20  # rows of an index that are permuted together: all of it


def read_kind(root: Path, kind: str) -> dict[str, Any]:
    """Read `dataset.json` of a prepared directory of this domain.

    Raises:
        PreparedDataError: it is missing, or holds something else.
    """
    card = read_card(root, "medical")
    if card.get("kind") != kind:
        other = {"bags": "slides", "images": "X-rays"}.get(str(card.get("kind")), str(card.get("kind")))
        raise PreparedDataError(
            f"{root}: holds {other}, this system needs kind {kind!r}; choose --system or --data.root"
        )
    return card


class BagData(HeptadData):
    """Slides prepared by `heptad medical prep`: bags of patch features.

    Args:
        root: prepared directory.
        batch_size: slides of a global batch over all processes (1 in the paper).
        seed: seed of the order of slides.
        drop_last: leave the incomplete last batch of an epoch out.
        workers: threads that read slides ahead of the model; each holds one batch.
        cache_mb: mebibytes of features that are kept in memory, as they are stored.
        splits: a CLAM split file (columns train, val, test) to use in the place of the prepared split.
        predict_root: directory of newly encoded slides to predict; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind.
        ConfigError: an option is out of range.
    """

    domain = "medical"

    def __init__(
        self,
        root: str,
        batch_size: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 1,
        cache_mb: int = 1024,
        splits: str | None = None,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, POOL, drop_last=drop_last, workers=workers, predict_root=predict_root)
        if cache_mb < 0:
            raise ConfigError(f"data.cache_mb is {cache_mb}; give 0 or more")
        self.card = read_kind(self.root, "bags")
        # what a model must know: plain values, linked to its constructor
        self.classes: list[str] = [str(name) for name in self.card["classes"]]
        self.feature_dim = int(self.card["feature_dim"])
        self.cache_mb = cache_mb
        self.splits = None if splits is None else Path(splits)

    def store(self, split: str) -> IndexStore:
        """Slides of one split; `predict` is `predict_root`, or else the test split."""
        if split == "predict" and self.predict_root is not None:
            card = read_kind(self.predict_root, "bags")
            if card["feature_dim"] != self.feature_dim:
                raise PreparedDataError(
                    f"{self.predict_root}: features of width {card['feature_dim']}, the model takes {self.feature_dim};"
                    " extract them with the same encoder"
                )
            frame = read_index(self.predict_root, card, next(iter(card["splits"])), INDEX)
            return IndexStore(self.predict_root, frame, split)
        name = "test" if split == "predict" else split
        if self.splits is not None:
            return IndexStore(self.root, apply_split_file(self.root, self.splits, name), split)
        return IndexStore(self.root, read_index(self.root, self.card, name, INDEX), split)

    def collate_for(self, store: IndexStore) -> Callable[[Batch], Batch]:
        """Make what reads the bags of a batch; places of patches where nothing is trained."""
        return BagReader(store, self.cache_mb, coords=store.split not in ("train", "valid"))

    def feature_statistics(self) -> tuple[Any, Any]:
        """Mean and standard deviation of each feature over the training slides."""
        return BagReader(self.store("train")).statistics()
