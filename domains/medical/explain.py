"""What a diagnosis rests on; the way depends on what is diagnosed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domains.common.figures import Picture
from domains.common.module import HeptadModule


def explain(module: HeptadModule, data: Any, directory: Path) -> list[Picture]:
    """See `explain_slides` and `explain_images`."""
    from domains.medical.module import BagModule

    if isinstance(module, BagModule):
        from domains.medical.explain_slides import explain_slides

        return explain_slides(module, data, directory)
    from domains.medical.explain_images import explain_images

    return explain_images(module, data, directory)
