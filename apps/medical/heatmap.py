"""`heptad medical heatmap`: pictures and QuPath objects from the attention that `predict` and `test` stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import polars as pl
from rich.progress import track

from data_prep.common.errors import PrepError
from data_prep.medical.wsi.slides.find import find_slides, slide_id
from data_prep.medical.wsi.slides.reader import open_slide
from data_prep.medical.wsi.slides.slide import RegionError, Slide
from domains.common.errors import ConfigError, HeptadError, PreparedDataError
from domains.common.writing import write_whole
from domains.medical.heatmap import Image, check_options, draw_heat_map, patch_sheet
from domains.medical.slide_attention import SlideAttention, read_attention, to_geojson

PICTURES = (".jpg", ".jpeg", ".png")


def heatmap(
    attention: Path,
    out: Path,
    *,
    slides: list[Path] | None = None,
    thumbnails: Path | None = None,
    slide: list[str] | None = None,
    scale: Literal["rank", "raw"] = "rank",
    branch: int | None = None,
    alpha: float = 0.5,
    smooth: float = 0.0,
    max_side: int = 2048,
    colours: str = "turbo",
    top: int = 16,
    patch_size: int = 256,
    share: float = 0.05,
    progress: bool = True,
) -> dict[str, Any]:
    """Draw where a model looked, for each slide: SLIDE.png, SLIDE.geojson, and SLIDE_top.png where slides are given.

    Args:
        attention: a run, its `attention` folder, or one of the files in it.
        out: folder to write.
        slides: slides or folders of them: they give the picture under the colours, and the strongest patches.
        thumbnails: what `heptad medical patch` wrote, or any folder of SLIDE.jpg or SLIDE.png; used without slides.
        slide: only these slides.
        scale: `rank` colours a patch by the share of patches with less attention, `raw` by the attention itself.
        branch: draw one branch of the model instead of the attention of the bag.
        alpha: opacity of the colours.
        smooth: blur inside the tissue, in patches; 0 draws each patch as it is.
        max_side: longer side of the picture in pixels.
        colours: a colour map of matplotlib.
        top: how many of the strongest patches to cut from the slide; 0: none.
        patch_size: of these in the picture, in pixels.
        share: of the patches that become objects for QuPath, from the strongest; 0: no GeoJSON.
        progress: show a progress bar.

    Returns:
        `slides`, how many were drawn, and `out`.

    Raises:
        HeptadError: options that cannot work; or slides that could not be drawn, after all others are.
    """
    check_options(alpha=alpha, smooth=smooth, max_side=max_side, colours=colours)
    if not 0 <= share <= 1:
        raise ConfigError(f"share {share} is no share of the patches; give a number from 0 to 1")
    if top < 0 or not 16 <= patch_size <= 4096:
        raise ConfigError("top counts from 0, and patch_size is 16 to 4096 pixels")
    files = attention_files(attention, slide)
    lines = predicted_lines(files[0].parent)
    sources = {} if slides is None else slides_by_id(slides)
    column = "attention" if branch is None else f"branch_{branch}"
    failed: list[str] = []
    for path in track(files, "heat maps", disable=not progress):
        try:
            found = read_attention(path, column)
            with _Under(found, sources if slides is not None else None, thumbnails, max_side) as under:
                page = draw_heat_map(
                    found,
                    thumbnail=under.thumbnail,
                    scale=scale,
                    alpha=alpha,
                    smooth=smooth,
                    max_side=max_side,
                    colours=colours,
                    subtitle=_subtitle(found, column, lines),
                )
                write_picture(out / f"{found.slide}.png", page)
                if share:
                    write_whole(out / f"{found.slide}.geojson", to_geojson(found, share=share, colours=colours))
                sheet = None
                if top and under.slide is not None:
                    sheet = patch_sheet(found, reader_of(under.slide), count=top, size=patch_size)
                if sheet is not None:
                    write_picture(out / f"{found.slide}_top.png", sheet)
        except (HeptadError, PrepError) as error:
            failed.append(str(error))
    done = len(files) - len(failed)
    if done:
        print(f"heat maps: {out} ({done} {'slide' if done == 1 else 'slides'})")
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise HeptadError(f"{len(failed)} of {len(files)} slides could not be drawn: {failed[0]}{more}")
    return {"slides": done, "out": str(out)}


class _Under:
    """What lies under the colours of one slide: the slide itself, or a thumbnail of it, or nothing."""

    def __init__(
        self, found: SlideAttention, slides: dict[str, list[Path]] | None, thumbnails: Path | None, max_side: int
    ) -> None:
        self.slide: Slide | None = None
        self.thumbnail: Image | None = None
        if slides is not None:
            self.slide = open_slide(_only(found.slide, slides))
            try:
                self.thumbnail = self.slide.thumbnail(max_side)
            except BaseException:
                self.slide.close()
                raise
        elif thumbnails is not None:
            self.thumbnail = read_thumbnail(thumbnails, found.slide)

    def __enter__(self) -> _Under:
        return self

    def __exit__(self, *_: object) -> None:
        if self.slide is not None:
            self.slide.close()


def _only(name: str, slides: dict[str, list[Path]]) -> Path:
    paths = slides.get(name, [])
    if len(paths) != 1:
        what = "none is" if not paths else f"{len(paths)} are"
        raise ConfigError(f"{name}: {what} among --slides; give the folder that holds this slide once")
    return paths[0]


def attention_files(attention: Path, slides: list[str] | None = None) -> list[Path]:
    """Find the files of attention in a run, a folder, or take the one that is named.

    Raises:
        PreparedDataError: there are none, or some that are asked for are missing.
    """
    files: list[Path] = []
    if attention.is_file():
        files = [attention]
    else:
        for folder in (attention / "attention", attention / "predict" / "attention", attention):
            files = sorted(path for path in folder.glob("*.parquet") if path.stem != "predictions")
            if files:
                break
    if not files:
        raise PreparedDataError(
            f"{attention}: no attention of slides; `heptad medical predict --run RUN` writes RUN/predict/attention"
        )
    if slides is None:
        return files
    by_name = {path.name.removesuffix(".parquet"): path for path in files}
    missing = [name for name in slides if name not in by_name]
    if missing:
        near = ", ".join(list(by_name)[:3])
        raise PreparedDataError(f"{files[0].parent}: no attention of {', '.join(missing)}; there are {near}, ...")
    return [by_name[name] for name in dict.fromkeys(slides)]


def slides_by_id(slides: list[Path]) -> dict[str, list[Path]]:
    """Slide id -> files of that name."""
    found: dict[str, list[Path]] = {}
    for path in find_slides(slides):
        found.setdefault(slide_id(path), []).append(path)
    return found


def read_thumbnail(folder: Path, name: str) -> Image:
    """Read SLIDE.jpg or SLIDE.png.

    Raises:
        PreparedDataError: there is none, or it is no picture.
    """
    for place in (folder / "thumbnails", folder):
        for ending in PICTURES:
            path = place / f"{name}{ending}"
            if path.is_file():
                picture = cv2.imdecode(np.frombuffer(path.read_bytes(), dtype=np.uint8), cv2.IMREAD_COLOR)
                if picture is None:
                    raise PreparedDataError(f"{path}: no readable picture; make the thumbnail again")
                return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    raise PreparedDataError(f"{folder}: no thumbnail {name}.jpg; give the folder that `heptad medical patch` wrote")


def reader_of(slide: Slide) -> Callable[[int, int, float, int], Image | None]:
    """Cut patches from a slide; None where it is damaged."""

    def read(x: int, y: int, size_level0: float, size: int) -> Image | None:
        try:
            return slide.read_patch(x, y, size_level0, size, retry=True)
        except RegionError:
            return None

    return read


def predicted_lines(folder: Path) -> dict[str, str]:
    """Slide -> what the model said of it, from the table of predictions beside the attention, where there is one."""
    path = folder.parent / "predictions.parquet"
    if not path.is_file():
        return {}
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError):
        return {}
    if not {"name", "predicted", "probability_1"} <= set(table.columns):
        return {}
    lines = {}
    for row in table.iter_rows(named=True):
        decided = row["predicted"]
        text = f"predicted class {decided} with probability {row[f'probability_{decided}']:.3f}"
        label = row.get("label")
        lines[str(row["name"])] = text + (f", true class {label}" if label is not None and label >= 0 else "")
    return lines


def _subtitle(found: SlideAttention, column: str, lines: dict[str, str]) -> str:
    what = "attention" if column == "attention" else column.replace("_", " ")
    parts = [f"{what} over {len(found.attention):,} patches", lines.get(found.slide, "")]
    return "; ".join(part for part in parts if part)


def write_picture(path: Path, picture: Image) -> None:
    """Write a PNG, whole or not at all."""
    done, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise HeptadError(f"{path}: the picture of {picture.shape[1]} x {picture.shape[0]} px cannot be encoded")
    write_whole(path, content.tobytes())
