"""What a detection rests on: attention over segments and channels, and what is lost when a channel is not seen."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from domains.common.attention import record
from domains.common.errors import ConfigError
from domains.common.figures import BLUE, GREY, ORANGE, Picture, plain
from domains.common.loader import Batch
from domains.common.module import HeptadModule
from domains.common.writing import write_tables
from domains.ieeg.detection_module import SeizureModule
from domains.ieeg.windows import WindowStore

SEEN = 2000  # windows among which cases are chosen
SHOWN_CHANNELS = 24
DECISIONS = 7  # that are timed


@dataclass(frozen=True)
class Case:
    """One window and what its decision rests on.

    Args:
        title: why it is shown.
        row: of the test split.
        recording: its name.
        subject: whose it is.
        onset: seconds at which the decided segment begins.
        label: 1: a seizure touches the decided segment.
        probability: of a seizure.
        channels: names.
        signal: of the window, microvolts.
        attention: of the decided segment, mean over heads and channels, of every block; adds up to 1.
        importance: log-odds that are lost when a channel is not seen by any other.

    Shape:
        signal (C, T L), attention (blocks, T, C), importance (C,).
    """

    title: str
    row: int
    recording: str
    subject: str
    onset: float
    label: int
    probability: float
    channels: list[str]
    signal: NDArray[np.float32]
    attention: NDArray[np.float32]
    importance: NDArray[np.float32]


@torch.no_grad()
def explain(module: HeptadModule, data: Any, directory: Path) -> list[Picture]:
    """Draw what chosen decisions of a detector rest on; also writes explain.parquet, a row per case and channel.

    Raises:
        ConfigError: the system has no attention over channels to explain.
    """
    if not isinstance(module, SeizureModule):
        raise ConfigError(f"{type(module).__name__} has no decisions about seizures to explain; explain a seizure run")
    module.eval()
    data.trainer = None
    store, reader = data.store("test"), data.collate_for(data.store("test"))
    rows = choose_windows(store)
    scores = _scores(module, reader, rows)
    pictures, tables = [], []
    for title, row in _cases(rows, scores, store).items():
        case = _look(module, data, store, reader, title, row)
        pictures.append(_draw(case, store))
        tables.append(
            pl.DataFrame(
                {
                    "case": [title] * len(case.channels),
                    "recording": [case.recording] * len(case.channels),
                    "onset": [case.onset] * len(case.channels),
                    "probability": [case.probability] * len(case.channels),
                    "channel": case.channels,
                    "attention": case.attention[-1].sum(0),
                    "importance": case.importance,
                }
            )
        )
    if tables:
        write_tables(directory / "explain.parquet", [pl.concat(tables)])
        print(_tell_latency(module, reader, int(rows[-1])))
    return pictures


def _tell_latency(module: SeizureModule, reader: Any, row: int) -> str:
    """How long a device waits for one decision: reading, transforming and classifying one window, median of several."""
    times = []
    for _ in range(1 + DECISIONS):
        begin = time.perf_counter()
        batch = reader({"row": torch.tensor([row])})
        module.net(batch["x"].to(module.device)).cpu()
        times.append(time.perf_counter() - begin)
    _, segments, channels, samples = batch["x"].shape
    cut, rate = reader.store.windowing, reader.store.rate
    waits = (module.decisions.smoothing // 2) * cut.stride / rate if not module.decisions.causal else 0.0
    return (
        f"One decision about {samples / rate:g} s of {channels} channels (window of {segments} segments) takes"
        f" {1000 * statistics.median(times[1:]):,.0f} ms on {module.device.type};"
        f" smoothing waits for {waits:g} s more of the signal"
    )


def choose_windows(store: WindowStore) -> torch.Tensor:
    """All windows with a seizure and evenly spaced others of annotated recordings, as many as are looked at."""
    known = torch.tensor(store.annotated, dtype=torch.bool)[store.recording]
    seizures = (known & (store.label == 1)).nonzero().flatten()[: SEEN // 2]
    others = (known & (store.label != 1)).nonzero().flatten()
    kept = others[torch.linspace(0, max(len(others) - 1, 0), min(SEEN - len(seizures), len(others))).long()]
    return torch.cat([seizures, kept]).sort().values


def _scores(module: SeizureModule, reader: Any, rows: torch.Tensor) -> NDArray[np.float64]:
    found = []
    for part in torch.split(rows, 8):
        batch = reader({"row": part})
        logits = module.net(batch["x"].to(module.device), batch.get("counts"))
        found.append(logits.double().softmax(-1)[:, 1].cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def _cases(rows: torch.Tensor, scores: NDArray[np.float64], store: WindowStore) -> dict[str, int]:
    labels = store.label[rows].numpy()
    cases: dict[str, int] = {}
    for title, wanted, best in (
        ("Surest detection", 1, np.argmax),
        ("Seizure with the lowest probability", 1, np.argmin),
        ("Surest false alarm", 0, np.argmax),
        ("Quiet", 0, np.argmin),
    ):
        chosen = np.flatnonzero(labels == wanted)
        if len(chosen):
            cases[title] = int(rows[chosen[best(scores[chosen])]])
    return cases


def _look(module: SeizureModule, data: Any, store: WindowStore, reader: Any, title: str, row: int) -> Case:
    batch: Batch = reader({"row": torch.tensor([row])})
    net = module.net
    x = batch["x"].to(module.device)
    _, segments, channels, _ = x.shape
    tokens = net.backbone.encode(x)
    with record(net.backbone) as maps:
        logits = net.head(net.pool(tokens)).double()[0]
    probability = float(logits.softmax(-1)[1])
    # (1, H, queries, T C) of each block; the decided segment's queries are the last C
    attention = [found[0][0, :, -channels:].float().mean((0, 1)).view(segments, channels) for found in maps.values()]
    lost = []
    for channel in range(channels):
        mask = torch.ones(1, segments, channels, dtype=torch.bool, device=x.device)
        mask[..., channel] = channels == 1
        others = net.head(_without(net, tokens, mask, channel)).double()[0]
        lost.append(float(logits[1] - logits[0] - others[1] + others[0]))
    name = batch["recording"][0]
    return Case(
        title,
        row,
        name,
        batch["subject"][0],
        float(batch["onset"][0]),
        int(store.label[row]),
        probability,
        data.channel_names(store, name),
        batch["x"][0].transpose(0, 1).flatten(1).numpy(),
        torch.stack(attention).cpu().numpy(),
        np.array(lost, dtype=np.float32),
    )


def _without(net: Any, tokens: torch.Tensor, mask: torch.Tensor, channel: int) -> torch.Tensor:
    """Mean of the last segment over the other channels, which do not see this one."""
    last = net.backbone.contextualise(tokens, mask=mask, last_only=True)[:, 0]
    kept = [i for i in range(last.shape[1]) if i != channel] or [channel]
    mean: torch.Tensor = last[:, kept].mean(1)
    return mean


def _draw(case: Case, store: WindowStore) -> Picture:
    order = np.argsort(-case.attention[-1].sum(0), kind="stable")[:SHOWN_CHANNELS]
    order = np.sort(order)
    names = [plain(case.channels[i], 14) for i in order]
    segment = store.windowing.segment / store.rate
    begin = case.onset - (case.attention.shape[1] - 1) * segment
    end = case.onset + segment
    height = max(3.0, 0.2 * len(order) + 1.6)
    figure = Figure(figsize=(11, height), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[5, 3, 1.6])
    spread = float(np.quantile(np.abs(case.signal[order]), 0.98)) or 1.0
    step = max(1, case.signal.shape[1] // 2500)
    times = begin + np.arange(0, case.signal.shape[1], step) / store.rate
    for place, channel in enumerate(order):
        left.plot(times, place - case.signal[channel, ::step] / (2.2 * spread), color=BLUE, linewidth=0.5)
    left.axvspan(case.onset, end, color=ORANGE, alpha=0.18, linewidth=0)
    left.set_yticks(range(len(order)), names, fontsize=7)
    left.set_ylim(len(order) - 0.4, -0.6)
    left.set_xlabel("seconds of the recording; orange: decided segment")
    shares = case.attention[-1][:, order].T
    image = middle.imshow(shares, aspect="auto", cmap="viridis", extent=(begin, end, len(order) - 0.5, -0.5), vmin=0)
    middle.set_xlabel("attention of the last block")
    figure.colorbar(image, ax=middle, shrink=0.8)
    colours = [ORANGE if value > 0 else GREY for value in case.importance[order]]
    right.barh(range(len(order)), case.importance[order], color=colours)
    right.axvline(0, color=GREY, linewidth=0.8)
    right.xaxis.set_major_locator(MaxNLocator(3))
    right.set_xlabel("log-odds lost\nwithout it")
    truth = "seizure" if case.label else "no seizure"
    title = f"{case.title}: {plain(case.recording, 40)} at {case.onset:,.0f} s"
    caption = (
        f"Probability {case.probability:.3f}, annotated: {truth}. Channels with the most attention, in the order of the"
        f" recording; traces in microvolts, {spread:,.0f} µV from line to line or so. Attention is that of the decided"
        " segment, mean over heads and channels; bars tell how the log-odds of a seizure fall when no other channel"
        " sees this one and it is not read itself."
    )
    return Picture(title, caption, figure)
