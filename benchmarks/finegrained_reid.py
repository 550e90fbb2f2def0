"""Scores of re-identification beside a loop over queries in Python, in one run: CPU time, memory, and equal results.

    python -m benchmarks.finegrained_reid [--part all ranking] [--size market msmt17] [--alone]

Features are made: identities with noise around them, of length 1. `all` starts from features, `ranking` from the matrix
of distances. Both run in processes of their own with the same number of threads and take turns. A ratio is the median
over rounds of the loop's CPU-seconds to ours of the same round, with the range behind it; above 1 ours is faster.
`differ` is the largest difference of mAP, rank 1 and rank 5. `--alone` runs ours only, for sizes where the loop does
not fit.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from benchmarks.competitors import Competitor, Entry, add_options, take_turns
from benchmarks.peers.reid_loop import Setting, distances, make_set
from benchmarks.peers.worker import Step, Work
from domains.finegrained.reid_metrics import Identified, RetrievalScores, score_distances, score_features
from domains.finegrained.reranking import Reranking

PEER, OURS = "benchmarks.peers.reid_loop:build", "benchmarks.finegrained_reid:build_ours"
SIZES = {
    "market": Setting(3368, 15913, 2048, identities=751),
    "msmt17": Setting(11659, 82161, 768, identities=3060, cameras=15, noise=2.5),
    "small": Setting(200, 1000, 128, identities=50, noise=1.5),
}


def build_ours(setting: Setting, part: str) -> Step:
    """Return our step: all, ranking, or rerank."""
    made = make_set(setting)
    query, gallery = (Identified(made[f"{s}_identity"], made[f"{s}_camera"]) for s in ("query", "gallery"))
    features = made["query_feature"], made["gallery_feature"]
    given = distances(*features) if part == "ranking" else None

    def step(_: int) -> Work:
        if given is not None:
            scores = score_distances(given, query, gallery)
        else:
            again = Reranking() if part == "rerank" else None
            scores = score_features(*features, query, gallery, reranking=again)
        return Work({"queries": setting.queries}, _told(scores))

    return step


def _told(scores: RetrievalScores) -> dict[str, float]:
    return {"mAP": scores.mean_ap, "rank1": float(scores.cmc[0]), "rank5": float(scores.cmc[4])}


def _seconds(competitor: Competitor) -> float:
    return float(statistics.median(answer["cpu"] for answer in competitor.answers))


def compare(size: str, part: str, options: argparse.Namespace) -> str:
    """Let them take turns; return the row of the table."""
    setting = SIZES[size]
    entries = [Entry("ours", sys.executable, f"{OURS}:{part}", setting)]
    if not options.alone and part != "rerank":
        entries.insert(0, Entry("loop", sys.executable, f"{PEER}:{part}", setting))
    *loops, ours = take_turns(entries, options)
    told = f"{_seconds(ours):.1f} | {ours.peak_mib:.0f} | {ours.losses['mAP']:.4f}"
    if not loops:
        return f"| {size} | {part} | | {told} | | |"
    loop = loops[0]
    pairs = [a["cpu"] / b["cpu"] for a, b in zip(loop.answers, ours.answers, strict=True)]
    spread = f"({min(pairs):.1f}-{max(pairs):.1f})"
    differ = max(abs(loop.losses[name] - value) for name, value in ours.losses.items())
    ratio = f"**{statistics.median(pairs):.1f}** {spread}"
    return f"| {size} | {part} | {_seconds(loop):.1f} | {told} | {ratio} | {differ:.0e} |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["market"], choices=list(SIZES))
    parser.add_argument("--part", nargs="+", default=["all", "ranking"], choices=["all", "ranking", "rerank"])
    parser.add_argument("--alone", action="store_true", help="ours only")
    add_options(parser, repeats=3, steps=1, warmup=1)
    options = parser.parse_args()
    print(f"{options.repeats} rounds, {options.threads} thread(s)\n")
    print("| size | part | loop CPU s | our CPU s | our peak MiB | mAP | ratio | differ |")
    print("|---|---|---|---|---|---|---|---|")
    for size in options.size:
        for part in options.part:
            print(compare(size, part, options), flush=True)


if __name__ == "__main__":
    main()
