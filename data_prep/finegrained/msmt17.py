"""MSMT17 (Wei et al., 2018, arXiv 1711.08565): `list_{train,val,query,gallery}.txt` with lines "path identity".

There are two releases with the same lists whose results differ: V1 (`train`, `test`) and V2 with masked faces
(`mask_train_v2`, `mask_test_v2`). The camera is the third part of a file name. Identities of train and of test both
count from 0 and are different people.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from data_prep.common.errors import ConfigError, DatasetNotFoundError
from data_prep.common.files import sha256_file
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import GALLERY, IDENTITIES, QUERY, Asked, Collector, Item, Listing, read_lines

LICENCE = "for research (MSMT17); pictures show people"
VERSIONS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
LISTS = {"train": "train", "val": "train", "query": QUERY, "gallery": GALLERY}


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of the data set.
        asked: `version` where both are there, and `train_on_valid`.
    """
    version, folders = _find_version(files, asked.version)
    lists = {side: files.find(f"list_{side}.txt", "a list of MSMT17") for side in LISTS}
    found = Collector(lines=True)
    left_out = len(read_lines(lists["val"])) if not asked.train_on_valid else 0
    differing = 0
    for side, split in LISTS.items():
        if side == "val" and not asked.train_on_valid:
            continue
        folder = folders[0] if split == "train" else folders[1]
        differing += _read_list(lists[side], split, folder, files, found)
    digest = hashlib.sha256("".join(sha256_file(path) for path in lists.values()).encode()).hexdigest()
    remarks = [f"MSMT17 {version}: its results are not to be compared with those of the other version"]
    if left_out:
        remarks.append(
            f"the {left_out:,} pictures of list_val.txt are left out, as is common: they are of training identities; "
            "--train_on_valid true takes them for training"
        )
    if differing:
        remarks.append(f"{differing:,} file names say another identity than the list, which is believed")
    return Listing(
        IDENTITIES,
        tuple(found.items),
        name=f"msmt17-{version.lower()}",
        version=version,
        lists=tuple(lists.values()),
        licence=LICENCE,
        rejects=tuple(found.rejects),
        notes={"val_list_left_out": left_out, "names_of_another_identity": differing, "lists_sha256": digest},
        remarks=tuple(remarks),
    )


def _find_version(files: RawFiles, asked: str) -> tuple[str, tuple[str, str]]:
    """Version and folders of the pictures.

    Raises:
        ConfigError: both versions are there, or there is no such version.
        DatasetNotFoundError: none is there.
    """
    if asked and asked.upper() not in VERSIONS:
        raise ConfigError(f"version {asked!r}: MSMT17 has {', '.join(VERSIONS)}; give one of them")
    there = [name for name, (train, test) in VERSIONS.items() if files.in_folder(train) or files.in_folder(test)]
    if len(there) > 1 and not asked:
        raise ConfigError(f"{files.root}: holds pictures of V1 and of V2; choose with --version")
    version = asked.upper() or (there[0] if there else "")
    if version not in there:
        wanted = " or ".join(f"{' and '.join(VERSIONS[name])} ({name})" for name in VERSIONS if version in ("", name))
        raise DatasetNotFoundError(
            f"{files.root}: no pictures of MSMT17 in {wanted}; give the folder that holds these as raw"
        )
    return version, VERSIONS[version]


def _read_list(path: Path, split: str, folder: str, files: RawFiles, found: Collector) -> int:
    """Read a list; how many file names say another identity than it does."""
    side = "train" if split == "train" else "test"
    differing = 0
    for number, line in read_lines(path):
        name, _, identity = line.rpartition(" ")
        parts = PurePosixPath(name).name.split("_")
        image, reason = files.locate(f"{folder}/{name}", path.parent)
        if not identity.isdecimal() or not name:
            reason = "is not 'path identity'"
        elif len(parts) < 4 or not parts[2].isdecimal():
            reason = "the file name does not say the camera in its third part, as in 0000_000_01_0303morning_0008_0.jpg"
        if reason:
            found.reject(path.name, number, reason, line)
            continue
        differing += parts[0].isdecimal() and int(parts[0]) != int(identity)
        item = Item(image, f"{side}-{int(identity):04d}", split, camera=str(int(parts[2])))
        found.add(item, path.name, number)
    return differing
