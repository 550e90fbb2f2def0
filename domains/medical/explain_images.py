"""Where MEDUSA looks: its four gates and the map of its body over images that it got right and wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.common.attention import InjectionHead, record
from domains.common.errors import ConfigError
from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, plain
from domains.common.module import HeptadModule
from domains.common.showing import archive, batch_of, first_batches
from domains.common.writing import write_whole
from domains.medical.image_data import ImageData
from domains.medical.medusa_module import MEDUSAModule
from domains.medical.segmentation import MEDUSABodyModule, overlaps

SHOWN_CLASSES = 4
Maps = NDArray[np.float32]


@dataclass
class Case:
    """An image, what was made of it, and maps over it.

    Shape:
        maps: name -> (h, w) float32, of any size: all cover the whole image.
    """

    row: int
    name: str
    label: int
    predicted: int
    probability: float
    maps: dict[str, Maps] = field(default_factory=dict)


def explain_images(module: HeptadModule, data: ImageData, directory: Path, rows: int = 400) -> list[Picture]:
    """Draw what a trained network sees in the test split; write gates.parquet and maps.npz.

    Args:
        module: trained `MEDUSAModule` or `MEDUSABodyModule`.
        data: its images.
        directory: where the files go.
        rows: how many images of the split to look at, from its beginning.

    Raises:
        ConfigError: the module is of another kind.
    """
    data.take_sides(module)
    module.eval()
    if isinstance(module, MEDUSABodyModule):
        return _explain_lungs(module, data, rows)
    if not isinstance(module, MEDUSAModule):
        raise ConfigError(f"{type(module).__name__} has no gates that could be shown")
    if module.net.body is None:
        raise ConfigError("this network was trained without model.taps and has no gates to show")
    table, chosen = gate_table(module, data, rows)
    if "probability" not in table.columns:
        raise ConfigError(
            f"{data.root}: the images have no labels, so that none is right or wrong; explain another split"
        )
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_whole(directory / "gates.parquet", buffer.getvalue())
    cases = list(_cases(module, data, chosen))
    write_whole(directory / "maps.npz", archive({case.row: case.maps for case in cases}))
    start = gate_start(module)
    pictures = [_strengths(table, module.classes, start)]
    for case in cases:
        title = f"{plain(module.classes[case.label])}, {chosen[case.row]} of the split: {plain(case.name)}"
        pictures.append(Picture(title, _caption(module, case), _overlays(case, start)))
    return pictures


def gate_start(module: MEDUSAModule) -> float:
    """Value of all gates of a fresh network."""
    return cast(InjectionHead, module.net.heads[0]).gate.start


@torch.no_grad()
def gate_table(module: MEDUSAModule, data: ImageData, rows: int) -> tuple[pl.DataFrame, dict[int, str]]:
    """Measure the gates of many images, and choose the best and the worst image of each class.

    Returns:
        A row for each image and stage: row, name, label, probability (of the true class), stage, mean (of all gates of
        the stage), distance (mean distance from the start, at which the network is as it was without gates), spread
        (deviation over places, of gates averaged over channels); and chosen rows -> `best` or `worst`.
    """
    columns: list[pl.DataFrame] = []
    start = gate_start(module)
    for batch in first_batches(data, rows):
        with record(module.net) as recorded:
            probabilities = module(batch).float().softmax(-1)
        known: dict[str, Any] = {"row": batch["row"].numpy(), "name": batch["name"]}
        if "label" in batch:
            true = probabilities.gather(1, batch["label"][:, None]).squeeze(1)
            known |= {"label": batch["label"].numpy(), "probability": true.numpy()}
        for j, stage in enumerate(module.net.taps):
            gates = recorded[f"heads.{j}.gate"][0].float()
            measured = {
                "mean": gates.mean(dim=(1, 2, 3)).numpy(),
                "distance": (gates - start).abs().mean(dim=(1, 2, 3)).numpy(),
                "spread": gates.mean(dim=1).flatten(1).std(dim=1).numpy(),
            }
            columns.append(pl.DataFrame({**known, "stage": np.full(len(gates), stage), **measured}))
    table = pl.concat(columns).sort("row", "stage")
    chosen: dict[int, str] = {}
    if "label" in table.columns:
        one = table.filter(pl.col("stage") == module.net.taps[0]).sort("probability", "row")
        for label in sorted(one["label"].unique())[:SHOWN_CLASSES]:
            inside = one.filter(pl.col("label") == label)["row"].to_list()
            chosen |= {inside[-1]: "best", inside[0]: "worst"}
    return table, chosen


@torch.no_grad()
def _cases(module: MEDUSAModule, data: ImageData, chosen: dict[int, str]) -> Iterator[Case]:
    body = module.net.body
    for row in chosen:
        batch = batch_of(data, row)
        with record(module.net) as recorded:
            predicted = module.predictions(batch, module(batch))
        label = int(batch["label"][0])
        case = Case(row, batch["name"][0], label, int(predicted["predicted"]), float(predicted[f"probability_{label}"]))
        case.maps["image"] = batch["image"][0].mean(dim=0).numpy()
        if body is not None:
            found = body(batch["gray"])
            case.maps["body"] = found[0].mean(dim=0).numpy()
            if module.segmentation or module.body_weights is not None:
                case.maps["lungs"] = body.segment(found)[0, 0].sigmoid().numpy()
        for j, stage in enumerate(module.net.taps):
            case.maps[f"gate {stage}"] = recorded[f"heads.{j}.gate"][0][0].float().mean(dim=0).numpy()
        yield case


def _caption(module: MEDUSAModule, case: Case) -> str:
    label, decided = plain(module.classes[case.label]), plain(module.classes[case.predicted])
    start = gate_start(module)
    reach = max(float(np.abs(values - start).max()) for name, values in case.maps.items() if name.startswith("gate"))
    lungs = " Lungs: probability of the body's segmentation output." if "lungs" in case.maps else ""
    return (
        f"Probability of {label} {case.probability:.3f}, decided: {decided}. Body: mean of its channels.{lungs} Gates:"
        " mean over the channels of a stage; red lets features pass stronger than before training, blue weaker, here by"
        f" {reach / start:.1%} at most. The gates tell what the network weighs, not why."
    )


def _overlays(case: Case, start: float) -> Figure:
    gates = {name: values for name, values in case.maps.items() if name.startswith("gate")}
    others = [name for name in ("image", "body", "lungs") if name in case.maps]
    columns = len(others) + len(gates)
    figure = Figure(figsize=(1.9 * columns + 0.6, 2.5), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    reach = max(float(np.abs(values - start).max()) for values in gates.values())
    norm = CenteredNorm(vcenter=start, halfrange=max(reach, 1e-3))
    place = (0.0, 1.0, 1.0, 0.0)
    shown = None
    for panel, name in zip(panels, [*others, *gates], strict=True):
        panel.imshow(case.maps["image"], cmap="gray", vmin=0, vmax=1, extent=place)
        if name in gates:
            shown = panel.imshow(
                gates[name], cmap="RdBu_r", norm=norm, alpha=0.55, extent=place, interpolation="bilinear"
            )
        elif name != "image":
            panel.imshow(case.maps[name], cmap="viridis", alpha=0.6, extent=place, interpolation="bilinear")
        panel.set_title(name, fontsize=9)
        panel.set_axis_off()
    if shown is not None:
        figure.colorbar(shown, ax=list(panels), label="gate", shrink=0.85, fraction=0.03)
    return figure


def _strengths(table: pl.DataFrame, classes: list[str], start: float) -> Picture:
    figure, panel = axes(6.4, 3.4)
    stages = sorted(table["stage"].unique())
    labels = sorted(table["label"].unique())[:SHOWN_CLASSES]
    edges = np.linspace(-0.4, 0.4, len(labels) + 1)
    for k, (left, right) in enumerate(pairwise(edges)):
        inside = table.filter(pl.col("label") == labels[k])
        means = [float(inside.filter(pl.col("stage") == stage)["distance"].mean()) for stage in stages]  # type: ignore[arg-type]
        colour = (BLUE, ORANGE, GREY, "#5b8c5a")[k]
        panel.bar(
            np.arange(len(stages)) + (left + right) / 2,
            means,
            right - left,
            color=colour,
            label=plain(classes[labels[k]]),
        )
    panel.set_xticks(range(len(stages)), [f"stage {stage}" for stage in stages])
    panel.set_ylabel(f"mean distance of a gate from {start:g}")
    panel.legend(frameon=False)
    caption = "How strongly each scale is gated, over the images of each class; 0 would be a network without attention."
    return Picture("Gates at the four scales", caption, figure)


@torch.no_grad()
def _explain_lungs(module: MEDUSABodyModule, data: ImageData, rows: int) -> list[Picture]:
    found: list[tuple[float, int]] = []
    for batch in first_batches(data, rows):
        dice = overlaps(module(batch), batch["mask"])["dice"]
        found += [(float(value), int(row)) for value, row in zip(dice, batch["row"], strict=True)]
    pictures = []
    found.sort()
    for title, (score, row) in {"Worst": found[0], "Middle": found[len(found) // 2], "Best": found[-1]}.items():
        batch = batch_of(data, row)
        figure = Figure(figsize=(6.2, 3.2), layout="constrained")
        panels = figure.subplots(1, 2)
        outlined = {"mask": batch["mask"][0, 0].numpy(), "found": module(batch)[0, 0].sigmoid().numpy()}
        for panel, (name, values) in zip(panels, outlined.items(), strict=True):
            panel.imshow(batch["image"][0].mean(dim=0).numpy(), cmap="gray", vmin=0, vmax=1)
            if values.min() < 0.5 < values.max():
                panel.contour(values, levels=[0.5], colors=[ORANGE], linewidths=1.4)
            panel.set_title(name, fontsize=9)
            panel.set_axis_off()
        pictures.append(Picture(f"{title}: {plain(batch['name'][0])}", f"Dice {score:.3f}.", figure))
    return pictures
