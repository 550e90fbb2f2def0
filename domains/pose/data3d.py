"""Prepared sequences as batches: windows to train ConvFormer on, whole clips where it is tested."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from domains.common.data import HeptadData
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.loader import Batch, BatchLoader, mix_seed
from domains.pose.layouts import mirror
from domains.pose.sequences import PREPARED, ClipStore, WindowStore, index_rates, layout_of, read_sequences

POOL = 1 << 30  # windows that are permuted together: all of them
CLIPS = 4  # clips of a batch of each process where nothing is trained
RATES = 0.1  # relative difference of frame rates that is not worth a word
Mirror = Literal["both", "random", "none"]


class SequenceData(HeptadData):
    """Sequences of 2D joints and 3D poses prepared by `heptad pose prep`.

    A training batch has `keypoints` (B, T, J, 2) float32, screen units, of T frames; of the middle one `pose` (B, J, 3)
    float32, metres in the axes of the camera and relative to the root, and `known` (B, J) bool, false where the true
    joint is not known; and `row` (B,). Windows that leave their clip repeat its first or last frame. Elsewhere a batch
    holds whole clips: lists of `keypoints` (N, J, 2), `pose` (N, J, 3) and `known` (N, J), and their names.

    Args:
        root: prepared directory.
        batch_size: windows of a global batch over all processes (1,024 in the paper).
        seed: seed of the order and of the mirror.
        frames: T of a window, odd; fewer are in clips that are shorter.
        stride: frames between two windows of training; a test is of every frame.
        mirror: both: each window and its mirror are in an epoch (as VideoPose3D does); random: each is mirrored or not;
            none.
        keypoints: tensor of the clip files that holds the 2D joints, in pixels; other detections may be added to them
            under another name. projected: made of the 3D poses, where the lens is known.
        drop_last: leave the incomplete last batch of an epoch out.
        workers: threads that read ahead of the model.
        predict_root: directory of other prepared sequences to predict; default the test split of `root`.

    Raises:
        PreparedDataError: the directory is missing, incomplete, or of another kind.
        ConfigError: an option is out of range.
    """

    domain = "pose"

    def __init__(
        self,
        root: str,
        batch_size: int = 1024,
        seed: int = 0,
        frames: int = 9,
        stride: int = 1,
        mirror: Mirror = "both",
        keypoints: str = PREPARED,
        drop_last: bool = False,
        workers: int = 1,
        predict_root: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, seed, POOL, drop_last=drop_last, workers=workers, predict_root=predict_root)
        if frames < 1 or frames % 2 == 0:
            raise ConfigError(f"data.frames is {frames}: a window has a middle frame; give an odd number")
        if stride < 1:
            raise ConfigError(f"data.stride is {stride}; give at least 1")
        if mirror not in ("both", "random", "none"):
            raise ConfigError(f"data.mirror is {mirror!r}; choose both, random or none")
        self.card = read_sequences(self.root)
        self._layout = layout_of(self.card, self.root)
        # what a model must know: plain values, linked to its constructor
        self.layout = self._layout.name
        self.joints = len(self._layout.joints)
        self.frames, self.stride, self.mirror, self.keypoints = frames, stride, mirror, keypoints
        self._trained_rates: list[float] = []
        self._windows: WindowStore | None = None
        self._draws: tuple[int, Tensor] | None = None

    def clips(self, split: str) -> ClipStore:
        """Clips of one split; `predict` is the first split with clips of `predict_root`, or else the test split."""
        if split != "predict" or self.predict_root is None:
            return ClipStore(self.root, self.card, "test" if split == "predict" else split, self.keypoints)
        card = read_sequences(self.predict_root)
        found = layout_of(card, self.predict_root)
        if found is not self._layout:
            raise PreparedDataError(
                f"{self.predict_root}: its joints are {found.name}, those of {self.root} {self.layout}; convert the "
                "keypoints before they are prepared"
            )
        filled = (name for name, entry in card["splits"].items() if entry["rows"])
        # keypoints to be lifted, without poses, are of one kind
        keypoints = self.keypoints if card.get("poses", True) else PREPARED
        return ClipStore(self.predict_root, card, next(filled, "test"), keypoints)

    def store(self, split: str) -> WindowStore | ClipStore:
        """Windows to train on, or the clips of another split."""
        if split != "train":
            clips = self.clips(split)
            self._compare_rates(clips)
            return clips
        if self._windows is None:  # read once, whoever asks
            copies = 2 if self.mirror == "both" else 1
            self._windows = WindowStore(self.clips("train"), self.frames, self.stride, copies)
        return self._windows

    def collate_for(self, store: WindowStore | ClipStore) -> Callable[[Batch], Batch]:
        """Make what cuts windows, or reads clips."""
        return store.batch if isinstance(store, ClipStore) else store

    def loader(self, split: str, *, training: bool = False) -> BatchLoader:
        """Make the loader of a split for this process; of clips a batch holds a few, whatever `batch_size`."""
        loader = super().loader(split, training=training)
        if isinstance(loader.store, ClipStore):
            loader.batch_size = CLIPS * loader.world
        return loader

    def finish(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Mirror those windows of a batch whose turn it is; a window's turn is a function of seed, epoch and row.

        Args:
            batch: as a loader gives it; whole clips stay as they are.
            epoch: of the random mirror; None: the first one.
        """
        if "mirrored" not in batch:
            return batch
        turn = (
            self._drawn(epoch or 0).to(batch["row"].device)[batch["row"]]
            if self.mirror == "random"
            else batch["mirrored"]
        )
        known = batch["known"]
        changed = {
            "keypoints": batch["keypoints"].where(~turn[:, None, None, None], mirror(batch["keypoints"], self._layout)),
            "pose": batch["pose"].where(~turn[:, None, None], mirror(batch["pose"], self._layout)),
            "known": known.where(~turn[:, None], known[:, self._layout.mirrored()]),
        }
        return {name: value for name, value in batch.items() if name != "mirrored"} | changed

    def _drawn(self, epoch: int) -> Tensor:
        if self._draws is None or self._draws[0] != epoch:
            draw = torch.Generator().manual_seed(mix_seed(self.seed, epoch, POOL))
            store = self.store("train")
            self._draws = epoch, torch.rand(sum(store.sizes), generator=draw) < 0.5
        return self._draws[1]

    def _compare_rates(self, clips: ClipStore) -> None:
        """Tell of clips at another frame rate than those that were trained on: filters over time assume one."""
        trained = self._trained_rates or index_rates(self.clips("train").frame)
        other = [
            rate
            for rate in index_rates(clips.frame)
            if trained and all(abs(rate / each - 1) > RATES for each in trained)
        ]
        if other:
            print(
                f"{clips.root}: {other[0]:g} frames a second, trained with {', '.join(f'{r:g}' for r in trained)}: "
                "it takes motion for faster or slower than it is; train on data of that rate (prep has --rate)",
                file=sys.stderr,
            )

    def state_dict(self) -> dict[str, Any]:
        """As of every data module, and the layout and frame rates that were trained on."""
        state = super().state_dict()
        if not state:
            return state
        rates = self._trained_rates or index_rates(self.clips("train").frame)
        return state | {"sequences": {"layout": self.layout, "rates": rates}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the layout with the one that the weights are trained on.

        Raises:
            PreparedDataError: it is another.
        """
        trained = state_dict.get("sequences", {})
        if trained.get("layout", self.layout) != self.layout:
            raise PreparedDataError(
                f"{self.root}: its joints are {self.layout}, the model was trained on {trained['layout']}; convert the "
                "keypoints before they are prepared"
            )
        self._trained_rates = [float(rate) for rate in trained.get("rates", [])]
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "sequences"})

    def _order(self) -> dict[str, Any]:
        return super()._order() | {"frames": self.frames, "stride": self.stride, "mirror": self.mirror}
