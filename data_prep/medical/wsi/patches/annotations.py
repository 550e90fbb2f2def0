"""Areas on slides: GeoJSON as QuPath writes and reads it, and the XML of ASAP. Level-0 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.common.files import translate_os_errors
from data_prep.medical.wsi.patches.grid import Coordinates, locate
from data_prep.medical.wsi.patches.tissue import Piece, Polygon

SUFFIXES = (".geojson", ".json", ".xml")
# Names that mark an area as taken away from the others: QuPath's class, and the groups of CAMELYON and ASAP.
EXCLUDED = frozenset({"ignore*", "ignore", "exclude", "exclusion", "_2"})
FARTHEST = 2**31 - 1


def find_areas(folder: Path, slide: str) -> Path | None:
    """File of a slide's areas in a folder: SLIDE.geojson, SLIDE.json or SLIDE.xml.

    Raises:
        DatasetNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetNotFoundError(f"{folder}: no such folder; give one with files SLIDE.geojson or SLIDE.xml")
    return next((path for suffix in SUFFIXES if (path := folder / f"{slide}{suffix}").is_file()), None)


def read_areas(path: Path) -> list[Piece]:
    """Read areas; those of a class to be ignored become holes of all others.

    Raises:
        CorruptRecordError: naming the feature or annotation.
    """
    with translate_os_errors(path):
        data = path.read_bytes()
    try:
        rings = list(_from_xml(data) if path.suffix.lower() == ".xml" else _from_geojson(data))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ElementTree.ParseError) as error:
        kind = "ASAP XML" if path.suffix.lower() == ".xml" else "GeoJSON"
        raise CorruptRecordError(
            path, "areas", f"cannot be read as {kind} ({error}); export it again, or remove it"
        ) from error
    cut = [outline for outline, _, excluded in rings if excluded]
    return [Piece(outline, [*holes, *cut]) for outline, holes, excluded in rings if not excluded]


def write_geojson(pieces: Sequence[Piece]) -> bytes:
    """Pieces of tissue as GeoJSON that QuPath opens; corners on straight lines are left out."""
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [_close(_straighten(ring)) for ring in (piece.outline, *piece.holes)],
            },
            "properties": {
                "objectType": "annotation",
                "name": f"tissue {number}",
                "classification": {"name": "Tissue", "color": [0, 160, 0]},
            },
        }
        for number, piece in enumerate(pieces)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode() + b"\n"


def label_patches(areas: Sequence[Piece], corners: Coordinates, size: float) -> npt.NDArray[np.int64]:
    """1 for patches whose centre is inside of an area or on its edge, and in none of its holes; else 0.

    Args:
        areas: annotated.
        corners: of the patches.
        size: of a patch, level-0 pixels.

    Shape:
        corners (N, 2) int64 -> (N,) int64.
    """
    doubled = corners * 2 + round(size)  # centres may lie between pixels
    labels = np.zeros(len(corners), bool)
    for area in areas:
        inside = locate(area.outline.astype(np.int64) * 2, doubled) >= 0
        for hole in area.holes:
            inside &= locate(hole.astype(np.int64) * 2, doubled) <= 0
        labels |= inside
    return labels.astype(np.int64)


Ring = tuple[Polygon, list[Polygon], bool]


def _from_geojson(data: bytes) -> Iterator[Ring]:
    content: Any = json.loads(data)
    features = content if isinstance(content, list) else content.get("features", [content])
    for number, feature in enumerate(features):
        geometry = feature if "coordinates" in feature else feature["geometry"]
        kind, places = geometry["type"], geometry["coordinates"]
        if kind not in ("Polygon", "MultiPolygon"):
            continue  # points and lines have no area
        properties = feature.get("properties") or {}
        name = str((properties.get("classification") or {}).get("name", ""))
        for polygon in [places] if kind == "Polygon" else places:
            rings = [_to_polygon(ring, f"feature {number}") for ring in polygon]
            yield rings[0], rings[1:], name.lower() in EXCLUDED


def _from_xml(data: bytes) -> Iterator[Ring]:
    for number, annotation in enumerate(ElementTree.fromstring(data).iter("Annotation")):
        corners = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in annotation.iter("Coordinate")]
        if len(corners) > 2:  # dots and rulers have no area
            name = annotation.attrib.get("PartOfGroup", "")
            yield _to_polygon(corners, f"annotation {number}"), [], name.lower() in EXCLUDED


def _to_polygon(corners: Any, where: str) -> Polygon:
    points = np.asarray(corners, np.float64)
    if points.ndim != 2 or points.shape[1] < 2 or len(points) < 3 or not (np.abs(points) < FARTHEST).all():
        raise ValueError(f"{where}: no list of three or more points (x, y)")
    rounded = np.rint(points[:, :2]).astype(np.int32)
    return rounded[:-1] if len(rounded) > 3 and (rounded[0] == rounded[-1]).all() else rounded


def _close(ring: Polygon) -> list[list[int]]:
    return [*ring.tolist(), ring[0].tolist()]


def _straighten(ring: Polygon) -> Polygon:
    points = ring.astype(np.int64)
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    turns = (before * after).sum(1) < 0  # back on the same line
    kept = ring[bends | turns]
    return kept if len(kept) > 2 else ring
