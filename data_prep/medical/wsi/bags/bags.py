"""Features of slides and a table of labels -> prepared directory of bags.

| stage | module | what it leaves for the stages behind it |
|---|---|---|
| (first) | layouts, table | which slides have features, which have a label and a patient |
| bags | packing | per slide: `bags/<slide>.h5`, checked and contiguous, or that it is used in place |
| sources | packing | checksums of files that hold several slides |
| (then) | assign | the split of each slide that is left |
| index | index | `train`, `valid`, `test` and `all`: a row per slide; `slides.parquet` |
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from data_prep.common.errors import ConfigError, ManifestError, PrepError
from data_prep.common.manifest import NAME, read_manifest
from data_prep.common.run import Run, Settings, describe_source, find_finished, identify, run_once
from data_prep.medical.wsi.bags.assign import RATIOS, VALID_SHARE, SplitRule, assign_splits
from data_prep.medical.wsi.bags.index import PAYLOAD, Described, finish_rejects, publish_bags, tell
from data_prep.medical.wsi.bags.joining import Joined, join_features
from data_prep.medical.wsi.bags.packing import Packing, pack_bags
from data_prep.medical.wsi.bags.split_files import list_files
from data_prep.medical.wsi.bags.table import TableOptions, check_classes

TOOLS = (pl.__version__,)


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Args:
        raw: files and folders of features.
        table: of slides, if there is one.
        options: how to read it.
        rule: how to split.
        packing: how to store.
        max_rejects: share of records that may be unusable.
        described: for the card.
    """

    raw: tuple[Path, ...]
    table: Path | None
    options: TableOptions
    rule: SplitRule
    packing: Packing
    max_rejects: float
    described: Described


