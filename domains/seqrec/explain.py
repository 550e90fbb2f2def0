"""What recommendations rest on (Zhu et al., 2024, section 4.1) and which transitions the item table holds (4.2)."""

from __future__ import annotations

import copy
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from domains.common.figures import BLUE, GREY, ORANGE, Picture, axes, plain
from domains.common.writing import write_whole
from domains.seqrec.data import SequenceData
from domains.seqrec.drivers import by_distance, past_items
from domains.seqrec.learned import Agreement, learned_transitions
from domains.seqrec.training import SequenceModule

SHOWN = 20  # past items of a user, distances
SHOWN_HEADS, SHOWN_TAILS = 6, 5


def explain(
    module: SequenceModule, data: SequenceData, directory: Path, users: int = 1000, heads: int = 1000
) -> list[Picture]:
    """Write drivers.parquet, drivers.json, transitions.csv and transitions.json, and draw them.

    Args:
        module: trained.
        data: prepared log; its test split is explained.
        directory: where the files go.
        users: how many rows of the split to use, from its beginning.
        heads: how many items, from the most frequent on, to compare with their observed successors.
    """
    module.eval()
    padded = copy.copy(data)  # the newest item of every user at the end of a row of its own
    padded.arrangement, padded.batch_size = "padded", min(data.batch_size, users)
    loader, transitions, names = padded.test_dataloader(), padded.transitions, data.item_tokens
    batches = islice(loader, -(-users // padded.batch_size))
    past = pl.concat([past_items(module, batch, transitions) for batch in batches])
    means = by_distance(past)
    chosen = choose_users(past)
    named = _named(past, data)
    named.write_parquet(directory / "drivers.parquet")
    write_whole(directory / "drivers.json", _as_json(means, chosen, named))
    pictures = [_distances(means)]
    pictures += [_user(title, named.filter(pl.col("row") == row)) for row, title in chosen.items()]

    table, agreement = learned_transitions(module, transitions, heads)
    tails = table.with_columns(head=names.gather(table["head"]), tail=names.gather(table["tail"]))
    tails.write_csv(directory / "transitions.csv")
    write_whole(directory / "transitions.json", json.dumps(agreement.summary, indent=2).encode() + b"\n")
    if agreement.heads:
        pictures += [_agreement(agreement), _tails(tails)]
    return pictures


def choose_users(past: pl.DataFrame) -> dict[int, str]:
    """Row -> what it shows: a hit and a miss on histories that fit a picture, and the longest history."""
    users = past.group_by("row", maintain_order=True).agg(
        pl.len().alias("length"), pl.col("rank").first(), pl.col("drop").max().fill_null(0.0)
    )
    legible = users.filter(pl.col("length").is_between(4, SHOWN))
    legible = legible if len(legible) else users
    candidates = {
        "A hit": legible.filter(pl.col("rank") < 1).sort("length", descending=True, maintain_order=True),
        "A miss": legible.filter(pl.col("rank").is_finite() & (pl.col("rank") >= SHOWN)).sort(
            "length", descending=True, maintain_order=True
        ),
        "A long history": users.sort("length", descending=True, maintain_order=True),
    }
    chosen: dict[int, str] = {}
    for title, table in candidates.items():
        for row in table["row"].head(4):
            if row not in chosen:
                chosen[row] = title
                break
    return chosen


def _named(past: pl.DataFrame, data: SequenceData) -> pl.DataFrame:
    items, users = data.item_tokens, data.user_tokens
    numbers = past.select(pl.col("user", "recommended", "target", "item").name.suffix("_id"))
    names = {name: items.gather(past[name]).alias(name) for name in ("recommended", "target", "item")}
    return past.with_columns(user=users.gather(past["user"]), **names).hstack(numbers)


def _as_json(means: pl.DataFrame, chosen: dict[int, str], named: pl.DataFrame) -> bytes:
    shown: list[dict[str, Any]] = []
    for row, title in chosen.items():
        mine = named.filter(pl.col("row") == row)
        about = mine.select("row", "user", "recommended", "target", "rank").row(0, named=True)
        about["rank"] = about["rank"] if np.isfinite(about["rank"]) else None
        values = [name for name in mine.columns if name.startswith("attention_")] + ["drop", "transitions"]
        shown.append({"example": title, **about, "past": mine.select("distance", "item", *values).to_dicts()})
    return json.dumps({"by_distance": means.to_dicts(), "users": shown}, ensure_ascii=False).encode()


def _distances(means: pl.DataFrame) -> Picture:
    means = means.filter(pl.col("distance") <= SHOWN)
    branches = [name for name in means.columns if name.startswith("attention_")]
    figure = Figure(figsize=(9.0 if branches else 5.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if branches else 1, squeeze=False)[0]
    x = means["distance"].to_numpy()
    if branches:
        panels[0].axhline(1.0, color=GREY, linewidth=0.8)
        for name, colour in zip(branches, (BLUE, ORANGE), strict=False):
            label = f"{name.removeprefix('attention_')} query"
            relative = (means[name] / means["uniform"]).to_numpy()
            panels[0].plot(x, relative, "o-", color=colour, markersize=3.5, label=label)
        panels[0].set_ylabel("attention, 1 = equal to all items")
        panels[0].set_ylim(0, None)
        panels[0].legend(frameon=False)
    panels[-1].bar(x, means["drop"].cast(pl.Float64).fill_null(0.0).to_numpy(), color=BLUE, width=0.7)
    panels[-1].axhline(0.0, color=GREY, linewidth=0.8)
    panels[-1].set_ylabel("mean drop of the best item's score")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("place in the history, 1 = newest")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    left = "Left: how much the newest position attends to each place of the history, beside equal shares. Right"
    caption = (
        f"{left if branches else 'Shown'}: what the score (a logit) of the best recommendation loses when the item at"
        " that place is taken out of the history. Means over users whose history reaches that far."
    )
    return Picture("What drives recommendations, by place in the history", caption, figure)


def _user(title: str, past: pl.DataFrame) -> Picture:
    about, shown = past.row(0, named=True), past.head(SHOWN)
    branches = [name for name in past.columns if name.startswith("attention_")]
    panels = {f"attention, {name.removeprefix('attention_')} query": shown[name] for name in branches}
    panels |= {"score lost without the item": shown["drop"], "times followed by the recommended": shown["transitions"]}
    figure = Figure(figsize=(3.0 + 2.1 * len(panels), max(2.2, 0.24 * len(shown) + 1.0)), layout="constrained")
    places = range(len(shown))
    for panel, (label, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        panel.barh(places, values.cast(pl.Float64).fill_null(0.0).to_numpy(), color=BLUE)
        panel.axvline(0.0, color=GREY, linewidth=0.8)
        panel.set_xlabel(label, fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_yticks(places, [plain(token) for token in shown["item"]], fontsize=8)
    panel.invert_yaxis()
    panel.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
    if about["recommended"] == about["target"]:
        outcome = "which is what came next"
    elif np.isfinite(about["rank"]):
        outcome = f"next came {about['target']}, at place {about['rank'] + 1:,.0f}"
    else:
        outcome = f"next came {about['target']}, which is left out of the ranking as seen"
    caption = f"Recommended first: {about['recommended']}; {outcome}. The history, newest on top"
    caption += f", its latest {SHOWN} of {len(past)} items." if len(past) > SHOWN else "."
    return Picture(f"{title}: user {about['user']}", caption, figure)


def _agreement(agreement: Agreement) -> Picture:
    figure, panel = axes(4.8, 4.2)
    low = 10.0 ** np.floor(np.log10(max(float(np.quantile(agreement.student, 0.001)), 1e-12)))
    x, y = agreement.teacher, agreement.student.clip(low)
    image = panel.hexbin(x, y, xscale="log", yscale="log", gridsize=40, bins="log", mincnt=1, cmap="viridis")
    panel.plot([x.min(), x.max()], [x.min(), x.max()], color=ORANGE, linewidth=1)
    figure.colorbar(image, ax=panel, label="observed transitions", shrink=0.8)
    panel.set_xlabel("teacher: probability from the counts")
    panel.set_ylabel("item table: probability learned")
    facts = agreement.summary
    caption = (
        f"All observed successors of the {facts['heads']:,} most frequent items; on the orange line the table has the"
        f" counts' probability. Successors hold {facts['teacher_mass']:.1%} of the teacher's probability and"
        f" {facts['student_mass']:.1%} of the table's, which gives {facts['self_mass']:.1%} to the items themselves;"
        f" {facts['observed_share']:.1%} of the table's ten best successors"
        f" were observed, and for {facts['first_choice']:.1%} of the items a most frequent successor is among them."
    )
    return Picture("Learned and observed transitions", caption, figure)


def _tails(tails: pl.DataFrame) -> Picture:
    heads = tails["head_id"].unique(maintain_order=True).head(SHOWN_HEADS).to_list()
    figure = Figure(figsize=(9.0, 1.9 * -(-len(heads) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(heads) // 2), 2, squeeze=False).flat
    for panel, head in zip(panels, heads, strict=False):
        mine = tails.filter(pl.col("head_id") == head).head(SHOWN_TAILS)
        places = np.arange(len(mine))
        panel.barh(places - 0.2, mine["student"].to_numpy(), height=0.38, color=BLUE, label="item table")
        panel.barh(places + 0.2, mine["teacher"].to_numpy(), height=0.38, color=ORANGE, label="counts")
        labels = [f"{plain(tail)} ({count})" for tail, count in mine.select("tail", "count").iter_rows()]
        panel.set_yticks(places, labels, fontsize=8)
        panel.invert_yaxis()
        panel.set_title(f"after {plain(mine['head'][0])}", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels:
        panel.set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    caption = (
        "The most probable successors of the most frequent items in the item table, the item itself left out, and how"
        " often each was observed (in brackets)."
    )
    return Picture("Successors of frequent items", caption, figure)
