"""ConvFormer on HumanEva-I beside the network of VideoPose3D and a linear map, trained for the same CPU time.

    python -m benchmarks.pose_humaneva --raw RAW --folder WORK [--seeds 0] [--config convformer_humaneva] [--held-out]

RAW holds `data_3d_humaneva15.npz` and `data_2d_humaneva15_gt.npz`. `heptad pose prep humaneva`, `fit` and `test` run
with the shipped configuration, one model for Walking, Jog and Box of S1, S2 and S3; their CPU seconds are counted. Each
peer then trains for as long as that fit took, on the same windows with the same loss, half of them mirrored, its
learning rate falling evenly (exponentially) to a share of the first; a test has the mirrored clip, too. The 2D joints
are the projected true ones. With `--held-out` nothing is tested: the end of each longer training clip is cut off and
measured in the place of the test split, which is how settings were chosen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers.videopose3d_direct import LinearModel, TemporalModel
from domains.pose.data3d import SequenceData
from domains.pose.evaluation3d import known_runs, score_all, score_predictions
from domains.pose.layouts import mirror
from domains.pose.lifting import flip_average, windows
from domains.pose.metrics3d import Clip, action_average, joint_distances, summarise
from domains.pose.sequences import WindowStore

ACTIONS = ("Walking", "Jog", "Box")
SUBJECTS = ("S1", "S2", "S3")
# P-MPJPE in mm, Walking, Jog, Box of S1, S2, S3: arXiv 2304.02147, T = 27, and the numbers that it quotes
PUBLISHED = {
    "ConvFormer, published (T = 27)": (11.4, 9.0, 20.1, 19.1, 11.8, 11.8, 20.8, 28.0, 26.1),
    "VideoPose3D, published (T = 27)": (13.9, 10.2, 46.6, 20.9, 13.1, 13.8, 23.8, 33.7, 32.0),
}
FRAMES = 27
GAP = FRAMES // 2  # frames between what is trained on and what is held out
SHORTEST, SHARE = 60, 5  # of clips with so many frames one in so many is held out
Peer = TemporalModel | LinearModel
PEERS: dict[str, tuple[Callable[[int, int], Peer], float]] = {  # network, share of the time
    "VideoPose3D": (TemporalModel, 1.0),
    "linear": (LinearModel, 0.1),
}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--config", default="convformer_humaneva")
    parser.add_argument("--held-out", action="store_true", help="measure on the ends of training clips")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--batch-size", type=int, default=128, help="of the peers (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the peers, at the start (default: %(default)s)")
    parser.add_argument("--last-lr", type=float, default=0.02, help="share of it at the end (default: %(default)s)")
    options = parser.parse_args()
    prepared = options.folder / "prepared"
    if not (prepared / "dataset.json").exists():
        chosen = ("--actions", ",".join(ACTIONS), "--progress", "false")
        heptad("prep", "humaneva", "--raw", options.raw, "--out", prepared, *chosen)
    if options.held_out:
        prepared = hold_out(prepared, options.folder / "held-out")
    print(
        f"| P-MPJPE, mm | seed | CPU min | {' | '.join(f'{a} {s}' for a in ACTIONS for s in SUBJECTS)} | mean | MPJPE |"
    )
    print("|---" * (5 + len(ACTIONS) * len(SUBJECTS)) + "|")
    for seed in options.seeds:
        seconds, scores = run_ours(options.config, prepared, seed)
        print(row("ConvFormer (ours)", seed, seconds, scores), flush=True)
        for name in options.peers:
            print(row(name, seed, *run_peer(name, prepared, seed, seconds, options)), flush=True)
    for name, values in PUBLISHED.items():
        print(f"| {name} | | | {' | '.join(f'{v:.1f}' for v in values)} | {sum(values) / len(values):.1f} | |")


def heptad(*words: object) -> float:
    """Run a command as a user types it; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "apps.cli", "pose", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_ours(config: str, prepared: Path, seed: int) -> tuple[float, pl.DataFrame]:
    """Train and test (once) by the shipped configuration; CPU seconds of the training, and the scores of clips."""
    run = prepared.parent / f"{config}-{prepared.name}-{seed}"
    kept = run / "cpu_seconds.json"
    if not kept.exists():
        quiet = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
        words = ("--config", config, "--data.root", prepared, "--run", run, "--seed_everything", seed)
        seconds = heptad("fit", *words, *quiet)
        heptad("test", "--run", run, *quiet, "--replicates", 200)
        kept.write_text(json.dumps(seconds), encoding="utf-8")
    seconds = float(json.loads(kept.read_text(encoding="utf-8")))
    return seconds, score_predictions(pl.read_parquet(run / "predictions.parquet"))


