"""VeRi-776 (Liu et al., 2016): `name_{train,query,test}.txt`, pictures in `image_*`, labels in gb2312 XML.

Names such as `0002_c002_00030600_0.jpg` say vehicle and camera. `gt_index.txt` and `jk_index.txt` list, for each query,
which pictures of `name_test.txt` (counted from 1) are of its vehicle, in other cameras and in its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.records import GALLERY, IDENTITIES, QUERY, Asked, Collector, Item, Listing, read_lines

LICENCE = "for research (VeRi-776)"
SIDES = {"train": "train", "query": QUERY, "test": GALLERY}
_NAME = re.compile(r"(\d{4,})_c(\d+)_\d+_\d+\.[A-Za-z]+")


def read(files: RawFiles, asked: Asked) -> Listing:
    """List the pictures.

    Args:
        files: of the data set.
        asked: has no options for this data set.
    """
    del asked
    held = {side: files.in_folder(f"image_{side}") for side in SIDES}
    missing = [f"image_{side}" for side, pictures in held.items() if not pictures]
    if missing:
        raise DatasetNotFoundError(
            f"{files.root}: no picture in a folder {missing[0]}; VeRi has image_train, image_query, image_test; give "
            "the folder that holds all of them as raw"
        )
    labels_files = files.all_named("train_label.xml", "test_label.xml")
    labels = {name: label for path in labels_files for name, label in read_labels(path).items()}
    lists = {side: path for side in SIDES if (path := files.find_any(f"name_{side}.txt")) is not None}
    found = Collector(lines=bool(lists))
    listed = set[str]()
    for side in SIDES:
        listed |= _collect(side, held[side], lists.get(side), labels, files, found)
    index_files, remarks = _check_index(files, lists)
    unlisted = len(set().union(*held.values()) - listed)
    return Listing(
        IDENTITIES,
        tuple(found.items),
        name="veri776",
        lists=(*lists.values(), *labels_files, *index_files),
        licence=LICENCE,
        rejects=tuple(found.rejects),
        notes={"pictures_not_listed": unlisted},
        remarks=tuple(remarks),
    )


def _collect(
    side: str,
    held: list[str],
    path: Path | None,
    labels: Mapping[str, tuple[str, str]],
    files: RawFiles,
    found: Collector,
) -> set[str]:
    """Take the pictures of a side; those that are named, usable or not."""
    listed = set()
    source = path.name if path is not None else f"image_{side}"
    names = read_lines(path) if path is not None else list(enumerate(held))
    for number, name in names:
        image, reason = files.locate(f"image_{side}/{name}") if path is not None else (name, "")
        listed.add(image)
        name = PurePosixPath(name).name
        match = _NAME.fullmatch(name)
        if match is None:
            reason = "the name is not as 0002_c002_00030600_0.jpg"
        elif not reason and name in labels and labels[name] != (match[1], str(int(match[2]))):
            vehicle, camera = labels[name]
            reason = f"the labels say vehicle {vehicle}, camera {camera}, the name says otherwise"
        if reason or match is None:
            found.reject(source, number, reason, name)
        else:
            found.add(Item(image, match[1], SIDES[side], camera=str(int(match[2]))), source, number)
    return listed


def read_labels(path: Path) -> dict[str, tuple[str, str]]:
    """Vehicle and camera of each picture in an XML file, which is in gb2312.

    Raises:
        CorruptRecordError: it is damaged, or declares a document type, which no file of VeRi does.
    """
    with translate_os_errors(path):
        data = path.read_bytes()
    try:
        text = data.decode("gb18030")  # of which gb2312 is a part
    except UnicodeDecodeError as error:
        raise CorruptRecordError(path, f"byte {error.start:,}", "is no gb2312 text; download it again") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise CorruptRecordError(path, "header", "declares a document type, which is not read; download it again")
    # The parser of the standard library does not know the encoding that the first line names.
    text = re.sub(r"\A\s*<\?xml[^>]*\?>", "", text.removeprefix("\ufeff"))
    found: dict[str, tuple[str, str]] = {}
    try:
        for item in ElementTree.fromstring(text).iter("Item"):
            camera = item.get("cameraID", "").lstrip("c").lstrip("0") or "0"
            found[item.get("imageName", "")] = (item.get("vehicleID", ""), camera)
    except (ElementTree.ParseError, ValueError) as error:
        raise CorruptRecordError(path, "XML", f"cannot be read ({error}); download it again") from None
    return found


def _check_index(files: RawFiles, lists: Mapping[str, Path]) -> tuple[list[Path], list[str]]:
    """The lists of right and of junk pictures, and what is to be told where the names say otherwise.

    Raises:
        CorruptRecordError: a list is damaged.
    """
    paths = [files.find_any("gt_index.txt"), files.find_any("jk_index.txt")]
    right, junk = paths
    if right is None or junk is None or not {"query", "test"} <= set(lists):
        return [path for path in paths if path is not None], []
    queries, tests = ([_parts(line) for _, line in read_lines(lists[side])] for side in ("query", "test"))
    wrong = 0
    members: dict[str, list[int]] = {}
    for place, (vehicle, _) in enumerate(tests):
        members.setdefault(vehicle, []).append(place)
    for (vehicle, camera), good, bad in zip(
        queries, _rows(right, len(queries), len(tests)), _rows(junk, len(queries), len(tests)), strict=True
    ):
        same = members.get(vehicle, [])
        elsewhere = {place for place in same if tests[place][1] != camera}
        wrong += good != elsewhere or bad != set(same) - elsewhere
    told = f"{wrong:,} of {len(queries):,} queries have other pictures in gt_index.txt or jk_index.txt than the names"
    return [right, junk], [f"{told} of vehicles and cameras say; scores are of the names"] if wrong else []


def _parts(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(PurePosixPath(name).name)
    return (match[1], match[2]) if match else ("", name)


def _rows(path: Path, queries: int, tests: int) -> list[set[int]]:
    """Places in the list of tests (from 0), for each query; a query may have none."""
    with translate_os_errors(path):
        lines = path.read_bytes().decode("ascii", "replace").splitlines()
    lines += [""] * (queries - len(lines))
    if len(lines) > queries and any(line.strip() for line in lines[queries:]):
        raise CorruptRecordError(path, f"line {queries + 1:,}", f"is beyond the {queries:,} queries; download it again")
    rows = []
    for number, line in enumerate(lines[:queries]):
        words = line.split()
        if not all(word.isdecimal() and 1 <= int(word) <= tests for word in words):
            raise CorruptRecordError(
                path, f"line {number + 1:,}", f"has a number that is none of 1 to {tests:,}; download it again"
            )
        rows.append({int(word) - 1 for word in words})
    return rows
