"""Persons in images and joints in videos from raw files to reports and weights, through the command that users type."""

from __future__ import annotations

import argparse
import json
import os
import re

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
import yaml

from apps.pose import DOMAIN
from domains.common.files import read_checkpoint, read_tensors
from domains.common.hub import load_published
from domains.pose.convformer import ConvFormer
from domains.pose.data import PeopleData
from domains.pose.grouppose import GroupPose
from domains.pose.grouppose_post import PersonDetector
from domains.pose.weights import to_official
from tests.apps.helpers import QUIET, losses
from tests.apps.pose_helpers import SERIAL, SMALL, fit, fit_words, here, prepare_coco, prepare_human36m, refusal
from tests.data.pose.make_people import write_coco, write_crowdpose, write_dogs
from tests.data.pose.make_sequences import eva_positions, write_3dhp, write_eva

# these run inside this process; what libraries warn of there is no matter of these tests
pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS = ("--trainer.max_epochs", "2")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return prepare_coco(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    return prepare_human36m(tmp_path_factory.mktemp("sequences"))


@pytest.fixture(scope="module")
def roots(people, sequences):
    return {"people": people, "lift": sequences}


@pytest.fixture(scope="module")
def runs(roots, tmp_path_factory):
    """A finished run of each system."""
    folder = tmp_path_factory.mktemp("runs")
    for system, root in roots.items():
        fit(system, root, folder / system, *EPOCHS)
        assert here("test", "--run", folder / system) == 0
    return {system: folder / system for system in roots}


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize("system", DOMAIN.systems)
class TestBothSystems:
    def test_a_run_writes_only_into_its_folder(self, system, runs):
        run = runs[system]
        names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        wanted = {"fit.yaml", "test.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/model.safetensors"}
        assert wanted | {"metrics.json", "predictions.parquet", "report.html"} <= names
        assert sorted(path.name for path in run.parent.iterdir()) == ["lift", "people"]

    def test_the_report_needs_nothing_from_elsewhere(self, system, runs):
        report = (runs[system] / "report.html").read_text()
        assert "data:image/png;base64," in report
        assert "Intervals" in report
        assert not re.search(r"(?:src|href)=\"(?!data:)", report)

    def test_the_published_network_is_the_best_checkpoint(self, system, runs):
        best = read_checkpoint(runs[system] / "checkpoints" / "best.ckpt")["state_dict"]
        published = load_published(runs[system] / "model").state_dict()
        assert all(torch.equal(tensor, best[f"net.{name}"]) for name, tensor in published.items())
        assert "Licence of the data" in (runs[system] / "model" / "README.md").read_text()

    def test_a_checkpoint_without_its_data_options_knows_its_network(self, system, runs, roots, tmp_path):
        """Sizes of the network come with the checkpoint; the data alone are named."""
        last = ("--ckpt_path", runs[system] / "checkpoints" / "last.ckpt")
        sizes = ("--data.shorter", "48", "--data.longest", "100") if system == "people" else ("--data.frames", "9")
        words = ("--system", system, *QUIET, *last, "--data.root", roots[system], "--run", tmp_path / "run", *sizes)
        assert here("validate", *words) == 0

    def test_exported_network_comes_back(self, system, runs, tmp_path):
        assert here("export", "--run", runs[system], "--out", tmp_path / "model") == 0
        published = read_tensors(runs[system] / "model" / "model.safetensors")
        again = load_published(tmp_path / "model").state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in published.items())


