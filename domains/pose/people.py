"""Prepared images of persons on disk: the only place of this domain that knows how they lie there."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor

from domains.common.card import read_card
from domains.common.errors import PreparedDataError
from domains.common.indexed import IndexStore, read_index
from domains.common.loader import Batch
from domains.pose.grouppose import PERSON

INDEX = ("row", "image_id", "file", "image", "stored", "width", "height", "persons")
PERSONS = ("row", "annotation_id", "box", "area", "crowd", "labelled", "keypoints")


class PeopleStore(IndexStore):
    """Images of a split, and the annotations of each.

    Args:
        root: prepared directory.
        card: its `dataset.json`.
        split: name of the split.
        images: folder of the images, if they were moved.

    Raises:
        PreparedDataError: a file is missing, or of another form.
    """

    def __init__(self, root: Path, card: Mapping[str, Any], split: str, images: Path | None = None) -> None:
        super().__init__(root, read_index(root, card, split, INDEX), split)
        self.card, self.where = card, images if images is not None else Path(card["image_root"])
        entry = card["splits"][split]
        self.persons = read_index(root, {"splits": {split: {"parts": entry["persons"]}}}, split, PERSONS)
        if len(self.persons) and int(self.persons["row"].max()) >= len(self.frame):  # type: ignore[arg-type]
            raise PreparedDataError(f"{root}: persons of {split} are of images that are not there; prepare it again")
        rows = self.persons["row"].to_numpy().astype(np.int64)
        self._ends = np.searchsorted(rows, np.arange(len(self.frame) + 1))
        n_keypoints = len(card["keypoints"]["names"])
        self._points = torch.from_numpy(self.persons["keypoints"].to_numpy().astype(np.float32))
        self._points = self._points.reshape(len(rows), n_keypoints, 3)
        box = torch.from_numpy(self.persons["box"].to_numpy().astype(np.float32)).reshape(-1, 4)
        self._corners = torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], 1)
        self._area = torch.from_numpy(self.persons["area"].to_numpy().astype(np.float32))
        self._used = torch.from_numpy(((~self.persons["crowd"]) & (self.persons["labelled"] > 0)).to_numpy().copy())
        self._kept = np.arange(len(self.frame))

    def with_persons(self) -> PeopleStore:
        """The same without images that have no person with a labelled keypoint."""
        self._kept = np.flatnonzero((self.frame["persons"] > 0).to_numpy())
        self.sizes = [len(self._kept)]
        return self

    def load(self, block: int) -> Batch:
        """Return the rows of all images."""
        del block
        return {"row": torch.from_numpy(self._kept.astype(np.int64))}

    def read(self, batch: Batch) -> Batch:
        """Decode images; several threads may call this at the same time.

        Shape:
            adds pixels: a list of (3, H, W) uint8; annotations: a list of dictionaries with keypoints (M, K, 3), boxes
            (M, 4) as left, top, right, bottom, and area (M,), in pixels, and labels (M,).
        """
        table = self.at(batch["row"])
        pixels = [read_rgb(self._path(image, stored=stored)) for image, stored in table["image", "stored"].iter_rows()]
        sizes = torch.tensor([image.shape[-2:] for image in pixels], dtype=torch.int64).reshape(-1, 2)
        self._check_sizes(table, sizes)
        return {
            **batch,
            "image_id": torch.from_numpy(table["image_id"].to_numpy().copy()),
            "size": sizes,
            "file": table["file"].to_list(),
            "pixels": pixels,
            "annotations": [
                self.annotations(row, size) for row, size in zip(batch["row"].tolist(), sizes, strict=True)
            ],
        }

    def annotations(self, row: int, size: Tensor) -> dict[str, Tensor]:
        """Persons of an image that can be learned: no crowds, with a labelled keypoint, and a box in the image."""
        begin, end = int(self._ends[row]), int(self._ends[row + 1])
        limit = size.flip(0).repeat(2).to(torch.float32)
        corners = torch.minimum(self._corners[begin:end], limit).clamp(min=0)
        kept = self._used[begin:end] & (corners[:, 2:] > corners[:, :2]).all(1)
        return {
            "keypoints": self._points[begin:end][kept],
            "boxes": corners[kept],
            "area": self._area[begin:end][kept],
            "labels": torch.full((int(kept.sum()),), PERSON, dtype=torch.int64),
        }

    def locations(self, rows: Sequence[int]) -> list[str]:
        """Where the files of some images lie."""
        chosen = self.frame["image", "stored"][list(rows)]
        return [str(self._path(image, stored=stored)) for image, stored in chosen.iter_rows()]

    def _path(self, image: str, *, stored: bool) -> Path:
        return (self.root if stored else self.where) / image

    def _check_sizes(self, table: pl.DataFrame, sizes: Tensor) -> None:
        said = torch.from_numpy(table.select("height", "width").to_numpy().astype(np.int64)).reshape(-1, 2)
        wrong = (said != sizes).any(1).nonzero()
        if len(wrong):
            at = int(wrong[0])
            path = self._path(table["image"][at], stored=table["stored"][at])
            raise PreparedDataError(
                f"{path}: has {sizes[at, 1]} x {sizes[at, 0]} pixels, {said[at, 1]} x {said[at, 0]} when it was "
                "prepared; restore it, or prepare the data again"
            )


def read_people(root: Path) -> dict[str, Any]:
    """Read `dataset.json` of prepared images of persons.

    Raises:
        PreparedDataError: it is missing, or holds something else.
    """
    card = read_card(root, "pose")
    if card.get("kind") != "people":
        raise PreparedDataError(
            f"{root}: holds {card.get('kind')!r}, Group Pose needs kind 'people'; choose --system or --data.root"
        )
    return card


def read_rgb(path: Path) -> Tensor:
    """Decode an image as it is stored; its orientation was seen to by the preparation.

    Shape:
        (3, H, W) uint8.

    Raises:
        PreparedDataError: the file is missing or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                pixels = np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise PreparedDataError(
            f"{path}: the image is not there; if the images were moved, give their folder as data.images"
        ) from None
    except Exception as error:  # a damaged header can break a decoder anywhere
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise PreparedDataError(f"{path}: cannot be read ({reason}); restore it, or prepare the data again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
