"""The source-recognition control: can the network tell where an image comes from, with the diagnosis held fixed?

In COVIDx 8B every test positive comes from RICORD and every test negative from RSNA: a network that recognises the
hospital scores as one that recognises the disease. The control keeps the images of one class and makes their source
the label. The same network, trained on this by the same command, says how much of its score the source can explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from data_prep.common.errors import ConfigError, LabelError, ManifestError
from data_prep.common.files import sha256_file, translate_os_errors, write_atomic
from data_prep.common.manifest import NAME, read_manifest, tool_version, verify_files
from data_prep.common.rejects import to_frame
from data_prep.common.run import Settings, describe_source, find_finished, open_run
from data_prep.common.splits import SPLITS
from data_prep.medical.xray.card import UNKNOWN, cross_tables, is_confounded, to_parquet, write_index

PAYLOAD = frozenset({"images", "masks", "train", "valid", "test", "rejects.parquet"})
FEWEST = 9  # patients of a source that is told apart: three on every side


def source_control(
    prepared: Path,
    out: Path,
    *,
    within: str = "",
    by: Literal["source", "view"] = "source",
    ratios: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> dict[str, Any]:
    """Make a prepared directory whose label is the source of the images of one class.

    The images are the same files (links, no copies). Splits are kept where each holds all sources, otherwise drawn
    anew, patient by patient. Prints how sources and labels go together, what the control means, and how to train it.

    Args:
        prepared: prepared directory of X-rays whose sources are known.
        out: output directory; new, empty, or of the same control made before.
        within: class whose images are taken; by default the one with the most images outside its largest source.
        by: what is to be recognised: the source, or the view.
        ratios: shares of patients in train, valid, test, where splits are drawn anew.
        seed: of that draw.

    Returns:
        The content of `dataset.json`.

    Raises:
        LabelError: no class, or not the one asked for, has two sources with enough patients.
        ConfigError: the directory holds no labelled X-rays.
    """
    manifest, frame = read_prepared(prepared, by)
    tables = cross_tables(frame, (by,))[by]
    print(describe_table(tables, manifest["classes"], by))
    values = usable_values(frame, by)
    chosen = _choose_class(values, within, manifest["classes"], tables, by, prepared)
    sources = sorted(values[chosen])
    frame = frame.filter((pl.col("label") == chosen) & pl.col(by).is_in(sources)).with_columns(label=pl.col(by))
    command = {
        **{"dataset": manifest["name"], "control": by, "within": chosen, "ratios": list(ratios), "seed": seed},
        "preparation": sha256_file(prepared / NAME),
    }
    finished = find_finished(out, {"command": command}, [prepared / NAME])
    if finished is None:
        finished = _write(prepared, out, frame, sources, manifest, command, ratios, seed)
    print(explain(finished, chosen, sources, by, out))
    return finished


def read_prepared(prepared: Path, by: str) -> tuple[dict[str, Any], pl.DataFrame]:
    """The manifest, and all images of all splits with class names; unknown sources are "".

    Raises:
        ConfigError: the directory holds no labelled X-rays.
        ManifestError: a part is not the file that the manifest describes.
    """
    manifest = read_manifest(prepared)
    if manifest.get("kind") != "images" or any(split not in SPLITS for split in manifest.get("splits", {})):
        raise ConfigError(f"{prepared}: holds no labelled X-rays; give a directory made by `heptad medical prep`")
    classes = dict(enumerate(manifest["classes"]))
    tables = []
    for split, entry in manifest["splits"].items():
        for part in entry["parts"]:
            verify_files(prepared, {part["path"]: part["sha256"]})
            table = pl.read_parquet(prepared / part["path"], memory_map=False)
            tables.append(table.with_columns(split=pl.lit(split)))
    frame = pl.concat(tables).with_columns(
        pl.col("label").replace_strict(classes, return_dtype=pl.String), pl.col("source", "view").fill_null("")
    )
    if not frame.filter(pl.col(by) != "").height:
        raise LabelError(f"{prepared}: no image has a {by}; give a column {by!r} when preparing it")
    return manifest, frame


def usable_values(frame: pl.DataFrame, by: str) -> dict[str, list[str]]:
    """Class -> its sources with enough patients to be learned and tested."""
    counted = frame.filter(pl.col(by) != "").group_by("label", by).agg(pl.col("patient").n_unique()).sort("label", by)
    found: dict[str, list[str]] = {}
    for label, value, patients in counted.iter_rows():
        if patients >= FEWEST:
            found.setdefault(label, []).append(value)
    return found


def _choose_class(
    values: Mapping[str, Sequence[str]],
    within: str,
    classes: Sequence[str],
    tables: Mapping[str, Any],
    by: str,
    prepared: Path,
) -> str:
    if within and within not in classes:
        raise ConfigError(f"within {within!r}: {prepared} has the classes {', '.join(classes)}")
    fit = [label for label in classes if len(values.get(label, ())) > 1 and within in ("", label)]
    if not fit:
        told = "; ".join(f"{label}: {', '.join(values.get(label, ())) or 'none'}" for label in classes)
        raise LabelError(
            f"{prepared}: {f'class {within!r} has' if within else 'every class has'} fewer than two {by}s with "
            f"{FEWEST} patients ({told}). That alone shows confounding: {by} and label cannot be told apart, and no "
            f"score on these data says which of them a model has learned; add images of another {by} to a class"
        )

    def outside(label: str) -> int:
        held: list[int] = [
            sum(table.get(value, {}).get(label, 0) for table in tables.values()) for value in values[label]
        ]
        return sum(held) - max(held)

    return max(fit, key=lambda label: (outside(label), -classes.index(label)))


def describe_table(tables: Mapping[str, Any], classes: Sequence[str], by: str) -> str:
    """Images of each source and class in each split, as lines."""
    width = max(len(value) for table in tables.values() for value in [*table, by])
    lines = [f"{'split':6} {by:{width}} " + " ".join(f"{name:>12}" for name in classes)]
    for split in (name for name in SPLITS if name in tables):
        for value, counts in tables[split].items():
            lines.append(f"{split:6} {value:{width}} " + " ".join(f"{counts.get(name, 0):12,}" for name in classes))
        if set(tables[split]) != {UNKNOWN} and is_confounded(tables[split]):
            lines.append(f"       in {split}, the {by} alone tells the label")
    return "\n".join(lines)


def _divide(
    frame: pl.DataFrame, sources: Sequence[str], manifest: Mapping[str, Any], ratios: Sequence[float], seed: int
) -> tuple[pl.DataFrame, dict[str, Any]]:
    held = frame.group_by("split").agg(pl.col("label").unique())
    if {split for split, found in held.iter_rows() if len(found) == len(sources)} == set(SPLITS):
        return frame, {"kind": "given", "of": manifest["split_rule"]}
    from data_prep.medical.xray.splitting import SplitRule, divide

    # The patient is what is kept apart, the source is what is told apart: each of its patients has one of them.
    drawn = frame.with_columns(split=pl.lit(""), source=pl.lit(""))
    split = divide(drawn, SplitRule(ratios, None, seed), "control")
    return frame.with_columns(split=pl.Series(split.splits)), split.entry


def _write(
    prepared: Path,
    out: Path,
    frame: pl.DataFrame,
    sources: Sequence[str],
    manifest: Mapping[str, Any],
    command: dict[str, Any],
    ratios: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    frame, rule = _divide(frame, sources, manifest, ratios, seed)
    codes = {name: code for code, name in enumerate(sources)}
    frame = frame.rename({"mask": "mask_path"}).with_columns(
        mask=pl.col("mask_path").is_not_null(), code=pl.col("label").replace_strict(codes)
    )
    with open_run(out, {"command": command}, Settings("serial", progress=False), PAYLOAD) as run:
        files, splits = write_index(frame.drop("row"), SPLITS, run.scratch)
        names = [name for name in [*frame["image"], *frame["mask_path"]] if name is not None]
        with translate_os_errors(prepared):
            missing = next((name for name in names if not (prepared / name).is_file()), None)
        if missing is not None:
            raise ManifestError(f"{prepared / missing}: is not there any more; prepare the data again")
        files |= {name: prepared / name for name in names}
        rejects = run.scratch / "rejects.parquet"
        write_atomic(rejects, to_parquet(to_frame([])))
        return run.publish(
            {**files, "rejects.parquet": rejects},
            {
                **{name: manifest[name] for name in ("domain", "kind", "name")},
                "version": tool_version(),
                "command": command,
                "licence": manifest["licence"],
                "sources": [describe_source(prepared / NAME)],
                "classes": list(sources),
                "channels": manifest["channels"],
                "group": {**manifest["group"], "groups": frame["patient"].n_unique()},
                "split_rule": rule,
                "splits": splits,
                "counts": {"images": len(frame)},
                "tables": cross_tables(frame, ("source", "view")),
                "rejects": {"count": 0, "share": 0.0},
                "preparation": manifest["preparation"],
            },
        )


def explain(manifest: Mapping[str, Any], within: str, sources: Sequence[str], by: str, out: Path) -> str:
    """What the control means, and the command that trains it."""
    rows = ", ".join(f"{split} {entry['rows']:,}" for split, entry in manifest["splits"].items())
    return (
        f"control: {by} ({', '.join(sources)}) within {within!r}; images: {rows}\n"
        f"Train the same network on it. A test AUROC near 0.5 says that it cannot tell the {by}s apart, so its score "
        f"on the\ndiagnosis does not rest on them. An AUROC near 1 says that the {by} can be read from the image: "
        f"then only scores\nwithin one {by} (metrics by {by}) speak of the diagnosis.\n"
        f"next: heptad medical fit --config CONFIG_OF_YOUR_MODEL --data.root {out} --run runs/{by}-control"
    )
