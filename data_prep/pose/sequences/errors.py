"""What can be wrong with a sequence of keypoints, or with the file that holds it."""

from __future__ import annotations

from pathlib import Path

from data_prep.common.errors import CorruptRecordError


class UnsafeFileError(CorruptRecordError):
    """A pickle inside the file asks for something else than numbers, texts, lists and arrays of them."""


class LayoutError(CorruptRecordError):
    """The joints are not those of the layout that is read, or nobody says which they are."""


class ClipError(CorruptRecordError):
    """One recording, or one camera of it, cannot be used; it becomes a reject.

    Args:
        path: the file it is in.
        position: recording and camera.
        reason: what is wrong and what to do.
        frame: first frame it is wrong in.
    """

    def __init__(self, path: Path | str, position: str, reason: str, frame: int = 0) -> None:
        self.frame = frame
        super().__init__(path, position, reason)

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str, str, int]]:  # type: ignore[override]
        return type(self), (self.path, self.position, self.reason, self.frame)
