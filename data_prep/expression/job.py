"""One preparation of faces: options checked, images listed, stages run, the result described."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from data_prep.common.anonymise import pseudonym, read_key
from data_prep.common.errors import ConfigError, PrepError
from data_prep.common.files import sha256_file, translate_os_errors
from data_prep.common.image_duplicates import RULES
from data_prep.common.images import FORMATS
from data_prep.common.manifest import NAME, read_manifest
from data_prep.common.raw import check_raw
from data_prep.common.run import Settings, describe_source, identify, run_once
from data_prep.expression import affwild2, ckplus, fer2013, ferg_db, ferplus, folder, jaffe, raf_db
from data_prep.expression.encode import Rules
from data_prep.expression.engine import IMAGE_FILES, PAYLOAD, TOOLS, describe_files
from data_prep.expression.faces import ALIGN, NO_FACE, SEVERAL, FaceRules, find_weights, open_detector
from data_prep.expression.publishing import Described, publish_faces
from data_prep.expression.records import IMAGE, Asked, Listing, refuse_archives
from data_prep.expression.splitting import SplitRule
from data_prep.expression.taxonomy import NATIVE, TAXONOMIES, Classes, settle

STORAGE = ("auto", "packed", "files")
CONFLICTS = ("report", "drop")
SIDES = (8, 1024)  # smallest and largest `side`
PACKED_SIDE, PACKED_BYTES = 112, 2 << 30  # largest faces, and most bytes, that are packed by themselves
_LOOKED_AT = 64  # images whose size is looked at


@dataclass(frozen=True)
class Reader:
    """A data set.

    Args:
        read: lists its images.
        accepts: options that only some data sets have, and this one does.
    """

    read: Callable[[Sequence[Path], Asked], Listing]
    accepts: frozenset[str] = frozenset()


READERS = {
    "raf-db": Reader(raf_db.read),
    "fer2013": Reader(fer2013.read),
    "ferplus": Reader(ferplus.read, frozenset({"votes"})),
    "ck+": Reader(ckplus.read, frozenset({"peak_frames", "neutral_frames"})),
    "jaffe": Reader(jaffe.read),
    "ferg-db": Reader(ferg_db.read),
    "aff-wild2": Reader(affwild2.read, frozenset({"per_video", "per_video_label"})),
    "folder": Reader(folder.read, frozenset({"table", "subject_pattern"})),
}
EVERYWHERE = ("seed", "align")  # entries of `Asked` that are options of every data set


@dataclass(frozen=True)
class Options:
    """Options of `prepare`, which see."""

    dataset: str
    table: Path | None
    subject_pattern: str
    votes: str
    peak_frames: int
    neutral_frames: int
    per_video: int
    per_video_label: int
    taxonomy: str
    align: str
    faces: str
    no_face: str
    detector_weights: Path | None
    detector_score: float
    margin: float
    upright: bool
    side: int
    channels: int
    storage: str
    ratios: Sequence[float] | None
    valid_share: float | None
    split_by: str
    folds: int
    seed: int
    duplicates: str
    conflicts: str
    anonymise: Path | None
    max_rejects: float

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.dataset not in READERS:
            raise ConfigError(f"dataset {self.dataset!r}: there are {', '.join(READERS)}")
        for field in fields(Asked):
            own = field.name in EVERYWHERE or field.name in READERS[self.dataset].accepts
            if not own and getattr(self, field.name) != getattr(Asked(), field.name):
                raise ConfigError(f"{field.name}: is no option of {self.dataset}")
        choices: dict[str, Sequence[object]] = {
            **{"taxonomy": (NATIVE, *TAXONOMIES), "align": ALIGN, "faces": SEVERAL, "no_face": NO_FACE},
            **{"storage": STORAGE, "duplicates": RULES, "conflicts": CONFLICTS, "channels": (0, 1, 3)},
        }
        for name, possible in choices.items():
            if getattr(self, name) not in possible:
                raise ConfigError(f"{name} {getattr(self, name)!r}: choose {', '.join(map(str, possible))}")
        if self.side and not SIDES[0] <= self.side <= SIDES[1]:
            raise ConfigError(f"side {self.side}: give {SIDES[0]} to {SIDES[1]:,} pixels, or 0 to keep the size")
        for name, low, high in (("detector_score", 0, 1), ("margin", -0.4, 4), ("max_rejects", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} {getattr(self, name)}: give {low} to {high}")
        if self.align == "detector" and self.detector_weights is None:
            raise ConfigError(
                "detector_weights: align detector needs the file of a detector (YuNet, ONNX), given by path"
            )
        if self.align != "detector" and self.detector_weights is not None:
            raise ConfigError(f"detector_weights: align {self.align} looks for no faces; give --align detector")
        if self.storage == "packed" and self.align in ("given", "detector", "center") and not self.side:
            raise ConfigError("storage packed: faces need one size; give --side")
        if self.folds and self.folds < 3:
            raise ConfigError(f"folds {self.folds}: give 3 or more (one tests, one validates, the others train)")
        self.split_rule.check()

    @property
    def split_rule(self) -> SplitRule:
        """How to divide."""
        return SplitRule(self.ratios, self.valid_share, self.split_by, self.seed)

    @property
    def face_rules(self) -> FaceRules:
        """How faces are taken."""
        weights = str(self.detector_weights) if self.detector_weights is not None else ""
        given = (self.align, self.faces, self.no_face, self.margin, self.upright, self.side, weights)
        return FaceRules(*given, score=self.detector_score)

    def command(self, key: bytes | None) -> dict[str, Any]:
        """The `command` entry of `dataset.json`: everything that determines the result besides the files."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["table"] = self.table.name if self.table is not None else None
        weights = self.detector_weights
        found["detector_weights"] = sha256_file(weights) if weights is not None else None
        found["ratios"] = list(self.ratios) if self.ratios is not None else None
        # tells one key from another, and nothing about it
        found["anonymise"] = pseudonym(key, "key", "") if key else None
        del found["max_rejects"]
        return found


