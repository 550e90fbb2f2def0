"""What a pose rests on, whatever was trained: persons in images, or poses lifted to 3D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domains.common.errors import ConfigError
from domains.common.figures import Picture
from domains.common.module import HeptadModule
from domains.pose.explain_lift import explain_lift
from domains.pose.explain_people import explain_people
from domains.pose.module import GroupPoseModule
from domains.pose.module3d import LiftModule


def explain(module: HeptadModule, data: Any, directory: Path) -> list[Picture]:
    """Draw what chosen predictions of the test split rest on; also writes explain.parquet.

    Args:
        module: trained.
        data: its data.
        directory: where the table goes.

    Raises:
        ConfigError: the module is none of this domain's.
    """
    module.eval()
    data.trainer = None
    if isinstance(module, GroupPoseModule):
        return explain_people(module, data, directory)
    if isinstance(module, LiftModule):
        return explain_lift(module, data, directory)
    raise ConfigError(f"{type(module).__name__} has no attention over joints or persons to explain")
