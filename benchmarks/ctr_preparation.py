"""Preparation of Criteo-shaped logs: Heptad beside FuxiCTR, on the same file in the same run.

    python benchmarks/ctr_preparation.py --rows 1000000 --peer-python PATH/TO/python

The log is generated from a seed: 13 numbers, 26 categories of 8 hexadecimal digits with power-law frequencies, about
1.09 million distinct tokens and 265 MB per million rows. Each contestant runs in a fresh process whose children are
counted. FuxiCTR (2.3.10) runs in its own environment: its shipped `build_dataset`, and `fit` + `transform` called in
one process. Memory is the largest sum over the process tree, sampled every 20 ms: proportional set size (pages shared
by two processes count once) where the system tells it, and resident set size otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import psutil

NUMBERS = [f"I{index}" for index in range(1, 14)]
CATEGORIES = [f"C{index}" for index in range(1, 27)]
# Column sizes in the manner of Criteo's, set so that a million rows show about 1.09 million distinct tokens.
SIZES = (
    *(1_400, 550, 250_000, 100_000, 300, 20, 12_000, 600, 3, 60_000, 5_000, 225_000, 3_200, 26, 11_000, 175_000, 10),
    *(4_700, 2_000, 4, 200_000, 16, 15, 100_000, 80, 60_000),
)
MISSING = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.77, 0.22)
STEP = 250_000  # rows generated at a time

OURS = """
import sys
from pathlib import Path
from data_prep.ctr.prepare import prepare
if __name__ == "__main__":
    prepare("criteo", Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]) or None, progress=False)
"""
PARSE = """
import sys
import polars as pl
types = {"label": pl.Float64, **{f"I{i}": pl.Float64 for i in range(1, 14)}}
types |= {f"C{i}": pl.String for i in range(1, 27)}
reader = pl.scan_csv(sys.argv[1], separator="\\t", has_header=False, schema=types, quote_char=None)
for block in reader.collect_batches(chunk_size=100_000):
    block.height
"""
PEER = """
import sys
from fuxictr.preprocess import FeatureProcessor, build_dataset
num = [{"name": [f"I{i}" for i in range(1, 14)], "active": True, "dtype": "float", "type": "numeric",
        "na_value": 0}]
cat = [{"name": [f"C{i}" for i in range(1, 27)], "active": True, "dtype": "str", "type": "categorical",
        "na_value": "", "min_categr_count": 10}]
log, out, shipped = sys.argv[1], sys.argv[2], sys.argv[3] == "shipped"
if __name__ == "__main__":
    encoder = FeatureProcessor(feature_cols=num + cat, label_col={"name": "label", "dtype": "float"},
                               dataset_id="bench", data_root=out)
    if shipped:
        build_dataset(encoder, train_data=log, min_categr_count=10)
    else:
        # What build_dataset does, in one process, without Ray and without writing a file.
        frame = encoder.preprocess(encoder.read_data(log))
        encoder.fit(frame, min_categr_count=10)
        table = frame.collect()
        for start in range(0, table.height, 100_000):
            batch = table.slice(start, 100_000)
            encoder.transform({name: batch[name].to_numpy() for name in batch.columns})
"""


@dataclass(frozen=True)
class Result:
    """One measurement: seconds of wall and CPU time, children included, and bytes of memory at the peak."""

    name: str
    rows: int
    wall: float
    cpu: float
    memory: float
    note: str = ""


def generate(path: Path, rows: int, seed: int, *, header: bool) -> None:
    """Write a Criteo-shaped log: tabs without header, or commas with one."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as stream:
        for start in range(0, rows, STEP):
            block = _block(generator, min(STEP, rows - start))
            block.write_csv(stream, separator="," if header else "\t", include_header=header and start == 0)


def _block(generator: np.random.Generator, rows: int) -> pl.DataFrame:
    columns: dict[str, pl.Series] = {"label": pl.Series((generator.random(rows) < 0.256).astype(np.int8))}
    for name, share in zip(NUMBERS, MISSING, strict=True):
        values = np.floor(np.exp(generator.normal(2, 1.8, rows))).astype(np.int64) - 1
        columns[name] = pl.Series(values).set(pl.Series(generator.random(rows) < share), None)
    for index, (name, size) in enumerate(zip(CATEGORIES, SIZES, strict=True)):
        ranks = _ranks(generator.random(rows), size)
        # Multiplication by an odd number permutes 32-bit numbers: distinct ranks stay distinct tokens.
        mixed = (ranks * np.uint64(2_654_435_761) + np.uint64(index * 97_531)) & np.uint64(0xFFFFFFFF)
        text = mixed.astype(">u4").tobytes().hex().encode()
        columns[name] = pl.Series(np.frombuffer(text, dtype="S8").astype("U8"))
    return pl.DataFrame(columns)


