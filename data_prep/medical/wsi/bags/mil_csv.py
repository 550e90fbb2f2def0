"""Classic multiple-instance sets in one CSV file (MUSK, Elephant, Corel, UCSB, ...) -> prepared directory of bags."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from data_prep.common.errors import ConfigError, DatasetNotFoundError, PrepError
from data_prep.common.mapping import Task
from data_prep.common.run import Run, Settings, describe_source, find_finished, identify, open_run
from data_prep.medical.wsi.bags.assign import RATIOS, VALID_SHARE, SplitRule, assign_splits
from data_prep.medical.wsi.bags.index import PAYLOAD, Described, finish_rejects, publish_bags, tell
from data_prep.medical.wsi.bags.instances import Layout, gather_bags, read_instances
from data_prep.medical.wsi.bags.packing import Packing
from data_prep.medical.wsi.bags.spelling import file_name_of
from data_prep.medical.wsi.bags.split_files import list_files
from data_prep.medical.wsi.bags.table import TableOptions, check_classes, slides_of

TOOLS = (pl.__version__,)
SUFFIXES = (".csv", ".tsv", ".txt", ".data", ".gz")


def prepare(
    dataset: str,
    raw: list[Path] | Path,
    out: Path,
    *,
    label_column: str = "",
    bag_column: str = "",
    patient_column: str = "",
    site_column: str = "",
    split_column: str = "",
    leave_out: list[str] | None = None,
    header: Literal["auto", "yes", "no"] = "auto",
    splits: str = "",
    ratios: tuple[float, float, float] = RATIOS,
    valid_share: float = VALID_SHARE,
    seed: int = 0,
    by_site: bool = True,
    n_shot: int = 0,
    label_map: str = "",
    classes: list[str] | None = None,
    encoding: str = "",
    max_bad: float = 0.1,
    licence: str = "not stated",
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare a multiple-instance set: one row per instance with the label of its bag, the bag, and features.

    Columns are given by name or by number (from 0). Without an option the columns named label and bag (bag_id) count
    where there is such a header, else the first is the label and the second the bag. Features are stored as they are;
    what is learned from the training split alone, such as their scale, is left to training.

    Args:
        dataset: mil-csv.
        raw: the file: comma, semicolon, tab or blanks between numbers; plain or gzip.
        out: output directory; new, empty, or of the same preparation begun before.
        label_column: label of the bag, the same in all of its rows.
        bag_column: the bag; its rows need not be together.
        patient_column: patient of the bag; without one every bag is of another patient.
        site_column: site of the bag.
        split_column: official split of the bag: train, val, test.
        leave_out: columns that are no features.
        header: whether the first line names the columns; auto: if it holds words where the second holds numbers.
        splits: stratified, hashed, column, or a file or folder of lists of bags.
        ratios: shares of train, valid and test, of the patients.
        valid_share: share of the training patients for validation, where lists name none for it.
        seed: another seed gives another division.
        by_site: stratify by site, too.
        n_shot: so many training bags of each class; 0 is all.
        label_map: labels to classes: 0=normal,1=tumor, or a JSON file.
        classes: names of the classes in order.
        encoding: of the file; found out.
        max_bad: share of a bag's rows that may lack a number; such rows are left out.
        licence: of the data, for its card.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        max_rejects: share of unusable bags that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    path = find_file(raw)
    layout = Layout(
        label_column, bag_column, patient_column, site_column, split_column, tuple(leave_out or ()), header, encoding
    )
    rule, packing = SplitRule(splits, ratios, valid_share, seed, by_site, n_shot), Packing("float32", max_bad)
    if not 0 <= max_rejects <= 1:
        raise ConfigError(f"max_rejects {max_rejects}: give a share from 0 to 1")
    command = {
        "dataset": dataset,
        "splits": Path(splits).name if rule.lists else splits,
        **{"ratios": list(rule.ratios), "valid_share": valid_share, "seed": seed, "by_site": by_site, "n_shot": n_shot},
        **{"label_map": label_map, "classes": classes or [], "max_bad": max_bad},
        **asdict(layout),
        "leave_out": list(layout.leave_out),
    }
    own = list_files(rule.lists) if rule.lists else []
    finished = find_finished(out, {"command": command}, [path, *own])
    if finished is not None:
        return finished
    options = TableOptions(
        patients="column" if patient_column else "slide", label_map=label_map, classes=tuple(classes or ())
    )
    settings = Settings(executor, workers, None, progress)
    with open_run(out, {"command": command, **identify([path, *own], *TOOLS)}, settings, PAYLOAD) as run:
        return _prepare(run, path, layout, packing, options, rule, own, max_rejects, command, licence)


def _prepare(
    run: Run,
    path: Path,
    layout: Layout,
    packing: Packing,
    options: TableOptions,
    rule: SplitRule,
    own: list[Path],
    max_rejects: float,
    command: dict[str, Any],
    licence: str,
) -> dict[str, Any]:
    done = run.stage("read", [Task("read", read_instances, (path, layout, packing.max_bad, 0))])[0]
    bags, cells = gather_bags(path, done)
    tell(bags.told)
    if not bags.frame.height:
        raise PrepError(f"{path}: no bag is left; the first: {bags.rejects[0].reason}")
    # Bags have their own names already.
    table = slides_of(path, cells, [], options, file_name_of)
    rejects = finish_rejects(run, [*bags.rejects, *table.rejects], done.info["bags"], max_rejects)
    ready = replace(table, frame=table.frame.filter(pl.col("slide").is_in(bags.frame["name"].to_list())))
    check_classes(path, ready.frame, table.classes)
    assigned = assign_splits(ready, rule)
    tell([*table.told, *assigned.told])
    bags = replace(bags, sources=[describe_source(source) for source in (path, *own)])
    counts = {"records": done.info["records"], "rejected": len(bags.rejects) + len(table.rejects)}
    preparation = {
        "kind": "bags",
        "dataset": "mil-csv",
        "max_bad": packing.max_bad,
        "layout": {**asdict(layout), "leave_out": list(layout.leave_out)},
        "columns": done.info["columns"],
    }
    described = Described("mil-csv", command, licence, "patient" if layout.patient else "bag", preparation)
    return publish_bags(run, bags, assigned, table.classes, described, rejects, done.info["bags"], counts)


def find_file(raw: list[Path] | Path) -> Path:
    """The one file of a multiple-instance set.

    Raises:
        DatasetNotFoundError: there is none.
        ConfigError: there are several.
    """
    paths = raw if isinstance(raw, list) else [raw]
    files = [
        file
        for path in paths
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if file.is_file() and (not path.is_dir() or file.suffix.lower() in SUFFIXES)
    ]
    if not files:
        raise DatasetNotFoundError(f"{', '.join(map(str, paths))}: no such file; give the CSV file of the set")
    if len(files) > 1:
        raise ConfigError(f"{files[1]}: a set is one file, but there is {files[0].name}, too; name one of them")
    return files[0]
