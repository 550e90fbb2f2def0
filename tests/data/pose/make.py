"""Makes one of each miniature data set of poses in the original layouts, and small sets with planted people.

    python -m tests.data.pose.make FOLDER

All images, poses and annotations are drawn from a seed; nothing is copied from the real collections.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.pose.planted_people import write_planted_people
from data_prep.pose.planted_sequences import write_planted_sequences
from tests.data.pose.make_people import write_coco, write_crowdpose, write_dogs
from tests.data.pose.make_sequences import main as make_sequences


def main(folder: Path) -> None:
    """Write all."""
    write_coco(folder / "coco")
    write_crowdpose(folder / "crowdpose")
    write_dogs(folder / "dogs")
    make_sequences(folder)
    write_planted_people(folder / "planted_people", train=24, valid=8)
    write_planted_sequences(folder / "planted_sequences", frames=40)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