def _ranks(uniform: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.uint64]:
    """Ranks with density 1/rank for small columns and rank^-0.75 for large ones, by inversion."""
    found = size**uniform - 1 if size < 100_000 else (1 + uniform * (size**0.25 - 1)) ** 4 - 1
    return np.minimum(found, size - 1).astype(np.uint64)


def measure(name: str, rows: int, command: list[str], timeout: float, *, memory: bool = True) -> Result:
    """Run a command and watch its process tree; looking at its memory fifty times a second takes time from it."""
    before = os.times()
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    root = psutil.Process(process.pid)
    seen: dict[int, float] = {}
    peak = 0.0
    while process.poll() is None and time.perf_counter() - begin < timeout:
        total = 0.0
        for one in _tree(root) if memory else ():
            try:
                times = one.cpu_times()
                seen[one.pid] = times.user + times.system
                full = one.memory_full_info()
                total += getattr(full, "pss", full.rss)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        peak = max(peak, total)
        time.sleep(0.02)
    wall = time.perf_counter() - begin
    late = process.poll() is None
    if late:
        for one in _tree(root):
            one.kill()
    error = (process.communicate()[1] or b"").decode(errors="replace").strip().splitlines()
    note = f"stopped after {timeout:.0f} s" if late else error[-1][:90] if process.returncode else ""
    after = os.times()
    # The system counts what children used up to their end, but only of those somebody waited for.
    waited = after.children_user + after.children_system - before.children_user - before.children_system
    return Result(name, rows, wall, max(waited, sum(seen.values())), peak, note)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def compare(options: argparse.Namespace, rows: int, folder: Path) -> list[Result]:
    """All contestants on one log."""
    log = folder / f"log-{rows}.tsv"
    if not log.exists():
        generate(log, rows, options.seed, header=False)
    results = []
    workers = str(options.workers)
    results.append(measure("plain CSV parse (polars)", rows, [sys.executable, "-c", PARSE, str(log)], options.timeout))
    for turn in range(options.repeats):
        out = folder / f"ours-{rows}-{turn}"
        script = folder / "ours.py"
        script.write_text(OURS)
        results.append(
            measure("heptad prepare", rows, [sys.executable, str(script), str(log), str(out), workers], options.timeout)
        )
        shutil.rmtree(out, ignore_errors=True)
    if options.peer_python and rows <= options.peer_rows:
        named = folder / f"log-{rows}.csv"
        if not named.exists():
            names = ["label", *NUMBERS, *CATEGORIES]
            with named.open("wb") as stream, log.open("rb") as source:
                stream.write((",".join(names) + "\n").encode())
                while data := source.read(1 << 20):
                    stream.write(data.replace(b"\t", b","))
        script = folder / "peer.py"
        script.write_text(PEER)
        for kind, name in (("inline", "FuxiCTR fit + transform"), ("shipped", "FuxiCTR build_dataset")):
            out = folder / f"peer-{kind}"
            command = [options.peer_python, str(script), str(named), str(out), kind]
            results.append(measure(name, rows, command, options.timeout))
            shutil.rmtree(out, ignore_errors=True)
    return results


def table(results: list[Result]) -> str:
    """Markdown table; the share is that of the CSV parser's rows per CPU-second."""
    parse = next(item for item in results if item.name.startswith("plain"))
    lines = [
        "| | rows | wall s | rows/s wall | CPU s | rows per CPU-s | share of CSV parse | peak MB | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for item in results:
        share = (item.rows / item.cpu) / (parse.rows / parse.cpu) if item.cpu and parse.cpu else float("nan")
        lines.append(
            f"| {item.name} | {item.rows:,} | {item.wall:.1f} | {item.rows / item.wall:,.0f} | {item.cpu:.1f} | "
            f"{item.rows / max(item.cpu, 1e-9):,.0f} | {share:.0%} | {item.memory / 1e6:,.0f} | {item.note} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--workers", type=int, default=0, help="0: all cores")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer-python", default="", help="python of an environment with fuxictr==2.3.10")
    parser.add_argument("--peer-rows", type=int, default=1_000_000, help="do not run the peer on more rows")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds per contestant")
    parser.add_argument("--folder", type=Path, help="keep generated logs here")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        everything: list[Result] = []
        for rows in options.rows:
            results = compare(options, rows, folder)
            everything += results
            print(table(results), flush=True)
    if options.json:
        options.json.write_text(json.dumps([item.__dict__ for item in everything], indent=1))


if __name__ == "__main__":
    main()
