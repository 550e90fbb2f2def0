"""Slides -> coordinates of patches on tissue, thumbnails and contours; the stages are in `patch_tasks`."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any, Literal

from data_prep.common.errors import ConfigError, PrepError, RejectsExceededError
from data_prep.common.files import canonical_json, sha256_file
from data_prep.common.manifest import NAME, read_manifest
from data_prep.common.mapping import Shard
from data_prep.common.run import Settings, is_large
from data_prep.medical.wsi.patches.annotations import find_areas
from data_prep.medical.wsi.patches.grid import TESTS
from data_prep.medical.wsi.patches.job import Job, Wanted
from data_prep.medical.wsi.patches.options import SlideOptions, read_options
from data_prep.medical.wsi.patches.outcome import complain, summary
from data_prep.medical.wsi.patches.run import patch_slides
from data_prep.medical.wsi.patches.tissue import PRESETS, Segmentation
from data_prep.medical.wsi.slides.find import find_slides, slide_id
from data_prep.medical.wsi.slides.resolution import check_mpp, read_mpp_table, to_mpp

MPP = 0.5  # asked for unless something else is: 20x


def patch(
    raw: list[Path] | Path,
    out: Path,
    *,
    mpp: float | None = None,
    magnification: float | None = None,
    level: int | None = None,
    patch_size: int = 256,
    step: int | None = None,
    mpp_table: Path | None = None,
    default_mpp: float | None = None,
    enlarge: bool = False,
    preset: Literal["default", "biopsy", "resection", "tcga"] = "default",
    sthresh: int | None = None,
    mthresh: int | None = None,
    close: int | None = None,
    use_otsu: bool | None = None,
    a_t: float | None = None,
    a_h: float | None = None,
    max_n_holes: int | None = None,
    seg_level: int = -1,
    contour_fn: Literal["four_pt", "four_pt_hard", "center", "basic"] = "four_pt",
    use_padding: bool = True,
    grid: Literal["contour", "slide"] = "contour",
    min_tissue: float = 0.0,
    max_white: float = 1.0,
    max_black: float = 1.0,
    options_table: Path | None = None,
    contours: Path | None = None,
    annotations: Path | None = None,
    images: Literal["none", "png", "jpeg"] = "none",
    layout: Literal["trident", "clam"] = "trident",
    thumbnail: int = 1024,
    workers: int | None = None,
    executor: str = "local",
    shard: str | None = None,
    shard_patience: float = 0.0,
    max_rejects: float = 0.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Find tissue on slides and put patches on it.

    Patches are asked for by the size of their pixels; each slide is sampled from its best level. Coordinates are those
    of CLAM on the same slide. Slides that fail, or have no patch, are named at the end, when all others are done; run
    the same command again when they are repaired, or when slides were added: what is finished is kept.

    Args:
        raw: slides, or folders of slides: all formats of OpenSlide (svs, tif, ndpi, mrxs, scn, vms, bif, DICOM, ...),
            plain TIFF, PNG and JPEG.
        out: output directory; new, empty, or of the same command begun or finished before.
        mpp: size of a pixel of the patches in micrometres; 0.5 (20x) unless magnification or level is given.
        magnification: the same as an objective's magnification: 40 is 0.25 um, 20 is 0.5 um.
        level: tile the pixels of a level of the pyramid instead, whatever their size.
        patch_size: side of a patch in pixels of that size.
        step: from patch to patch in the same pixels; patch_size by default: no overlap.
        mpp_table: csv with the columns slide_id,mpp: size of a level-0 pixel; counts before what the slide says.
        default_mpp: size of a level-0 pixel of slides that do not say it.
        enlarge: accept slides that are more than a tenth coarser than mpp.
        preset: CLAM's settings of the segmentation; the options below change single ones. default and resection keep
            pieces of tissue of 26 million level-0 pixels and more, biopsy of 0.26 million, tcga of 4.2 million.
        sthresh: saturation (0..255) above which a pixel is tissue.
        mthresh: side of the median window, odd.
        close: side of the box that closes gaps.
        use_otsu: find the threshold by Otsu's method.
        a_t: least area of a piece of tissue, in squares of 512 x 512 level-0 pixels.
        a_h: least area of a hole, in the same unit.
        max_n_holes: holes kept in each piece.
        seg_level: level to look for tissue at; -1 takes the best one for a downsample of 64.
        contour_fn: which points of a patch must be in the tissue: any of four around its centre, all four, its centre,
            its upper left corner.
        use_padding: allow patches that reach beyond the slide; they are white there.
        grid: contour: each piece of tissue has a grid of its own, as in CLAM; slide: one grid for all.
        min_tissue: least share of a patch that is tissue, 0..1.
        max_white: drop patches of which a larger share is white (all colours above 220).
        max_black: drop patches of which a larger share is black (all colours below 20).
        options_table: csv with slide_id and any columns of CLAM's process list (sthresh, a_t, process, ...), for single
            slides; slides.csv of an earlier run is one.
        contours: folder with SLIDE.geojson (as contours/, corrected in QuPath): tile these areas; other slides are
            segmented.
        annotations: folder with SLIDE.geojson or SLIDE.xml (ASAP): label patches by whether their centre is inside.
        images: write the patches as picture files, too.
        layout: of the files of coordinates: trident, or clam.
        thumbnail: longer side of the thumbnails in pixels.
        workers: processes; all cores by default. The result does not depend on it.
        executor: local, serial, slurm, slurm:local, dask or dask:ADDRESS.
        shard: INDEX/COUNT: do only this share of each stage, as one of a job array.
        shard_patience: seconds a shard waits for the others at the end of a stage.
        max_rejects: share of slides without patches that is tolerated.
        progress: show progress bars.

    Returns:
        The content of `dataset.json`.

    Raises:
        RejectsExceededError: slides failed or have no patch; everything else is finished.
        PrepError: one line that names the file, what is wrong and what to do.
    """
    wanted = _check_wanted(
        Wanted(
            **_resolution(mpp, magnification, level),
            size=patch_size,
            step=patch_size if step is None else step,
            grid=grid,
            enlarge=enlarge,
            min_tissue=min_tissue,
            max_white=max_white,
            max_black=max_black,
            images=images,
            layout=layout,
            thumbnail=thumbnail,
        ),
        max_rejects,
    )
    given = {"sthresh": sthresh, "mthresh": mthresh, "close": close, "use_otsu": use_otsu, "a_t": a_t, "a_h": a_h}
    segmentation = _segmentation(preset, {**given, "max_n_holes": max_n_holes, "seg_level": seg_level})
    options = SlideOptions(segmentation, contour_fn, use_padding)
    if contour_fn not in TESTS:
        raise ConfigError(f"contour_fn {contour_fn!r}: choose {', '.join(TESTS)}")
    jobs = _plan(find_slides(raw), options, options_table, mpp_table, default_mpp, contours, annotations)
    command = {"command": "patch", **dataclasses.asdict(wanted), **_describe(options)}
    share = Shard.parse(shard, shard_patience) if shard else None
    settings = Settings(executor, workers, share, progress, eager=is_large(job.path for job in jobs))
    try:
        card = patch_slides(jobs, wanted, out, command, settings)
    except (PrepError, OSError):
        # Another shard may have finished, and removed the scratch folder, while this one looked at it.
        if share is None or not (out / NAME).exists():
            raise
        card = read_manifest(out)
    return _conclude(card, out, max_rejects)


