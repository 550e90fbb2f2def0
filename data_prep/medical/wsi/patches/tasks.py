"""The stages that turn one slide into patches; each is a task of its own and leaves files for the next.

| stage | task | what it leaves |
|---|---|---|
| look | `patch_job.look` per slide | size, resolution, rules of the grid |
| shrink | `shrink` per band of a slide whose lowest level is huge | rows of that level in small |
| tissue | `find` per slide | contours, coordinates |
| decode | `decode` per 1,024 patches, if they are looked at | shares of white and black, picture files |
| write | `write` per slide | coordinates in HDF5, thumbnail |

A slide that cannot be used answers with `error` instead of stopping the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from data_prep.medical.wsi.patches.annotations import label_patches, read_areas, write_geojson
from data_prep.medical.wsi.patches.coords import PatchGrid, write_coords
from data_prep.medical.wsi.patches.grid import Coordinates, Rules, measure_tissue, place, place_on_slide
from data_prep.medical.wsi.patches.job import Facts, Job, Wanted, answering
from data_prep.medical.wsi.patches.picture import draw
from data_prep.medical.wsi.patches.tissue import (
    PRESETS,
    TOLERATED,
    Damage,
    Found,
    axis_downsamples,
    find_tissue,
    read_bands,
    saturation_of,
    segment,
    tissue_share,
)
from data_prep.medical.wsi.slides.reader import open_slide
from data_prep.medical.wsi.slides.slide import BAND, Image, RegionError, Slide, resample

CHUNK = 1024  # patches decoded by one task
BAND_TASK = 1 << 27  # pixels shrunk by one task
WHITE, BLACK = 220, 20  # a pixel is white where all colours are above, black where all are below


def plan_bands(facts: Facts) -> list[tuple[int, int]]:
    """First and last row of each task that shrinks a huge level."""
    width, height = facts["seg_size"]
    rows = max(1, BAND_TASK // (width * facts["shrink"])) * facts["shrink"]
    return [(top, min(top + rows, height)) for top in range(0, height, rows)] if facts["shrink"] > 1 else []


@answering
def shrink(job: Job, facts: Facts, first: int, last: int, folder: Path) -> Facts:
    """Average squares of pixels of a huge level, from one row to another; what is beyond the slide is white."""
    factor, level = facts["shrink"], facts["seg_level"]
    parts = []
    with open_slide(job.path) as slide:
        damage, width = Damage(slide), slide.level_dimensions[level][0]
        rows = max(1, BAND // (width * factor)) * factor
        for _, band in read_bands(slide, level, rows, damage, first, last):
            bottom, right = -len(band) % factor, -width % factor
            padded = cv2.copyMakeBorder(band, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
            parts.append(resample(np.asarray(padded, np.uint8), padded.shape[1] // factor, padded.shape[0] // factor))
    np.save(folder / "rows.npy", np.concatenate(parts))
    return {"pieces": damage.pieces, "bad": damage.bad}


@answering
def find(job: Job, wanted: Wanted, facts: Facts, bands: list[tuple[Path, Facts]], folder: Path) -> Facts:
    """Find tissue and put patches on it."""
    rules = _rules(job, facts)
    with open_slide(job.path) as slide:
        if job.contours:
            areas = read_areas(Path(job.contours))
            found, damage = Found(areas, float("nan"), 0.0, len(areas)), Damage(slide)
        elif bands:
            found, damage = _find_shrunk(slide, job, facts, bands)
        else:
            damage = Damage(slide)
            found = find_tissue(slide, job.options.segmentation, damage)
        put = place if wanted.grid == "contour" else place_on_slide
        coords = put(found.pieces, rules, slide.width, slide.height)
    fitting = len(coords)
    if wanted.min_tissue > 0:
        coords = coords[measure_tissue(found.pieces, coords, rules.size) >= wanted.min_tissue]
    np.save(folder / "coords.npy", coords)
    (folder / "contours.geojson").write_bytes(write_geojson(found.pieces))
    answer = {
        "patches": len(coords),
        "pieces": len(found.pieces),
        "threshold": None if job.contours else found.threshold,
        "tissue": round(tissue_share(found.pieces, facts["width"], facts["height"]), 6),
        "bad_regions": damage.bad,
    }
    return answer if len(coords) else {**answer, "empty": why_empty(job, wanted, rules, found, fitting)}


def why_empty(job: Job, wanted: Wanted, rules: Rules, found: Found, fitting: int) -> str:
    """Why a slide has no patch, and what to try."""
    settings = job.options.segmentation
    if fitting:
        return f"all {fitting:,} patches are less than {wanted.min_tissue:g} tissue; lower --min-tissue"
    if found.pieces:
        side = rules.size[0]
        return (
            f"no two patches of {side} level-0 px fit any of its {len(found.pieces)} pieces of tissue; use smaller "
            "patches, --contour-fn four_pt, or --grid slide"
        )
    if job.contours:
        return f"{job.contours} holds no area; draw one, or remove the file"
    if not found.contours:
        return (
            f"no tissue: nothing is more saturated than {found.threshold:g} of 255; look at the thumbnail; for pale "
            "tissue lower --sthresh or use --use-otsu true"
        )
    largest, half = (f"{float(f'{area:.2g}'):g}" for area in (found.largest, found.largest / 2))
    # What is a little smaller than the largest piece is mostly tissue, too.
    advice = f"lower --a-t, as to {half}"
    if PRESETS["biopsy"].a_t < min(settings.a_t, found.largest):
        advice += ", or take --preset biopsy for small sections"
    return (
        f"no piece of tissue is large enough: the largest of {found.contours:,} has {largest} squares of "
        f"512 x 512 px, and a_t is {settings.a_t:g}; {advice}"
    )


def _find_shrunk(slide: Slide, job: Job, facts: Facts, bands: list[tuple[Path, Facts]]) -> tuple[Found, Damage]:
    damage = Damage(slide)
    for _, answer in bands:
        if "error" in answer:
            raise RegionError(answer["error"])
        damage.pieces, damage.bad = damage.pieces + answer["pieces"], damage.bad + answer["bad"]
    damage.check()
    across, down = axis_downsamples(slide, facts["seg_level"])
    scale = (across * facts["shrink"], down * facts["shrink"])
    return segment(saturation_of(_join(bands)), scale, job.options.segmentation), damage


def _join(bands: list[tuple[Path, Facts]]) -> Image:
    return np.concatenate([np.load(folder / "rows.npy") for folder, _ in bands])


def _rules(job: Job, facts: Facts) -> Rules:
    (width, height), (across, down) = facts["rules"]["size"], facts["rules"]["step"]
    return Rules((width, height), (across, down), job.options.contour_fn, job.options.use_padding)


@answering
def decode(job: Job, wanted: Wanted, facts: Facts, found: Path, first: int, folder: Path) -> Facts:
    """Look at the pixels of patches: shares of white and black, and picture files if wanted."""
    coords: Coordinates = np.load(found / "coords.npy")[first : first + CHUNK]
    side = facts["rules"]["size"][0]
    kept, bad, white, black = np.zeros(len(coords), bool), [], 0, 0
    with open_slide(job.path) as slide:
        for index, (x, y) in enumerate(coords.tolist()):
            try:
                patch = slide.read_patch(x, y, side, wanted.size, retry=True)
            except RegionError as error:
                bad.append([first + index, x, y, str(error)])
                continue
            is_white = share_between(patch, WHITE + 1, 255) > wanted.max_white
            is_black = share_between(patch, 0, BLACK - 1) > wanted.max_black
            white, black = white + is_white, black + (is_black and not is_white)
            kept[index] = not (is_white or is_black)
            if kept[index] and wanted.images != "none":
                _save(patch, folder / "images" / f"{x}_{y}.{'jpg' if wanted.images == 'jpeg' else 'png'}")
    np.save(folder / "kept.npy", kept)
    return {"white": white, "black": black, "bad": bad}


def share_between(patch: Image, low: int, high: int) -> float:
    """Share of pixels whose three colours all lie in a range.

    Shape:
        patch (H, W, 3) uint8.
    """
    inside = cv2.countNonZero(cv2.inRange(patch, (low, low, low), (high, high, high)))
    return 3 * float(inside) / patch.size


def _save(patch: Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    path.write_bytes(cv2.imencode(path.suffix, cv2.cvtColor(patch, cv2.COLOR_RGB2BGR), options)[1].tobytes())


@answering
def write(
    job: Job,
    wanted: Wanted,
    facts: Facts,
    found: Path,
    decoded: list[tuple[Path, Facts]],
    bands: list[tuple[Path, Facts]],
    folder: Path,
) -> Facts:
    """Write the coordinates and the thumbnail of one slide."""
    coords: Coordinates = np.load(found / "coords.npy")
    total, answer = len(coords), _sum_up(job, decoded, len(coords))
    if decoded:
        coords = coords[np.concatenate([np.load(part / "kept.npy") for part, _ in decoded])]
    pieces = read_areas(found / "contours.geojson")
    size = facts["rules"]["size"][0]
    with open_slide(job.path) as slide:
        picture = draw(slide, wanted.thumbnail, pieces, coords, size, _join(bands) if bands else None)
        extra = _attributes(slide, wanted, facts)
    (folder / "thumbnail.jpg").write_bytes(picture)
    if len(coords):
        grid = PatchGrid(
            job.slide, coords, float(size), wanted.size, facts["target_mpp"], facts["width"], facts["height"]
        )
        if job.annotations:
            grid = replace(grid, labels=label_patches(read_areas(Path(job.annotations)), coords, size))
            answer["positive"] = int(grid.labels.sum()) if grid.labels is not None else 0
        write_coords(folder / "patches.h5", grid, "clam" if wanted.layout == "clam" else "trident", extra)
        return {**answer, "patches": len(coords)}
    if not total:
        return {**answer, "patches": 0}
    why = f"all {total:,} patches are dropped: {answer['white']:,} white, {answer['black']:,} black, "
    return {**answer, "patches": 0, "empty": f"{why}{len(answer['bad'])} unreadable; raise --max-white or --max-black"}


def _sum_up(job: Job, decoded: list[tuple[Path, Facts]], total: int) -> Facts:
    for _, answer in decoded:
        if "error" in answer:
            raise RegionError(answer["error"])
    bad = [row for _, answer in decoded for row in answer["bad"]]
    if len(bad) > TOLERATED * total:
        raise RegionError(
            f"{job.path}: {len(bad):,} of {total:,} patches cannot be decoded, more than {TOLERATED:.0%}, the first at "
            f"x {bad[0][1]}, y {bad[0][2]}; the file is damaged, copy or export it again"
        )
    return {"bad": bad, **{name: sum(answer[name] for _, answer in decoded) for name in ("white", "black")}}


def _attributes(slide: Slide, wanted: Wanted, facts: Facts) -> Facts:
    extra: Facts = {"level0_mpp": facts["mpp"], "target_mpp": facts["target_mpp"]}
    if wanted.layout != "clam":
        return {**extra, "overlap": wanted.size - wanted.step, "patch_level": wanted.level}
    if wanted.level is None:
        return extra
    size = np.array(slide.level_dimensions[wanted.level])
    return {
        **extra,
        "patch_size": wanted.size,
        "patch_level": wanted.level,
        "downsample": np.array(axis_downsamples(slide, wanted.level)),
        "downsampled_level_dim": size,
        "level_dim": size,
    }


def chunks(total: int) -> Iterator[int]:
    """First patch of each task of `decode`."""
    return iter(range(0, total, CHUNK))
