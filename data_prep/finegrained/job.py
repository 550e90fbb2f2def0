"""One preparation: options checked, pictures listed, the stage run, the result described."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.errors import ConfigError, LabelError, PrepError
from data_prep.common.files import write_atomic
from data_prep.common.image_duplicates import RULES, Duplicates, find_duplicates
from data_prep.common.manifest import tool_version
from data_prep.common.parts import to_parquet
from data_prep.common.raw import check_raw
from data_prep.common.rejects import check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, identify, run_once
from data_prep.common.splits import SPLITS
from data_prep.common.telling import say, tell_rejects
from data_prep.finegrained import aircraft, cars, csv_table, cub, folder, market1501, msmt17, veri776
from data_prep.finegrained.card import (
    code_identities,
    count_classes,
    count_identities,
    queries_in_gallery,
    write_index,
)
from data_prep.finegrained.engine import PAYLOAD, TOOLS, Looked, find_finished, look_at_pictures
from data_prep.finegrained.find import RawFiles
from data_prep.finegrained.images import ImageRules
from data_prep.finegrained.records import (
    CLASSES,
    DISTRACTOR,
    IDENTITIES,
    JUNK,
    Asked,
    Listing,
    check_spellings,
    order_classes,
)
from data_prep.finegrained.splitting import Split, SplitRule, divide_classes, divide_identities
from data_prep.finegrained.telling import (
    check_classes,
    check_identities,
    tell_duplicates,
    tell_pictures,
    tell_unboxed,
)


@dataclass(frozen=True)
class Reader:
    """A data set.

    Args:
        read: lists its pictures.
        accepts: options of `Asked` that it has.
    """

    read: Callable[[RawFiles, Asked], Listing]
    accepts: frozenset[str] = frozenset()


READERS = {
    "cub": Reader(cub.read),
    "cars": Reader(cars.read),
    "aircraft": Reader(aircraft.read, frozenset({"level", "train_on_valid"})),
    "market1501": Reader(market1501.read),
    "msmt17": Reader(msmt17.read, frozenset({"version", "train_on_valid"})),
    "veri776": Reader(veri776.read),
    "folder": Reader(folder.read, frozenset({"kind", "identity_pattern", "camera_pattern", "class_level"})),
    "csv": Reader(csv_table.read, frozenset({"kind", "table"})),
}
_CHOICES = {
    "kind": ("auto", CLASSES, IDENTITIES),
    "level": tuple(aircraft.LEVELS),
    "crop": ("none", "box"),
    "exif": ("auto", "apply", "ignore"),
    "duplicates": RULES,
}


@dataclass(frozen=True)
class Options:
    """Options of `prepare`, which see."""

    dataset: str
    kind: str
    table: Path | None
    level: str
    version: str
    train_on_valid: bool
    identity_pattern: str
    camera_pattern: str
    class_level: int
    ignore_camera: bool
    crop: str
    margin: float
    exif: str
    ratios: Sequence[float] | None
    valid_share: float | None
    valid_identities: int | None
    queries: int | None
    seed: int
    duplicates: str
    copy_images: bool
    max_rejects: float

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.dataset not in READERS:
            raise ConfigError(f"dataset {self.dataset!r}: there are {', '.join(READERS)}; choose one")
        for each in fields(Asked):
            if getattr(self, each.name) != each.default and each.name not in READERS[self.dataset].accepts:
                raise ConfigError(f"{each.name}: is no option of {self.dataset}; leave it out")
        for name, possible in _CHOICES.items():
            if getattr(self, name) not in possible:
                raise ConfigError(f"{name} {getattr(self, name)!r}: choose {', '.join(possible)}")
        if not 0 <= self.margin <= 2:
            raise ConfigError(f"margin {self.margin}: give a share of the sides of a box from 0 to 2")
        if self.margin and self.crop != "box":
            raise ConfigError("margin: goes with --crop box")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"max_rejects {self.max_rejects}: give a share from 0 to 1")
        self.split_rule.check()

    @property
    def split_rule(self) -> SplitRule:
        """How to divide."""
        return SplitRule(
            self.ratios, self.valid_share, self.valid_identities, self.queries, self.ignore_camera, self.seed
        )

    @property
    def asked(self) -> Asked:
        """Options of the reader."""
        return Asked(**{each.name: getattr(self, each.name) for each in fields(Asked)})

    def command(self) -> dict[str, Any]:
        """The `command` entry of `dataset.json`: everything that determines the result besides the files."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        found["table"] = self.table.name if self.table is not None else None
        found["ratios"] = list(self.ratios) if self.ratios is not None else None
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
    check_raw([*raw, *([options.table] if options.table is not None else [])], out)
    files = RawFiles(raw)
    listing = READERS[options.dataset].read(files, options.asked)
    where = str(listing.lists[0] if listing.lists else files.root)
    _check_listing(listing, options, where)
    others = len(files.files) - len(files.pictures)
    listing = replace(listing, notes={**listing.notes, "files_that_are_no_pictures": others})
    command = options.command()
    finished = find_finished(out, command, listing.lists, listing.items, files.root)
    if finished is not None:
        return finished
    sources = [*listing.lists, *(files.root / item.path for item in listing.items)]
    settings = Settings.of(executor, workers, shard, shard_patience, progress, sources)
    fingerprint = {"command": command, **identify(sources, *TOOLS, str(files.root))}
    return run_once(out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, listing, options, files.root, where))


