"""New recordings, or a longer series -> prepared in the way of a saved preparation, for prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, ManifestError, PrepError
from data_prep.common.files import sha256_file
from data_prep.common.manifest import NAME, read_manifest

PREDICT = "predict"


def apply(
    preparation: Path,
    raw: list[Path] | Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    progress: bool = True,
    anonymise: Path | None = None,
) -> dict[str, Any]:
    """Prepare new data as a preparation did: rate, filters, reference and channels are its own, nothing is divided.

    Annotations of the new data are not looked at: what they miss, or say twice, hinders no prediction.

    Args:
        preparation: prepared directory of the training data.
        raw: files, or folders, of the same kind as the training data.
        out: output directory; new, empty, or holding the same files prepared before.
        workers: processes; all cores by default.
        executor: as in `prepare`.
        max_rejects: share of unusable recordings that is tolerated.
        progress: show progress bars.
        anonymise: file with the secret of the preparation, for its pseudonyms; without it names stay as they are.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    manifest = read_manifest(preparation)
    paths = tuple(raw) if isinstance(raw, list) else (raw,)
    if manifest.get("domain") == "ieeg" and manifest.get("kind") == "series":
        return _apply_series(manifest, paths, out)
    saved = manifest.get("preparation")
    if manifest.get("domain") != "ieeg" or not isinstance(saved, dict) or saved.get("kind") != "recordings":
        raise ManifestError(f"{preparation / NAME}: no preparation of recordings; prepare the data again")
    return _apply_recordings(preparation, manifest, paths, out, workers, executor, max_rejects, progress, anonymise)


def _apply_series(manifest: dict[str, Any], raw: tuple[Path, ...], out: Path) -> dict[str, Any]:
    from data_prep.ieeg.series import prepare_series

    if len(raw) != 1:
        raise ConfigError(f"raw: {len(raw)} paths; name one CSV file, whose end is continued")
    command = manifest["command"]
    # a series to be continued has no split: all of it is what the forecast may look back on
    return prepare_series(
        "series",
        raw[0],
        out,
        time=command["time"],
        variates=list(manifest["variates"]),
        ratios=(1.0, 0.0, 0.0),
        fill=command["fill"],
    )


def _apply_recordings(
    preparation: Path,
    manifest: dict[str, Any],
    raw: tuple[Path, ...],
    out: Path,
    workers: int | None,
    executor: str,
    max_rejects: float,
    progress: bool,
    anonymise: Path | None,
) -> dict[str, Any]:
    from data_prep.common.raw import check_raw
    from data_prep.common.run import Settings, identify, is_large, open_run
    from data_prep.ieeg import job
    from data_prep.ieeg.card import channel_table, event_table, signal_files, to_parquet, write_index
    from data_prep.ieeg.decide import Processing
    from data_prep.ieeg.listing import AskedToPredict

    saved = manifest["preparation"]
    wanted = Processing(**{name: saved[name] for name in Processing.__dataclass_fields__})
    asked = {name: manifest["command"].get(name) for name in ("channels", "exclude", "unit", "subject_pattern")}
    asked["mains"] = manifest["command"].get("mains", 0.0)
    key = _read_key(anonymise, manifest["command"].get("anonymise"))
    check_raw(raw, out)
    listing = job.read_listing(saved["dataset"], raw, AskedToPredict(**asked), key)
    command = {"dataset": saved["dataset"], "apply": sha256_file(preparation / NAME), "anonymised": key is not None}
    files = job.files_of(listing)
    settings = Settings(executor, workers, None, progress, eager=is_large(files))
    finished = job.find_prepared(out, command, listing, wanted, settings, key)
    if finished is not None:
        return finished
    with open_run(out, {"command": command, **identify(files, *job.TOOLS, key=key)}, settings, job.PAYLOAD) as run:
        prepared, rejects = job.make_recordings(run, listing, wanted)
        total = len(listing.recordings) + len(listing.rejects)
        rejects_file = job.write_rejects(run, rejects, total, max_rejects, key)
        if not prepared:
            raise PrepError(f"{raw[0]}: no recording is left of {total:,}; the first reason: {rejects[0].reason}")
        tables, entries = write_index(prepared, [PREDICT] * len(prepared), [PREDICT], run.scratch)
        for name, table in (("channels.parquet", channel_table(prepared)), ("events.parquet", event_table(prepared))):
            tables[name] = run.scratch / name
            tables[name].write_bytes(to_parquet(table))
        return run.publish(
            {**signal_files(prepared), **tables, "rejects.parquet": rejects_file},
            {
                **job.describe(prepared, listing, saved["dataset"], wanted, key),
                "name": manifest["name"],
                "command": command,
                "group": {
                    "name": "subject",
                    "kept_apart": False,
                    "groups": len({entry.decided.work.recording.subject for entry in prepared}),
                    "note": "nothing is divided",
                },
                "split_rule": {"kind": PREDICT},
                "splits": entries,
                "counts": dict(listing.notes),
                "rejects": {"count": len(rejects), "share": len(rejects) / max(total, 1)},
            },
        )


def _read_key(path: Path | None, wanted: str | None) -> bytes | None:
    """The secret of a file; where a preparation with pseudonyms misses it, that is told.

    Args:
        path: of the file; None: there is none.
        wanted: what a preparation with pseudonyms says of its secret.

    Raises:
        ConfigError: it is another secret: one subject would have two pseudonyms.
    """
    from data_prep.common.anonymise import pseudonym, read_key
    from data_prep.ieeg.job import say

    if path is None:
        if wanted is not None:
            say("the preparation has pseudonyms, and its secret is not given: these recordings keep their names")
        return None
    key = read_key(path)
    if wanted is not None and pseudonym(key, "key", "") != wanted:
        raise ConfigError(f"{path}: another secret than that of the preparation; give the same file")
    return key
