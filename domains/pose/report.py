"""Pictures and tables of a test, whatever was tested: persons in images, or poses lifted to 3D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from domains.common.figures import Picture
from domains.common.intervals import Estimate
from domains.pose import evaluation3d, figures2d, figures3d


def figures(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> list[Picture]:
    """Draw the report's pictures.

    Args:
        predictions: of a test of any system of this domain.
        metrics: of the same.
    """
    if evaluation3d.TARGET in predictions.columns:
        return figures3d.figures(predictions, metrics)
    return figures2d.figures(predictions, metrics)


def tables(predictions: pl.DataFrame, metrics: Mapping[str, Estimate]) -> dict[str, list[dict[str, Any]]]:
    """Make the report's tables: heading -> rows; those of persons in images are its pictures."""
    if evaluation3d.TARGET in predictions.columns:
        return evaluation3d.report_tables(predictions, metrics)
    return {}
