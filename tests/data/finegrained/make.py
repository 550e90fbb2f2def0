"""Makes miniature fine-grained and re-identification data sets in the original layouts.

    python -m tests.data.finegrained.make FOLDER

All pictures are drawn from a seed; nothing is copied from the real collections.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

SIZE = (48, 40)  # width, height
CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi S4 Sedan 2007")
VARIANTS = {"707-320": "Boeing 707", "727-200": "Boeing 727", "A 300 B4": "A300"}


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth picture in colour, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC))


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size)).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def lines(path: Path, rows: list[str], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{row}{end}" for row in rows).encode())
    return path


def write_cub(folder: Path, per_class: int = 6, end: str = "\n") -> Path:
    """`CUB_200_2011`: half of each class is for test."""
    top = folder / "CUB_200_2011"
    names = [f"{name}/{name[4:]}_{at:04d}.jpg" for name in CLASSES for at in range(per_class)]
    for number, name in enumerate(names, 1):
        picture(top / "images" / name, number)
    numbers = list(range(1, len(names) + 1))
    lines(top / "images.txt", [f"{n} {name}" for n, name in zip(numbers, names, strict=True)], end)
    lines(top / "image_class_labels.txt", [f"{n} {(n - 1) // per_class + 1}" for n in numbers], end)
    lines(top / "train_test_split.txt", [f"{n} {n % 2}" for n in numbers], end)
    lines(top / "bounding_boxes.txt", [f"{n} 4.0 6.0 20.0 {10 + n % 3}.0" for n in numbers], end)
    lines(top / "classes.txt", [f"{at} {name}" for at, name in enumerate(CLASSES, 1)], end)
    (top / "images" / CLASSES[0] / "Thumbs.db").write_bytes(b"x")
    return folder


def car(number: int, name: str, label: int, **more: Any) -> dict[str, Any]:
    box = {"bbox_x1": 5.0, "bbox_y1": 7.0, "bbox_x2": 30.0, "bbox_y2": 20.0 + number % 3}
    return {**box, "class": float(label), **more, "fname": name}


def structure(records: list[dict[str, Any]]) -> np.ndarray:
    """Records as MATLAB's structure array of one row."""
    found = np.zeros((1, len(records)), dtype=[(name, object) for name in records[0]])
    for at, record in enumerate(records):
        for name, value in record.items():
            found[name][0, at] = value
    return found


def cell(names: tuple[str, ...]) -> np.ndarray:
    found = np.empty((1, len(names)), dtype=object)
    found[0] = names
    return found


def save_mat(path: Path, content: dict[str, Any], *, packed: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, content, do_compression=packed)
    return path


def write_cars(folder: Path, per_class: int = 6, **more: Any) -> Path:
    """The one file of annotations: `cars_annos.mat` beside `car_ims`."""
    records = []
    for number in range(1, 3 * per_class + 1):
        name = f"car_ims/{number:06d}.jpg"
        picture(folder / name, 100 + number)
        found = car(number, "", (number - 1) % 3 + 1, test=float(number % 2))
        del found["fname"]
        records.append({"relative_im_path": name, **found})
    save_mat(folder / "cars_annos.mat", {"annotations": structure(records), "class_names": cell(CARS)}, **more)
    return folder


def write_cars_devkit(folder: Path, per_class: int = 4) -> Path:
    """The devkit: annotations of train and of test, those of test without and with labels."""
    for split, first, end in (("train", 200, ""), ("test", 300, "_withlabels")):
        records = []
        for number in range(1, 3 * per_class + 1):
            name = f"{number:05d}.jpg"
            picture(folder / f"cars_{split}/{name}", first + number)
            records.append(car(number, name, (number - 1) % 3 + 1))
        save_mat(folder / f"devkit/cars_{split}_annos{end}.mat", {"annotations": structure(records)})
        if split == "test":
            bare = [{name: value for name, value in record.items() if name != "class"} for record in records]
            save_mat(folder / "devkit/cars_test_annos.mat", {"annotations": structure(bare)})
    save_mat(folder / "devkit/cars_meta.mat", {"class_names": cell(CARS)})
    return folder


def write_aircraft(folder: Path, per_split: int = 6) -> Path:
    """`fgvc-aircraft-2013b/data`: a white banner of 20 pixels below each picture."""
    top = folder / "fgvc-aircraft-2013b" / "data"
    names = list(VARIANTS)
    rows: dict[str, list[str]] = {}
    boxes = []
    for at, split in enumerate(("train", "val", "test")):
        rows[split] = []
        for number in range(per_split):
            key = f"{at + 1}{number:06d}"
            array = np.vstack([pixels(400 + 50 * at + number), np.full((20, SIZE[0], 3), 255, np.uint8)])
            path = top / "images" / f"{key}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path, quality=95)
            rows[split].append(f"{key} {names[number % 3]}")
            boxes.append(f"{key} 3 5 40 {SIZE[1] + 10}")
    rows["trainval"] = rows["train"] + rows["val"]
    for split, found in rows.items():
        lines(top / f"images_variant_{split}.txt", found)
        families = [f"{row.split(' ', 1)[0]} {VARIANTS[row.split(' ', 1)[1]]}" for row in found]
        lines(top / f"images_family_{split}.txt", families)
    lines(top / "images_box.txt", boxes)
    lines(top / "variants.txt", names)
    lines(top / "families.txt", sorted(set(VARIANTS.values())))
    return folder