class TestPeople:
    def test_test_names_images_and_persons(self, runs, people):
        table = pl.read_parquet(runs["people"] / "predictions.parquet")
        listed = pl.read_parquet(people / "valid" / "part-00000.parquet")  # val2017 is the test, too
        assert set(table["image_id"]) <= set(listed["image_id"])
        found = metrics(runs["people"])
        assert {"AP", "AP50", "AP75", "AR"} <= found.keys()
        assert found["AP"]["units"] == len(listed) == 4

    def test_predictions_are_results_of_coco(self, runs):
        assert here("predict", "--run", runs["people"]) == 0
        results = json.loads((runs["people"] / "predict" / "coco_results.json").read_text())
        assert {entry["image_id"] for entry in results} == {101, 102, 103, 104}
        for entry in results:
            assert len(entry["keypoints"]) == 51
            assert 0 <= entry["score"] <= 1

    def test_crowdpose_is_measured_as_crowdpose(self, tmp_path):
        raw = write_crowdpose(tmp_path / "raw")
        assert here("prep", "crowdpose", "--raw", raw, "--out", tmp_path / "crowdpose", *SERIAL) == 0
        fit("people", tmp_path / "crowdpose", tmp_path / "run", "--trainer.max_steps", "1")
        assert here("test", "--run", tmp_path / "run") == 0
        found = metrics(tmp_path / "run")
        assert {"AP_easy", "AP_medium", "AP_hard"} <= found.keys()

    def test_keypoints_of_ones_own(self, tmp_path):
        path = write_dogs(tmp_path / "raw", images=9)
        (tmp_path / "dog.yaml").write_text("sigmas: 0.05\nflip: [[left_ear, right_ear]]\n")
        words = ("--raw", path.parent, "--description", tmp_path / "dog.yaml", "--ratios", 0.6, 0.2, 0.2)
        assert here("prep", "coco-json", *words, "--out", tmp_path / "dogs", *SERIAL) == 0
        fit("people", tmp_path / "dogs", tmp_path / "run", "--trainer.max_steps", "2")
        assert here("test", "--run", tmp_path / "run") == 0
        config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
        assert config["arguments"]["keypoints"] == 4

    @pytest.mark.slow
    @pytest.mark.parametrize("format", ["torch", "onnx"])
    def test_exported_program_finds_persons_in_images_of_any_size(self, format, runs, tmp_path):
        out = tmp_path / {"torch": "model.pt2", "onnx": "model.onnx"}[format]
        assert here("export", "--run", runs["people"], "--format", format, "--out", out) == 0
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        network = PersonDetector(load_published(runs["people"] / "model")).eval()
        for rows, height, width in ((1, 64, 70), (3, 97, 81)):
            images, padding = torch.randn(rows, 3, height, width), torch.zeros(rows, height, width, dtype=torch.bool)
            padding[-1, :, width - 9 :] = True
            images = images.masked_fill(padding[:, None], 0.0)
            with torch.no_grad():
                want = network(images, padding)
            if format == "torch":
                got = torch.export.load(out).module()(images, padding)
            else:
                session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
                names = [entry.name for entry in session.get_inputs()]
                got = session.run(None, dict(zip(names, (images.numpy(), padding.numpy()), strict=True)))
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(torch.as_tensor(one), other, atol=1e-4, rtol=1e-4)


class TestLift:
    def test_test_names_clips_and_frames(self, runs, sequences):
        table = pl.read_parquet(runs["lift"] / "predictions.parquet")
        listed = pl.read_parquet(sequences / "test" / "part-00000.parquet")
        assert set(table["subject"]) == {"S9", "S11"}
        assert len(table) == listed["frames"].sum()
        found = metrics(runs["lift"])
        assert {"mpjpe_mm", "p_mpjpe_mm", "n_mpjpe_mm", "mpjve_mm", "pck_150mm", "auc_150mm"} <= found.keys()
        assert found["mpjpe_mm"]["units"] == 2
        assert found["p_mpjpe_mm"]["value"] <= found["mpjpe_mm"]["value"]

    def test_predictions_are_those_of_the_test(self, runs):
        assert here("predict", "--run", runs["lift"]) == 0
        tested, predicted = (
            pl.read_parquet(folder / "predictions.parquet") for folder in (runs["lift"], runs["lift"] / "predict")
        )
        assert tested["clip"].equals(predicted["clip"])
        shared = [name for name in predicted.columns if name in tested.columns]
        assert tested.select(shared).equals(predicted.select(shared))

    @pytest.mark.parametrize("dataset", ["humaneva", "mpi-inf-3dhp"])
    def test_other_data_sets(self, dataset, tmp_path):
        if dataset == "humaneva":
            raw, layout = write_eva(tmp_path / "raw", *eva_positions()), "humaneva-15"
        else:
            raw, layout = write_3dhp(tmp_path / "raw"), "mpi-inf-3dhp-17"
        assert here("prep", dataset, "--raw", raw, "--out", tmp_path / "out", *SERIAL) == 0
        more = ("--select", "last", "--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1")
        fit("lift", tmp_path / "out", tmp_path / "run", *more)
        assert here("test", "--run", tmp_path / "run") == 0
        assert metrics(tmp_path / "run")["mpjpe_mm"]["value"] > 0
        assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["hyper_parameters"]["layout"] == layout

    @pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
    def test_export(self, format, runs, tmp_path):
        out = tmp_path / {"torch": "model.pt2", "onnx": "model.onnx"}[format]
        assert here("export", "--run", runs["lift"], "--format", format, "--out", out) == 0
        network, x = load_published(runs["lift"] / "model").eval(), torch.randn(7, 9, 17, 2) * 0.3
        if format == "torch":
            got = torch.export.load(out).module()(x)
        else:
            session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
            got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        torch.testing.assert_close(got, network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DOMAIN.shipped_configs())
