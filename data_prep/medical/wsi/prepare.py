"""Slides and a table of labels -> prepared bags in one command, and the same steps again for new slides.

    slides --patch--> WORK/patches --features--> WORK/features --bags--> OUT

Each step is the command of its name, with its own directory, so that a killed run continues where it was, and a single
step can be repeated by hand. Only slides of the table are read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from data_prep.common.errors import ConfigError, CorruptRecordError, DatasetNotFoundError, RejectsExceededError
from data_prep.common.extras import need
from data_prep.common.files import sha256_file
from data_prep.medical.wsi.bags import bags
from data_prep.medical.wsi.bags.assign import RATIOS, VALID_SHARE
from data_prep.medical.wsi.bags.table import TableOptions, clean_slide, read_slide_table
from data_prep.medical.wsi.features.encoders import Normalisation, Precision
from data_prep.medical.wsi.features.features import features
from data_prep.medical.wsi.features.native import Stored
from data_prep.medical.wsi.patches.patch import patch
from data_prep.medical.wsi.slides.find import find_slides, slide_id

SHOWN = 3  # slides named in a message
# Options that go to each step under the same name.
_RUNNING = ("workers", "shard", "shard_patience", "progress")
_PATCHING = (
    *("mpp", "magnification", "level", "patch_size", "step", "mpp_table", "default_mpp", "enlarge", "preset"),
    *("use_otsu", "a_t", "min_tissue", "options_table", "contours"),
)
_ENCODING = (
    *("encoder", "weights", "encoder_args", "image_size", "normalisation", "mean", "std", "precision", "dtype"),
    *("batch_size", "device", "threads", "max_bad"),
)
_PACKING = (
    *("table", "splits", "ratios", "valid_share", "seed", "by_site", "in_place", "slide_column", "patient_column"),
    *("label_column", "site_column", "split_column", "patients", "patient_pattern", "site_pattern", "label_map"),
    *("classes", "encoding", "licence"),
)
# Entries of a patching's `command` which are options of `patch` of the same name.
_PATCHED = (
    *("mpp", "level", "step", "grid", "enlarge", "min_tissue", "max_white", "max_black", "default_mpp", "sthresh"),
    *("mthresh", "close", "use_otsu", "a_t", "a_h", "max_n_holes", "seg_level", "contour_fn", "use_padding"),
)


def prepare(
    dataset: str,
    raw: list[Path] | Path,
    out: Path,
    *,
    table: Path,
    encoder: str,
    weights: str,
    work: Path | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    level: int | None = None,
    patch_size: int = 256,
    step: int | None = None,
    mpp_table: Path | None = None,
    default_mpp: float | None = None,
    enlarge: bool = False,
    preset: Literal["default", "biopsy", "resection", "tcga"] = "default",
    use_otsu: bool | None = None,
    a_t: float | None = None,
    min_tissue: float = 0.0,
    options_table: Path | None = None,
    contours: Path | None = None,
    encoder_args: dict[str, Any] | None = None,
    encoder_seed: int = 0,
    image_size: int | None = None,
    normalisation: Normalisation = "imagenet",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    precision: Precision = "fp32",
    dtype: Stored = "float16",
    batch_size: int = 64,
    device: str = "auto",
    threads: int | None = None,
    max_bad: float = 0.01,
    splits: str = "",
    ratios: tuple[float, float, float] = RATIOS,
    valid_share: float = VALID_SHARE,
    seed: int = 0,
    by_site: bool = True,
    in_place: bool = False,
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
    encoder_executor: str = "serial",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepare whole slides for training: patches, features, and bags with labels, split by patient.

    The steps are those of `heptad medical patch`, `features` and `prep bags`, whose help tells more, and has more
    options; run them one by one to use these.

    Args:
        dataset: slides.
        raw: slides, or folders of slides.
        out: output directory for the bags; new, empty, or of the same preparation begun before.
        table: CSV, TSV, Excel or Parquet with a row per slide: slide, patient, label, and site and split if known.
            Slides which it does not name are left alone.
        encoder: a model of timm, or medical_ssl (ViT-S/16) or natural_supervised (ResNet-18) as in ACMIL.
        weights: a file (safetensors or a torch state dict), pretrained (timm downloads them), or random (for tests).
        work: directory for patches and features, which are kept; OUT-work by default.
        mpp: size of a pixel of the patches in micrometres; 0.5 (20x) unless magnification or level is given.
        magnification: the same as an objective's magnification: 40 is 0.25 um, 20 is 0.5 um.
        level: tile the pixels of a level of the pyramid instead, whatever their size.
        patch_size: side of a patch in pixels of that size.
        step: from patch to patch in the same pixels; patch_size by default: no overlap.
        mpp_table: csv with the columns slide_id,mpp: size of a level-0 pixel; counts before what the slide says.
        default_mpp: size of a level-0 pixel of slides that do not say it.
        enlarge: accept slides that are more than a tenth coarser than mpp.
        preset: CLAM's settings of the segmentation: default, biopsy, resection, tcga.
        use_otsu: find the threshold of tissue by Otsu's method.
        a_t: least area of a piece of tissue, in squares of 512 x 512 level-0 pixels.
        min_tissue: least share of a patch that is tissue, 0..1.
        options_table: csv with slide_id and any columns of CLAM's process list, for single slides.
        contours: folder with SLIDE.geojson: tile these areas; other slides are segmented.
        encoder_args: further arguments of the timm model, as JSON.
        encoder_seed: of random weights.
        image_size: side in pixels to which patches are resized; the encoder's own by default.
        normalisation: statistics of colours: imagenet, lunit, or model (those timm keeps with it).
        mean: of red, green and blue, of 1; in place of normalisation, with std.
        std: of red, green and blue, of 1.
        precision: of the encoder's arithmetic.
        dtype: to store features.
        batch_size: patches encoded at a time.
        device: auto, cpu, cuda, cuda:1, ...
        threads: that read patches for the encoder; all cores by default.
        max_bad: share of unreadable patches above which a slide is given up.
        splits: stratified, hashed, column, camelyon, or a file or folder of lists; see `prep bags`.
        ratios: shares of train, valid and test, of the patients.
        valid_share: share of the training patients for validation, where lists name none for it; 0 leaves it empty.
        seed: another seed gives another division.
        by_site: stratify by site, too, where sites are known.
        in_place: leave features in the work directory, and refer to them.
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
        workers: processes for patches and bags; all cores by default. The result does not depend on it.
        executor: for patches and bags: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        encoder_executor: for features; serial is one process with one device.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of slides of the table that may be missing or fail.
        progress: show progress bars and summaries.

    Returns:
        The content of `dataset.json` of the bags.

    Raises:
        PrepError: one line that names the file, what is wrong and what to do.
    """
    given: dict[str, Any] = {**locals()}
    columns = (slide_column, patient_column, label_column, site_column, split_column)
    reading = TableOptions(*columns, patients, patient_pattern, site_pattern, label_map, tuple(classes or ()), encoding)
    need("medical", "encoding of patches", "timm", "torchvision")  # before hours of patching
    chosen = _choose(raw, table, reading, max_rejects)
    folder = work if work is not None else out.with_name(f"{out.name}-work")
    options = {name: given[name] for name in (*_RUNNING, *_PATCHING)}
    # Slides that fail here are told by the next step, with those that fail there.
    patch(chosen, folder / "patches", **{**options, "executor": executor, "max_rejects": 1.0})
    options = {name: given[name] for name in (*_RUNNING, *_ENCODING)}
    renamed = {"seed": encoder_seed, "executor": encoder_executor, "max_rejects": max_rejects}
    features(folder / "patches", chosen, folder / "features", **{**options, **renamed})
    options = {name: given[name] for name in (*_RUNNING, *_PACKING)}
    return bags.prepare(
        dataset, folder / "features", out, **{**options, "executor": executor, "max_rejects": max_rejects}
    )


