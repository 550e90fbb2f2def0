"""Criteo display advertising challenge: one label, 13 numbers, 26 hashed categories per line, no header, tabs.

The minimum count of 10 is the paper's (Song et al., CIKM 2019, section 5.1.1); the official script keeps tokens seen
more than 10 times, which `layout="reproduction"` follows.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.ctr.locate import by_purpose, text_logs
from data_prep.ctr.schema import Dataset, Label, Purpose, RawField, Schema, Sources, TextFormat

NUMBERS = tuple(f"I{index}" for index in range(1, 14))
CATEGORIES = tuple(f"C{index}" for index in range(1, 27))

SCHEMA = Schema(
    name="criteo",
    fields=(
        *(RawField(name, "numerical", transform="log_square") for name in NUMBERS),
        *(RawField(name, "categorical", min_count=10) for name in CATEGORIES),
    ),
    label=Label("label"),
    columns=("label", *NUMBERS, *CATEGORIES),
    text=TextFormat(separator="\t", header=False, quote=""),
    licence="Criteo research terms; Criteo Display Advertising Challenge, Criteo Labs and Kaggle, 2014",
)


def locate(raw: tuple[Path, ...], purpose: Purpose = "train") -> Sources:
    """train.txt of a folder, or test.txt (it has no label) to be scored; or the files named."""
    return Sources(text_logs(raw, prefer=by_purpose(purpose, ("train.txt",), ("test.txt",))))


DATASET = Dataset(SCHEMA, locate)
