"""Avazu click-through-rate challenge: CSV with header; every column is a category.

Differences from the official script (Song et al., 2019): `id` is a constant there, because each value is rare; here
it is left out. `hour` (YYMMDDHH) is kept as a category, and is also the time for splits by time.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.ctr.locate import by_purpose, text_logs
from data_prep.ctr.schema import Dataset, Label, Purpose, RawField, Schema, Sources, TextFormat

COLUMNS = (
    *("id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain"),
    *("app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{index}" for index in range(14, 22)),
)

SCHEMA = Schema(
    name="avazu",
    fields=tuple(RawField(name, "categorical", min_count=5) for name in COLUMNS if name not in ("id", "click")),
    label=Label("click"),
    text=TextFormat(separator=",", header=True, quote=""),
    time="hour",
    licence="Kaggle competition rules; Avazu Click-Through Rate Prediction, 2014",
)


def locate(raw: tuple[Path, ...], purpose: Purpose = "train") -> Sources:
    """train.csv or train.gz of a folder, or test (it has no label) to be scored; or the files named."""
    return Sources(text_logs(raw, prefer=by_purpose(purpose, ("train.csv", "train"), ("test.csv", "test"))))


DATASET = Dataset(SCHEMA, locate)
