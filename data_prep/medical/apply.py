"""New raw data -> prepared in the way of a saved preparation, for prediction: nothing is learned or filtered."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, ManifestError, PrepError
from data_prep.common.files import sha256_file
from data_prep.common.manifest import NAME, read_manifest
from data_prep.common.mapping import Task
from data_prep.common.run import Run, Settings, describe_source, find_finished, identify, is_large, open_run
from data_prep.medical.wsi.bags.bags import TOOLS
from data_prep.medical.wsi.bags.doubts import PATTERNS
from data_prep.medical.wsi.bags.index import PAYLOAD, Described, finish_rejects, publish_predict, tell
from data_prep.medical.wsi.bags.instances import Layout, gather_bags, read_instances
from data_prep.medical.wsi.bags.joining import clean_entries, reject_of
from data_prep.medical.wsi.bags.mil_csv import find_file
from data_prep.medical.wsi.bags.packing import Bags, Packing, pack_bags
from data_prep.medical.wsi.bags.table import clean_slide
from data_prep.medical.wsi.features.layouts import H5, PT, FeatureEntry, find_features
from data_prep.medical.wsi.slides.find import CLOSED, KNOWN, find_slides, slide_id


def apply(
    preparation: Path,
    raw: list[Path] | Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare new data as a preparation did: the split "predict", without labels.

    Bags: `raw` are features in any layout, used where they lie; or slides, if the preparation knows how its features
    were made (they are then patched and encoded into a folder beside `out`). The patient is found in the slide id if
    the preparation found it there, else every slide is of another patient. X-rays: see `apply_images`.

    Args:
        preparation: prepared directory of the training data.
        raw: files, or folders.
        out: output directory; new, empty, or holding the same files prepared before.
        workers: processes; all cores by default.
        executor: as in `prepare`.
        max_rejects: share of unusable slides or images that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    manifest = read_manifest(preparation)
    saved = manifest.get("preparation")
    kind = manifest.get("kind")
    if manifest.get("domain") != "medical" or not isinstance(saved, dict) or kind not in ("bags", "images"):
        raise ManifestError(f"{preparation / NAME}: no preparation of bags or X-rays; prepare the data again")
    paths = raw if isinstance(raw, list) else [raw]
    options = {"workers": workers, "executor": executor, "max_rejects": max_rejects, "progress": progress}
    if kind == "images":
        # Readers of slides and of X-rays do not need each other.
        images = importlib.import_module("data_prep.medical.xray.apply")
        return dict(images.apply_images(preparation, paths, out, **options))
    settings = Settings(executor, workers, None, progress)
    if saved.get("dataset") == "mil-csv":
        return _apply_instances(preparation, manifest, find_file(paths), out, settings, max_rejects)
    return _apply_features(preparation, manifest, paths, out, settings, max_rejects)


def _apply_features(
    preparation: Path, manifest: dict[str, Any], raw: list[Path], out: Path, settings: Settings, max_rejects: float
) -> dict[str, Any]:
    saved = manifest["preparation"]
    problems: list[CorruptRecordError] = []
    slides = _find_slides(preparation, saved, raw)
    if slides:
        raw = [_encode(saved, slides, out, settings, max_rejects)]
    entries = clean_entries(find_features(raw, problems))
    if slides:  # the folder may hold those of an earlier prediction, too
        wanted = {clean_slide(slide_id(path)) for path in slides}
        entries = [entry for entry in entries if entry.slide in wanted]
    _check_width(preparation, manifest, entries)
    command = {**_command(preparation, "bags"), "in_place": [str(path.resolve()) for path in raw]}
    patient_of = _patient_finder(saved)
    patients = {entry.slide: patient_of(entry.slide) for entry in entries}
    total = len(entries) + len(problems)

    def make(run: Run) -> tuple[Bags, list[str], int]:
        bags = pack_bags(run, entries, Packing(saved["dtype"], saved["max_bad"], in_place=True))
        _check_facts(preparation, manifest, bags)
        broken = [reject_of(error) for error in problems]
        bags.rejects[:0] = broken
        return bags, [patients[name] for name in bags.frame["name"]], total

    files = list(dict.fromkeys(entry.path for entry in entries))
    return _run(manifest, command, files, out, settings, max_rejects, make)


def _apply_instances(
    preparation: Path, manifest: dict[str, Any], path: Path, out: Path, settings: Settings, max_rejects: float
) -> dict[str, Any]:
    saved = manifest["preparation"]
    layout = Layout(**{**saved["layout"], "leave_out": tuple(saved["layout"]["leave_out"])})

    def make(run: Run) -> tuple[Bags, list[str], int]:
        task = Task("read", read_instances, (path, layout, saved["max_bad"], saved["columns"]))
        done = run.stage("read", [task])[0]
        bags, cells = gather_bags(path, done)
        found, wanted = bags.facts["feature_dim"], manifest["feature_dim"]
        if found != wanted:
            raise ConfigError(f"{path}: {found:,} columns of features, the model was trained on {wanted:,}")
        bags.sources.append(describe_source(path))
        known = dict(
            zip(cells["slide_id"], cells["case_id" if "case_id" in cells.columns else "slide_id"], strict=True)
        )
        return bags, [known[name] or name for name in bags.frame["name"]], done.info["bags"]

    return _run(manifest, _command(preparation, "mil-csv"), [path], out, settings, max_rejects, make)


def _run(
    manifest: dict[str, Any],
    command: dict[str, Any],
    files: list[Path],
    out: Path,
    settings: Settings,
    max_rejects: float,
    make: Callable[[Run], tuple[Bags, list[str], int]],
) -> dict[str, Any]:
    """Publish what `make` packs: bags, the patient of each, and how many records were looked at."""
    finished = find_finished(out, {"command": command}, files)
    if finished is not None:
        return finished
    eager = Settings(settings.executor, settings.workers, None, settings.progress, eager=is_large(files))
    with open_run(out, {"command": command, **identify(files, *TOOLS)}, eager, PAYLOAD) as run:
        bags, patients, total = make(run)
        rejects = finish_rejects(run, bags.rejects, total, max_rejects)
        if not bags.frame.height:
            raise PrepError(f"{files[0]}: nothing is left; the first: {bags.rejects[0].reason}")
        tell(bags.told)
        group = str(manifest["group"]["name"])
        described = Described(manifest["name"], command, manifest["licence"], group, manifest["preparation"])
        return publish_predict(run, bags, patients, manifest["classes"], described, rejects, total)


def _command(preparation: Path, dataset: str) -> dict[str, Any]:
    return {"dataset": dataset, "preparation": sha256_file(preparation / NAME)}


def _find_slides(preparation: Path, saved: dict[str, Any], raw: list[Path]) -> list[Path]:
    """The slides that have to be encoded first; none where there are features."""
    named = any(path.is_file() and path.suffix.lower() in KNOWN | CLOSED for path in raw)
    files = (file for path in raw for file in ([path] if path.is_file() else path.rglob("*")))
    if not named and any(file.suffix.lower() in H5 + PT for file in files):
        return []
    try:
        slides = find_slides(raw)
    except DatasetNotFoundError:  # what is missing are features
        return []
    if not saved.get("slides"):
        raise ConfigError(
            f"{raw[0]}: these are slides, and {preparation / NAME} does not tell how its features were made; extract "
            "them with the same encoder (`heptad medical patch`, `heptad medical features`) and give the features"
        )
    return slides


def _encode(saved: dict[str, Any], slides: list[Path], out: Path, settings: Settings, max_rejects: float) -> Path:
    """Folder of the features of slides, made as those of the preparation were."""
    # Imported here: encoding needs torch.
    module = importlib.import_module("data_prep.medical.wsi.prepare")
    running = {"workers": settings.workers, "executor": settings.executor, "progress": settings.progress}
    folder: Path = module.encode_slides(
        saved["slides"], slides, out.with_name(f"{out.name}-features"), max_rejects=max_rejects, **running
    )
    return folder


def _patient_finder(saved: dict[str, Any]) -> Callable[[str], str]:
    pattern = saved.get("patient_pattern")
    if not pattern:
        return lambda slide: slide
    compiled = re.compile(PATTERNS.get(pattern, pattern))

    def find(slide: str) -> str:
        match = compiled.search(slide)
        return (match.group(1 if compiled.groups else 0) or slide) if match else slide

    return find


def _check_width(preparation: Path, manifest: dict[str, Any], entries: list[FeatureEntry]) -> None:
    for entry in entries:
        if entry.rows and entry.dim != manifest["feature_dim"]:
            raise ConfigError(
                f"{entry.path}: slide {entry.slide!r} has {entry.dim:,} features per patch, {preparation} has "
                f"{manifest['feature_dim']:,}: of another encoder; extract them with "
                f"{manifest['encoder'] or 'that of the training data'}"
            )


def _check_facts(preparation: Path, manifest: dict[str, Any], bags: Bags) -> None:
    for name in ("encoder", "mpp", "patch_size"):
        wanted, found = manifest.get(name), bags.facts[name]
        if wanted is None or found is None or wanted == found:
            continue
        if name == "encoder":
            raise ConfigError(
                f"{bags.frame['file'][0]}: features of encoder {found!r}, {preparation} has {wanted!r}; extract them "
                "with the same encoder"
            )
        tell([f"warning: {name} {found} where the training data has {wanted}: features of another scale"])
