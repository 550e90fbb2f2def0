from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

from domains.common.errors import ConfigError
from domains.medical.data import BagData
from domains.medical.losses import bag_losses
from domains.medical.module import ABMILModule, ACMILModule, BagModule, PoolingModule, attention_tables

CLASSES = ["normal", "tumor"]

# Lightning's use of torch's tree utilities, and its advice about logging in runs of a few steps
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated, use `isinstance"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def acmil(**options):
    torch.manual_seed(0)
    return ACMILModule(CLASSES, 16, **{"dim": 8, "gate_dim": 4, "branches": 3} | options)


def trainer(tmp_path, **options):
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, use_distributed_sampler=False,
        **{"max_epochs": 1} | options,
    )  # fmt: skip


def batch(sizes=(5, 3, 9), dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(sizes))
    return {
        "x": torch.randn(sum(sizes), dim, generator=generator), "sizes": list(sizes), "row": rows, "label": rows % 2,
        "name": [f"s{row}" for row in rows], "patient": [f"p{row}" for row in rows],
        "global_size": torch.tensor(len(sizes)),
    }  # fmt: skip


class Watched(ACMILModule):
    """Keeps what each step was trained on, and its loss."""

    def _subsample(self, given):
        x, sizes = super()._subsample(given)
        for name, bag in zip(given["name"], x.split(sizes), strict=True):
            self.__dict__.setdefault("seen", []).append((self.current_epoch, name, bag.clone()))
        return x, sizes


def watched(bags, tmp_path, size=4, **options):
    torch.manual_seed(0)
    module = Watched(CLASSES, 16, dim=8, gate_dim=4, **options)
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(module, BagData(str(bags), size))
    return module


class TestInstances:
    def test_so_many_are_drawn_anew_in_each_epoch(self, bags, tmp_path):
        seen = watched(bags, tmp_path, max_instances=40, seed=1).seen
        patches = dict(BagData(str(bags)).store("train").frame.select("name", "patches").iter_rows())
        assert all(len(bag) == min(patches[name], 40) for _, name, bag in seen), "small bags are whole"
        first, second = ({name: bag for epoch, name, bag in seen if epoch == number} for number in (0, 1))
        assert first.keys() == second.keys()
        changed = [name for name, bag in first.items() if not torch.equal(bag, second[name])]
        assert sorted(changed) == sorted(name for name in first if patches[name] > 40)
        assert 0 < len(changed) < len(first)

    def test_they_do_not_depend_on_the_batch_and_do_on_the_seed(self, bags, tmp_path):
        one, other = (watched(bags, tmp_path, size, max_instances=40).seen for size in (4, 7))
        bags_of = [{(epoch, name): bag for epoch, name, bag in seen} for seen in (one, other)]
        assert all(torch.equal(bag, bags_of[1][key]) for key, bag in bags_of[0].items())
        seeded = watched(bags, tmp_path, max_instances=40, seed=9).seen
        assert not all(torch.equal(bag, bags_of[0][epoch, name]) for epoch, name, bag in seeded)

    def test_each_is_of_the_bag_and_once(self):
        module, given = acmil(max_instances=4), batch()
        module._trainer = type("Known", (), {"current_epoch": 0})()
        x, sizes = module._subsample(given)
        assert sizes == [4, 3, 4]
        for bag, whole in zip(x.split(sizes), given["x"].split(given["sizes"]), strict=True):
            places = [(row == whole).all(1).nonzero().item() for row in bag]
            assert places == sorted(set(places))


class TestStandardising:
    def test_a_fresh_network_measures_the_training_features(self, bags, tmp_path):
        data = BagData(str(bags), 4)
        module = acmil(standardize=True)
        trainer(tmp_path, max_steps=1).fit(module, data)
        mean, deviation = data.feature_statistics()
        torch.testing.assert_close(module.net.feature_mean, mean)
        torch.testing.assert_close(module.net.feature_deviation, deviation)

    def test_weights_that_were_given_bring_their_own(self, bags, tmp_path):
        module = acmil(standardize=True)
        module.net.measure(torch.full((16,), 5.0), torch.full((16,), 2.0))
        trainer(tmp_path, max_steps=1).fit(module, BagData(str(bags), 4))
        assert (module.net.feature_mean == 5).all()


class TestLoss:
    @pytest.fixture
    def logged(self, monkeypatch):
        """What a step logs, without a trainer."""
        found = {}
        monkeypatch.setattr(BagModule, "log", lambda self, name, value, **_: found.update({name: value}))
        monkeypatch.setattr(BagModule, "log_dict", lambda self, values, **_: found.update(values))
        return found

    def step(self, module, given, world=1):
        module._trainer = type("Known", (), {"world_size": world, "current_epoch": 0})()
        return module.training_step(given, 0)

    def test_it_is_the_mean_over_bags_of_three_terms(self, logged):
        module, given = acmil(masked_top=0), batch()
        total = self.step(module, given)
        terms = bag_losses(module.net.pool(given["x"], given["sizes"]), given["label"])
        torch.testing.assert_close(total, sum(term.mean() for term in terms.values()))
        torch.testing.assert_close(logged["train/loss"], total.detach())
        assert logged.keys() == {"train/loss", "train/loss_slide", "train/loss_branch", "train/loss_diversity"}

    def test_classes_weigh_what_they_are_given(self, logged):
        given = batch()
        plain = self.step(acmil(masked_top=0, branches=1), given)
        weighted = self.step(acmil(masked_top=0, branches=1, class_weights=[1.0, 3.0]), given)
        with torch.no_grad():
            logits = acmil(masked_top=0, branches=1).net(given["x"], given["sizes"])
        losses = F.cross_entropy(logits, given["label"], reduction="none")
        torch.testing.assert_close(plain.detach(), losses.mean())
        torch.testing.assert_close(weighted.detach(), (losses * torch.tensor([1.0, 3.0, 1.0])).mean())

    def test_shares_of_processes_add_up_whatever_they_hold(self, logged):
        given, module = batch((5, 3, 9, 2, 7)), acmil(masked_top=0)
        whole = self.step(module, given)
        whole.backward()
        wanted = [parameter.grad.clone() for parameter in module.net.parameters()]
        module.net.zero_grad()
        pieces = given["x"].split(given["sizes"])
        total = 0.0
        for mine in ([0, 2, 4], [1, 3], []):
            part = {name: value[mine] for name, value in given.items() if name in ("row", "label")}
            part |= {"sizes": [len(pieces[i]) for i in mine], "global_size": given["global_size"]}
            part["x"] = torch.cat([pieces[i] for i in mine]) if mine else torch.zeros(0, 0)
            loss = self.step(module, part, world=3) / 3  # as processes are averaged
            loss.backward()
            total += loss.detach().item()
        assert total == pytest.approx(whole.item(), rel=1e-6)
        for parameter, gradient in zip(module.net.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("kind", [ABMILModule, PoolingModule])
    def test_networks_without_branches_have_one_term(self, logged, kind):
        module, given = kind(CLASSES, 16, dim=8), batch()
        total = self.step(module, given)
        torch.testing.assert_close(total, F.cross_entropy(module.net(given["x"], given["sizes"]), given["label"]))


class TestPredictions:
    def test_the_threshold_decides_between_two_classes(self):
        module = acmil().eval()
        module.threshold.fill_(0.3)
        logits = torch.tensor([[0.0, -2.0], [0.0, -0.5], [0.0, 1.0]])
        found = module.predictions(batch(), logits)
        assert found["predicted"].tolist() == [0, 1, 1]
        torch.testing.assert_close(found["probability_1"], logits.softmax(-1)[:, 1])
        assert found["name"] == ["s0", "s1", "s2"]

    def test_the_most_probable_of_several_classes_is_taken(self):
        module = PoolingModule(["a", "b", "c"], 16, dim=8).eval()
        module.threshold.fill_(0.9)
        logits = torch.tensor([[0.0, 0.1, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        found = module.predictions(batch(), logits)
        assert found["predicted"].tolist() == [1, 0, 2]
        assert {"probability_0", "probability_1", "probability_2"} <= found.keys()

    def test_no_bag_has_no_prediction(self):
        empty = {"x": torch.zeros(0, 0), "sizes": [], "row": torch.zeros(0, dtype=torch.long), "name": []}
        found = acmil().eval().predict_step(empty, 0)
        assert all(len(column) == 0 for column in found.values())

    def test_tables_of_attention(self):
        given = batch((2, 3)) | {
            "coords": torch.arange(10).view(5, 2), "patch_size": torch.tensor([512.0, 0.0]),
            "canvas": torch.tensor([[4096, 2048], [0, 0]]),
        }  # fmt: skip
        with torch.no_grad():
            output = acmil().eval().net.pool(given["x"], given["sizes"])
        tables = attention_tables(given, output.attention(), output.branch_attention())
        assert [table.height for table in tables] == [2, 3]
        assert tables[0].select("x", "y", "size", "width", "height").rows()[1] == (2, 3, 512.0, 4096, 2048)
        assert tables[1]["size"].to_list() == [0.0] * 3
        assert tables[0].columns[-3:] == ["branch_0", "branch_1", "branch_2"]
        np.testing.assert_allclose(tables[1]["attention"].sum(), 1, atol=1e-6)

    def test_attention_of_an_earlier_prediction_is_forgotten(self, bags, tmp_path):
        module, data = acmil(), BagData(str(bags), 4)
        stale = tmp_path / "attention" / "of another slide.parquet"
        stale.parent.mkdir()
        pl.DataFrame({"x": [1]}).write_parquet(stale)
        module.output = tmp_path
        trainer(tmp_path, limit_predict_batches=1).predict(module, data)
        names = data.store("test").frame["name"][:4]
        assert sorted(path.stem for path in stale.parent.iterdir()) == sorted(names)


class TestOptions:
    def test_checkpoints_hold_plain_values_of_all_options(self):
        options = acmil(lr=0.01, class_weights=[1.0, 2.0], max_instances=5, standardize=True).hparams
        assert options["lr"] == 0.01
        assert options["max_instances"] == 5
        assert options["branches"] == 3
        assert {type(value) for value in options.values()} <= {int, float, str, bool, list, dict, type(None)}
        again = ACMILModule(**options)
        assert again.net.arguments == acmil(standardize=True).net.arguments

    def test_class_weights_and_thresholds_follow_the_model(self):
        module = acmil(class_weights=[1.0, 2.0])
        assert "threshold" in module.state_dict()
        assert "class_weights" not in module.state_dict(), "an option, not a weight"
        assert {name for name in module.state_dict() if not name.startswith("net.")} == {"threshold"}

    @pytest.mark.parametrize(
        "options", [{"lr": 0.0}, {"min_lr": -1.0}, {"warmup": -1.0}, {"class_weights": [1.0]}, {"max_instances": 0}]
    )
    def test_options_out_of_range_are_named(self, options):
        with pytest.raises(ConfigError, match=next(iter(options))):
            acmil(**options)

    def test_a_diagnosis_needs_two_classes(self):
        with pytest.raises(ConfigError, match="1 class"):
            ABMILModule(["only"], 16)

    def test_example_inputs_fit_the_network(self):
        module = acmil()
        assert module.net(*module.example_inputs(rows=7)).shape == (1, 2)
        assert len(module.free_axes()) == len(module.example_inputs())