def run_preparation(
    options: Options,
    raw: tuple[Path, ...],
    out: Path,
    workers: int | None,
    executor: str,
    shard: str | None,
    shard_patience: float,
    progress: bool,
) -> dict[str, Any]:
    """Run a preparation, or find it finished."""
    options.check()
    if options.detector_weights is not None:
        options = replace(options, detector_weights=find_weights(options.detector_weights))
    check_raw([*raw, *(path for path in (options.table, options.anonymise) if path is not None)], out)
    refuse_archives(raw)
    if options.detector_weights is not None:
        open_detector(options.detector_weights, options.detector_score)
    key = read_key(options.anonymise) if options.anonymise is not None else None
    own = Asked(**{field.name: getattr(options, field.name) for field in fields(Asked)})
    listing = READERS[options.dataset].read(raw, own)
    _refuse_equal_names(listing)
    where = str(listing.lists[0] if listing.lists else raw[0])
    listing, classes = choose_labels(listing, options.taxonomy, where)
    rules = decide_storage(listing, options)
    command = options.command(key)
    finished = find_finished_faces(out, command, listing)
    if finished is not None:
        return finished
    files = [*listing.lists, *map(Path, listing.rows.filter(pl.col("column") == IMAGE)["path"])]
    settings = Settings.of(executor, workers, shard, shard_patience, progress, files)
    fingerprint = {"command": command, **identify(files, *TOOLS)}
    described = Described(command, options.split_rule, where, classes, options.max_rejects)
    return run_once(
        out,
        fingerprint,
        settings,
        PAYLOAD,
        lambda run: publish_faces(run, listing, rules, described, key),
    )


