"""Where DCAL looks: accumulated attention of its class token, and the patches that global-local attention asks for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from domains.common.errors import ConfigError
from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, plain
from domains.common.loader import Batch
from domains.common.module import HeptadModule
from domains.common.writing import write_whole
from domains.finegrained.data import PictureData
from domains.finegrained.dcal import class_probabilities, embedding
from domains.finegrained.looked import choose_rows
from domains.finegrained.module import ClassModule, ReIDModule
from domains.finegrained.reid_metrics import NoTrueMatchError
from domains.finegrained.retrieval import score_queries
from domains.finegrained.training import DCALModule

LOOKED = 512  # pictures of the split that are looked at
SHOWN = 4  # good, and as many bad cases
BRIGHTEST = 4  # a map is drawn up to so many times what even attention would give, or up to its largest value


@dataclass
class Looked:
    """What the network made of many pictures.

    Attributes:
        table: a row each: row, name, label where known, and what was decided.
        rollout: accumulated attention of CLS to each patch (n, h, w) float32, of sum 1 with CLS.
        selected: patches that ask, (n, h, w) bool.
        among: which pictures these are, of how many.
    """

    table: pl.DataFrame
    rollout: NDArray[np.float32]
    selected: NDArray[np.bool_]
    among: str

    @property
    def relative(self) -> NDArray[np.float32]:
        """The rollout as multiples of what attention spread evenly over the patches would give (n, h, w)."""
        return np.asarray(self.rollout / self.rollout.mean((1, 2), keepdims=True).clip(1e-12), dtype=np.float32)


def explain(module: HeptadModule, data: Any, directory: Path, rows: int = LOOKED) -> list[Picture]:
    """Draw where a trained network looks in the test split; write attention.parquet and rollout.npz.

    Args:
        module: trained `ClassModule` or `ReIDModule`.
        data: its pictures.
        directory: where the files go.
        rows: how many pictures of the split to look at, see `choose_rows`.

    Raises:
        ConfigError: the module is of another kind, or has no global-local attention.
    """
    if not isinstance(module, DCALModule):
        raise ConfigError(f"{type(module).__name__} has no attention that could be shown")
    if module.branches == "sa":
        raise ConfigError("this network was trained with model.branches sa and has no global-local attention to show")
    module.eval()
    looked = look(module, data, rows)
    directory.mkdir(parents=True, exist_ok=True)
    measured = looked.table.select(name for name in looked.table.columns if name != "embedding").with_columns(
        pl.Series("attention_selected", np.where(looked.selected, looked.rollout, 0).sum((1, 2)) / _total(looked)),
        pl.Series("entropy_bits", _entropy(looked.rollout)),
    )
    buffer = io.BytesIO()
    measured.write_parquet(buffer)
    write_whole(directory / "attention.parquet", buffer.getvalue())
    write_whole(directory / "rollout.npz", _archive(looked))
    pictures = [_average(looked), _concentration(looked, measured)]
    for title, places in choose(module, looked).items():
        if places:
            pictures.append(Picture(title, _caption(looked), _overlays(module, data, looked, places)))
    return pictures


@torch.no_grad()
def look(module: DCALModule, data: PictureData, rows: int = LOOKED) -> Looked:
    """Run the network over pictures of the test split.

    Args:
        module: the network.
        data: pictures.
        rows: how many, see `choose_rows`.
    """
    store = data.store("test")
    chosen_rows = choose_rows(store.frame, rows, ignore_camera=getattr(module, "ignore_camera", False))
    parts: list[pl.DataFrame] = []
    rollouts, selections = [], []
    grid = module.net.trunk.patch_embed.grid_size
    prefix = module.net.trunk.num_prefix_tokens
    for batch in _batches(data, chosen_rows.rows):
        output = module(batch)
        known: dict[str, Any] = {
            name: np.asarray(batch[name]) for name in ("row", "name", "label", "role", "camera") if name in batch
        }
        if "camera_name" in store.frame.columns:
            known |= {name: store.at(batch["row"])[name].to_numpy() for name in ("identity", "camera_name")}
        if isinstance(module, ClassModule):
            together = class_probabilities(output, module.inference)
            surest = (together / together.sum(-1, keepdim=True)).max(-1)
            known |= {"predicted": surest.indices.numpy(), "confidence": surest.values.numpy()}
        else:
            known["embedding"] = embedding(output, module.inference).float().numpy()
        parts.append(pl.DataFrame(known))
        rollouts.append(output.rollout[:, prefix:].float().numpy().reshape(-1, *grid))
        chosen = torch.zeros(output.rollout.shape, dtype=torch.bool).scatter(1, output.selected, True)
        selections.append(chosen[:, prefix:].numpy().reshape(-1, *grid))
    return Looked(pl.concat(parts), np.concatenate(rollouts), np.concatenate(selections), chosen_rows.among)


def choose(module: DCALModule, looked: Looked) -> dict[str, list[int]]:
    """Good and bad cases: title -> places in the table."""
    table = looked.table.with_row_index("place")
    some = {"Pictures of the test": list(range(min(2 * SHOWN, len(table))))}
    if "label" not in table.columns:
        return some
    if isinstance(module, ReIDModule):
        try:
            scored, _ = score_queries(table, ignore_camera=module.ignore_camera)
        except NoTrueMatchError:  # there is none in the whole split
            return some
        order = scored.filter(pl.col("matches") > 0).sort("ap_mean", "row")["place"].to_list()
        return {"Queries that are found best": order[::-1][:SHOWN], "Queries that are found worst": order[:SHOWN]}
    right = pl.col("predicted") == pl.col("label")
    sure = table.filter(right).sort("confidence", "row", descending=[True, False])
    good = sure.unique("label", keep="first", maintain_order=True)["place"].to_list()
    bad = table.filter(~right).sort("confidence", "row", descending=[True, False])["place"].to_list()
    return {"Right, and surest": good[:SHOWN], "Wrong, and surest": bad[:SHOWN]}


def _batches(data: PictureData, rows: NDArray[np.int64]) -> Iterator[Batch]:
    """Ready batches of some rows of the test split."""
    store = data.store("test")
    collate, whole = data.collate_for(store), store.load(0)
    for some in torch.split(torch.from_numpy(rows), data.batch_size):
        yield data.finish(collate({name: values[some] for name, values in whole.items()}))


def _overlays(module: DCALModule, data: PictureData, looked: Looked, places: list[int]) -> Figure:
    store = data.store("test")
    collate, whole = data.collate_for(store), store.load(0)
    rows = torch.tensor(looked.table["row"].to_numpy()[places].astype(np.int64))
    batch = data.finish(collate({name: values[rows] for name, values in whole.items()}))
    shape = 2.6 if data.image_size[0] > 1.4 * data.image_size[1] else 1.9
    figure = Figure(figsize=(1.75 * len(places) + 0.8, 3 * shape + 0.5), layout="constrained")
    panels = figure.subplots(3, len(places), squeeze=False)
    relative = looked.relative[places]
    brightest = max(float(BRIGHTEST), float(relative.max()))
    for column, place in enumerate(places):
        image = batch["image"][column].permute(1, 2, 0).numpy()
        height, width = image.shape[:2]
        everywhere = (0, width, height, 0)
        selected = looked.selected[place]
        for row in range(3):
            panels[row][column].imshow(image, extent=everywhere)
            panels[row][column].set_axis_off()
        overlay = panels[1][column].imshow(
            relative[column],
            cmap="magma",
            alpha=0.65,
            extent=everywhere,
            interpolation="bilinear",
            vmin=0,
            vmax=brightest,
        )
        grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.5 + 0.3
        panels[2][column].imshow(grey, extent=everywhere)
        _mark(panels[2][column], image, selected)
        panels[0][column].set_title(_title(module, looked.table.row(place, named=True)), fontsize=7)
    figure.colorbar(overlay, ax=panels.ravel().tolist(), label="rollout, times even", shrink=0.3, aspect=12)
    for row, name in enumerate(("picture", "rollout", "asking patches")):
        panels[row][0].text(
            -0.06, 0.5, name, rotation=90, ha="right", va="center", fontsize=8, transform=panels[row][0].transAxes
        )
    return figure


def _mark(panel: Any, image: NDArray[np.float32], selected: NDArray[np.bool_]) -> None:
    """Selected patches in their colours, framed; all else stays grey."""
    height, width = image.shape[0] / selected.shape[0], image.shape[1] / selected.shape[1]
    for i, j in zip(*selected.nonzero(), strict=True):
        left, right, top, bottom = j * width, (j + 1) * width, i * height, (i + 1) * height
        part = image[round(top) : round(bottom), round(left) : round(right)]
        panel.imshow(part, extent=(left, right, bottom, top))
        panel.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=ORANGE, linewidth=0.7))
    panel.set_xlim(0, image.shape[1])
    panel.set_ylim(image.shape[0], 0)


def _title(module: DCALModule, row: dict[str, Any]) -> str:
    if isinstance(module, ClassModule):
        true = plain(module.classes[row["label"]], 22) if "label" in row else "label unknown"
        return f"{true}\n→ {plain(module.classes[row['predicted']], 20)} {row['confidence']:.2f}"
    camera = f", camera {row['camera_name']}" if row["camera_name"] else ""
    return plain(f"{row['identity'] or row['name']}{camera}", 26)


def _caption(looked: Looked) -> str:
    share = looked.selected.mean()
    return (
        f"Among {looked.among}. Rollout: attention of the class token, accumulated over all layers, as multiples of"
        " what the same attention spread evenly would give each patch; one colour all over is even attention. Asking"
        f" patches: the {share:.0%} with the largest weights, which global-local cross-attention looks at again. They"
        " tell where the network looks, not why it decides."
    )


def _average(looked: Looked) -> Picture:
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    rollout, asking = looked.relative.mean(0), looked.selected.mean(0)
    for panel, values, name, brightest in (
        (panels[0], rollout, "mean rollout, times even", BRIGHTEST),
        (panels[1], asking, "how often a patch asks", min(1.0, BRIGHTEST * asking.mean())),
    ):
        shown = panel.imshow(values, cmap="magma", vmin=0, vmax=max(float(brightest), float(values.max())))
        panel.set_title(name, fontsize=9)
        panel.set_axis_off()
        figure.colorbar(shown, ax=panel, shrink=0.75)
    caption = (
        f"Over {looked.among}. Bright: more than even attention would give. A map that is alike for all pictures is a"
        " habit of place, not of what is shown."
    )
    return Picture("Where the network looks on the average", caption, figure)


def _concentration(looked: Looked, measured: pl.DataFrame) -> Picture:
    figure, panel = axes(5.6, 3.2)
    values, even = measured["attention_selected"].to_numpy(), float(looked.selected.mean())
    panel.hist(values, bins=np.linspace(0, 1, 51).tolist(), color=BLUE, alpha=0.8)
    panel.axvline(float(values.mean()), color=GREY, linewidth=1.4, label=f"mean {values.mean():.1%}")
    panel.axvline(even, color=ORANGE, linewidth=1.4, linestyle="--", label=f"even attention {even:.1%}")
    panel.set_xlim(0, 1)
    panel.set_xlabel("share of the patches' attention that lies on the asking ones")
    panel.set_ylabel("pictures")
    panel.legend(frameon=False, fontsize=8)
    caption = f"Over {looked.among}. Asking patches have the largest weights: even attention is the least there is."
    return Picture("How concentrated attention is", caption, figure)


def _total(looked: Looked) -> NDArray[np.float32]:
    return np.asarray(looked.rollout.sum((1, 2)).clip(1e-12), dtype=np.float32)


def _entropy(rollout: NDArray[np.float32]) -> NDArray[np.float64]:
    """Entropy of the attention over patches, bits."""
    flat = rollout.reshape(len(rollout), -1).astype(np.float64)
    shares = flat / flat.sum(axis=1, keepdims=True).clip(1e-12)
    return np.asarray(-(shares * np.log2(shares.clip(1e-12))).sum(axis=1))


def _archive(looked: Looked) -> bytes:
    buffer = io.BytesIO()
    rows = looked.table["row"].to_numpy()
    np.savez_compressed(buffer, row=rows, rollout=looked.rollout, selected=looked.selected)
    return buffer.getvalue()
