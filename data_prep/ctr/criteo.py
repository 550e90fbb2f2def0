"""Criteo display advertising challenge: one label, 13 numbers, 26 hashed categories per line, no header, tabs.

The minimum count of 10 is the paper's (Song et al., CIKM 2019, section 5.1.1); the official script keeps tokens seen
more than 10 times, which `layout="reproduction"` follows.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.ctr.locate import text_logs
from data_prep.ctr.schema import Dataset, Field, Label, Schema, Sources, TextFormat

NUMBERS = tuple(f"I{index}" for index in range(1, 14))
CATEGORIES = tuple(f"C{index}" for index in range(1, 27))

SCHEMA = Schema(
    name="criteo",
    fields=(
        *(Field(name, "numerical", transform="log_square") for name in NUMBERS),
        *(Field(name, "categorical", min_count=10) for name in CATEGORIES),
    ),
    label=Label("label"),
    columns=("label", *NUMBERS, *CATEGORIES),
    text=TextFormat(separator="\t", header=False, quote=""),
    licence="Criteo research terms; Criteo Display Advertising Challenge, Criteo Labs and Kaggle, 2014",
)


def locate(raw: tuple[Path, ...]) -> Sources:
    """train.txt of a folder (test.txt there has no label), or the files named."""
    return Sources(text_logs(raw, prefer=("train.txt", "train.txt.gz")))


DATASET = Dataset(SCHEMA, locate)
