"""Training of ConvFormer: gradients, learning, resuming, whole clips against windows, and what is refused."""

from __future__ import annotations

import re

import polars as pl
import pytest
import torch
from lightning import Trainer, seed_everything
from safetensors.torch import load_file, save_file

from domains.common.callbacks import LastCheckpoint, PredictionTable
from domains.common.errors import ConfigError, PreparedDataError
from domains.pose.data3d import SequenceData
from domains.pose.evaluation3d import poses_of
from domains.pose.layouts import mirror
from domains.pose.lifting import windows
from domains.pose.metrics3d import METRICS, mpjpe
from domains.pose.module3d import LiftModule
from tests.domains.pose.sequence_helpers import write_prepared
from tests.domains.pose.test_convformer import WITHOUT_EFFECT

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"joints": 15, "layout": "humaneva-15", "dim": 8, "heads": 4, "spatial_blocks": 1, "temporal_blocks": 1}
SMALL |= {"kernels": [3, 5], "dropout": 0.1, "drop_path": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("sequences") / "prepared")


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", devices=1, **{**quiet, "num_sanity_val_steps": 0, **options})


def make(**options):
    seed_everything(0, verbose=False)
    return LiftModule(**{**SMALL, **options})


def measured(module, data, folder):
    table = PredictionTable(folder, replicates=50)
    trainer(callbacks=[table]).test(module, data, verbose=False)
    return table


def test_gradient_reaches_every_parameter(root):
    data, module = SequenceData(str(root), batch_size=32), make(spatial_blocks=2, temporal_blocks=2, dropout=0.0)
    for name, parameter in module.net.named_parameters():
        if name.startswith("pos") or ".eta" in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    module.trainer = trainer()
    module.log = lambda *args, **options: None
    module.training_step(data.finish(next(iter(data.train_dataloader())), 0), 0).backward()
    still = [n for n, p in module.net.named_parameters() if p.grad is None or not float(p.grad.abs().max()) > 1e-10]
    assert [name for name in still if not any(re.fullmatch(pattern, name) for pattern in WITHOUT_EFFECT)] == []


def test_the_loss_is_the_mean_distance_of_known_joints():
    module = make().eval()
    module.trainer = trainer()
    module.log = lambda *args, **options: None
    keypoints, pose = torch.randn(3, 9, 15, 2), torch.randn(3, 15, 3)
    known = torch.ones(3, 15, dtype=torch.bool)
    batch = {"keypoints": keypoints, "pose": pose, "known": known, "global_size": torch.tensor(3)}
    want = mpjpe(module(keypoints), pose)
    torch.testing.assert_close(module.training_step(batch, 0), want.mean())
    known[0, 4:] = False
    part = mpjpe(module(keypoints)[0, :4], pose[0, :4])
    torch.testing.assert_close(module.training_step(batch, 0), (part + want[1] + want[2]) / 3)
    pose[0, 4:] = 1e6  # whatever stands in for what is not known
    torch.testing.assert_close(module.training_step(batch, 0), (part + want[1] + want[2]) / 3)
    none = {name: value[:0] for name, value in batch.items() if name != "global_size"}
    loss = module.training_step({**none, "global_size": torch.tensor(1)}, 0)
    loss.backward()
    assert float(loss) == 0.0 and all(p.grad is not None for p in module.net.parameters())


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("options", [{}, {"path": "branches"}, {"mixing_per_head": True}])
def test_a_test_equals_window_by_window(flip, options, root, tmp_path):
    data, module = SequenceData(str(root)), make(flip_test=flip, **options)
    table = measured(module, data, tmp_path).frame
    module.eval()
    for name, part in table.partition_by("clip", as_dict=True, maintain_order=True).items():
        clip = data.clips("test").read(data.clips("test").frame["name"].to_list().index(name[0]))
        with torch.no_grad():
            want = module(windows(clip.keypoints, 9))
            if flip:
                other = module(windows(mirror(clip.keypoints, module.layout), 9))
                want = (want + mirror(other, module.layout)) / 2
        torch.testing.assert_close(torch.tensor(poses_of(part["predicted_mm"])), want * 1000, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(torch.tensor(poses_of(part["target_mm"])), clip.pose * 1000)
        assert part["frame"].to_list() == list(range(len(want)))
        torch.testing.assert_close(
            torch.tensor(part["mpjpe_mm"].to_list()), mpjpe(want * 1000, clip.pose * 1000), rtol=1e-4, atol=1e-2
        )


def test_frames_beyond_an_edge_are_the_frame_at_it(root):
    """A clip of two frames is one that stands still before the first and behind the last."""
    module = make().eval()
    points = SequenceData(str(root)).clips("test").read(0).keypoints[:2]
    longer = torch.cat([points[:1].expand(6, -1, -1), points, points[1:].expand(6, -1, -1)])
    torch.testing.assert_close(module.lift(points), module.lift(longer)[6:8], rtol=1e-4, atol=1e-2)


def test_a_clip_alone_as_in_any_batch(root, tmp_path):
    module = make()
    together = measured(module, SequenceData(str(root)), tmp_path / "a").frame
    data = SequenceData(str(root))
    batch = next(iter(data.test_dataloader()))
    module.eval()
    for i in range(4):
        one = {name: value[i : i + 1] for name, value in batch.items() if name != "global_size"}
        alone = module.predict_step(one, 0)
        mine = together.filter(pl.col("clip") == alone["clip"][0])
        assert mine["row"].to_list() == alone["row"].tolist()
        torch.testing.assert_close(torch.tensor(poses_of(mine["predicted_mm"])).flatten(1), alone["predicted_mm"])


def test_the_tables_of_a_test_and_of_a_prediction(root, tmp_path):
    module = make()
    found = measured(module, SequenceData(str(root)), tmp_path / "test")
    assert found.frame["row"].to_list() == list(range(124))
    names = ["clip", "recording", "camera", "subject", "action", "layout", "frame", "predicted_mm"]
    assert found.frame.columns == ["row", *names, "target_mm", "counted", "mpjpe_mm", "p_mpjpe_mm"]
    written = pl.read_parquet(tmp_path / "test" / "predictions.parquet")
    assert (poses_of(written["predicted_mm"]) == poses_of(found.frame["predicted_mm"])).all()
    assert module.evaluate(written, replicates=50, seed=0) == found.metrics
    assert found.metrics["mpjpe_mm"].units == 2
    table = PredictionTable(tmp_path / "predict")
    other = write_prepared(tmp_path / "other", frames=12)
    data = SequenceData(str(root), predict_root=str(other))
    trainer(callbacks=[table]).predict(module, data, return_predictions=False)
    assert table.frame.columns == ["row", *names] and table.frame["subject"].unique().sort().to_list() == ["S1", "S2"]


def test_training_learns_more_than_the_mean_pose(tmp_path):
    """Figures that turn once around; those of the test began to turn elsewhere."""
    root = write_prepared(tmp_path / "prepared", frames=600)
    data = SequenceData(str(root), batch_size=32, stride=5, frames=3)
    module = make(lr=5e-3, dim=16, dropout=0.0, frames=3)
    runner = trainer(max_epochs=16, check_val_every_n_epoch=16)
    runner.fit(module, data)
    train, found = data.store("train"), measured(module, data, tmp_path)
    target = torch.tensor(poses_of(found.frame["target_mm"]))
    mean = (train.pose[train.middle].mean(0) * 1000).expand_as(target)
    assert found.metrics["frame_mean_mpjpe_mm"].value < 0.6 * float(mpjpe(mean, target).mean())
    assert set(module.validation_metrics) <= set(runner.callback_metrics)
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-3 * 0.95**16)