def encode_slides(
    preparation: Mapping[str, Any],
    raw: list[Path] | Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    device: str = "auto",
    max_rejects: float = 0.01,
    progress: bool = True,
) -> Path:
    """Patch and encode new slides as those of a preparation were.

    Args:
        preparation: entry `preparation` in `dataset.json` of features.
        raw: slides, or folders of slides.
        out: directory for `patches` and `features`; new, or begun before.
        workers: processes for patching; all cores by default.
        executor: for patching, see `patch`.
        device: for the encoder, see `features`.
        max_rejects: share of slides that may fail.
        progress: show progress bars and summaries.

    Returns:
        The directory of the features.

    Raises:
        ConfigError: the preparation does not tell how its patches were made.
        DatasetNotFoundError: the file of the encoder's weights is not there any more.
        CorruptRecordError: it is another file by now.
        PrepError: see `patch` and `features`.
    """
    patching, encoding = preparation.get("patching"), dict(preparation["features"])
    slides = find_slides(raw)
    if not patching:
        raise ConfigError(
            f"{slides[0]}: the patches that the model was trained on were made by another program, which has to make "
            "those of these slides, too; then run `heptad medical features`, and give its features in place of slides"
        )
    _check_weights(encoding)
    running = {"workers": workers, "progress": progress}
    options = {name: patching[name] for name in _PATCHED if patching.get(name) is not None}
    options |= {"patch_size": patching["size"], "executor": executor, "max_rejects": 1.0, **running}
    patch(slides, out / "patches", **options)
    encoding |= {"encoder": encoding.pop("name"), "encoder_args": encoding.pop("arguments")}
    encoding |= {"device": device, "max_rejects": max_rejects, **running}
    features(out / "patches", slides, out / "features", **encoding)
    return out / "features"


def _check_weights(encoding: dict[str, Any]) -> None:
    """Make sure that the weights are still there, and the same; takes their checksum out."""
    digest = encoding.pop("weights_sha256", None)
    if digest is None:
        return
    path = Path(encoding["weights"])
    if not path.is_file():
        raise DatasetNotFoundError(
            f"{path}: the weights of encoder {encoding['name']}, which made the features that the model was trained "
            "on, are not there any more; put the file back"
        )
    if sha256_file(path) != digest:
        raise CorruptRecordError(path, "weights", "not the file any more that made the features; put that one back")


def _choose(raw: list[Path] | Path, table: Path, reading: TableOptions, max_rejects: float) -> list[Path]:
    """The slides that the table names; what is wrong with the table shows before hours of work.

    Raises:
        ConfigError: it names none of the slides.
        RejectsExceededError: too many of its slides are not there.
    """
    found = find_slides(raw)
    named = set(read_slide_table(table, reading).frame["slide"].to_list())
    chosen = [path for path in found if clean_slide(slide_id(path)) in named]
    if not chosen:
        raise ConfigError(
            f"{table}: names none of the {len(found):,} slides: it has {min(named, default='no slide')!r}, they are "
            f"called like {slide_id(found[0])!r}; name the column of slide ids with --slide-column"
        )
    missing = sorted(named - {clean_slide(slide_id(path)) for path in chosen})
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        told = f"{table}: {len(missing):,} of its {len(named):,} slides are not among the files: {shown}"
        if len(missing) > max_rejects * len(named):
            raise RejectsExceededError(f"{told}; add them, take them out of the table, or raise max_rejects")
        sys.stderr.write(f"{told}\n")
    if len(chosen) < len(found):
        sys.stderr.write(f"{len(found) - len(chosen):,} slides are not in {table}: left alone\n")
    return chosen
