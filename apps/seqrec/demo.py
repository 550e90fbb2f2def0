"""The demo: a generated log of interactions, from the raw file to the report."""

from __future__ import annotations

from pathlib import Path

from apps.common.demo import Row, compare, interval, run_command, train_and_test
from data_prep.seqrec.planted import write_planted_log
from domains.common.intervals import Estimate
from domains.seqrec.data import SequenceData
from domains.seqrec.popularity import evaluate_popularity

SYSTEMS = {
    "MQSA-TED": ("mqsa-ted", "demo"),
    "SASRec": ("sasrec", "demo_sasrec"),
    "transitions": ("transitions", "demo_transitions"),
}


def demo(directory: Path) -> None:
    """Generate, prepare, train, test, explain and compare, by the commands that a user types.

    Args:
        directory: everything is written below it.
    """
    raw, prepared = directory / "raw", directory / "prepared"
    print("1. a log with planted transitions between items, and tastes that drift")
    truth = write_planted_log(raw)
    columns = ["--user", "user", "--item", "item", "--time", "time"]
    if not (prepared / "dataset.json").is_file():
        run_command("seqrec", "prep", "generic", "--raw", str(truth.path), *columns, "--out", str(prepared))
    metrics = train_and_test("seqrec", SYSTEMS, prepared, directory)
    print("3. what recommendations rest on")
    run_command("seqrec", "explain", "--run", str(directory / "mqsa-ted"))
    rows = [_row(title, found) for title, found in metrics.items()]
    rows.append(_row("popularity", evaluate_popularity(SequenceData(str(prepared)), replicates=200)))
    best: Row = {
        "model": "best achievable",
        "NDCG@10": truth.ndcg[10],
        "95 % interval": "",
        "HR@10": truth.hit_rate[10],
    }
    compare(
        directory,
        "Heptad demo: interactions with planted transitions",
        [*rows, best],
        "NDCG@10",
        "Who knows the generator and the hidden taste of every user scores best; who only counts items, worst.",
        "mqsa-ted",
    )


def _row(title: str, metrics: dict[str, Estimate]) -> Row:
    ndcg, hits = metrics["ndcg@10"], metrics["hr@10"]
    return {"model": title, "NDCG@10": ndcg.value, "95 % interval": interval(ndcg), "HR@10": hits.value}