def write_market(folder: Path, identities: int = 6, cameras: int = 3) -> Path:
    """`bounding_box_train`, `query`, `bounding_box_test`, with junk and background; even identities are trained on."""
    top, seed = folder / "Market-1501-v15.09.15", 1000
    for number in range(1, identities + 1):
        for camera in range(1, cameras + 1):
            for frame in range(3):
                name = f"{number:04d}_c{camera}s1_{frame:06d}_0{frame}.jpg"
                test = "query" if frame == 0 else "bounding_box_test"
                seed += 1
                picture(top / ("bounding_box_train" if number % 2 == 0 else test) / name, seed, (32, 64))
    for at, name in enumerate(("-1_c1s1_000401_03.jpg", "0000_c2s1_000402_01.jpg", "0000_c3s2_000403_01.jpg")):
        picture(top / "bounding_box_test" / name, 1900 + at, (32, 64))
    (top / "query" / "Thumbs.db").write_bytes(b"x")
    (top / "readme.txt").write_text("Market-1501")
    return folder


def write_msmt17(folder: Path, version: str = "V1") -> Path:
    """Lists beside the folders of a version; identities of train and of test both count from 0."""
    top = folder / f"MSMT17_{version}"
    train, test = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}[version]
    rows: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    seed = 2000 if version == "V1" else 2500
    for side, identities in ((train, 4), (test, 3)):
        for identity in range(identities):
            for at in range(4):
                camera = at % 2 + 1
                name = f"{identity:04d}/{identity:04d}_{at:03d}_{camera:02d}_0303morning_{at:04d}_0.jpg"
                seed += 1
                picture(top / side / name, seed, (32, 64))
                which = ("val" if at == 3 else "train") if side == train else ("query" if at < 2 else "gallery")
                rows[which].append(f"{name} {identity}")
    for name, found in rows.items():
        lines(top / f"list_{name}.txt", found)
    return folder


def write_veri(folder: Path) -> Path:
    """`VeRi`: names, labels in gb2312, and the lists of right and of junk pictures for each query."""
    top, seed = folder / "VeRi", 3000
    names: dict[str, list[str]] = {"train": [], "query": [], "test": []}
    for vehicle in range(1, 7):
        for camera in (2, 5, 7):
            for at in range(2):
                side = "train" if vehicle % 2 else "query" if at == 0 and camera != 7 else "test"
                name = f"{vehicle:04d}_c{camera:03d}_0003{at:04d}_0.jpg"
                seed += 1
                picture(top / f"image_{side}" / name, seed)
                names[side].append(name)
    for side, found in names.items():
        lines(top / f"name_{side}.txt", found, "\r\n")
    for side, listed in (("train", names["train"]), ("test", names["query"] + names["test"])):
        items = "".join(
            f'<Item imageName="{name}" vehicleID="{name[:4]}" cameraID="{name[5:9]}" colorID="1" typeID="4"/>\n'
            for name in listed
        )
        text = f'<?xml version="1.0" encoding="gb2312"?>\n<TrainingImages Version="车">\n<Items number="1">\n{items}'
        (top / f"{side}_label.xml").write_bytes((text + "</Items>\n</TrainingImages>\n").encode("gb2312"))
    for file, same in (("gt_index.txt", False), ("jk_index.txt", True)):
        rows = []
        for query in names["query"]:
            places = [
                str(place)
                for place, name in enumerate(names["test"], 1)
                if name[:4] == query[:4] and (name[5:9] == query[5:9]) is same
            ]
            rows.append(" ".join(places) + " ")
        lines(top / file, rows)
    return folder


def write_folder(folder: Path, names: tuple[str, ...] = ("robin", "wren", "finch"), count: int = 10) -> Path:
    """A folder for each class."""
    for at, name in enumerate(names):
        for number in range(count):
            picture(folder / name / f"{number:03d}.png", 5000 + 100 * at + number)
    return folder


def write_people(folder: Path, identities: int = 6, cameras: int = 2, count: int = 2) -> Path:
    """A folder for each identity; the camera is in the name."""
    seed = 7000
    for identity in range(identities):
        for camera in range(1, cameras + 1):
            for number in range(count):
                seed += 1
                picture(folder / f"p{identity}" / f"cam{camera}_{number}.png", seed)
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for name, write in list(globals().items()):
        if name.startswith("write_"):
            write(target / name.removeprefix("write_"))