def _check_listing(listing: Listing, options: Options, where: str) -> None:
    """Refuse options that do not go with the kind, and names that would be mixed up."""
    if not listing.items:
        first = listing.rejects[0] if listing.rejects else None
        place = first.field or f"record {first.record}" if first else ""
        why = f": {first.source}: {place}: {first.reason}" if first else ""
        raise PrepError(f"{where}: no picture can be used of {len(listing.rejects):,} listed{why}")
    twice = next((name for name in listing.classes if listing.classes.count(name) > 1), None)
    if twice is not None:
        raise LabelError(f"{where}: two classes are called {twice!r}; give each its own name")
    what = "class" if listing.kind == CLASSES else "identity"
    check_spellings((item.label for item in listing.items if item.label), what, where)
    if options.crop == "box" and not any(item.box for item in listing.items):
        raise ConfigError(f"{where}: crop: the data have no boxes; use --crop none")
    if listing.kind == CLASSES and options.ignore_camera:
        raise ConfigError("ignore_camera: goes with identities")


def _prepare(run: Run, listing: Listing, options: Options, root: Path, where: str) -> dict[str, Any]:
    rules = ImageRules(options.margin, listing.trim, options.exif, options.copy_images)
    looked = look_at_pictures(run, listing, root, rules, crop=options.crop == "box")
    rejects = run.scratch / "rejects.parquet"
    table = to_frame(looked.rejects)
    write_atomic(rejects, to_parquet(table))
    for line in listing.remarks:
        say(line)
    if options.crop == "box":
        tell_unboxed(listing.items)
    tell_rejects(looked.rejects)
    tell_pictures(looked.counts)
    total = looked.counts["listed"]
    check_rejects(table, total, options.max_rejects, rejects)
    if not len(looked.frame):
        raise PrepError(f"{where}: no picture is left of {total:,}; the first: {looked.rejects[0].reason}")
    divide = divide_classes if listing.kind == CLASSES else divide_identities
    split = divide(looked.frame, options.split_rule, where)
    for line in split.remarks:
        say(line)
    frame = looked.frame.with_columns(
        split=pl.Series(split.splits, dtype=pl.String), role=pl.Series(split.roles, dtype=pl.String)
    )
    found = _find_duplicates(frame, looked, listing.kind, options.duplicates, split)
    frame = frame.filter(~pl.Series(found.dropped))
    frame, described = _code(frame, listing, split, where)
    files, splits = write_index(frame, SPLITS, run.scratch)
    pairs = run.scratch / "duplicates.parquet"
    write_atomic(pairs, to_parquet(found.table))
    summary = dict(found.summary)
    if listing.kind == IDENTITIES:
        summary["queries_in_gallery"] = queries_in_gallery(found.table, frame)
    tell_duplicates(summary, "classes" if listing.kind == CLASSES else "identities")
    counts = {**looked.counts, **_sizes(frame), **described.pop("counts")}
    return run.publish(
        {**files, **looked.files(frame), "rejects.parquet": rejects, "duplicates.parquet": pairs},
        {
            **_describe(listing, options, looked, split, root),
            **described,
            "counts": counts,
            "duplicates": summary,
            "command": options.command(),
            "splits": splits,
            "rejects": {"count": table.height, "share": table.height / max(total, 1)},
        },
    )