def prepare(
    dataset: str,
    raw: list[Path] | Path,
    out: Path,
    *,
    table: Path | None = None,
    splits: str = "",
    ratios: tuple[float, float, float] = RATIOS,
    valid_share: float = VALID_SHARE,
    seed: int = 0,
    by_site: bool = True,
    n_shot: int = 0,
    in_place: bool = False,
    dtype: Literal["stored", "float16", "float32"] = "stored",
    max_bad: float = 0.1,
    unmatched: Literal["reject", "ignore"] = "reject",
    slide_column: str = "",
    patient_column: str = "",
    label_column: str = "",
    site_column: str = "",
    split_column: str = "",
    patients: Literal["column", "slide"] = "column",
    patient_pattern: str = "",
    site_pattern: str = "",
    label_map: str = "",
    classes: list[str] | None = None,
    encoding: str = "",
    licence: str = "not stated",
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare bags of features for training: join them with labels, check them, and split them by patient.

    Features are read as CLAM, TRIDENT, ACMIL and `heptad medical features` write them. Slides without label, without
    features, with damaged or empty features are listed in rejects.parquet.

    Args:
        dataset: bags.
        raw: files or folders of features.
        out: output directory; new, empty, or of the same preparation begun before.
        table: CSV, TSV, Excel or Parquet with a row per slide: slide, patient, label, and site and split if known.
            Without one labels are those stored beside the features (ACMIL).
        splits: stratified (by label and site), hashed (a patient stays where it is when others are added), column,
            camelyon (slides with test in their name), or a file or folder of lists (CLAM, CLAM bool, ACMIL JSON, a
            table, train.txt ...). By default the column of splits if the table has one, else stratified.
        ratios: shares of train, valid and test, of the patients.
        valid_share: share of the training patients for validation, where lists name none for it; 0 leaves it empty.
        seed: another seed gives another division.
        by_site: stratify by site, too, where sites are known.
        n_shot: so many training slides of each class, of as many patients as possible; 0 is all.
        in_place: use feature files where they lie, without a copy; those that cannot be are copied.
        dtype: of copied features: stored (float16 stays, all else becomes float32), float16 or float32.
        max_bad: share of a slide's rows that may hold NaN or infinity; such rows are left out.
        unmatched: slides in the table alone, or with features alone: reject (they count for max_rejects) or ignore.
        slide_column: column of slide ids, with or without folder and file extension; found by its name.
        patient_column: column of patients (case_id, patient_id, patient, ...).
        label_column: column of labels.
        site_column: column of sites.
        split_column: column of an official split.
        patients: slide: every slide is of another patient.
        patient_pattern: regular expression that finds the patient in the slide id, or tcga, camelyon17.
        site_pattern: the same for the site, or tcga-site.
        label_map: labels to classes: 0=normal,1=tumor, a JSON file, or bracs-7, bracs-3, bracs-2, lbc-4.
        classes: names of the classes in order.
        encoding: of a text table; found out.
        licence: of the data, for its card.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of unusable records that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    columns = (slide_column, patient_column, label_column, site_column, split_column)
    options = TableOptions(*columns, patients, patient_pattern, site_pattern, label_map, tuple(classes or ()), encoding)
    rule = SplitRule(splits, ratios, valid_share, seed, by_site, n_shot)
    packing = Packing(dtype, max_bad, in_place)
    if not 0 <= max_rejects <= 1:
        raise ConfigError(f"max_rejects {max_rejects}: give a share from 0 to 1")
    command = {
        "dataset": dataset,
        "splits": Path(splits).name if rule.lists else splits,
        **{"ratios": list(rule.ratios), "valid_share": valid_share, "seed": seed, "by_site": by_site, "n_shot": n_shot},
        **{"dtype": dtype, "max_bad": max_bad, "unmatched": unmatched, **asdict(options)},
        "classes": list(options.classes),
        # Where files are used in place, their place is a part of the result.
        "in_place": [str(path.resolve()) for path in paths] if in_place else None,
    }
    group = "slide" if patients == "slide" else "patient"
    described = Described(dataset, command, licence, group, _preparation(paths, options, packing))
    request = Request(paths, table, options, rule, packing, max_rejects, described)
    joined = join_features(paths, table, options, ignore=unmatched == "ignore")
    own = [*([table] if table else []), *(list_files(rule.lists) if rule.lists else [])]
    files = [*dict.fromkeys(entry.path for entry in joined.entries), *own]
    finished = find_finished(out, {"command": command}, files)
    if finished is not None:
        return finished
    settings = Settings.of(executor, workers, shard, shard_patience, progress, files)
    fingerprint = {"command": command, **identify(files, *TOOLS)}
    return run_once(out, fingerprint, settings, PAYLOAD, lambda run: _prepare(run, request, joined, own))


def _prepare(run: Run, request: Request, joined: Joined, own: list[Path]) -> dict[str, Any]:
    tell(joined.told)
    bags = pack_bags(run, joined.entries, request.packing)
    tell(bags.told)
    problems = [*joined.rejects, *bags.rejects]
    rejects = finish_rejects(run, problems, joined.total, request.max_rejects)
    if not bags.frame.height:
        raise PrepError(
            f"{request.raw[0]}: no slide is left; the first is {problems[0].excerpt!r}: {problems[0].reason}"
        )
    table = joined.table
    # Slides are divided when it is known which of them can be used.
    ready = replace(table, frame=table.frame.filter(pl.col("slide").is_in(bags.frame["name"].to_list())))
    check_classes(table.path, ready.frame, table.classes)
    assigned = assign_splits(ready, request.rule)
    tell(assigned.told)
    bags = replace(bags, sources=[*bags.sources, *map(describe_source, own)])
    counts = {"records": joined.total, "rejected": len(problems)}
    return publish_bags(run, bags, assigned, table.classes, request.described, rejects, joined.total, counts)


def _preparation(raw: tuple[Path, ...], options: TableOptions, packing: Packing) -> dict[str, Any]:
    """What `apply` needs to pack new features, or to encode new slides, in the same way."""
    encoding = None
    if len(raw) == 1 and (raw[0] / NAME).is_file():
        with contextlib.suppress(ManifestError):  # another program's file of this name
            card = read_manifest(raw[0])
            saved = card.get("preparation")
            encoding = saved.get("slides") if isinstance(saved, dict) and card.get("kind") == "bags" else saved
    return {
        "kind": "bags",
        "dataset": "bags",
        "dtype": packing.dtype,
        "max_bad": packing.max_bad,
        "patients": options.patients,
        "patient_pattern": options.patient_pattern,
        "slides": encoding,
    }
