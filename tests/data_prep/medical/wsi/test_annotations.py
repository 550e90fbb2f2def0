"""Areas drawn by people: GeoJSON of QuPath, XML of ASAP."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_prep.common.errors import CorruptRecordError, DatasetNotFoundError
from data_prep.medical.wsi.patches.annotations import find_areas, label_patches, read_areas, write_geojson
from data_prep.medical.wsi.patches.tissue import Piece

SQUARE = [[0, 0], [100.4, 0], [100.4, 100], [0, 100], [0, 0]]
HOLE = [[40, 40], [60, 40], [60, 60], [40, 60], [40, 40]]


def feature(kind, coordinates, name=""):
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def write(tmp_path, content, name="s.geojson"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_is_written_is_read(tmp_path):
    outline = np.array([[0, 0], [50, 0], [100, 0], [100, 100], [0, 100]], np.int32)
    pieces = [Piece(outline, [np.array(HOLE[:-1], np.int32)]), Piece(outline + 500)]
    (tmp_path / "s.geojson").write_bytes(write_geojson(pieces))
    found = read_areas(tmp_path / "s.geojson")
    # The corner on a straight line is left out.
    assert found[0].outline.tolist() == [[0, 0], [100, 0], [100, 100], [0, 100]]
    assert found[0].holes[0].tolist() == HOLE[:-1] and found[1].holes == []
    ring = json.loads((tmp_path / "s.geojson").read_text())["features"][0]["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1]


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature("Polygon", [SQUARE, HOLE])]},
        [feature("Polygon", [SQUARE, HOLE])],
        feature("MultiPolygon", [[SQUARE, HOLE]]),
        {"type": "Polygon", "coordinates": [SQUARE, HOLE]},
        [feature("Point", [3, 4]), feature("Polygon", [SQUARE, HOLE])],
        [feature("Polygon", [SQUARE]), feature("Polygon", [HOLE], "Ignore*")],
    ],
)
def test_every_dialect_of_geojson(tmp_path, content):
    (piece,) = read_areas(write(tmp_path, content))
    assert piece.outline.tolist() == [[0, 0], [100, 0], [100, 100], [0, 100]]
    assert piece.holes[0].tolist() == HOLE[:-1]


def test_asap(tmp_path):
    def annotation(corners, group):
        points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners))
        return f'<Annotation Name="a" PartOfGroup="{group}"><Coordinates>{points}</Coordinates></Annotation>'

    body = annotation(SQUARE[:-1], "Tumor") + annotation(HOLE[:-1], "_2") + annotation([(3, 4)], "Tumor")
    path = write(tmp_path, f"<ASAP_Annotations><Annotations>{body}</Annotations></ASAP_Annotations>", "s.xml")
    (piece,) = read_areas(path)
    assert piece.outline.tolist() == [[0, 0], [100, 0], [100, 100], [0, 100]] and len(piece.holes) == 1


def test_patches_are_labelled_by_their_centre():
    areas = [Piece(np.array([[0, 0], [100, 0], [100, 100], [0, 100]], np.int32), [np.array(HOLE[:-1], np.int32)])]
    corners = np.array([[0, 0], [95, 0], [96, 0], [45, 45], [35, 45], [200, 200]])
    assert label_patches(areas, corners, 10).tolist() == [1, 1, 0, 0, 1, 0]
    assert label_patches([], corners, 10).tolist() == [0] * 6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.geojson", "{"),
        ("s.geojson", "3"),
        ("s.geojson", {"type": "FeatureCollection"}),
        ("s.geojson", [feature("Polygon", [[[0, 0], [1, 1]]])]),
        ("s.geojson", [feature("Polygon", [[["a", 0], [1, 1], [2, 2]]])]),
        ("s.geojson", '[{"geometry": {"type": "Polygon", "coordinates": [[[1e300, 0], [1, 1], [2, 2]]]}}]'),
        ("s.xml", "<ASAP_Annotations><Annotations>"),
        ("s.xml", "<A><Annotation><Coordinate X='1'/><Coordinate X='1'/><Coordinate X='1'/></Annotation></A>"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    with pytest.raises(CorruptRecordError, match=f"{name}: areas: cannot be read as"):
        read_areas(write(tmp_path, content, name))


def test_files_are_found_by_slide_id(tmp_path):
    for name in ("A.1.geojson", "B.2.xml", "B.2.json"):
        (tmp_path / name).touch()
    assert find_areas(tmp_path, "A.1") == tmp_path / "A.1.geojson"
    assert find_areas(tmp_path, "B.2") == tmp_path / "B.2.json"
    assert find_areas(tmp_path, "A") is None
    with pytest.raises(DatasetNotFoundError, match="no such folder"):
        find_areas(tmp_path / "absent", "A")
