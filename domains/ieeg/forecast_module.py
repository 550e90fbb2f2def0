"""Training of forecasts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.common.errors import ConfigError
from domains.common.intervals import Estimate, group_bootstrap
from domains.common.loader import Batch
from domains.ieeg.forecaster import MVPAForecaster, Normalisation
from domains.ieeg.module import SignalModule

QUARTERS = 4  # of the horizon, whose errors are told apart
WEEK = 168  # steps of a block at least: neighbouring windows share nearly all of their steps


class ForecastModule(SignalModule):
    """A forecaster trained by the squared error of standardised variates, as all peers of ETT measure it.

    Args:
        samples: steps that a forecast looks back on, taken from the data.
        n_variates: taken from the data.
        horizon: taken from the data.
        patch: steps of a token.
        dim: width of tokens.
        depth: number of blocks; 0 leaves the linear map alone, the baseline.
        heads: query heads.
        kv_heads: key and value heads.
        hidden: width inside the feed-forward networks.
        window: patches before its own whose content a query compares.
        content: False leaves the content term out.
        channel_distance: absolute or signed.
        normalisation: of each window: window (mean and deviation) or last (its last value).
        skip: add a linear map from the look-back to the horizon.
        dropout: of tokens, attention and head.
        options: of `SignalModule`.
    """

    net: MVPAForecaster
    validation_metrics = ("val/mse", "val/mae")

    def __init__(
        self,
        samples: int,
        n_variates: int,
        horizon: int,
        patch: int = 24,
        dim: int = 32,
        depth: int = 1,
        heads: int = 4,
        kv_heads: int = 4,
        hidden: int = 64,
        window: int = 10,
        content: bool = True,
        channel_distance: Literal["absolute", "signed"] = "signed",
        normalisation: Normalisation = "last",
        skip: bool = True,
        dropout: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(samples, **options)
        if samples % patch:
            raise ConfigError(f"model.patch {patch} does not divide data.look_back {samples}; change one of them")
        if not depth and not skip:
            raise ConfigError("model.depth 0 needs model.skip true: nothing is left that could forecast")
        self.net = MVPAForecaster(
            n_variates,
            samples,
            horizon,
            patch=patch,
            dim=dim,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            hidden=hidden,
            window=window,
            content=content,
            channel_distance=channel_distance,
            normalisation=normalisation,
            skip=skip,
            dropout=dropout,
        )
        self._validated: list[tuple[Tensor, ...]] = []

    def setup(self, stage: str) -> None:
        """Measure the training split, for a fresh network."""
        super().setup(stage)
        if stage == "fit" and not bool(self.net.measured):
            self.net.measure(*self.trainer.datamodule.statistics())  # type: ignore[attr-defined]

    def errors(self, batch: Batch) -> Tensor:
        """Differences (B, H, C) of forecast and truth, in standard deviations of the training split."""
        errors: Tensor = (self.net(batch["x"]) - batch["y"]) / self.net.deviation
        return errors

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean squared error over the windows of all processes."""
        rows = len(batch["x"])
        loss = self.errors(batch).square().mean((1, 2)).sum() * self.share(batch) if rows else self.nothing()
        self.log_loss(loss, rows)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect the errors of windows."""
        errors = self.errors(batch)
        self._validated.append((errors.square().mean((1, 2)), errors.abs().mean((1, 2))))

    def on_validation_epoch_end(self) -> None:
        """Log means over all windows; every process has the same numbers."""
        found = self.gathered(self._validated)
        self._validated = []
        values = {name: float(v.mean()) for name, v in zip(self.validation_metrics, found, strict=True)}
        self.log_dict(values, sync_dist=True)

    def test_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Errors of each window, also by quarter of the horizon, and of repeating its last value."""
        errors = self.errors(batch)
        repeated = (batch["x"][:, -1:] - batch["y"]) / self.net.deviation
        by_quarter = errors.square().mean(2).tensor_split(QUARTERS, dim=1)
        return {
            "row": batch["row"],
            "begin": batch["begin"],
            "mse": errors.square().mean((1, 2)),
            "mae": errors.abs().mean((1, 2)),
            "mse_last_value": repeated.square().mean((1, 2)),
            **{f"mse_quarter_{i + 1}": part.mean(1) for i, part in enumerate(by_quarter) if part.shape[1]},
        }

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """The forecast of each variate, in its own unit: one list of H values in each row."""
        forecast = self.net(batch["x"])
        names = self.trainer.datamodule.variates  # type: ignore[attr-defined]
        columns = {f"forecast_{name}": forecast[..., i] for i, name in enumerate(names)}
        return {"row": batch["row"], "begin": batch["begin"], **columns}

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """Means over windows, with intervals over blocks of time of at least a window and 168 steps."""
        names = [name for name in predictions.columns if name.startswith(("mse", "mae"))]
        columns = {name: predictions[name].to_numpy().astype(np.float64) for name in names}
        metrics: dict[str, Any] = {name: _mean_of(values) for name, values in columns.items()}
        ours, last = columns["mse"], columns["mse_last_value"]
        metrics["skill_over_last_value"] = lambda weights: float(1 - weights @ ours / (weights @ last))
        block = max(WEEK, self.net.look_back + self.net.horizon)
        groups = predictions["begin"].to_numpy() // block
        return group_bootstrap(metrics, len(predictions), groups, replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """Say what is measured."""
        block = max(WEEK, self.net.look_back + self.net.horizon)
        return (
            f"Errors are those of {self.net.horizon} steps of {len(data.variates)} variates, standardised by the"
            f" training split; windows begin at every step of the test split. Intervals are resampled over blocks of"
            f" {block} steps, because neighbouring windows share nearly all of theirs."
        )

    def example_inputs(self, rows: int = 2, length: int = 3) -> tuple[Tensor, ...]:
        """Look-back windows."""
        del length
        return (torch.randn(rows, self.net.look_back, self.net.n_variates),)


def _mean_of(values: Any) -> Any:
    return lambda weights: float(weights @ values / weights.sum())
