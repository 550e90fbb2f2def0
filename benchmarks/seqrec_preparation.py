"""Preparation of Amazon-shaped reviews (JSON lines, gzip): time, CPU and memory at two sizes.

    python -m benchmarks.seqrec_preparation --events 1000000 5000000 --workers 2

The file is generated from a seed, in the layout of 2014: reviewerID, asin, reviewerName, helpful, reviewText of 300 to
500 characters, overall, summary, unixReviewTime (whole days), reviewTime. At the smallest size each user has five
events on average, each item 25, both with long tails; larger files are by the same users and items. Words follow a
power law, so that gzip finds about what it finds in English. Heptad runs in a fresh process whose children are counted.
Memory is that of one more run, the largest sum over the process tree, sampled every 20 ms: proportional set size where
the system tells it. The first two lines unpack and parse the same file in one process and
do nothing else; they are the floor.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.ctr_preparation import Result, measure

STEP = 50_000  # events generated at a time
N_WORDS = 20_000
DAY = 86_400
BEGIN = 1_104_537_600  # 2005-01-01
OURS = """
import json, sys
from pathlib import Path
from data_prep.seqrec.prepare import prepare
if __name__ == "__main__":
    card = prepare("amazon", Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]) or None, progress=False)
    sys.stderr.write(json.dumps(card["counts"]))
"""
UNPACK = """
import sys
from isal import igzip
with igzip.open(sys.argv[1]) as stream:
    while stream.read(2 << 20):
        pass
"""
PARSE = """
import sys
import msgspec
from isal import igzip
record = msgspec.defstruct("Record", [("reviewerID", str), ("asin", str), ("unixReviewTime", int)], gc=False)
decoder, carry = msgspec.json.Decoder(record), b""
with igzip.open(sys.argv[1]) as stream:
    while block := stream.read(2 << 20):
        cut = block.rfind(b"\\n") + 1
        decoder.decode_lines(carry + block[:cut])
        carry = block[cut:]
"""
Words = npt.NDArray[np.object_]


def generate(path: Path, events: int, population: int, seed: int) -> int:
    """Write a file of reviews by the users and items of `population` reviews; the number of bytes before packing."""
    generator = np.random.default_rng(seed)
    words = _words(generator)
    written = 0
    with gzip.open(path, "wb", compresslevel=6) as stream:
        for start in range(0, events, STEP):
            block = _block(generator, words, min(STEP, events - start), population)
            written += len(block)
            stream.write(block)
    return written


def _words(generator: np.random.Generator) -> Words:
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    odds = 1 / (np.arange(len(letters)) + 4.0)
    sizes = generator.integers(2, 10, size=N_WORDS)
    return np.array(
        ["".join(generator.choice(letters, size=size, p=odds / odds.sum())) for size in sizes], dtype=object
    )


def _block(generator: np.random.Generator, words: Words, count: int, population: int) -> bytes:
    users = (population // 5 * generator.random(count) ** 1.5).astype(np.int64)
    items = (population // 25 * generator.random(count) ** 3).astype(np.int64)
    stamps = BEGIN + DAY * generator.integers(0, 3500, size=count)
    lengths = generator.integers(300, 501, size=count)
    ranks = (N_WORDS ** generator.random(600_000) - 1).astype(np.int64)
    text = " ".join(words[ranks])
    places = generator.integers(0, len(text) - 600, size=count)
    out = io.StringIO()
    for user, item, stamp, length, place in zip(users, items, stamps, lengths, places, strict=True):
        review = {
            "reviewerID": f"A{_mixed(int(user)):013X}",
            "asin": f"B{_mixed(int(item)) & 0xFFFFFFFFF:09X}",
            "reviewerName": f"J. {text[place + 3 : place + 11].strip()}",
            "helpful": [int(length) % 3, int(length) % 5],
            "reviewText": text[place : place + length],
            "overall": float(1 + length % 5),
            "summary": text[place + 500 : place + 525],
            "unixReviewTime": int(stamp),
            "reviewTime": "01 9, 2014",
        }
        out.write(json.dumps(review) + "\n")
    return out.getvalue().encode()


def _mixed(number: int) -> int:
    """Distinct numbers stay distinct below 2^36, and look like ids."""
    return (number * 2_654_435_761 + 97_531) & 0xFFFFFFFFF


def compare(options: argparse.Namespace, events: int, folder: Path) -> list[Result]:
    """Floor and preparation at one size."""
    population = min(options.events)  # the same users and items at every size: memory is to depend on them alone
    log = folder / f"reviews-{events}-of-{population}-{options.seed}.json.gz"
    if not log.exists():
        size = generate(log, events, population, options.seed)
        print(f"{events:,} reviews: {size / 1e6:,.0f} MB, packed {log.stat().st_size / 1e6:,.0f} MB", flush=True)
    results = [
        measure("unpack only", events, [sys.executable, "-c", UNPACK, str(log)], options.timeout),
        measure("unpack and parse", events, [sys.executable, "-c", PARSE, str(log)], options.timeout),
    ]
    script = folder / "ours.py"
    script.write_text(OURS)
    out = folder / "out"
    command = [sys.executable, str(script), str(log), str(out), str(options.workers)]
    runs = []
    for repeat in range(options.repeats + 1):  # the last one is for the memory alone
        last = repeat == options.repeats
        runs.append(measure("heptad prepare", events, command, options.timeout, memory=last))
        if not (out / "dataset.json").exists():
            raise SystemExit(f"preparation failed: {subprocess.run(command, check=False).returncode}")
        shutil.rmtree(out)
    results += [replace(run, memory=runs[-1].memory) for run in runs[:-1]]
    return results


def table(results: list[Result]) -> str:
    """Markdown table."""
    lines = [
        "| | events | wall s | events/s wall | CPU s | events per CPU-s | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item.name} | {item.rows:,} | {item.wall:.1f} | {item.rows / item.wall:,.0f} | {item.cpu:.1f} | "
        f"{item.rows / max(item.cpu, 1e-9):,.0f} | {item.memory / 1e6:,.0f} |"
        for item in results
    ]
    return "\n".join(lines)


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--workers", type=int, default=2, help="0: all cores")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds per run")
    parser.add_argument("--folder", type=Path, help="keep the generated files here")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        everything: list[Result] = []
        for events in options.events:
            everything += compare(options, events, folder)
            print(table(everything), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(item) for item in everything], indent=1))


if __name__ == "__main__":
    main()