def test_validation_logs_what_a_test_of_the_same_clips_measures(root, tmp_path):
    data, module = SequenceData(str(root)), make()
    (logged,) = trainer().validate(module, data, verbose=False)
    data.store = lambda split, store=data.store: store("valid" if split == "test" else split)
    found = measured(module, data, tmp_path).metrics
    for name in METRICS:
        assert logged[f"val/{name}"] == pytest.approx(found[name].value, rel=1e-5)


@pytest.mark.parametrize("kind", ["both", "random"])
def test_resumed_inside_an_epoch_equals_uninterrupted(kind, root, tmp_path):
    def run(steps, folder, ckpt=None):
        data = SequenceData(str(root), batch_size=48, mirror=kind)
        module = make(drop_path=0.1)
        saving = LastCheckpoint(folder / "last.ckpt", every=1000)
        runner = trainer(
            max_steps=steps, max_epochs=-1, callbacks=[saving], limit_val_batches=0, enable_checkpointing=True
        )
        runner.fit(module, data, ckpt_path=ckpt, weights_only=True)
        return module

    whole = run(11, tmp_path / "whole")
    run(4, tmp_path / "part")
    resumed = run(11, tmp_path / "part", tmp_path / "part" / "last.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_frames_without_a_known_pose_are_predicted_and_do_not_count(tmp_path):
    root = write_prepared(tmp_path / "prepared")
    path = root / "clips" / "S4-Walking.safetensors"
    known = torch.ones(40, 15, dtype=torch.bool)
    known[10:14] = False
    save_file({**load_file(path), "valid_3d": known}, path)
    found = measured(make(), SequenceData(str(root)), tmp_path / "out")
    assert len(found.frame) == 124
    assert found.frame.filter(~pl.col("counted"))["frame"].to_list() == [10, 11, 12, 13]


def test_what_cannot_be_is_told(root):
    with pytest.raises(ConfigError, match="layout humaneva-15 has 15"):
        LiftModule(17, layout="humaneva-15")
    with pytest.raises(ConfigError, match=r"lr_decay above 0"):
        make(lr_decay=0.0)
    with pytest.raises(PreparedDataError, match="its joints are humaneva-15, the model reads h36m-17"):
        module = make(joints=17, layout="h36m-17")
        trainer(max_steps=1).fit(module, SequenceData(str(root)))


def test_protocol_names_metrics_and_never_numbers_them(root):
    text = make().protocol(SequenceData(str(root)))
    assert all(name in text for name in ("MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE", "PCK", "AUC", "gt", "9 frames"))
    assert "Protocol" not in text and "#" not in text


def test_paper_sizes_are_the_defaults():
    assert sum(p.numel() for p in LiftModule().parameters()) == 2_560_533
    inputs = LiftModule(joints=15, layout="humaneva-15").example_inputs()
    assert inputs[0].shape == (2, 9, 15, 2)
