"""The stages of a preparation: images are read in blocks, then joined to one table of what is left."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from data_prep.common.anonymise import pseudonym
from data_prep.common.errors import ConfigError
from data_prep.common.files import sha256_file, translate_os_errors
from data_prep.common.fingerprints import CORRELATION, DISTANCE, I64
from data_prep.common.manifest import NAME, read_manifest
from data_prep.common.mapping import Done, Task
from data_prep.common.rejects import EXCERPT, Reject
from data_prep.common.run import Run, describe_source
from data_prep.medical.xray.encode import BLOCK_FILES, BLOCK_ROWS, Rules, Shot, encode_block, image_name
from data_prep.medical.xray.medmnist import unpack_array
from data_prep.medical.xray.pixels import U8
from data_prep.medical.xray.records import Item, Listing, normalise_id, patient_key

PAYLOAD = frozenset({"images", "masks", "train", "valid", "test", "predict", "duplicates.parquet", "rejects.parquet"})
# What the bytes depend on besides input and options.
TOOLS = (pl.__version__, cv2.__version__, np.__version__, BLOCK_FILES, BLOCK_ROWS, DISTANCE, CORRELATION)
IMAGE_FILES = "(image files)"  # their entry in `sources`
SHARED_IDS = "patient_ids_under_several_sources"  # in `counts` of `dataset.json`
_TOLD = 5  # rejects that are printed


@dataclass(frozen=True)
class ReadImages:
    """Images that were read.

    Args:
        frame: one row per image that is kept, in the order of the listing: index, name, label, patient, source, view,
            split, width, height, mask, digest, hash, and `known` (whether the patient is).
        rejects: of the listing and of the images.
        counts: facts for `counts` of `dataset.json`.
        image_source: entry of `sources` for all image files.
        blocks: finished tasks.
        size: images per task.
    """

    frame: pl.DataFrame
    rejects: list[Reject]
    counts: dict[str, Any]
    image_source: dict[str, Any] | None
    blocks: tuple[Done, ...]
    size: int

    def file(self, kind: str, index: int) -> Path:
        """Where an image or mask lies in the scratch folder."""
        return self.blocks[index // self.size].folder / kind / image_name(index)

    def thumbnails(self, rows: I64) -> U8:
        """Thumbnails of some rows of the frame.

        Shape:
            rows (N,) -> (N, 32, 32).
        """
        indices = self.frame["index"].to_numpy()[rows]
        found = np.zeros((len(rows), 32, 32), np.uint8)
        for block in np.unique(indices // self.size):
            here = indices // self.size == block
            stored = np.load(self.blocks[block].folder / "thumbnails.npy", mmap_mode="r", allow_pickle=False)
            found[here] = stored[indices[here] - block * self.size]
        return found


def files_of(items: Sequence[Item]) -> list[Path]:
    """Files that are read for some items: images and masks, not arrays."""
    files = [item.path for item in items if not item.array]
    return files + [item.mask for item in items if item.mask is not None]


def read_images(run: Run, listing: Listing, rules: Rules, key: bytes | None) -> ReadImages:
    """Read all images of a listing, block by block.

    Args:
        run: the output directory.
        listing: what to read.
        rules: how.
        key: of the pseudonyms of names and patients; None keeps both.
    """
    items = listing.items
    arrays = sorted({(item.path, item.array) for item in items if item.array})
    tasks = [Task(array, unpack_array, (path, array)) for path, array in arrays]
    unpacked = run.stage("unpack", tasks) if tasks else []
    places = {entry: done.folder / f"{entry[1]}.npy" for entry, done in zip(arrays, unpacked, strict=True)}
    shots = [
        Shot(
            index,
            str(places[item.path, item.array] if item.array else item.path),
            item.row if item.array else -1,
            item.view,
            item.crop,
            str(item.mask or ""),
        )
        for index, item in enumerate(items)
    ]
    size = BLOCK_ROWS if arrays else BLOCK_FILES
    tasks = [
        Task(f"{at // size:05d}", encode_block, (tuple(shots[at : at + size]), rules))
        for at in range(0, len(shots), size)
    ]
    blocks = tuple(run.stage("read", tasks))
    facts = pl.concat([pl.read_parquet(done.folder / "facts.parquet", memory_map=False) for done in blocks])
    return _join(listing, facts, key, blocks, size)


def _join(listing: Listing, facts: pl.DataFrame, key: bytes | None, blocks: tuple[Done, ...], size: int) -> ReadImages:
    items = listing.items
    names = [pseudonym(key, "name", item.name) if key else item.name for item in items]
    headers = facts["patient"].to_list() if listing.patients else [""] * len(items)
    patients, known = name_patients(items, headers, names, key, per_source=listing.patients_per_source)
    frame = pl.DataFrame(
        {
            "index": facts["index"],
            "name": names,
            "label": [item.label for item in items],
            "patient": patients,
            "known": known,
            "source": [item.source for item in items],
            "split": [item.split for item in items],
        },
        schema_overrides={name: pl.String for name in ("name", "label", "patient", "source", "split")},
    ).with_columns(facts.select("view", "width", "height", "mask", "digest", "hash", "reason", "other_view"))
    rejects = [reject._replace(excerpt="") if key else reject for reject in listing.rejects]
    told = [f"{reject.source}: record {reject.record}: {reject.reason} {reject.excerpt}" for reject in listing.rejects]
    columns = ("reason", "field", "mask_reason")
    for item, name, (reason, field, mask_reason) in zip(items, names, facts.select(columns).iter_rows(), strict=True):
        for fault, place in ((reason, field), (mask_reason, "mask")):
            if fault:
                rejects.append(Reject(name, 0, place[:EXCERPT], fault, ""))
                told.append(f"{item.path}: {fault}")
    for line in told[:_TOLD]:
        say(line)
    if len(told) > _TOLD:
        say(f"... and {len(told) - _TOLD:,} more, listed in rejects.parquet")
    remarks = Counter(facts["remarks"].explode(empty_as_null=True).drop_nulls().to_list())
    counts = {
        **listing.notes,
        "images": len(items),
        "rejected": len(rejects),
        "other_views": int(facts["other_view"].sum()),
        "ages_above_120": int(facts["too_old"].sum()),
        "header_remarks": dict(sorted(remarks.items())),
    }
    shared = count_shared_ids(items, headers)
    if shared:
        counts[SHARED_IDS] = shared
    kept = frame.filter((pl.col("reason") == "") & ~pl.col("other_view")).drop("reason", "other_view")
    # In the order of names, pseudonyms do not tell the order of what they stand for.
    kept = kept.sort("name") if key else kept
    return ReadImages(kept, rejects, counts, _image_source(items, facts), blocks, size)


def name_patients(
    items: Sequence[Item], headers_say: Sequence[str], names: Sequence[str], key: bytes | None, *, per_source: bool
) -> tuple[list[str], list[bool]]:
    """What each image's patient is called, and whether it is known at all.

    Ids that differ in upper and lower case only are one patient, spelt as met first. Ids found in DICOM headers never
    leave: patients get numbers instead, in the order of the listing. An image without a patient is its own.

    Args:
        items: the images.
        headers_say: patient ids of their DICOM headers, hashed; empty: none, or they are no patients'.
        names: what the images are called in the index.
        key: of pseudonyms, or None.
        per_source: whether one id under two sources is two patients.
    """
    spelling: dict[str, str] = {}
    numbers: dict[tuple[str, str], str] = {}
    patients, known = [], []
    for item, header, name in zip(items, headers_say, names, strict=True):
        source = item.source if per_source else ""
        if item.patient:
            patient = patient_key(source, item.patient)
            patient = spelling.setdefault(patient.casefold(), patient)
            patient = pseudonym(key, "patient", patient.casefold()) if key else patient
        elif header:
            where = (source, header)
            number = f"dicom-{len(numbers) + 1:06d}"
            patient = pseudonym(key, "header", "\0".join(where)) if key else numbers.setdefault(where, number)
        else:
            patient = name
        patients.append(patient)
        known.append(bool(item.patient or header))
    return patients, known


def count_shared_ids(items: Sequence[Item], headers_say: Sequence[str]) -> int:
    """How many patient ids occur under more than one source, an unknown source being one."""
    sources: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for item, header in zip(items, headers_say, strict=True):
        if item.patient or header:
            sources[item.patient.casefold(), "" if item.patient else header].add(normalise_id(item.source).casefold())
    return sum(len(found) > 1 for found in sources.values())


def _image_source(items: Sequence[Item], facts: pl.DataFrame) -> dict[str, Any] | None:
    rows = zip(items, facts.select("bytes", "sha256", "mask_sha256").iter_rows(), strict=True)
    entries = [(item.name, *row) for item, row in rows if not item.array]
    return summarise_files(entries) if entries else None


def summarise_files(entries: Sequence[tuple[str, int, str, str]]) -> dict[str, Any]:
    """One entry of `sources` for many image files: their contents and names, none of which can be read from it.

    Args:
        entries: of each image name, bytes, SHA-256, and SHA-256 of its mask.
    """
    digest = hashlib.sha256()
    for name, _, content, mask in sorted(entries):
        digest.update(f"{name}\0{content}\0{mask}\n".encode())
    size = sum(entry[1] for entry in entries)
    return {"path": IMAGE_FILES, "files": len(entries), "bytes": size, "sha256": digest.hexdigest()}


def image_files(frame: pl.DataFrame, images: ReadImages) -> dict[str, Path]:
    """Final path of each image and mask -> its file in the scratch folder."""
    files = {}
    for index, image, mask in frame.select("index", "image", "mask_path").iter_rows():
        files[image] = images.file("images", index)
        if mask is not None:
            files[mask] = images.file("masks", index)
    return files


def find_finished_images(out: Path, command: dict[str, Any], listing: Listing) -> dict[str, Any] | None:
    """The manifest of `out` when it holds this preparation of exactly these files.

    Raises:
        ConfigError: it holds prepared data of something else.
    """
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    recorded = {entry["path"]: entry for entry in manifest.get("sources", [])}
    images = [item for item in listing.items if not item.array]
    with translate_os_errors(out):
        size = sum(path.stat().st_size for path in files_of(images))
        same = manifest.get("command") == command and recorded.get(IMAGE_FILES, {"bytes": 0})["bytes"] == size
        if same:
            found = [describe_source(path) for path in listing.lists]
            entries = [(item.name, _size(item), sha256_file(item.path), _digest(item.mask)) for item in images]
            found += [summarise_files(entries)] if entries else []
            same = manifest.get("sources") == found
    if not same:
        raise ConfigError(
            f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
        )
    return manifest


def _size(item: Item) -> int:
    return sum(path.stat().st_size for path in files_of([item]))


def _digest(path: Path | None) -> str:
    return sha256_file(path) if path is not None else ""


def say(line: str) -> None:
    """Tell the user something that is no error."""
    sys.stderr.write("".join(mark if mark.isprintable() else "?" for mark in line) + "\n")
