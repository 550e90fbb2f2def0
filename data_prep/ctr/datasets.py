"""The data set formats this package knows by name; everything else is described by a schema file."""

from __future__ import annotations

from data_prep.ctr import avazu, criteo, frappe, kdd12, movielens
from data_prep.ctr.schema import Dataset

DATASETS: dict[str, Dataset] = {
    "criteo": criteo.DATASET,
    "avazu": avazu.DATASET,
    "kdd12": kdd12.DATASET,
    "movielens-1m": movielens.DATASET_1M,
    "movielens-100k": movielens.DATASET_100K,
    "frappe": frappe.DATASET,
}
GENERIC = "generic"


def find_dataset(name: str) -> Dataset | None:
    """The data set of that name; None for one described by a schema file alone."""
    return DATASETS.get(name)
