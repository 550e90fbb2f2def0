"""How fast an epoch of a prepared click log is read, beside the bare Parquet reader, and in how much memory.

    python -m benchmarks.ctr_reading PREPARED [--pool-rows 524288]

Reads the training split twice in one process, on one thread: every part by polars alone, and by the loader that
training uses (shuffled batches of 1,024 rows, ready for the network). The share says what shuffling and cutting cost;
training needs some 20,000 rows per CPU-second.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import polars as pl

from benchmarks.peers.worker import peak_mib
from domains.ctr.data import ClickData


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--pool-rows", type=int, default=524_288)
    options = parser.parse_args()
    data = ClickData(str(options.prepared), pool_rows=options.pool_rows)
    store = data.store("train")
    rows = sum(store.sizes)

    start = time.process_time()
    for path in store.paths:
        pl.read_parquet(path)
    bare = rows / (time.process_time() - start)
    start = time.process_time()
    for _ in data.train_dataloader():
        continue
    ours = rows / (time.process_time() - start)
    size = sum(path.stat().st_size for path in store.paths) / 2**20
    print("| training rows | MiB of Parquet | bare reader, rows per CPU-s | loader, rows per CPU-s | peak MiB |")
    print("|---|---|---|---|---|")
    print(f"| {rows:,} | {size:,.0f} | {bare:,.0f} | {ours:,.0f} | {peak_mib():,.0f} |")


if __name__ == "__main__":
    main()
