"""Forecasts: what the network promises, how windows are cut, and bad series."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from data_prep.common.errors import ConfigError as PrepConfigError
from data_prep.common.errors import PrepError
from data_prep.ieeg.series import prepare_series
from domains.common.errors import ConfigError, PreparedDataError
from domains.common.hub import load_published, publish
from domains.ieeg.forecast_module import ForecastModule
from domains.ieeg.forecaster import MVPAForecaster
from domains.ieeg.series import SeriesData
from tests.data.ieeg.series import write_series

SMALL = {"n_variates": 3, "look_back": 48, "horizon": 12, "patch": 12, "dim": 8, "hidden": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(folder / "series.csv", rows=500)
    prepare_series("series", folder / "series.csv", folder / "prepared")
    return folder / "prepared"


@pytest.mark.parametrize("skip", [True, False])
def test_gradient_reaches_every_parameter(skip):
    net = MVPAForecaster(**SMALL, skip=skip, depth=2)
    if skip:  # the blocks start as nothing, and get a gradient from the first step on
        torch.nn.init.normal_(net.patches.head.weight)
    net(torch.randn(4, 48, 3)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_window_alone_as_in_any_batch():
    net, x = MVPAForecaster(**SMALL, skip=False).eval(), torch.randn(5, 48, 3)
    torch.testing.assert_close(net(x)[1:3], net(x[1:3]))


@pytest.mark.parametrize("normalisation", ["last", "window"])
def test_a_shifted_window_has_a_shifted_forecast(normalisation):
    net = MVPAForecaster(**SMALL, skip=False, normalisation=normalisation).eval()
    net.measure(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 1.0]))
    x, shift = torch.randn(2, 48, 3), torch.tensor([10.0, -5.0, 3.0])
    torch.testing.assert_close(net(x + shift), net(x) + shift, atol=1e-4, rtol=1e-4)


def test_units_of_a_variate_do_not_matter_once_measured():
    net, x = MVPAForecaster(**SMALL, skip=False).eval(), torch.randn(2, 48, 3)
    want, unit = net(x), torch.tensor([1e3, 1.0, 1e-3])
    net.measure(torch.zeros(3), unit)
    torch.testing.assert_close(net(x * unit), want * unit)


def test_published_forecasters_keep_what_they_measured(tmp_path):
    net = MVPAForecaster(**SMALL)
    net.measure(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 1.0]))
    publish(tmp_path, net, "card")
    torch.testing.assert_close(load_published(tmp_path).eval()(x := torch.randn(2, 48, 3)), net.eval()(x))


def test_the_horizon_of_a_split_lies_inside_it(prepared):
    data = SeriesData(str(prepared), look_back=48, horizon=12, batch_size=7)
    values = pl.read_parquet(prepared / "series.parquet").drop("time").to_numpy()
    seen = []
    for split, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        entry = data.card["splits"][split]
        for batch in loader:
            for begin, x, y in zip(batch["begin"].tolist(), batch["x"], batch["y"], strict=True):
                assert entry["first"] <= begin <= entry["first"] + entry["rows"] - 12
                np.testing.assert_array_equal(torch.cat([x, y]).numpy(), values[begin - 48 : begin + 12])
                seen.append(begin)
    assert len(seen) == len(set(seen)) == (350 - 48 - 12 + 1) + (100 - 12 + 1)


def test_statistics_are_those_of_the_training_split(prepared):
    mean, deviation = SeriesData(str(prepared), look_back=48, horizon=12).statistics()
    train = pl.read_parquet(prepared / "series.parquet").drop("time").head(350).to_numpy()
    np.testing.assert_allclose(mean, train.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, train.std(0), rtol=1e-5)


def test_ett_has_the_borders_of_its_peers(tmp_path):
    write_series(tmp_path / "ETTh1.csv", rows=14_500)
    card = prepare_series("ett", tmp_path / "ETTh1.csv", tmp_path / "out")
    found = [(entry["first"], entry["rows"]) for entry in card["splits"].values()]
    assert found == [(0, 8640), (8640, 2880), (11520, 2880)]
    again = (tmp_path / "out" / "series.parquet").read_bytes()
    assert prepare_series("ett", tmp_path / "ETTh1.csv", tmp_path / "out") == card
    prepare_series("ett", tmp_path / "ETTh1.csv", tmp_path / "other")
    assert (tmp_path / "other" / "series.parquet").read_bytes() == again
    with pytest.raises(PrepConfigError, match="borders of its own"):
        prepare_series("ett", tmp_path / "ETTh1.csv", tmp_path / "third", ratios=(0.7, 0.1, 0.2))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("2016-07-01 05:00:00,", "2016-07-01 03:00:00,"), "row 5: date does not rise"),
        (lambda text: text.replace("date", "when", 1), "no column 'date' of times"),
        (lambda text: text.replace("\n2016-07-01 07:00:00,", "\n2016-07-01 07:00:00,oops", 1), "row 7 column 'HUFL'"),
        (lambda text: text[: text.index("2016-07-01 09") + 20] + ",,\n", "row 9 column 'HUFL': has no value"),
        (lambda text: "", "is no CSV"),
    ],
)
def test_damaged_series_are_told(edit, message, tmp_path):
    path = write_series(tmp_path / "series.csv", rows=50)
    path.write_text(edit(path.read_text()))
    with pytest.raises(PrepError, match=message):
        prepare_series("series", path, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_what_does_not_fit_is_told(prepared, tmp_path):
    with pytest.raises(PrepError, match="not found; name one CSV file"):
        prepare_series("series", tmp_path / "none.csv", tmp_path / "out")
    with pytest.raises(PreparedDataError, match=r"too few for data.look_back 48 and data.horizon 200"):
        SeriesData(str(prepared), look_back=48, horizon=200).store("test")
    with pytest.raises(ConfigError, match=r"does not divide data.look_back 48"):
        ForecastModule(48, 3, 12, patch=7)
    with pytest.raises(ConfigError, match="nothing is left"):
        ForecastModule(48, 3, 12, patch=12, depth=0, skip=False)
    card = json.loads((prepared / "dataset.json").read_text())
    assert card["group"]["kept_apart"]
    with pytest.raises(PrepError, match=r"60 or 15 minutes|rows, the split of ETT needs"):
        prepare_series("ett", write_series(tmp_path / "short.csv", rows=100), tmp_path / "ett")
