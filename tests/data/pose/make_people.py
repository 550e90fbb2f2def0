"""Makes miniature sets of persons in images in the original layouts: COCO, CrowdPose, JSON of COCO's form.

    python -m tests.data.pose.make_people FOLDER

All images and annotations are drawn from a seed; nothing is copied from the real collections.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.pose.people.description import COCO, CROWDPOSE

DOG = ["nose", "left_ear", "right_ear", "tail"]  # a set of keypoints that nobody knows


def pixels(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A smooth image in colour, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def write_image(path: Path, seed: int, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, width, height)).save(path)


def person(number: int, image: int, k: int = 17, *, area: bool = True, seed: int = 0) -> dict[str, Any]:
    """A person in an image of 64 x 48 pixels: its first keypoint is not labelled, its second hidden."""
    rng = np.random.default_rng([number, seed])
    left, top = rng.integers(1, 20, 2).tolist()
    width, height = rng.integers(15, 25, 2).tolist()
    x, y = rng.integers(left, left + width, k), rng.integers(top, top + height, k)
    points = np.stack([x, y, np.full(k, 2)], 1)
    points[0] = 0
    points[1, 2] = 1
    found = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [left, top, width, height],
        "iscrowd": 0,
        "num_keypoints": k - 1,
        "keypoints": points.reshape(-1).tolist(),
        "segmentation": [[left, top, left + width, top, left, top + height]],
    }
    return {**found, "area": width * height * 0.6} if area else found


def crowd(number: int, image: int, k: int = 17) -> dict[str, Any]:
    """A region of many, as run lengths."""
    return {
        **person(number, image, k),
        "iscrowd": 1,
        "num_keypoints": 0,
        "keypoints": [0] * (3 * k),
        "segmentation": {"size": [48, 64], "counts": [100, 20, 48 * 64 - 120]},
    }


def document(
    images: int, names: list[str] | tuple[str, ...] = COCO.names, *, first: int = 1, area: bool = True
) -> dict[str, Any]:
    """Annotations of images with 2, 1, 0, 2, 1, 0, ... persons; ids count from `first`."""
    numbers = range(first, first + images)
    persons = [
        person(10 * image + at, image, len(names), area=area)
        for image in numbers
        for at in range((2, 1, 0)[(image - first) % 3])
    ]
    category = {"id": 1, "name": "person", "keypoints": list(names), "skeleton": [[1, 2], [2, 3]]}
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "Licence of the test"}],
        "images": [{"id": n, "file_name": f"{n:06d}.png", "width": 64, "height": 48} for n in numbers],
        "annotations": persons,
        "categories": [category],
    }


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_images(folder: Path, content: dict[str, Any]) -> None:
    for image in content["images"]:
        write_image(folder / image["file_name"], image["id"])


def write_coco(folder: Path, train: int = 6, valid: int = 3) -> Path:
    """The official layout: `annotations` beside `train2017` and `val2017`; the last person of each file is a crowd."""
    for split, count, first in (("train", train, 1), ("val", valid, 101)):
        content = document(count, first=first)
        content["annotations"].append(crowd(9000 + first, first))
        write_images(folder / f"{split}2017", content)
        write_json(folder / f"annotations/person_keypoints_{split}2017.json", content)
    return folder


def write_crowdpose(folder: Path) -> Path:
    """The official layout: `json/crowdpose_*.json` and `images`; no areas, and COCO's skeleton."""
    names = [name.replace("head_top", "head") for name in CROWDPOSE.names]
    for split, count, first in (("train", 4, 1), ("val", 2, 51), ("test", 3, 101)):
        content = document(count, names, first=first, area=False)
        content["categories"][0]["skeleton"] = [[16, 14], [14, 12]]
        for at, image in enumerate(content["images"]):
            image["crowdIndex"] = at / 4
        write_images(folder / "images", content)
        write_json(folder / f"json/crowdpose_{split}.json", content)
    return folder


def write_dogs(folder: Path, images: int = 9, **changes: Any) -> Path:
    """Images of dogs with four keypoints of their own, in one JSON without a split; `changes` of its entries."""
    content = {**document(images, DOG), **changes}
    content["categories"][0]["name"] = "dog"
    write_images(folder / "images", content)
    return write_json(folder / "dogs.json", content)


if __name__ == "__main__":
    top = Path(sys.argv[1])
    write_coco(top / "coco")
    write_crowdpose(top / "crowdpose")
    write_dogs(top / "dogs")
