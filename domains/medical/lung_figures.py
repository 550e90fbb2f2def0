"""Pictures of lung segmentation."""

from __future__ import annotations

import numpy as np
import polars as pl

from domains.common.figures import BLUE, ORANGE, Picture, axes


def overlap_distribution(predictions: pl.DataFrame) -> Picture:
    """Draw how many images have which Dice.

    Args:
        predictions: column `dice`, NaN where an image has no mask.
    """
    values = predictions["dice"].to_numpy()
    values = values[np.isfinite(values)]
    figure, panel = axes()
    panel.hist(values, bins=np.linspace(0, 1, 41).tolist(), color=BLUE)
    if len(values):
        worst = float(np.quantile(values, 0.05))
        panel.axvline(worst, color=ORANGE, label=f"5 % of the images are below {worst:.3f}")
        panel.legend(frameon=False, loc="upper left")
    panel.set_xlabel("Dice of the lung mask")
    panel.set_ylabel("images")
    return Picture(
        "Overlap with the masks", "A mean hides the few images whose lungs are not found; look left.", figure
    )