def test_every_shipped_config_runs_a_step(name, roots, tmp_path):
    config = yaml.safe_load(DOMAIN.shipped_configs()[name].read_text())
    system = config["system"]
    # the sizes are those of the tests; what the file says of training, order and selection is what runs
    steps = ("--trainer.max_steps", "1", "--trainer.accumulate_grad_batches", "1", "--trainer.val_check_interval", "1")
    steps += ("--trainer.check_val_every_n_epoch", "1")
    words = [*SMALL[system], "--data.root", roots[system], "--run", tmp_path / "run", *QUIET, *steps]
    if system == "lift":
        words += ["--data.frames", min(int(config["data"]["frames"]), 27)]
    assert here("fit", "--config", name, *words) == 0
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    assert saved["system"] == system in DOMAIN.systems
    assert saved["data"]["root"] == str(roots[system])
    assert np.isfinite(losses(tmp_path / "run")[0])
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


class TestWeights:
    @pytest.fixture(scope="class")
    def published(self):
        torch.manual_seed(0)
        sizes = {"queries": 8, "backbone": "small", "dim": 32, "heads": 4, "hidden": 48, "levels": 3}
        return GroupPose(17, **sizes, encoder_depth=1, decoder_depth=2)

    def test_official_group_pose_is_imported_told_and_used(self, published, people, tmp_path, capsys):
        """As it is published: the command line pickled beside the weights."""
        state = {f"module.{name}": tensor for name, tensor in to_official(published).items()}
        torch.save({"model": state, "epoch": 59, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "checkpoint.pth")
        (tmp_path / "options.json").write_text(json.dumps({"nheads": 4, "num_queries": 8}))
        words = ("official", "--weights", tmp_path / "checkpoint.pth", "--options", tmp_path / "options.json")
        assert here("import-weights", *words, "--out", tmp_path / "model") == 0
        said = capsys.readouterr().out
        assert re.search(r"loaded: \d+ tensors", said)
        assert "parameters imported" in said
        words = fit_words("people", people, tmp_path / "run", "--init_from", tmp_path / "model")
        assert here("test", *words) == 0
        again = load_published(tmp_path / "model").state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in published.state_dict().items())

    def test_published_weights_start_a_training_on_other_keypoints(self, published, tmp_path, capsys):
        torch.save({"model": to_official(published)}, tmp_path / "checkpoint.pth")
        path = write_dogs(tmp_path / "raw", images=9)
        (tmp_path / "dog.yaml").write_text("sigmas: 0.05\nflip: []\n")
        words = ("--raw", path.parent, "--description", tmp_path / "dog.yaml", "--out", tmp_path / "dogs")
        assert here("prep", "coco-json", *words, "--ratios", 0.6, 0.2, 0.2, *SERIAL) == 0
        words = ("--model.pretrained", tmp_path / "checkpoint.pth", "--trainer.max_steps", "0")
        fit("people", tmp_path / "dogs", tmp_path / "run", *words, "--trainer.limit_val_batches", "0")
        said = capsys.readouterr().out
        assert "keypoint_embedding" in said

    def test_convformer_of_exchange_files_is_imported_told_and_used(self, sequences, tmp_path, capsys):
        torch.manual_seed(0)
        net = ConvFormer(9, 17, 16, 4, 1, 1)
        torch.save(to_official(net), tmp_path / "net.pt")
        (tmp_path / "options.json").write_text(json.dumps({"heads": 4}))
        words = ("official", "--weights", tmp_path / "net.pt", "--options", tmp_path / "options.json")
        assert here("import-weights", *words, "--out", tmp_path / "model") == 0
        assert re.search(r"loaded: \d+ tensors", capsys.readouterr().out)
        words = fit_words("lift", sequences, tmp_path / "run", "--init_from", tmp_path / "model")
        assert here("test", *words) == 0

    def test_weights_that_do_not_fit_are_one_line(self, published, people, sequences, tmp_path):
        torch.save({"something": torch.ones(2)}, tmp_path / "other.pth")
        words = ("official", "--weights", tmp_path / "other.pth", "--out", tmp_path / "model")
        assert "missing" in refusal("import-weights", *words)
        torch.save(to_official(published), tmp_path / "people.pth")
        (tmp_path / "options.json").write_text(json.dumps({"nheads": 5}))
        words = ("official", "--weights", tmp_path / "people.pth", "--options", tmp_path / "options.json")
        words = (*words, "--out", tmp_path / "model")
        assert "nheads" in refusal("import-weights", *words)
        fit("lift", sequences, tmp_path / "run", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
        words = fit_words("lift", sequences, tmp_path / "other", "--data.frames", "27")
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        assert "wrong shape" in refusal("test", *words, "--ckpt_path", last)


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_hostile_files_never_execute(people, sequences, tmp_path):
    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Hostile(tmp_path / "executed")}, bad)
    for system, root in (("people", people), ("lift", sequences)):
        for verb, name in (("fit", "ckpt_path"), ("test", "ckpt_path"), ("predict", "init_from")):
            said = refusal(verb, "--system", system, "--data.root", root, f"--{name}", bad, "--run", tmp_path / "run")
            assert "was not executed" in said
    assert "was not executed" in refusal("fit", *fit_words("people", people, tmp_path / "r", "--model.pretrained", bad))
    torch.save({"model": Hostile(tmp_path / "executed")}, tmp_path / "bad.pth")
    words = ("official", "--weights", tmp_path / "bad.pth", "--out", tmp_path / "model")
    refusal("import-weights", *words)
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d=np.array(Hostile(tmp_path / "executed"), dtype=object))
    refusal("prep", "human36m", "--raw", tmp_path / "data_3d_h36m.npz", "--out", tmp_path / "out", *SERIAL)
    assert not (tmp_path / "executed").exists()


