"""Where a model of bags looks, how its branches differ, and whether what it looks at decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, heat_map, plain
from domains.common.loader import Batch, mix_seed
from domains.common.writing import write_tables, write_whole
from domains.medical.acmil import ACMIL
from domains.medical.data import BagData
from domains.medical.heatmap import draw_heat_map
from domains.medical.module import BagModule
from domains.medical.slide_attention import SlideAttention

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # of the patches of a slide that are taken out
TOP = (1, 5, 10, 50)


@dataclass(frozen=True)
class Case:
    """One slide: what was found, and where.

    Args:
        row: of the split.
        name: of the slide.
        label: its class.
        probabilities: of the classes.
        attention: of each patch.
        similarity: cosines between the attention of the branches; None for one branch.
        without: probability of the decided class when the share SHARES of patches with the most attention is taken
            out, and when as many others are, drawn at random.
        place: where the patches are; None where that is unknown.

    Shape:
        probabilities (C,), attention (N,), similarity (K, K), without (2, len(SHARES)).
    """

    row: int
    name: str
    label: int
    probabilities: NDArray[np.float32]
    attention: NDArray[np.float32]
    similarity: NDArray[np.float32] | None
    without: NDArray[np.float32]
    place: SlideAttention | None

    @property
    def decided(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())


def explain_slides(module: BagModule, data: BagData, directory: Path, slides: int = 200) -> list[Picture]:
    """Draw what a trained network attends to in the test split; write slides.parquet and attention.json.

    Args:
        module: trained.
        data: its slides.
        directory: where the files go.
        slides: how many slides of the split to look at, from its beginning.
    """
    module.eval()
    cases = list(look_at(module, data, slides))
    write_tables(directory / "slides.parquet", [_table(cases, module.classes)])
    write_whole(directory / "attention.json", json.dumps(_summary(cases), indent=2).encode() + b"\n")
    pictures = [_removal(cases)]
    if isinstance(module.net, ACMIL):
        pictures.insert(0, _concentration(cases, module.classes))
        if cases[0].similarity is not None:
            pictures.insert(1, _branches(cases))
        pictures += [_case(title, case, module.classes) for title, case in choose(cases).items()]
    return pictures


@torch.no_grad()
def look_at(module: BagModule, data: BagData, slides: int) -> Iterator[Case]:
    """Run the network over the first slides of the test split, one at a time."""
    one = BagData(str(data.root), 1, data.seed, workers=0, cache_mb=0, splits=_text(data.splits))
    for number, batch in enumerate(one.test_dataloader()):
        if number == slides:
            return
        x = batch["x"].float().to(module.device)
        output = module.net.pool(x)
        attention, probabilities = output.attention()[0], output.logits[0].softmax(-1)
        branches, similarity = output.weights[0], None
        if branches.shape[1] > 1:
            unit = torch.nn.functional.normalize(branches, dim=-1)
            similarity = (unit @ unit.transpose(-2, -1)).mean(0).cpu().numpy()
        yield Case(
            row=int(batch["row"][0]),
            name=batch["name"][0],
            label=int(batch["label"][0]),
            probabilities=probabilities.cpu().numpy(),
            attention=attention.float().cpu().numpy(),
            similarity=similarity,
            without=_without(module, x, attention, int(probabilities.argmax()), int(batch["row"][0])),
            place=_place(batch, attention),
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _without(module: BagModule, x: Tensor, attention: Tensor, decided: int, row: int) -> NDArray[np.float32]:
    """Probability of the decided class without the patches that matter most, and without random ones."""
    generator = torch.Generator().manual_seed(mix_seed(module.seed, row))
    orders = (attention.argsort(descending=True), torch.randperm(len(x), generator=generator).to(x.device))
    values = np.empty((2, len(SHARES)), np.float32)
    for i, order in enumerate(orders):
        for j, share in enumerate(SHARES):
            # at least one patch is taken out, and one is left
            taken = min(max(round(share * len(x)), 1), len(x) - 1) if share else 0
            left = order[taken:].sort().values
            values[i, j] = module.net(x[left])[0].softmax(-1)[decided]
    return values


def _place(batch: Batch, attention: Tensor) -> SlideAttention | None:
    size, coords = float(batch["patch_size"][0]), batch["coords"].numpy()
    if size <= 0 or (coords < 0).any():
        return None
    width, height = (int(side) for side in batch["canvas"][0])
    if not width or not height:
        width, height = (int(side) for side in coords.max(0) + size)
    sizes = np.full(len(coords), size, np.float32)
    return SlideAttention(batch["name"][0], coords, sizes, attention.float().cpu().numpy(), width, height)


def choose(cases: list[Case]) -> dict[str, Case]:
    """Slides to show: of each class the surest right and the surest wrong one, as many as there are of four classes."""
    chosen: dict[str, Case] = {}
    for label in sorted({case.label for case in cases})[:4]:
        mine = [case for case in cases if case.label == label]
        for title, right in (("right", True), ("wrong", False)):
            found = [case for case in mine if (case.decided == label) == right]
            if found:
                chosen[f"class {label}, {title}"] = max(found, key=lambda case: case.probabilities.max())
    return chosen


def _curve(attention: NDArray[np.float32], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Attention that the strongest share of the patches holds."""
    held = np.concatenate([[0.0], np.cumsum(np.sort(attention)[::-1].astype(np.float64))])
    curve: NDArray[np.float64] = np.interp(shares, np.linspace(0.0, 1.0, len(held)), held / held[-1])
    return curve


