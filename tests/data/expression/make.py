"""Miniature data sets of faces in their original layouts; no picture of anybody is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from PIL import Image

from data_prep.expression import affwild2, ckplus, fer2013, ferg_db, jaffe, raf_db, votes

U8 = npt.NDArray[np.uint8]
FER_USAGE = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}


def face(number: int, size: int = 48, channels: int = 1) -> U8:
    """A picture like no other of another number: soft blobs.

    Shape:
        -> (size, size) uint8, or (size, size, 3).
    """
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (6, 6, channels)).astype(np.uint8)
    layers = [Image.fromarray(coarse[..., at]).resize((size, size), Image.Resampling.BICUBIC) for at in range(channels)]
    pixels = np.stack([np.asarray(layer) for layer in layers], axis=-1)
    return pixels[..., 0] if channels == 1 else pixels


def save(path: Path, pixels: U8, **options: object) -> Path:
    """Write a picture; its suffix says as what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def pixel_csv(
    path: Path,
    rows: Sequence[tuple[object, str, U8]],
    header: Sequence[str] = ("emotion", "pixels", "Usage"),
) -> Path:
    """Write a table as fer2013.csv: (label, usage, pixels) of each row, in the order of the header."""
    lines = [",".join(header)]
    for label, usage, pixels in rows:
        cells = {"emotion": str(label), "usage": usage, "pixels": " ".join(map(str, pixels.reshape(-1)))}
        lines.append(",".join(cells[name.strip().lower()] for name in header))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def fer_rows(each: int = 4) -> list[tuple[int, str, U8]]:
    """Rows of FER2013: so many of each class in each split, in the order of the file's splits."""
    rows: list[tuple[int, str, U8]] = []
    for usage in FER_USAGE.values():
        rows += [(at % 7, usage, face(len(rows) + at)) for at in range(7 * each)]
    return rows


def make_fer2013(folder: Path, each: int = 4) -> Path:
    """fer2013.csv."""
    return pixel_csv(folder / "fer2013.csv", fer_rows(each))


def votes_of(label: int) -> list[int]:
    """Ten votes that agree with a label of FER2013."""
    found = [0] * 10
    found[votes.CLASSES.index(fer2013.CLASSES[label])] = 8
    found[8] = 2
    return found


def make_ferplus(
    folder: Path,
    rows: Sequence[tuple[int, str, U8]],
    changed: Mapping[int, Sequence[int]] | None = None,
    removed: int = -1,
) -> Path:
    """fer2013new.csv for rows of FER2013.

    Args:
        folder: where to write.
        rows: of FER2013.
        changed: row -> its votes, others agree with the label.
        removed: row whose image the authors removed.
    """
    head = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    lines = [f"Usage,Image name,{head}"]
    for record, (label, usage, _) in enumerate(rows):
        name = "" if record == removed else f"fer{record:07d}.png"
        counts = (changed or {}).get(record, votes_of(label))
        lines.append(",".join([usage, name, *map(str, counts)]))
    path = folder / "fer2013new.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def make_ferplus_images(folder: Path, rows: Sequence[tuple[int, str, U8]]) -> None:
    """Images as the authors' program writes them."""
    places = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
    for record, (_, usage, pixels) in enumerate(rows):
        save(folder / places[usage] / f"fer{record:07d}.png", pixels)


def make_raf_db(folder: Path, each: int = 4, faces: bool = False) -> Path:
    """RAF-DB basic: list and aligned images, and (`faces`) originals with boxes and points."""
    lines = []
    number = 0
    for split in ("train", "test"):
        for at in range(7 * each):
            name = f"{split}_{at + 1:05d}"
            lines.append(f"{name}.jpg {at % 7 + 1}")
            pixels = face(1000 + number, 100, 3)
            save(folder / "Image" / "aligned" / f"{name}_aligned.jpg", pixels, quality=95)
            if faces:
                _original(folder, name, pixels)
            number += 1
    path = folder / "EmoLabel" / "list_patition_label.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    assert len(raf_db.CLASSES) == 7
    return folder