def test_contradictory_options_are_one_line(people, sequences, tmp_path):
    for system, words, message in (
        ("people", ("--model.heads", "3"), "multiple of heads"),
        ("people", ("--model.backbone", "r51"), "choose one of r50"),
        ("people", ("--model.levels", "2"), "already has 3 maps"),
        ("people", ("--model.queries", "5000"), "cannot fill 5000 queries"),
        ("people", ("--data.shorter", "200", "--data.longest", "100"), "data.shorter is 200"),
        ("people", ("--data.augmentation.flip", "2"), "probabilities from 0 to 1"),
        ("people", ("--data.root", str(sequences)), "sequences"),
        ("people", ("--model.pretrained", str(tmp_path / "none.pth")), "none.pth"),
        ("people", ("--model.pretrained", "https://example.org/net.pth"), "URL"),
        ("lift", ("--data.frames", "8"), "give an odd number"),
        ("lift", ("--model.heads", "5"), "must divide dim"),
        ("lift", ("--model.kernels", "[2]"), "odd sizes"),
        ("lift", ("--data.keypoints", "other"), "other"),
        ("lift", ("--data.root", str(people)), "people"),
        ("lift", ("--monitor", "val/AP"), "choose one of them"),
    ):
        root = people if system == "people" else sequences
        assert message in refusal("fit", *fit_words(system, root, tmp_path / "run", *words)), words


def test_a_training_split_without_persons_is_one_line(tmp_path):
    raw = write_coco(tmp_path / "raw", train=3, valid=3)
    path = raw / "annotations" / "person_keypoints_train2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": []}))
    assert here("prep", "coco", "--raw", raw, "--out", tmp_path / "people", *SERIAL) == 0
    said = refusal("fit", *fit_words("people", tmp_path / "people", tmp_path / "run"))
    assert str(tmp_path / "people") in said
    assert "'train' has no rows" in said or "person" in said


@pytest.mark.parametrize(
    ("dataset", "option", "value"),
    [
        ("coco", "train_on_valid", "true"),
        ("coco", "rate", "25"),
        ("human36m", "poses", "universal"),
        ("humaneva", "description", "x.yaml"),
    ],
)
def test_options_of_other_data_sets_are_refused(dataset, option, value, tmp_path, heptad):
    words = ("prep", dataset, f"--{option}", value, "--raw", tmp_path, "--out", tmp_path / "out")
    done = heptad("pose", *words, check=False)
    assert done.returncode == 2
    assert option in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_batch_is_what_the_exported_program_takes(people):
    """Users of an exported program prepare images as `PeopleData` does."""
    data = PeopleData(str(people), 2, shorter=48, longest=100, workers=0)
    batch = data.finish(next(iter(data.val_dataloader())))
    net = GroupPose(17, queries=4, backbone="small", dim=32, encoder_depth=1, decoder_depth=1, hidden=16, levels=3)
    with torch.no_grad():
        scores, keypoints = PersonDetector(net.eval())(batch["image"], batch["mask"])
    assert scores.shape == (2, 4)
    assert keypoints.shape == (2, 4, 17, 2)
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_help_needs_no_torch(heptad):
    """The lists of commands and data sets come before anything heavy is imported."""
    assert "Group Pose, ConvFormer" in heptad("--help").stdout
    said = heptad("pose", "--help").stdout
    assert "prep" in said
    assert "mpi-inf-3dhp" in heptad("pose", "prep", "--help").stdout
