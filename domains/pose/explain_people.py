"""Where Group Pose looks: which joints a joint attends to, which persons a person does, and which places of the image.

All maps are of the last layer of the decoder, means over heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.common.attention import MultiScaleDeformableAttention, record
from domains.common.figures import BLUE, GREY, ORANGE, Picture, heat_map, plain
from domains.common.writing import write_tables
from domains.pose.data import PeopleData
from domains.pose.grouppose import MEAN, PERSON, STD, GroupPose
from domains.pose.grouppose_decoder import DecoderLayer, add_position
from domains.pose.module import GroupPoseModule

SEEN = 60  # images among which cases are chosen
SHOWN_JOINTS = 4
SHOWN_PERSONS = 8
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """An image, its surest persons, and what their queries attend to.

    Args:
        name: of the image.
        pixels: as the network sees it, 0..1.
        score: of the persons, the surest first.
        points: keypoints, pixels of `pixels`.
        within: attention of the surest person's queries (instance, then keypoints) to each other; rows add up to 1.
        across: attention between persons, of each type of query; of the persons shown, so rows may add up to less.
        places: where each query of the surest person reads the maps, pixels of `pixels`.
        weights: of these places; those of a query add up to 1.

    Shape:
        pixels (H, W, 3), score (N,), points (N, K, 2), within (K + 1, K + 1), across (K + 1, N, N), places
        (K + 1, P, 2) and weights (K + 1, P) for all P points of all heads and levels.
    """

    name: str
    pixels: Array
    score: Array
    points: Array
    within: Array
    across: Array
    places: Array
    weights: Array


@torch.no_grad()
def explain_people(module: GroupPoseModule, data: PeopleData, directory: Path) -> list[Picture]:
    """Draw where the surest persons of two images come from; write explain.parquet, attention between joints.

    Args:
        module: trained, in evaluation mode.
        data: its images; the beginning of the test split is looked at.
        directory: where the table goes.
    """
    names = ["person", *(name.replace("_", " ") for name in data.keypoint_names)]
    pictures, tables = [], []
    for title, row in _choose(module, data).items():
        case = look(module, data, row)
        heading = f"{title} of the first {min(SEEN, len(data.store('test').frame))} images"
        heading += ", below --model.shown" if case.score[0] < module.shown else ""
        pictures += [
            _joints(case, heading, names, data.skeleton),
            _matrix(case, heading, names),
            *_persons(case, heading, names, data.skeleton),
            _sampling(case, heading, names, data.skeleton),
        ]
        pairs = np.indices(case.within.shape).reshape(2, -1)
        tables.append(
            pl.DataFrame(
                {
                    **{"case": title, "image": case.name, "score": float(case.score[0])},
                    "query": [names[at] for at in pairs[0]],
                    "attends_to": [names[at] for at in pairs[1]],
                    "attention": case.within.reshape(-1),
                }
            )
        )
    if tables:
        write_tables(directory / "explain.parquet", [pl.concat(tables)])
    return pictures


def _choose(module: GroupPoseModule, data: PeopleData) -> dict[str, int]:
    """The image with the surest person, and that with the most persons that would be shown."""
    store, seen = data.store("test"), 0
    rows, best, count = [], [], []
    for batch in data.loader("test"):
        moved = module.transfer_batch_to_device(batch, module.device, 0) if module.device.type != "cpu" else batch
        score, label, _ = module(data.finish(moved))
        sure = score.masked_fill(label != PERSON, -1.0)
        rows += batch["row"].tolist()
        best += sure.max(1).values.tolist()
        count += [(int((each >= module.shown).sum()), float(each.max())) for each in sure]
        seen += len(batch["row"])
        if seen >= min(SEEN, len(store.frame)):
            break
    if not rows:
        return {}
    chosen = {"Surest person": rows[int(np.argmax(best))]}
    most = rows[max(range(len(rows)), key=lambda at: (*count[at], -at))]
    return chosen if most in chosen.values() else {**chosen, "Most persons": most}


@torch.no_grad()
def look(module: GroupPoseModule, data: PeopleData, row: int) -> Case:
    """Run the network on one image of the test split, and collect what its last layer attends to."""
    store = data.store("test")
    batch = data.finish(data.collate_for(store)({"row": torch.tensor([row])}))
    net = module.net
    layer = cast(DecoderLayer, net.decoder.layers[-1])
    name = f"decoder.layers.{len(net.decoder.layers) - 1}.group"
    image = batch["image"].to(module.device)
    with record(net, f"{name}.within", f"{name}.across") as maps, _queries(net) as seen:
        out = net(image, batch["mask"].to(module.device))
    scores = out.final.logits[0, :, PERSON].sigmoid()
    order = scores.argsort(descending=True, stable=True)[:SHOWN_PERSONS]
    extent = out.final.keypoints.new_tensor([image.shape[-1], image.shape[-2]])
    query = add_position(seen["group"], seen["position"])[:, order[0]]  # (1, K + 1, D)
    references = out.decoded.references[-2][:, order[0]]
    places, weights = sampling_points(layer.cross, query, references[:, :, None], out.memory.sizes)
    across = maps[f"{name}.across"][0].mean(1)  # of one image: (K + 1, N, N)
    denormalised = image[0].cpu() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return Case(
        str(batch["file"][0]),
        denormalised.clamp(0, 1).permute(1, 2, 0).double().numpy(),
        _array(scores[order]),
        _array(out.final.keypoints[0, order] * extent),
        _array(maps[f"{name}.within"][0][order[0]].mean(0)),
        _array(across[:, order][:, :, order]),
        _array(places[0].flatten(1, 3) * extent),
        _array(weights[0].flatten(1)) / weights.shape[2],
    )


@contextmanager
def _queries(net: GroupPose) -> Iterator[dict[str, Tensor]]:
    """Collect the queries of the last decoder layer behind its group attention, and their encoded positions."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            del module, inputs
            seen[name] = output  # of the last call: the last layer's

        return hook

    hooks = [
        cast(DecoderLayer, net.decoder.layers[-1]).group.register_forward_hook(keep("group")),
        net.decoder.position.register_forward_hook(keep("position")),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def sampling_points(
    block: MultiScaleDeformableAttention, query: Tensor, references: Tensor, sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Where queries read maps, and with which weights (Deformable DETR, section 4.1, eq. 3).

    Args:
        block: the attention.
        query: queries.
        references: their reference points, 0..1 of the map, of each level or of all.
        sizes: (H_l, W_l) of the levels.

    Shape:
        query (B, Q, D), references (B, Q, L or 1, 2) -> (B, Q, heads, L, P, 2) in 0..1, and (B, Q, heads, L, P).
    """
    batch, queries, _ = query.shape
    shape = (batch, queries, block.heads, block.levels, block.points)
    extent = query.new_tensor([(w, h) for h, w in sizes])[:, None]  # (L, 1, 2)
    offsets = block.sampling_offsets(query).view(*shape, 2) / extent
    weights = block.attention_weights(query).view(batch, queries, block.heads, -1).softmax(-1).view(shape)
    return references[:, :, None, :, None] + offsets, weights


def _array(values: Tensor) -> Array:
    found: Array = values.double().cpu().numpy()
    return found


def _spread(points: Array, count: int) -> list[int]:
    """Keypoints that lie far apart, so that pictures show different parts of the body."""
    chosen = [0]
    while len(chosen) < min(count, len(points)):
        distance = np.linalg.norm(points[:, None] - points[chosen][None], axis=-1).min(1)
        chosen.append(int(distance.argmax()))
    return sorted(chosen)


def _panels(case: Case, count: int, points: Array) -> tuple[Figure, list[Axes]]:
    """Panels with the image, cut to the surroundings of some points."""
    height, width = case.pixels.shape[:2]
    low, high = points.min(0), points.max(0)
    margin = 0.25 * max(float((high - low).max()), 16.0)
    left, top = np.clip(low - margin, 0, [width - 2, height - 2])
    right, bottom = np.clip(high + margin, [left + 1, top + 1], [width, height])
    tall = float(np.clip((bottom - top) / (right - left), 0.5, 1.8))
    figure = Figure(figsize=(2.9 * count, 2.9 * tall + 0.6), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in panels:
        panel.imshow(case.pixels, alpha=0.7, extent=(0, width, height, 0))
        panel.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    return figure, panels


def _bones(panel: Axes, points: Array, skeleton: Sequence[Sequence[int]], colour: str = GREY) -> None:
    for start, end in skeleton:
        panel.plot(points[[start, end], 0], points[[start, end], 1], color=colour, linewidth=1.0, alpha=0.9)


def _joints(case: Case, title: str, names: Sequence[str], skeleton: Sequence[Sequence[int]]) -> Picture:
    points = case.points[0]
    chosen = _spread(points, SHOWN_JOINTS)
    figure, panels = _panels(case, len(chosen), points)
    top = float(case.within[[at + 1 for at in chosen], 1:].max())
    for panel, joint in zip(panels, chosen, strict=True):
        shares = case.within[joint + 1]
        _bones(panel, points, skeleton)
        for other, share in enumerate(shares[1:]):
            if other != joint:
                strength = float(share) / max(top, 1e-9)
                ends = points[[joint, other]]
                panel.plot(ends[:, 0], ends[:, 1], color=ORANGE, linewidth=4 * strength, alpha=0.3 + 0.6 * strength)
        panel.scatter(points[:, 0], points[:, 1], s=8 + 90 * shares[1:] / max(top, 1e-9), color=ORANGE, zorder=3)
        panel.scatter(points[joint, 0], points[joint, 1], s=40, marker="s", color=BLUE, zorder=4)
        panel.set_title(
            f"{plain(names[joint + 1])}\nto person {shares[0]:.0%}, itself {shares[joint + 1]:.0%}", fontsize=9
        )
    caption = (
        f"{plain(case.name, 60)}, score {case.score[0]:.2f}. The query of the joint with the blue square attends to the"
        " other joints of its person: the wider the line and the larger the dot, the more. In the title the share that"
        " goes to the query of the whole person and to the joint itself."
    )
    return Picture(f"{title}: which joints a joint attends to", caption, figure)


def _matrix(case: Case, title: str, names: Sequence[str]) -> Picture:
    figure = heat_map(case.within, [plain(name) for name in names], label="attention")
    caption = "Rows are the queries of one person, columns what they attend to; a row adds up to 1."
    return Picture(f"{title}: attention within the person", caption, figure)


def _persons(case: Case, title: str, names: Sequence[str], skeleton: Sequence[Sequence[int]]) -> list[Picture]:
    """Attention between persons, of the joint whose attention is least even."""
    if len(case.score) < 2:
        return []
    joint = int((case.across.max(-1).mean(-1)[1:]).argmax())
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    height, width = case.pixels.shape[:2]
    left.imshow(case.pixels, alpha=0.7, extent=(0, width, height, 0))
    left.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for number, points in reversed(list(enumerate(case.points))):  # the surest on top
        colour = GREY if number else BLUE
        _bones(left, points, skeleton, colour)
        box = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.5, "pad": 1.5}
        left.text(*points[joint], str(number), fontsize=8, color="white", ha="center", va="center", bbox=box)
    shares = case.across[joint + 1]
    image = right.imshow(shares, cmap="viridis", vmin=0)
    ticks = [f"{number} ({score:.2f})" for number, score in enumerate(case.score)]
    right.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=8)
    right.set_yticks(range(len(ticks)), ticks, fontsize=8)
    figure.colorbar(image, ax=right, label="attention", shrink=0.8)
    caption = (
        f"Instances with the highest scores (in brackets), numbered at their {plain(names[joint + 1])}. The matrix says"
        f" how much the {plain(names[joint + 1])} of the instance of the row attends to that of the instance of the"
        " column; what goes to the instances that are not shown is left out."
    )
    return [Picture(f"{title}: attention between persons", caption, figure)]


def _sampling(case: Case, title: str, names: Sequence[str], skeleton: Sequence[Sequence[int]]) -> Picture:
    points = case.points[0]
    chosen = _spread(points, SHOWN_JOINTS)
    kept = case.places[[at + 1 for at in chosen]].reshape(-1, 2)
    middle = np.quantile(kept, [0.05, 0.95], axis=0)
    figure, panels = _panels(case, len(chosen), np.concatenate([points, middle]))
    top = float(case.weights[[at + 1 for at in chosen]].max())
    for panel, joint in zip(panels, chosen, strict=True):
        _bones(panel, points, skeleton)
        order = case.weights[joint + 1].argsort()
        places, weights = case.places[joint + 1][order], case.weights[joint + 1][order]
        panel.scatter(
            places[:, 0], places[:, 1], c=weights, s=6 + 40 * weights / top, cmap="viridis", vmin=0, vmax=top, zorder=3
        )
        panel.scatter(
            points[joint, 0],
            points[joint, 1],
            s=40,
            marker="s",
            facecolors="none",
            edgecolors=ORANGE,
            linewidths=2,
            zorder=4,
        )
        panel.set_title(plain(names[joint + 1]), fontsize=9)
    caption = (
        "Dots are the places of the image's maps that the query of a joint reads, of all heads and levels: the lighter"
        " and larger, the more they count. The orange square is where the joint is found."
    )
    return Picture(f"{title}: where a joint looks", caption, figure)