def _find_duplicates(frame: pl.DataFrame, looked: Looked, kind: str, rule: str, split: Split) -> Duplicates:
    # Junk and distractors are of nobody: what they are stands in the place of the label.
    table = frame.with_columns(label=pl.when(pl.col("extra") != "").then("extra").otherwise("label"))
    unit = "class" if kind == CLASSES else "identity"
    return find_duplicates(table.with_columns(pl.col("label").alias(unit)), looked.thumbnails, rule, split.drawn, unit)


def _code(frame: pl.DataFrame, listing: Listing, split: Split, where: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Codes of labels, and what `dataset.json` says of them."""
    if listing.kind == CLASSES:
        classes = order_classes(frame["label"].unique().to_list(), listing.classes)
        counts: Mapping[str, Any] = count_classes(frame, classes)
        check_classes(counts, where)
        codes = {name: code for code, name in enumerate(classes)}
        # only what identities have beyond
        coded = frame.with_columns(code=pl.col("label").replace_strict(codes, return_dtype=pl.Int64))
        coded = coded.drop("role", "camera", "extra")
        groups = int(frame.filter(pl.col("group") != "")["group"].n_unique()) if (frame["group"] != "").any() else 0
        group = {"name": "group" if groups else "image", "kept_apart": True, "groups": groups or len(frame)}
        note = "" if groups else "pictures of one object or scene may be in several splits: no groups are known"
        return coded, {"classes": list(classes), "group": {**group, "note": note}, "counts": {"classes": counts}}
    coded, identities, cameras = code_identities(frame)
    counts = count_identities(coded, cameras, ignore_camera=bool(split.ignore_camera))
    check_identities(coded, counts, split, where)
    evaluation = {
        "ignore_camera": bool(split.ignore_camera),
        "why": split.ignore_camera,
        "same_camera": "pictures of the query's identity in its camera are left out of the gallery",
        JUNK: listing.rules.get(JUNK, "none"),
        DISTRACTOR: listing.rules.get(DISTRACTOR, "none"),
    }
    group = {"name": "identity", "kept_apart": True, "groups": sum(counts["identities"].values()), "note": ""}
    entries = {"identities": identities, "cameras": cameras, "evaluation": evaluation, "group": group}
    return coded, {**entries, "counts": counts}


def _sizes(frame: pl.DataFrame) -> dict[str, Any]:
    sides = frame.select(width=pl.col("right") - pl.col("left"), height=pl.col("bottom") - pl.col("top"))
    smallest = min(sides["width"].min(), sides["height"].min())  # type: ignore[type-var]
    largest = max(sides["width"].max(), sides["height"].max())  # type: ignore[type-var]
    return {"used_pictures": len(frame), "smallest_side": smallest, "largest_side": largest}


def _describe(listing: Listing, options: Options, looked: Looked, split: Split, root: Path) -> dict[str, Any]:
    return {
        "domain": "finegrained",
        "kind": listing.kind,
        "name": listing.name or options.dataset,
        "dataset_version": listing.version,
        "version": tool_version(),
        "licence": listing.licence,
        "sources": [*(describe_source(path) for path in listing.lists), looked.source],
        "units": "pixels, from the left and the top edge of the picture as it is stored",
        "image_root": str(root),  # of the pictures that stay where they are
        "split_rule": split.entry,
        "preparation": {
            "kind": listing.kind,
            "crop": options.crop,
            "margin": options.margin,
            "trim_bottom": listing.trim,
            "exif": options.exif,
        },
    }