def _original(folder: Path, name: str, pixels: U8) -> None:
    """The face at (40, 20) of a larger picture, its eyes level."""
    whole = np.full((200, 240, 3), 90, np.uint8)
    whole[20:120, 40:140] = pixels
    save(folder / "Image" / "original" / f"{name}.jpg", whole, quality=95)
    box = folder / "Annotation" / "boundingbox" / f"{name}_boundingbox.txt"
    points = folder / "Annotation" / "manual" / f"{name}_manu_attri.txt"
    for path, text in (
        (box, "40.0 20.0 140.0 120.0 \n"),
        (points, "70\t60\n110\t60\n90\t80\n75\t100\n105\t100\n0\n1\n2\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make_ckplus(folder: Path, subjects: int = 12, frames: int = 7) -> Path:
    """CK+ as it is published: two labelled sequences and one without label of each subject."""
    for number in range(subjects):
        subject = f"S{number + 5:03d}"
        for sequence in range(3):
            stem = f"{subject}_{sequence + 1:03d}"
            place = Path(subject) / f"{sequence + 1:03d}"
            for frame in range(frames):
                pixels = face(5000 + number * 100 + sequence * 10 + frame, 64)
                save(folder / "cohn-kanade-images" / place / f"{stem}_{frame + 1:08d}.png", pixels)
            if sequence < 2:
                code = 1 + (2 * number + sequence) % 7
                path = folder / "Emotion" / place / f"{stem}_{frames:08d}_emotion.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"   {code:.7e}\n")
    (folder / "cohn-kanade-images" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert len(ckplus.CLASSES) == 8
    return folder


def make_ck48(folder: Path, subjects: int = 10) -> Path:
    """CK+48: three frames of two sequences of each subject, in folders of classes."""
    names = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
    for number in range(subjects):
        for sequence in range(2):
            label = names[(2 * number + sequence) % 7]
            for frame in range(3):
                path = folder / label / f"S{number + 10:03d}_{sequence + 1:03d}_{frame + 15:08d}.png"
                save(path, face(9000 + number * 10 + sequence * 4 + frame))
    return folder


def make_jaffe(folder: Path, each: int = 2) -> Path:
    """JAFFE: five women, so many pictures of each expression."""
    number = 1
    for subject in ("KA", "KL", "KM", "KR", "MK"):
        for code in jaffe.CODES:
            for at in range(each):
                save(folder / f"{subject}.{code}{at + 1}.{number}.tiff", face(20000 + number, 64))
                number += 1
    return folder


def make_ferg_db(folder: Path, each: int = 2) -> Path:
    """FERG-DB: three characters."""
    number = 0
    for character in ("aia", "bonnie", "ray", "mery"):
        for label in ferg_db.CLASSES:
            word = "joy" if label == "happiness" else label
            for at in range(each):
                path = folder / character / f"{character}_{word}" / f"{character}_{word}_{at + 1}.png"
                save(path, face(30000 + number, 40, 3))
                number += 1
    return folder


def make_affwild2(folder: Path, frames: int = 20) -> Path:
    """Aff-Wild2: six training and two validation videos, labels -1 among others, a frame too many, frames missing."""
    names = ",".join(name.capitalize() for name in affwild2.CLASSES)
    for number in range(8):
        training = number < 6
        video = f"{number}-30-1280x720" + ("_left" if number == 1 else "_right" if number == 2 else "")
        video = video.replace("2-30", "1-30") if number == 2 else video  # two persons of one video
        labels = [-1 if at % 5 == 4 else (at + number) % 8 for at in range(frames)]
        place = folder / "EXPR_Recognition_Challenge" / ("Train_Set" if training else "Validation_Set")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{video}.txt").write_text("\n".join([names, *map(str, labels)]) + "\n")
        count = frames + (1 if number == 0 else -8 if number == 3 else 0)
        for frame in range(count):
            if (number, frame) != (4, 2):  # no face was found in this one
                pixels = face(40000 + number * 100 + frame, 56, 3)
                save(folder / "cropped_aligned" / video / f"{frame + 1:05d}.jpg", pixels, quality=90)
    return folder


def make_detector(path: Path, tilt: float = 0.0) -> Path:
    """A detector with the inputs and outputs of YuNet which sees a face of 64 x 64 pixels around each white square.

    Args:
        path: the ONNX file.
        tilt: of the line of the eyes, pixels down for 32 pixels to the right.
    """
    nodes, constants, outputs = [], [], []

    def conv(name: str, source: str, weight: float, bias: Sequence[float]) -> str:
        """A 1 x 1 convolution: bias + weight * (sum of the channels), flattened to (1, places, len(bias))."""
        kernel = np.full((len(bias), 3, 1, 1), weight, np.float32)
        constants.append(onnx.numpy_helper.from_array(kernel, f"{name}_w"))
        constants.append(onnx.numpy_helper.from_array(np.array(bias, np.float32), f"{name}_b"))
        constants.append(onnx.numpy_helper.from_array(np.array([1, -1, len(bias)], np.int64), f"{name}_shape"))
        nodes.append(helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [f"{name}_map"]))
        nodes.append(helper.make_node("Transpose", [f"{name}_map"], [f"{name}_last"], perm=[0, 2, 3, 1]))
        return f"{name}_last"

    for stride in (8, 16, 32):
        pool = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes.append(helper.make_node("AveragePool", ["input"], [f"pool_{stride}"], **pool))
        seen = 1 / 3 if stride == 8 else 0.0  # the finest level alone sees
        points = [-1.5, -1.0 - tilt / 16, 2.5, -1.0 + tilt / 16, 0.5, 1.0, -1.0, 3.0, 2.0, 3.0]
        parts = {
            "cls": (seen, [-230.0]),
            "obj": (seen, [-230.0]),
            "bbox": (0.0, [0.5, 0.5, float(np.log(64 / stride)), float(np.log(64 / stride))]),
            "kps": (0.0, points),
        }
        for part, (weight, bias) in parts.items():
            name = f"{part}_{stride}"
            last = conv(name, f"pool_{stride}", weight, bias)
            shaped = f"{name}_flat" if part in ("cls", "obj") else name
            nodes.append(helper.make_node("Reshape", [last, f"{name}_shape"], [shaped]))
            if shaped != name:
                nodes.append(helper.make_node("Sigmoid", [shaped], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, len(bias)]))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, None, None])
    outputs.sort(key=lambda value: ("cls", "obj", "bbox", "kps").index(value.name.split("_")[0]))
    graph = helper.make_graph(nodes, "squares", [given], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def scene(*places: tuple[int, int], size: tuple[int, int] = (320, 320)) -> U8:
    """A dark picture with a white square of 8 x 8 pixels at each place (left, top), multiples of 8.

    Shape:
        -> (height, width, 3) uint8.
    """
    pixels = np.random.default_rng(sum(map(sum, places), size[0])).integers(0, 60, (*size, 3)).astype(np.uint8)
    for left, top in places:
        pixels[top : top + 8, left : left + 8] = 255
    return pixels