def _half(attention: NDArray[np.float32]) -> int:
    """How many patches hold half of the attention."""
    return int(np.searchsorted(np.cumsum(np.sort(attention)[::-1]), 0.5 * attention.sum()) + 1)


def _table(cases: list[Case], classes: list[str]) -> pl.DataFrame:
    rows = []
    for case in cases:
        entry: dict[str, Any] = {"row": case.row, "name": case.name, "label": case.label, "decided": case.decided}
        entry |= {f"probability_{k}": float(p) for k, p in zip(range(len(classes)), case.probabilities, strict=True)}
        entry |= {"patches": len(case.attention), "patches_of_half": _half(case.attention)}
        held = np.sort(case.attention)[::-1]
        entry |= {f"top_{k}": float(held[:k].sum()) for k in TOP}
        if case.similarity is not None:
            entry["similarity"] = _pairs(case.similarity)
        for i, kind in enumerate(("attended", "random")):
            entry |= {f"without_{kind}_{share:g}": float(case.without[i, j]) for j, share in enumerate(SHARES)}
        rows.append(entry)
    return pl.DataFrame(rows)


def _pairs(similarity: NDArray[np.float32]) -> float:
    return float(similarity[np.triu_indices(len(similarity), 1)].mean())


def _summary(cases: list[Case]) -> dict[str, Any]:
    similar = [_pairs(case.similarity) for case in cases if case.similarity is not None]
    top = np.mean([[np.sort(case.attention)[::-1][:k].sum() for k in TOP] for case in cases], axis=0)
    without = np.mean([case.without for case in cases], axis=0)
    return {
        "slides": len(cases),
        "attention_of_the_strongest": dict(zip(map(str, TOP), top.tolist(), strict=True)),
        "patches_of_half_the_attention": float(np.median([_half(case.attention) for case in cases])),
        "similarity_of_branches": float(np.mean(similar)) if similar else None,
        "shares": list(SHARES),
        "without_attended": without[0].tolist(),
        "without_random": without[1].tolist(),
    }


def _concentration(cases: list[Case], classes: list[str]) -> Picture:
    figure, panel = axes(5.2, 4.0)
    shares = np.linspace(0.0, 1.0, 201)
    for label, colour in zip(sorted({case.label for case in cases})[:4], (BLUE, ORANGE, "#4c9f70", "#8f5fb0")):  # noqa: B905
        mine = np.mean([_curve(case.attention, shares) for case in cases if case.label == label], axis=0)
        panel.plot(shares, mine, color=colour, label=plain(classes[label]))
    panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", label="all alike")
    panel.set_xlabel("share of the patches, strongest first")
    panel.set_ylabel("share of the attention")
    panel.legend(frameon=False)
    facts = _summary(cases)
    top = facts["attention_of_the_strongest"]["10"]
    caption = (
        f"Mean over {len(cases)} test slides. The ten strongest patches of a slide hold {top:.0%} of its attention;"
        f" half of it lies on {facts['patches_of_half_the_attention']:.0f} patches (median)."
    )
    return Picture("How the attention is spread", caption, figure)


def _branches(cases: list[Case]) -> Picture:
    similarity = np.mean([case.similarity for case in cases if case.similarity is not None], axis=0)
    names = [f"branch {k}" for k in range(len(similarity))]
    caption = (
        "Cosine between the attention of each two branches, mean over the test slides; 1: they look at the same"
        f" patches. The mean over pairs, which training keeps low, is {_pairs(similarity):.3f}."
    )
    return Picture("How alike the branches look", caption, heat_map(similarity, names, label="cosine similarity"))


def _removal(cases: list[Case]) -> Picture:
    figure, panel = axes(5.2, 4.0)
    values = np.mean([case.without for case in cases], axis=0)
    for line, colour, label in zip(values, (ORANGE, BLUE), ("most attended", "drawn at random"), strict=True):
        panel.plot([100 * share for share in SHARES], line, "o-", color=colour, markersize=3.5, label=label)
    panel.set_xlabel("% of the patches taken out")
    panel.set_ylabel("probability of the decided class")
    panel.set_ylim(0, 1.02)
    panel.legend(frameon=False)
    caption = (
        f"Mean over {len(cases)} test slides. Where the orange line falls below the blue one, what the model attends to"
        " is what it decides by; where they run together, its attention explains nothing."
    )
    return Picture("What happens without the attended patches", caption, figure)


def _case(title: str, case: Case, classes: list[str]) -> Picture:
    caption = (
        f"Labelled {plain(classes[case.label])}; decided {plain(classes[case.decided])} with probability"
        f" {case.probabilities.max():.3f}. {len(case.attention):,} patches, half of the attention on"
        f" {_half(case.attention):,} of them."
    )
    name = title.replace(f"class {case.label}", plain(classes[case.label]))
    if case.place is not None:
        picture = draw_heat_map(case.place, max_side=900)
        figure = Figure(figsize=(picture.shape[1] / 150, picture.shape[0] / 150))
        panel = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        panel.imshow(picture)
        panel.set_axis_off()
        return Picture(f"{name}: {plain(case.name)}", f"{caption} Colour: percentile of the attention.", figure)
    figure, panel = axes(5.2, 2.6)
    held = np.sort(case.attention)[::-1]
    panel.bar(np.arange(1, len(held) + 1), held, color=BLUE, width=0.8)
    panel.set_xlabel("patches, strongest first")
    panel.set_ylabel("attention")
    return Picture(f"{name}: {plain(case.name)}", caption, figure)