def _refuse_equal_names(listing: Listing) -> None:
    """Refuse two images of one name: these tell images apart, in folds and in tables."""
    twice = listing.rows.filter(pl.col("name").is_duplicated()).sort("name", maintain_order=True)
    if len(twice):
        name, (one, other) = twice["name"][0], twice["path"].head(2)
        raise ConfigError(f"{other}: image {name!r} is there twice, also as {one}; give one copy of the data set alone")


def choose_labels(listing: Listing, taxonomy: str, where: str) -> tuple[Listing, Classes]:
    """Items whose labels are asked for, under the names of their classes, and targets in the order of these."""
    rows = listing.rows
    counts = Counter(rows["label"].to_list())
    classes = settle(counts, listing.classes, taxonomy, where)
    labels = pl.col("label").replace_strict(dict(classes.of), default=None, return_dtype=pl.String)
    rows = rows.with_columns(label=labels).filter(pl.col("label").is_not_null())
    if taxonomy != NATIVE and rows["target"].is_not_null().any():
        places = [listing.classes.index(name) if name in listing.classes else -1 for name in classes.names]
        targets = [_reorder(target, places) for target in rows["target"]]
        rows = rows.with_columns(target=pl.Series(targets, dtype=pl.List(pl.Float32)))
    if not len(rows):
        first = listing.rejects[0] if listing.rejects else None
        why = f"; the first: {first.source}: record {first.record}: {first.reason}" if first else ""
        raise PrepError(f"{where}: no image is left{why}")
    notes = {**listing.notes, "labels_left_out": dict(classes.left_out)}
    return replace(listing, rows=rows, notes=notes), classes


def _reorder(target: Sequence[float] | None, places: Sequence[int]) -> list[float] | None:
    if target is None:
        return None
    kept = [float(target[place]) if place >= 0 else 0.0 for place in places]
    return [share / sum(kept) for share in kept]


def decide_storage(listing: Listing, options: Options) -> Rules:
    """Whether faces become rows of arrays or stay files, and their size."""
    rules = options.face_rules
    side = rules.side or (listing.side if rules.align in ("none", "center") else 0)
    if not side and rules.align == "none" and options.storage != "files":
        side = _common_side(listing.rows)
    if options.storage == "packed" and not side:
        raise ConfigError("storage packed: the images have several sizes; give --side")
    fits = side * side * 3 * len(listing.rows) <= PACKED_BYTES and side <= PACKED_SIDE
    packed = options.storage == "packed" or (options.storage == "auto" and bool(side) and fits)
    if packed or listing.side:
        rules = replace(rules, side=side)
    return Rules(rules, options.channels, packed)


def _common_side(rows: pl.DataFrame) -> int:
    """Side of the images if the first of them are squares of one size, else 0; only their headers are read."""
    sides = set()
    for path in rows["path"].head(_LOOKED_AT):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of damaged metadata, and of large images
                with Image.open(path, formats=FORMATS) as image:
                    sides |= set(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return sides.pop() if len(sides) == 1 else 0


def find_finished_faces(out: Path, command: dict[str, Any], listing: Listing) -> dict[str, Any] | None:
    """The manifest of `out` when it holds this preparation of exactly these files.

    Raises:
        ConfigError: it holds prepared data of something else.
    """
    if not (out / NAME).exists():
        return None
    manifest = read_manifest(out)
    recorded = {entry["path"]: entry for entry in manifest.get("sources", [])}
    paths = [Path(path) for path in listing.rows.filter(pl.col("column") == IMAGE)["path"]]
    with translate_os_errors(out):
        size = sum(path.stat().st_size for path in paths)
        same = manifest.get("command") == command and recorded.get(IMAGE_FILES, {"bytes": 0})["bytes"] == size
        if same:
            images = describe_files(listing)
            found = [describe_source(path) for path in listing.lists] + ([images] if images else [])
            same = manifest.get("sources") == found
    if not same:
        raise ConfigError(
            f"{out}: holds prepared data of other options or other files; choose another output directory or remove it"
        )
    return manifest
