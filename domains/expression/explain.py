"""Where ARBEx looks on a face, and how far faces are from the anchors of the classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from domains.common.attention import record
from domains.common.attention.window_cross import from_windows
from domains.common.figures import BLUE, GREY, Picture, axes, plain
from domains.common.loader import Batch
from domains.common.showing import archive, batch_of, first_batches
from domains.common.writing import write_whole
from domains.expression.balancing import ARBExOutput
from domains.expression.data import ExpressionData
from domains.expression.module import ARBExModule
from domains.expression.poster import POSTERV2

GOOD, BAD = 4, 4  # cases that are shown
LEVEL_SIDE = 7  # places along a side of each level's tokens, of POSTER++
Maps = NDArray[np.float32]


@dataclass
class Case:
    """A face, what was made of it, and maps over it.

    Shape:
        maps: name -> (h, w) float32, of any size: all cover the whole image; primary, corrected and distances (C,).
    """

    row: int
    name: str
    label: int
    image: Maps
    maps: dict[str, Maps]
    primary: Maps
    corrected: Maps
    distances: Maps

    def decided(self, prediction: str) -> int:
        """The class that the distribution of this name decides for."""
        return int((self.primary if prediction == "primary" else self.corrected).argmax())


def explain(module: ARBExModule, data: ExpressionData, directory: Path, rows: int = 1000) -> list[Picture]:
    """Draw what a trained network attends to in the test split; write distances.parquet and maps.npz.

    Args:
        module: trained.
        data: its faces.
        directory: where the files go.
        rows: how many images of the split to look at, from its beginning.
    """
    data.take_shape(module)
    module.eval()
    table = distance_table(module, data, rows)
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_whole(directory / "distances.parquet", buffer.getvalue())
    pictures = [_distance_picture(table, module.classes)] if module.balancing else []
    chosen = choose_cases(table)
    cases = [case_of(module, batch_of(data, row)) for row in chosen]
    write_whole(directory / "maps.npz", archive({case.row: case.maps for case in cases}))
    for case in cases:
        right = "right" if case.decided(module.prediction) == case.label else "wrong"
        title = f"{right}: {plain(module.classes[case.label])} ({plain(case.name, 40)})"
        pictures.append(Picture(title, _caption(module, case, len(table)), _draw(module, case)))
    return pictures


@torch.no_grad()
def distance_table(module: ARBExModule, data: ExpressionData, rows: int) -> pl.DataFrame:
    """Measure many faces.

    Returns:
        A row for each image: row, name, label, predicted, probability (calibrated, of the decided class), confidence
        and distance_0 and so on (to the nearest anchor of each class).
    """
    tables = []
    for batch in first_batches(data, rows):
        output = module(batch)
        p, probability = module.decided(output)
        nearest = output.distances.amin(-1).float().numpy()
        columns = {
            "row": batch["row"].numpy(),
            "name": batch["name"],
            "label": batch["label"].numpy(),
            "predicted": p.argmax(-1).numpy(),
            "probability": probability.amax(-1).numpy(),
            "confidence": output.confidence[:, 0].numpy(),
        }
        tables.append(pl.DataFrame({**columns, **{f"distance_{k}": nearest[:, k] for k in range(nearest.shape[1])}}))
    return pl.concat(tables).sort("row")


def choose_cases(table: pl.DataFrame) -> list[int]:
    """Rows of faces of unlike classes that the network is surest about: right ones first, then wrong ones."""
    chosen: list[int] = []
    for right, count in ((True, GOOD), (False, BAD)):
        part = table.filter((pl.col("label") == pl.col("predicted")) == right)
        best = part.sort("probability", "row", descending=[True, False]).unique(
            "label", keep="first", maintain_order=True
        )
        chosen += best["row"].head(count).to_list()
    return chosen


@torch.no_grad()
def case_of(module: ARBExModule, batch: Batch) -> Case:
    """Look at one face; its batch has one row."""
    with record(module.net) as recorded:
        output: ARBExOutput = module(batch)
    image = batch["image"][0].float()
    image = (image - image.amin()) / (image.amax() - image.amin()).clamp_min(1e-6)
    return Case(
        row=int(batch["row"][0]),
        name=str(batch["name"][0]),
        label=int(batch["label"][0]),
        image=image.permute(1, 2, 0).numpy(),
        maps=attention_maps(module, recorded),
        primary=output.primary[0].numpy(),
        corrected=output.corrected[0].numpy(),
        distances=output.distances[0].amin(-1).float().numpy(),
    )


def attention_maps(module: ARBExModule, recorded: dict[str, list[Tensor]]) -> dict[str, Maps]:
    """Maps over the face from what a recorder collected of one sample.

    `level i`: how much the queries of the other stream attend to each place, a mean over queries and heads; where a map
    has several windows, weights add up to 1 in each. `class token`: what the last block's class token takes from the
    tokens of all levels, laid over each other.

    Returns:
        name -> (h, w) float32.
    """
    maps: dict[str, Maps] = {}
    sides = []
    for name, found in recorded.items():
        if not name.startswith(("extractor.levels", "extractor.fine", "extractor.coarse")):
            continue
        weights = found[0].float().mean(dim=(1, 2))  # (windows, M M)
        side = round(weights.numel() ** 0.5)
        laid = from_windows(weights[None, :, :, None], side, side)[0, :, :, 0]
        maps[f"level {len(maps)}"] = laid.numpy()
        sides.append(side)
    last = [name for name in recorded if name.startswith("extractor.vit.blocks")][-1]
    tokens = recorded[last][0][0].float().mean(0)[0, 1:]  # (L,) of the class token
    if isinstance(module.net.extractor, POSTERV2):
        counts = [LEVEL_SIDE**2] * len(sides)
    else:
        counts = [len(tokens) - sides[-1] ** 2, sides[-1] ** 2]
    size = max(round(count**0.5) for count in counts)
    total = torch.zeros(size, size)
    for part in torch.split(tokens, counts):
        own = round(len(part) ** 0.5)
        laid = F.interpolate(part.view(1, 1, own, own), size=(size, size), mode="nearest")[0, 0]
        total += laid * (own / size) ** 2  # the weight of a token is shared by the places it covers
    maps["class token"] = total.numpy()
    return maps


def _caption(module: ARBExModule, case: Case, seen: int) -> str:
    """What was decided, how the case was chosen among the faces that were looked at, and how to read the picture."""
    names = [plain(name) for name in module.classes]
    decided = case.decided(module.prediction)
    own, anchors = f"probability {case.primary[case.label]:.3f}", ""
    if module.balancing:
        own += f" before balancing, {case.corrected[case.label]:.3f} after it"
        anchors = f" The nearest anchor is one of {names[int(case.distances.argmin())]}."
    kind, count = ("right", GOOD) if decided == case.label else ("wrong", BAD)
    return (
        f"Labelled {names[case.label]} ({own}, not scaled by a temperature); decided: {names[decided]}.{anchors}"
        f" Chosen as the surest {kind} decision about a face of this label among the first {seen:,} of the test split,"
        f" one for each of the {count} labels that have the surest. Warm places are attended to most, each map by its"
        " own scale; attention tells what is looked at, not why."
    )


def _draw(module: ARBExModule, case: Case) -> Figure:
    columns = len(case.maps) + 1
    wide = 2 if module.balancing else 1
    ratios = [1.0] * columns + [1.25] * wide
    figure = Figure(figsize=(1.55 * columns + 2.1 * wide, 2.3), layout="constrained")
    panels = figure.subplots(1, columns + wide, width_ratios=ratios)
    place = (0.0, 1.0, 1.0, 0.0)
    picture = case.image if case.image.shape[2] == 3 else case.image[..., 0]
    for panel, name in zip(panels[:columns], ["image", *case.maps], strict=True):
        panel.imshow(picture, cmap="gray", extent=place)
        if name != "image":
            panel.imshow(case.maps[name], cmap="inferno", alpha=0.55, extent=place, interpolation="bilinear")
        panel.set_title(name, fontsize=8)
        panel.set_axis_off()
    places = np.arange(len(module.classes))
    bars = panels[columns]
    bars.barh(places - 0.2, case.primary, 0.4, color=GREY, label="before")
    if module.balancing:
        bars.barh(places + 0.2, case.corrected, 0.4, color=BLUE, label="after")
        panels[columns + 1].barh(places, case.distances, 0.6, color=GREY)
        panels[columns + 1].barh(case.label, case.distances[case.label], 0.6, color=BLUE)
        panels[columns + 1].set_title("distance to anchors; blue: label", fontsize=8)
        panels[columns + 1].set_yticks([])
        # below, where no bar can be
        bars.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    bars.set_title("probability", fontsize=8)
    bars.set_yticks(places, [plain(name, 14) for name in module.classes], fontsize=7)
    for panel in panels[columns:]:
        panel.set_ylim(len(places) - 0.5, -0.5)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _distance_picture(table: pl.DataFrame, classes: Sequence[str]) -> Picture:
    present = [k for k in range(len(classes)) if (table["label"] == k).any()]
    columns = [f"distance_{k}" for k in range(len(classes))]
    values = np.array([table.filter(pl.col("label") == k).select(columns).mean().row(0) for k in present])
    size = max(3.6, 0.5 * len(classes) + 2)
    figure, panel = axes(size + 1, size)
    image = panel.imshow(values, cmap="viridis_r")
    panel.set_xticks(range(len(classes)), [plain(name, 14) for name in classes], rotation=90)
    panel.set_yticks(range(len(present)), [plain(classes[k], 14) for k in present])
    middle = (values.min() + values.max()) / 2
    # as many as it takes to tell twenty steps of the scale apart: distances may differ little
    digits = int(np.clip(np.ceil(-np.log10(max((values.max() - values.min()) / 20, 1e-4))), 1, 4))
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > middle else "#1c2430"
        panel.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=colour)
    panel.set_xlabel("anchors of")
    panel.set_ylabel("faces of")
    panel.spines[:].set_visible(False)
    figure.colorbar(image, ax=panel, label="distance", shrink=0.8)
    caption = (
        "Mean distance of the faces of each class to the nearest anchor of each class; the diagonal should be least."
    )
    return Picture("Faces and anchors", caption, figure)