def _conclude(card: dict[str, Any], out: Path, max_rejects: float) -> dict[str, Any]:
    complaint = complain(card, out)
    # Where nothing came out, nothing can be done with it, whatever is tolerated.
    if complaint and (
        not card["counts"]["processed"] or len(card["failures"]) > max_rejects * card["counts"]["slides"]
    ):
        raise RejectsExceededError(complaint)
    if complaint:
        sys.stderr.write(complaint + "\n")
    print(summary(card, out))
    return card


def _resolution(mpp: float | None, magnification: float | None, level: int | None) -> dict[str, Any]:
    given = {"mpp": mpp, "magnification": magnification, "level": level}
    named = [f"--{name} {value:g}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{', '.join(named)}: give one of mpp, magnification and level")
    if level is not None:
        if level < 0:
            raise ConfigError(f"--level {level}: give 0, the finest, or more")
        return {"mpp": None, "level": level}
    if magnification is not None:
        if not magnification > 0:
            raise ConfigError(f"--magnification {magnification:g}: give a positive number, as 20")
        mpp = to_mpp(magnification)
    return {"mpp": check_mpp(MPP if mpp is None else mpp, named[0] if named else "--mpp"), "level": None}


def _check_wanted(wanted: Wanted, max_rejects: float) -> Wanted:
    shares = {name: getattr(wanted, name) for name in ("min_tissue", "max_white", "max_black")}
    for name, share in {**shares, "max_rejects": max_rejects}.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} {share:g}: give a share from 0 to 1")
    for name, pixels in (("patch_size", wanted.size), ("step", wanted.step), ("thumbnail", wanted.thumbnail)):
        if pixels < 1:
            raise ConfigError(f"{name} {pixels}: give a number of pixels, at least 1")
    choices = {"grid": ("contour", "slide"), "images": ("none", "png", "jpeg"), "layout": ("trident", "clam")}
    for name, known in choices.items():
        if getattr(wanted, name) not in known:
            raise ConfigError(f"{name} {getattr(wanted, name)!r}: choose {', '.join(known)}")
    return wanted


def _segmentation(preset: str, given: dict[str, Any]) -> Segmentation:
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}: choose {', '.join(PRESETS)}")
    changed = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[preset], **changed).check("options")


def _describe(options: SlideOptions) -> dict[str, Any]:
    settings = dataclasses.asdict(options.segmentation)
    settings |= {name: list(settings[name]) for name in ("keep_ids", "exclude_ids")}
    return {**settings, "contour_fn": options.contour_fn, "use_padding": options.use_padding}


def _plan(
    paths: list[Path],
    options: SlideOptions,
    options_table: Path | None,
    mpp_table: Path | None,
    default_mpp: float | None,
    contours: Path | None,
    annotations: Path | None,
) -> list[Job]:
    """What is to be done with each slide.

    Raises:
        PrepError: a table or folder is missing or wrong, or names none of the slides.
    """
    own = read_options(options_table, options) if options_table else {}
    table = read_mpp_table(mpp_table) if mpp_table else {}
    if default_mpp is not None:
        check_mpp(default_mpp, "--default-mpp")
    names = {slide_id(path) for path in paths}
    for file, named in ((options_table, own), (mpp_table, table)):
        if file and not names & set(named):
            raise ConfigError(f"{file}: names none of the {len(names)} slides, such as {min(names)!r}; check slide_id")
    jobs = []
    for path in paths:
        name = slide_id(path)
        areas = [find_areas(folder, name) if folder else None for folder in (contours, annotations)]
        found, labels = (str(file) if file else "" for file in areas)
        digest = [sha256_file(file) if file else "" for file in areas]
        chosen = own.get(name, options)
        about = [_describe(chosen), chosen.process, table.get(name), digest, bool(annotations)]
        jobs.append(
            Job(
                path=path,
                slide=name,
                options=chosen,
                mpp=table.get(name),
                default_mpp=default_mpp,
                contours=found,
                annotations=labels,
                settings=hashlib.blake2b(canonical_json(about), digest_size=8).hexdigest(),
            )
        )
    return jobs
