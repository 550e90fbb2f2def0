"""One preparation of X-rays: options checked, images listed, stages run, the result described."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from data_prep.common.anonymise import pseudonym, read_key
from data_prep.common.errors import ConfigError, LeakError, PrepError
from data_prep.common.files import write_atomic
from data_prep.common.image_duplicates import RULES, Duplicates, find_duplicates
from data_prep.common.manifest import tool_version
from data_prep.common.raw import check_raw
from data_prep.common.rejects import check_rejects, to_frame
from data_prep.common.run import Run, Settings, describe_source, identify, run_once
from data_prep.common.splits import SPLITS
from data_prep.medical.xray import covidx, folder, medmnist, ricord, rsna
from data_prep.medical.xray.card import cross_tables, number_images, to_parquet, write_index
from data_prep.medical.xray.encode import Rules
from data_prep.medical.xray.engine import (
    PAYLOAD,
    SHARED_IDS,
    TOOLS,
    ReadImages,
    files_of,
    find_finished_images,
    image_files,
    read_images,
)
from data_prep.medical.xray.find import ImageIndex, find_images
from data_prep.medical.xray.records import (
    Asked,
    Item,
    Listing,
    check_spellings,
    order_classes,
    parse_labels,
    parse_views,
)
from data_prep.medical.xray.splitting import Split, SplitRule, check_rule, divide
from data_prep.medical.xray.telling import check_classes, count_classes, group_note, tell_eight_bits, tell_result

SIDES = (16, 8192)  # smallest and largest `max_side`


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
    "covidx": Reader(covidx.read, frozenset({"version"})),
    "ricord": Reader(ricord.read, frozenset({"table"})),
    "rsna": Reader(rsna.read, frozenset({"mapping", "targets"})),
    "medmnist": Reader(medmnist.read),
    "images": Reader(folder.read, frozenset({"table", "patient_pattern", "patients_per_source", "channels"})),
}


@dataclass(frozen=True)
class Options:
    """Options of `prepare`, which see."""

    dataset: str
    version: str
    table: Path | None
    mapping: Path | None
    targets: str
    patient_pattern: str
    patients_per_source: bool
    channels: int
    labels: str
    positive: str
    views: str
    masks: Path | None
    max_side: int
    percentile: float
    eight_bit_lut: bool
    ratios: Sequence[float] | None
    valid_share: float | None
    seed: int
    duplicates: str
    anonymise: Path | None
    max_rejects: float

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: naming the option.
        """
        if self.dataset not in READERS:
            raise ConfigError(f"dataset {self.dataset!r}: there are {', '.join(READERS)}")
        own = {field.name: getattr(Asked(), field.name) for field in fields(Asked)}
        for name, default in own.items():
            if getattr(self, name) != default and name not in READERS[self.dataset].accepts:
                raise ConfigError(f"{name}: is no option of {self.dataset}")
        if not SIDES[0] <= self.max_side <= SIDES[1]:
            raise ConfigError(f"max_side {self.max_side}: give {SIDES[0]} to {SIDES[1]:,} pixels")
        if not 0 <= self.percentile < 50 or not 0 <= self.max_rejects <= 1:
            raise ConfigError(
                f"percentile {self.percentile}, max_rejects {self.max_rejects}: give a percentile from 0 up to, not "
                "including, 50 (0.5 is usual), and max_rejects from 0 to 1"
            )
        if self.duplicates not in RULES:
            raise ConfigError(f"duplicates {self.duplicates!r}: choose {', '.join(RULES)}")
        check_rule(self.split_rule)

    @property
    def split_rule(self) -> SplitRule:
        """How to divide."""
        return SplitRule(self.ratios, self.valid_share, self.seed)

    def command(self, key: bytes | None) -> dict[str, Any]:
        """The `command` entry of `dataset.json`: everything that determines the result besides the files."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("table", "mapping", "masks"):
            found[name] = found[name].name if found[name] is not None else None
        found["ratios"] = list(self.ratios) if self.ratios is not None else None
        # Tells one key from another, and nothing about it.
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
    check_raw([*raw, *(path for path in (options.table, options.mapping, options.masks) if path is not None)], out)
    key = read_key(options.anonymise) if options.anonymise is not None else None
    own = Asked(**{field.name: getattr(options, field.name) for field in fields(Asked)})
    listing = READERS[options.dataset].read(raw, own)
    views = parse_views(options.views)
    sizes = (options.max_side, options.percentile, listing.channels)
    rules = Rules(*sizes, views, listing.views_needed, options.eight_bit_lut)
    listing = _choose(listing, options, rules, str(listing.lists[-1] if listing.lists else raw[0]))
    command = options.command(key)
    finished = find_finished_images(out, command, listing)
    if finished is not None:
        return finished
    files = [*listing.lists, *files_of(listing.items)]
    settings = Settings.of(executor, workers, shard, shard_patience, progress, files)
    fingerprint = {"command": command, **identify(files, *TOOLS)}
    return run_once(
        out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, listing, rules, options, key, raw[0])
    )


def _choose(listing: Listing, options: Options, rules: Rules, where: str) -> Listing:
    """Items that are asked for, under their new labels, with their masks."""
    labels = parse_labels(options.labels)
    present = dict.fromkeys(item.label for item in listing.items)
    for old in labels:
        if old not in present and old not in listing.classes:
            raise ConfigError(f"labels: no image has the label {old!r}; there are {', '.join(map(repr, present))}")
    items = [item for item in listing.items if not labels or item.label in labels]
    check_spellings(items, labels, where)
    lost = len(listing.items) - len(items)
    items = [replace(item, label=labels.get(item.label, item.label)) for item in items] if labels else items
    seen = [item for item in items if rules.views is None or not item.view or item.view in rules.views]
    notes = {**listing.notes, "labels_left_out": lost, "listed_views_left_out": len(items) - len(seen)}
    if options.masks is not None:
        seen = _add_masks(seen, options.masks)
    if not seen:
        first = listing.rejects[0] if listing.rejects else None
        why = f"{first.source}: record {first.record}: {first.reason}" if first else "see views and labels"
        raise PrepError(f"no image is left of {len(listing.items) + len(listing.rejects):,} listed ({why})")
    known = tuple(dict.fromkeys(labels.values())) if labels else listing.classes
    return replace(listing, items=tuple(seen), classes=known, notes=notes)


def _add_masks(items: Sequence[Item], masks: Path) -> list[Item]:
    index = ImageIndex(find_images([masks]))
    found = [
        replace(item, mask=item.mask or index.find(item.name) or index.find(f"{Path(item.name).stem}_mask"))
        for item in items
    ]
    if not any(item.mask for item in found):
        raise ConfigError(f"{masks}: no mask is called as an image is, such as {Path(items[0].name).stem}.png")
    return found


def _prepare(
    run: Run, listing: Listing, rules: Rules, options: Options, key: bytes | None, where: Path
) -> dict[str, Any]:
    images = read_images(run, listing, rules, key)
    rejects = run.scratch / "rejects.parquet"
    table = to_frame(images.rejects)
    write_atomic(rejects, to_parquet(table))
    total = len(listing.items) + len(listing.rejects)
    check_rejects(table, total, options.max_rejects, rejects)
    split = _divide(images, listing, options.split_rule, where)
    frame = images.frame.with_columns(split=pl.Series(split.splits, dtype=pl.String))
    found = find_duplicates(frame, images.thumbnails, options.duplicates, split.drawn)
    frame = number_images(frame.filter(~pl.Series(found.dropped)))
    classes = order_classes(frame["label"].unique().to_list(), listing.classes, options.positive)
    frame = frame.with_columns(code=pl.col("label").replace_strict({name: at for at, name in enumerate(classes)}))
    counts = count_classes(frame, classes)
    check_classes(frame, counts, listing, where)
    files, splits = write_index(frame, SPLITS, run.scratch)
    files |= image_files(frame, images)
    pairs = run.scratch / "duplicates.parquet"
    write_atomic(pairs, to_parquet(found.table))
    files |= {"rejects.parquet": rejects, "duplicates.parquet": pairs}
    manifest = _describe(listing, images, options, rules, split, found, frame, counts)
    tell_eight_bits(images.counts, "--eight-bit-lut true applies it")
    tell_result(manifest, found)
    return run.publish(
        files,
        {
            **manifest,
            "command": options.command(key),
            "splits": splits,
            "rejects": {"count": table.height, "share": table.height / max(total, 1)},
        },
    )


def _divide(images: ReadImages, listing: Listing, rule: SplitRule, where: Path) -> Split:
    try:
        return divide(images.frame, rule, str(listing.lists[0] if listing.lists else where))
    except LeakError as error:
        if images.counts.get(SHARED_IDS) and not listing.patients_per_source:
            raise LeakError(f"{error}; if patient ids count per source, use --patients-per-source true") from None
        raise


def _describe(
    listing: Listing,
    images: ReadImages,
    options: Options,
    rules: Rules,
    split: Split,
    found: Duplicates,
    frame: pl.DataFrame,
    classes: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    sources = [describe_source(path) for path in listing.lists]
    unknown = int((~frame["known"]).sum())
    return {
        "domain": "medical",
        "kind": "images",
        "name": listing.name or options.dataset,
        "version": tool_version(),
        "licence": listing.licence,
        "sources": sources + ([images.image_source] if images.image_source else []),
        "classes": list(classes),
        "channels": listing.channels,
        "group": {
            "name": "patient",
            # Without patients no border is known to keep them apart.
            "kept_apart": unknown == 0,
            "groups": frame["patient"].n_unique() if not unknown else int(frame.filter("known")["patient"].n_unique()),
            "images_of_unknown_patients": unknown,
            "note": group_note(listing, images.counts.get(SHARED_IDS, 0)),
        },
        "split_rule": split.entry,
        "counts": {
            **images.counts,
            "classes": {name: dict(count) for name, count in classes.items()},
            "masks": int(frame["mask"].sum()),
            "smallest_side": int(min(frame["width"].min(), frame["height"].min())),  # type: ignore[type-var, arg-type]
            "largest_side": int(max(frame["width"].max(), frame["height"].max())),  # type: ignore[type-var, arg-type]
        },
        "tables": cross_tables(frame, ("source", "view")),
        "duplicates": found.summary,
        "preparation": {
            "kind": "images",
            "max_side": rules.max_side,
            "percentile": rules.percentile,
            "eight_bit_lut": rules.eight_bit_lut,
            "channels": rules.channels,
            "views": list(rules.views) if rules.views is not None else None,
        },
    }
