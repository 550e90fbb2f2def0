"""What is wanted of slides, what is to be done with one, and a first look at it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

from data_prep.common.errors import DiskFullError, PrepError
from data_prep.medical.wsi.patches.grid import Rules, rules_at_level
from data_prep.medical.wsi.patches.options import SlideOptions
from data_prep.medical.wsi.patches.tissue import choose_level, shrinkage
from data_prep.medical.wsi.slides.identity import identify_file
from data_prep.medical.wsi.slides.reader import open_slide
from data_prep.medical.wsi.slides.resolution import ResolutionError, find_resolution
from data_prep.medical.wsi.slides.slide import Slide

ENLARGED = 1.1  # by how much patches may be enlarged unasked: a 20x slide may have 0.52 instead of 0.5 um


@dataclass(frozen=True)
class Wanted:
    """What patches are wanted, the same for all slides.

    Args:
        mpp: resolution, um per pixel; None when tiling by level.
        level: level of the pyramid; None when tiling by resolution.
        size: side of a patch in pixels of that resolution or level.
        step: from patch to patch in the same pixels.
        grid: "contour": each piece of tissue has its own grid, as in CLAM; "slide": one grid for all.
        enlarge: accept slides that are coarser than mpp.
        min_tissue: least share of a patch that is tissue.
        max_white: most of a patch that is white.
        max_black: most of a patch that is black.
        images: "png" or "jpeg": write the patches, too; "none".
        layout: of the files of coordinates.
        thumbnail: longer side of the thumbnail in pixels.
    """

    mpp: float | None
    level: int | None
    size: int
    step: int
    grid: str
    enlarge: bool
    min_tissue: float
    max_white: float
    max_black: float
    images: str
    layout: str
    thumbnail: int

    @property
    def decodes(self) -> bool:
        """Whether the pixels of patches are needed."""
        return self.max_white < 1 or self.max_black < 1 or self.images != "none"


@dataclass(frozen=True)
class Job:
    """One slide.

    Args:
        path: its file.
        slide: its id.
        options: how it is treated.
        mpp: its resolution in the user's table, if it is there.
        default_mpp: resolution of slides that do not say it.
        contours: file with areas to tile instead of the tissue that is found; empty: none.
        annotations: file with annotated areas; empty: none.
        settings: checksum of everything above but the file itself.
    """

    path: Path
    slide: str
    options: SlideOptions
    mpp: float | None = None
    default_mpp: float | None = None
    contours: str = ""
    annotations: str = ""
    settings: str = ""


Facts = dict[str, Any]
P = ParamSpec("P")


def answering(task: Callable[P, Facts]) -> Callable[P, Facts]:
    """Let a task answer with `error` when a slide is at fault."""

    @functools.wraps(task)
    def run(*args: P.args, **kwargs: P.kwargs) -> Facts:
        try:
            return task(*args, **kwargs)
        except DiskFullError:
            raise
        except PrepError as error:
            return {"error": str(error)}

    return run


def look(job: Job, wanted: Wanted, folder: Path) -> Facts:
    """Open a slide; say its size, resolution and how it will be tiled."""
    facts: Facts = {"source": {"path": job.path.name, "bytes": 0}}
    try:
        facts["source"] = identify_file(job.path)
        with open_slide(job.path) as slide:
            facts |= {"width": slide.width, "height": slide.height, "levels": len(slide.level_dimensions)}
            facts |= _resolve(slide, job, wanted)
            rules, mpp = lay_rules(slide, job, wanted, facts["mpp"])
            level = choose_level(slide, job.options.segmentation)
            return {
                **facts,
                "rules": {"size": list(rules.size), "step": list(rules.step)},
                "target_mpp": mpp,
                "seg_level": level,
                "seg_size": list(slide.level_dimensions[level]),
                "shrink": 1 if job.contours else shrinkage(slide, level),
            }
    except DiskFullError:
        raise
    except PrepError as error:
        return {**facts, "error": str(error)}


def _resolve(slide: Slide, job: Job, wanted: Wanted) -> Facts:
    table = {} if job.mpp is None else {job.slide: job.mpp}
    try:
        mpp, source = find_resolution(slide, table, job.default_mpp)
    except ResolutionError:
        if wanted.level is None:
            raise
        return {"mpp": None, "mpp_source": ""}
    return {"mpp": mpp, "mpp_source": source}


def lay_rules(slide: Slide, job: Job, wanted: Wanted, mpp: float | None) -> tuple[Rules, float | None]:
    """Size and step of patches in level-0 pixels, and the resolution that patches come at.

    Raises:
        PrepError: the slide is too coarse, or lacks the level.
    """
    options = job.options
    if wanted.mpp is None or mpp is None:
        level = wanted.level or 0
        if level >= len(slide.level_dimensions):
            raise PrepError(f"{job.path}: has levels 0 to {len(slide.level_dimensions) - 1}, and not level {level}")
        rules = rules_at_level(
            slide, level, wanted.size, wanted.step, options.contour_fn, use_padding=options.use_padding
        )
        return rules, None if mpp is None else mpp * rules.size[0] / wanted.size
    if mpp > wanted.mpp * ENLARGED and not wanted.enlarge:
        raise PrepError(
            f"{job.path}: has {mpp:g} um per pixel at its finest, which is coarser than the {wanted.mpp:g} asked for; "
            "ask for a coarser --mpp, leave the slide out, or give --enlarge true"
        )
    size, step = (max(1, round(pixels * wanted.mpp / mpp)) for pixels in (wanted.size, wanted.step))
    return Rules((size, size), (step, step), options.contour_fn, options.use_padding), wanted.mpp
