"""Which recordings detectors learn from, and what their detections are written with."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest
import torch
from lightning import Trainer

from domains.common.errors import ConfigError, PreparedDataError
from domains.ieeg.data import RecordingData
from domains.ieeg.detection_module import BandEnergyModule
from domains.ieeg.explain import choose_windows
from tests.domains.ieeg.helpers import write_prepared

pytestmark = pytest.mark.filterwarnings("ignore")


class Noting(BandEnergyModule):
    """Keeps which recordings it learned from and was validated on."""

    def training_step(self, batch, index):
        self.seen["train"] |= set(batch["recording"])
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        self.seen["valid"] |= set(batch["recording"])
        super().validation_step(batch, index)


class SeenInput(BandEnergyModule):
    """Keeps what its network was given."""

    def forward(self, batch):
        self.seen = batch["x"]
        return super().forward(batch)


def forget(root, split, names):
    path = root / split / "part-00000.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(annotated=~pl.col("name").is_in(names)).write_parquet(path)


def train(root):
    data = RecordingData(str(root), segment=1.0, segments=4, workers=0)
    module = Noting(data.samples, hidden=4)
    module.seen = {"train": set(), "valid": set()}
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(**options, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    trainer.fit(module, data)
    return module, trainer


def test_recordings_that_nobody_looked_at_teach_nothing(tmp_path):
    root = write_prepared(tmp_path / "prepared")
    forget(root, "train", ["sub-02"])
    forget(root, "valid", ["sub-05"])
    module, _ = train(root)
    assert module.seen == {"train": {"sub-01", "sub-03"}, "valid": {"sub-04"}}
    forget(root, "train", ["sub-01", "sub-02", "sub-03"])
    with pytest.raises(PreparedDataError, match="no recording of split 'train' was looked through for seizures"):
        train(root)


def test_recordings_that_nobody_looked_at_are_no_false_alarms_to_explain(tmp_path):
    root = write_prepared(tmp_path / "prepared")
    forget(root, "test", ["sub-06"])
    store = RecordingData(str(root), segment=1.0, segments=4).store("test")
    assert {store.names[i] for i in store.recording[choose_windows(store)].tolist()} == {"sub-07"}


def test_detections_are_written_with_the_length_of_their_recording(tmp_path):
    root = write_prepared(tmp_path / "prepared", seconds=62)
    data = RecordingData(str(root), segment=5.0, segments=2, workers=0)
    module = BandEnergyModule(data.samples)
    module.threshold.fill_(0.0)  # all of a recording is one detection
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    parts = trainer.predict(module, data)
    columns = {
        name: [v for part in parts for v in (part[name].tolist() if torch.is_tensor(part[name]) else part[name])]
        for name in parts[0]
    }
    module.write_beside(pl.DataFrame(columns), tmp_path / "out")
    path = next((tmp_path / "out" / "events").glob("sub-06*_events.tsv"))
    found = pl.read_csv(path, separator="\t", null_values="n/a")
    assert found["recordingDuration"].to_list() == [62.0]
    assert found["duration"].to_list() == [60.0]
    assert data.durations() == {f"sub-{number:02d}": 62.0 for number in range(1, 8)}


def test_random_gains_are_drawn_for_training_alone(tmp_path):
    data = RecordingData(str(write_prepared(tmp_path / "prepared")), segment=1.0, segments=4, workers=0)
    batch = next(iter(data.train_dataloader()))
    module = SeenInput(data.samples, hidden=4, gain_jitter=0.5)
    module.trainer = SimpleNamespace(world_size=1)
    module.log = lambda *_, **__: None
    module.training_step(batch, 0)
    gains = (module.seen / batch["x"]).nanmedian(-1).values  # (B, T, C)
    assert (gains > 0).all()
    torch.testing.assert_close(gains, gains[:, :1].expand_as(gains))
    assert gains[:, 0].flatten().unique().numel() == gains[:, 0].numel()
    module.predict_step(batch, 0)
    torch.testing.assert_close(module.seen, batch["x"], atol=0, rtol=0)
    with pytest.raises(ConfigError, match="gain_jitter is -1"):
        BandEnergyModule(data.samples, gain_jitter=-1)