def run_peer(
    name: str, prepared: Path, seed: int, seconds: float, options: argparse.Namespace
) -> tuple[float, pl.DataFrame]:
    """Train and test a peer (once); CPU seconds of the training, and the scores of clips."""
    kept = prepared.parent / f"{name}-{prepared.name}-{seed}.parquet"
    build, share = PEERS[name]
    if not kept.exists():
        data = SequenceData(str(prepared), options.batch_size, seed, FRAMES, mirror="none")
        torch.manual_seed(seed)
        network = build(data.joints, FRAMES)
        train(network, data, share * seconds, options.lr, options.last_lr)
        score(network, data).write_parquet(kept)
    return share * seconds, pl.read_parquet(kept)


def train(network: Peer, data: SequenceData, seconds: float, lr: float, last: float) -> None:
    """Train by the mean distance of joints until the time is over; one thread.

    Args:
        network: a peer; its method `progress` is told the share of the time that has gone.
        data: whose windows it sees.
        seconds: of CPU time.
        lr: learning rate at the start.
        last: share of it at the end.
    """
    torch.set_num_threads(1)
    store = WindowStore(data.clips("train"), FRAMES, stride=1, copies=1)
    optimizer = torch.optim.Adam(network.parameters(), lr, amsgrad=True)
    begun = time.process_time()
    network.train()
    while True:
        for rows in torch.split(torch.randperm(store.windows), data.batch_size):
            gone = (time.process_time() - begun) / seconds
            if gone >= 1:
                return
            network.progress(gone)
            optimizer.param_groups[0]["lr"] = lr * last**gone
            batch = store({"row": rows})
            turn = torch.rand(len(rows)) < 0.5
            points = batch["keypoints"].where(~turn[:, None, None, None], mirror(batch["keypoints"], store.layout))
            pose = batch["pose"].where(~turn[:, None, None], mirror(batch["pose"], store.layout))
            loss = joint_distances(network(points), pose).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@torch.no_grad()
def score(network: Peer, data: SequenceData) -> pl.DataFrame:
    """Scores of the clips of the test split."""
    network.eval()
    clips, found = data.clips("test"), []
    for number in range(len(clips.frame)):
        clip, named = clips.read(number), clips.frame.row(number, named=True)
        seen = windows(clip.keypoints, FRAMES)
        pose = 1000 * flip_average(network(seen), network(mirror(seen, clips.layout)), clips.layout)
        for first, stop in known_runs(clip.known):
            pair = pose[first:stop], 1000 * clip.pose[first:stop]
            found.append(Clip(*pair, named["action"], named["subject"], named["name"]))
    return score_all(found)


def row(name: str, seed: int, seconds: float, scores: pl.DataFrame) -> str:
    """A row of the table; the mean is of the nine cells, MPJPE that of actions."""
    table = summarise(scores, "action", "subject")
    cells = {
        (action, subject): value for action, subject, value in table["action", "subject", "p_mpjpe_mm"].iter_rows()
    }
    values = [cells.get((action, subject), float("nan")) for action in ACTIONS for subject in SUBJECTS]
    numbers = " | ".join(f"{value:.1f}" for value in values)
    average = action_average(scores)["mpjpe_mm"]
    return f"| {name} | {seed} | {seconds / 60:.1f} | {numbers} | **{sum(values) / len(values):.1f}** | {average:.1f} |"


def hold_out(prepared: Path, folder: Path) -> Path:
    """Write prepared sequences whose test split are the ends of training clips; return where.

    Args:
        prepared: of `heptad pose prep`; its test split is not looked at.
        folder: to write, if it is not there.
    """
    if (folder / "dataset.json").exists():
        return folder
    index = pl.concat([pl.read_parquet(path) for path in sorted((prepared / "train").glob("part-*.parquet"))])
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    for clip in index.iter_rows(named=True):
        tensors = load_file(prepared / clip["files"][0])
        frames = clip["frames"]
        cut = frames // SHARE if frames >= SHORTEST else 0
        parts = {"train": slice(0, frames - cut - (GAP if cut else 0))}
        if cut:
            parts["test"] = slice(frames - cut, frames)
        for side, part in parts.items():
            rows[side].append(_write_part(clip, tensors, part, folder, f"{side}/{clip['files'][0]}"))
    card = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))
    for side, chosen in rows.items():
        path = folder / side / "part-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pl.DataFrame(chosen, schema=index.schema).drop("row").with_row_index("row")
        table.write_parquet(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        part_entry = {"path": f"{side}/{path.name}", "rows": len(chosen), "sha256": digest}
        card["splits"][side] = {"rows": len(chosen), "parts": [part_entry]}
    (folder / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def _write_part(
    clip: dict[str, Any], tensors: dict[str, Tensor], part: slice, folder: Path, name: str
) -> dict[str, Any]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value[part].contiguous() for key, value in tensors.items()}, path)
    count = part.stop - part.start
    return {**clip, "frames": count, "scored_frames": count, "files": [name]}


if __name__ == "__main__":
    main()
