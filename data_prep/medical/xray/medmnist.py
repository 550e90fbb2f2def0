"""MedMNIST v2 (Yang et al., 2023): `<name>.npz` and `<name>_64|_128|_224.npz`, two-dimensional, one label per image.

Arrays `{train,val,test}_images` uint8 [N, side, side] or [N, side, side, 3], and `{train,val,test}_labels` [N, 1]. The
file is never unpickled; its large arrays are unpacked to disk once and read by rows, whatever their size.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import BLOCK, translate_os_errors
from data_prep.medical.xray.find import find_named
from data_prep.medical.xray.records import Asked, Item, Listing

LICENCE, LICENCE_DERMA = "CC BY 4.0", "CC BY-NC 4.0"
_ORGANS = "bladder|femur-left|femur-right|heart|kidney-left|kidney-right|liver|lung-left|lung-right|pancreas|spleen"
_NAMES = {
    "pathmnist": "adipose|background|debris|lymphocytes|mucus|smooth muscle|normal colon mucosa|"
    "cancer-associated stroma|colorectal adenocarcinoma epithelium",
    "dermamnist": "actinic keratoses and intraepithelial carcinoma|basal cell carcinoma|benign keratosis-like lesions|"
    "dermatofibroma|melanoma|melanocytic nevi|vascular lesions",
    "octmnist": "choroidal neovascularization|diabetic macular edema|drusen|normal",
    "pneumoniamnist": "normal|pneumonia",
    "retinamnist": "0|1|2|3|4",
    "breastmnist": "malignant|normal, benign",
    "bloodmnist": "basophil|eosinophil|erythroblast|immature granulocytes|lymphocyte|monocyte|neutrophil|platelet",
    "tissuemnist": "Collecting Duct, Connecting Tubule|Distal Convoluted Tubule|Glomerular endothelial cells|"
    "Interstitial endothelial cells|Leukocytes|Podocytes|Proximal Tubule Segments|Thick Ascending Limb",
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}
# names in the order of the label codes, from the MedMNIST package
CLASSES = {name: tuple(text.split("|")) for name, text in _NAMES.items()}
NOTES = {
    "breastmnist": "class 1, whose probability is reported, is 'normal, benign': sensitivity is that for the healthy; "
    "--positive malignant turns it round",
    "pneumoniamnist": "children of one to five years; test images come from another selection than training images",
}
SPLITS = {"train": "train", "val": "valid", "test": "test"}
_FAULTS = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, NotImplementedError)


class Shape(NamedTuple):
    """What the header of an array in the file says.

    Args:
        shape: of the array.
        dtype: of its numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read(raw: Sequence[Path], asked: Asked) -> Listing:
    """List the images of an npz file; labels are read, images only looked at.

    Args:
        raw: the file, or a folder with one npz file.
        asked: has no options for this data set.
    """
    del asked
    found = find_named(raw, r".*\.npz")
    if len(found) != 1:
        raise DatasetNotFoundError(
            f"{raw[0]}: {len(found)} npz files; give one, such as pneumoniamnist.npz or pneumoniamnist_64.npz"
        )
    path = found[0]
    name = path.stem.lower().split("_")[0]
    channels = 1
    labels: dict[str, npt.NDArray[np.int64]] = {}
    for split in SPLITS:
        shape, labels[split] = _read_split(path, split)
        channels = 3 if len(shape) == 4 else 1
    highest = int(max(codes.max(initial=0) for codes in labels.values()))
    known = CLASSES.get(name, ())
    classes = known if highest < len(known) else tuple(str(code) for code in range(highest + 1))
    items = [
        Item(f"{split}-{row:06d}", path, classes[code], split=SPLITS[split], array=f"{split}_images", row=row)
        for split, codes in labels.items()
        for row, code in enumerate(codes.tolist())
    ]
    return Listing(
        tuple(items),
        path.stem,
        (path,),
        LICENCE_DERMA if name == "dermamnist" else LICENCE,
        classes=classes,
        patients=False,
        group_note="the file does not say which images are of one patient",
        channels=channels,
        notes={"about": NOTES[name]} if name in NOTES else {},
    )


def _read_split(path: Path, split: str) -> tuple[tuple[int, ...], npt.NDArray[np.int64]]:
    images = read_header(path, f"{split}_images")
    grey, colour = len(images.shape) == 3, len(images.shape) == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (grey or colour):
        raise ConfigError(
            f"{path}: {split}_images is {images.dtype} {list(images.shape)}; uint8 [N, side, side] or "
            "[N, side, side, 3] is read, three-dimensional sets are not"
        )
    with translate_os_errors(path):
        try:
            with np.load(path, allow_pickle=False) as file:
                labels = np.asarray(file[f"{split}_labels"])
        except _FAULTS as error:
            raise CorruptRecordError(path, f"{split}_labels", f"cannot be read ({error}); load it again") from error
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ConfigError(
            f"{path}: has {labels.shape[1]} labels for each image (multi-label, as ChestMNIST); sets with one label "
            "for each image are read"
        )
    if labels.size != images.shape[0] or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise CorruptRecordError(path, f"{split}_labels", f"{labels.size:,} labels of {images.shape[0]:,} images")
    return images.shape, labels.reshape(-1).astype(np.int64)


def read_header(path: Path, array: str) -> Shape:
    """Look at an array without reading it.

    Raises:
        CorruptRecordError: there is none, or the file is damaged.
    """
    with translate_os_errors(path):
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                reader = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = reader(stream)
                size = stream.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                if fortran or dtype.hasobject or size != archive.getinfo(f"{array}.npy").file_size:
                    raise ValueError("not a plain array of the size it says")
        except _FAULTS as error:
            reason = f"cannot be read ({error}); is this a MedMNIST file? load it again"
            raise CorruptRecordError(path, array, reason) from error
    return Shape(tuple(shape), dtype)


def unpack_array(path: Path, array: str, folder: Path) -> dict[str, Any]:
    """Write one array as `<array>.npy`, block by block.

    Raises:
        CorruptRecordError: the file is damaged.
    """
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(f"{array}.npy") as packed,
            (folder / f"{array}.npy").open("wb") as stream,
        ):
            while block := packed.read(BLOCK):
                stream.write(block)
    except _FAULTS as error:
        raise CorruptRecordError(path, array, f"cannot be unpacked ({error}); load it again") from error
    return {}
