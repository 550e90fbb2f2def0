"""SASRec as RecBole 1.2.0 trains it: the published class, its augmentation, its loader and the optimiser it builds.

RecBole's data pipeline wants atomic files on disk; two small stand-ins give the published augmentation the log and a
dozen configuration keys. Every prefix of a sequence is a row with one target, right padded to T. The network has one
layer and one head; what the configuration leaves open are RecBole's own defaults (inner size 256, gelu, Adam 1e-3).
"""

from __future__ import annotations

from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.sequences import Log, Setting
from benchmarks.peers.worker import Step, Work

if "long" not in vars(np):  # NumPy 1.24 to 1.26 lack the name that RecBole 1.2.0 uses
    np.long = np.int64

from recbole.data.dataloader.general_dataloader import TrainDataLoader
from recbole.data.dataset.sequential_dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import Trainer
from recbole.utils import FeatureType, InputType, ModelType


class _Config(dict[str, Any]):
    """RecBole reads keys that nobody set as None."""

    def __missing__(self, key: str) -> None:
        return None


class _Prefixes(SequentialDataset):  # type: ignore[misc]  # RecBole ships no types
    """RecBole's dataset filled from memory; ids move by one, because 0 is its pad."""

    def __init__(self, config: _Config, log: Log) -> None:
        self.config = config
        self.max_item_list_len = config["MAX_ITEM_LIST_LENGTH"]
        self.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
        self.uid_field, self.iid_field, self.time_field = "user", "item", "time"
        self.field2type = {"user": FeatureType.TOKEN, "item": FeatureType.TOKEN, "time": FeatureType.FLOAT}
        self.field2source: dict[str, Any] = {}
        self.field2seqlen: dict[str, int] = {}
        self.user_feat = self.item_feat = None
        self.sizes = {"user": log.n_users + 1, "item": log.n_items + 1}
        sizes = np.diff(log.offsets)
        place = np.arange(len(log.items)) - np.repeat(log.offsets[:-1], sizes)
        self.inter_feat = Interaction(
            {
                "user": torch.from_numpy(np.repeat(np.arange(1, log.n_users + 1), sizes)),
                "item": torch.from_numpy(log.items + 1),
                "time": torch.from_numpy(place).float(),
            }
        )
        self.logger = getLogger()
        self.data_augmentation()

    def num(self, field: str) -> int:
        return self.sizes[field]


def build(setting: Setting) -> Step:
    """Return RecBole's training step over its own shuffled loader."""
    log = Log.load(Path(setting.log))
    config = _Config(
        USER_ID_FIELD="user",
        ITEM_ID_FIELD="item",
        LIST_SUFFIX="_list",
        ITEM_LIST_LENGTH_FIELD="item_length",
        MAX_ITEM_LIST_LENGTH=setting.max_len,
        NEG_PREFIX="neg_",
        MODEL_TYPE=ModelType.SEQUENTIAL,
        MODEL_INPUT_TYPE=InputType.POINTWISE,
        device=torch.device("cpu"),
        single_spec=True,
        worker=0,
        seed=setting.seed,
        numerical_features=[],
        train_batch_size=setting.batch,
        train_neg_sample_args={"distribution": "none", "sample_num": "none"},
        n_layers=1,
        n_heads=1,
        hidden_size=setting.dim,
        inner_size=256,
        hidden_dropout_prob=setting.dropout,
        attn_dropout_prob=setting.dropout,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        loss_type="CE",
    )
    torch.manual_seed(setting.seed)
    dataset = _Prefixes(config, log)
    loader = TrainDataLoader(config, dataset, None, shuffle=True)
    model = SASRec(config, dataset)
    trainer = Trainer.__new__(Trainer)  # its constructor wants folders and loggers; only the optimiser is needed
    trainer.config, trainer.model = config, model
    trainer.learner, trainer.learning_rate, trainer.weight_decay = "adam", setting.lr, 0.0
    optimiser = trainer._build_optimizer()
    model.train()

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()

    def step(i: int) -> Work:
        batch = next(batches)
        optimiser.zero_grad()
        loss = model.calculate_loss(batch)
        value = float(loss.item())
        loss.backward()
        optimiser.step()
        return Work({"rows": len(batch), "targets": len(batch)}, {"rec": value})

    return step
