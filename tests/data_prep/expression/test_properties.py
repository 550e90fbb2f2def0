"""Damaged files raise one kind of error, and readers keep what is whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import PrepError
from data_prep.expression.faces import Face, FaceRules, take_face
from data_prep.expression.ferplus import read_votes
from data_prep.expression.pixel_table import read_pixels, scan
from data_prep.expression.splitting import SplitRule, divide
from data_prep.expression.taxonomy import SPELLINGS, expression
from tests.data.expression import make
from tests.data_prep.expression.helpers import run

QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damage(data: bytes, draw: st.DataObject) -> bytes:
    """Cut a file, or flip bits of it."""
    if draw.draw(st.booleans(), "cut"):
        return data[: draw.draw(st.integers(0, len(data)), "length")]
    broken = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8), "flips")):
        broken[draw.draw(st.integers(0, len(data) - 1), "place")] ^= 1 << draw.draw(st.integers(0, 7), "bit")
    return bytes(broken)


@QUIET
@given(draw=st.data())
def test_truncated_and_flipped_pixel_tables_raise_only_our_errors(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        rows = [(at % 7, "Training", make.face(at, 6)) for at in range(5)]
        path = make.pixel_csv(Path(name) / "fer2013.csv", rows)
        path.write_bytes(damage(path.read_bytes(), draw))
        try:
            table = scan(path)
        except PrepError as error:
            assert "\n" not in str(error) and path.name in str(error)
            return
        for line in table.lines:
            try:
                found = read_pixels(path, line.start, line.size, table.columns["pixels"])
            except PrepError as error:
                assert "\n" not in str(error)
            else:
                assert found.dtype == np.uint8 and found.shape[0] == found.shape[1]


@QUIET
@given(draw=st.data())
def test_truncated_and_flipped_votes_raise_only_our_errors(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = make.make_ferplus(Path(name), make.fer_rows(1))
        path.write_bytes(damage(path.read_bytes(), draw))
        try:
            found = read_votes(path)
        except PrepError as error:
            assert "\n" not in str(error)
        else:
            assert found.counts.shape == (len(found.names), 10)


@settings(max_examples=12, deadline=None)
@given(draw=st.data())
def test_truncated_and_flipped_pictures_are_rejects(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / "raw"
        for number in range(6):
            suffix = ("png", "jpg", "tif", "bmp")[number % 4]
            path = make.save(raw / "ab"[number % 2] / f"{number}.{suffix}", make.face(number, 24, 3))
            if number < 4:
                path.write_bytes(damage(path.read_bytes(), draw))
        try:
            card = run("folder", raw, Path(name) / "out", max_rejects=1.0, ratios=(1, 0, 0), storage="files")
        except PrepError as error:
            assert "\n" not in str(error)
        else:
            assert card["splits"]["train"]["rows"] + card["rejects"]["count"] == 6


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.tuples(*[st.floats(-80, 80) for _ in range(2)], *[st.floats(0.1, 99) for _ in range(2)]),
    st.integers(0, 40),
)
@settings(deadline=None, max_examples=60)
def test_any_box_gives_a_square_of_the_size_or_a_reject(
    height: int, width: int, box: tuple[float, float, float, float], side: int
) -> None:
    picture = np.full((height, width, 3), 200, np.uint8)
    try:
        taken = take_face(Path("picture.png"), picture, FaceRules("given", side=side), given=Face(box, 0.5, None))
    except PrepError:
        return
    assert taken.pixels.shape[0] == taken.pixels.shape[1] and (not side or taken.pixels.shape[0] == side)


@given(st.text(max_size=12))
def test_only_words_of_the_list_are_expressions(text: str) -> None:
    found = expression(text)
    assert found == "" or " ".join(text.split()).casefold() in SPELLINGS


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=20, max_size=60), st.integers(0, 5))
@settings(deadline=None)
def test_a_subject_is_never_on_two_sides(rows: list[tuple[int, int]], seed: int) -> None:
    import polars as pl

    frame = pl.DataFrame(
        {
            "name": [str(number) for number in range(len(rows))],
            "subject": [f"s{subject}" for subject, _ in rows],
            "label": [str(label) for _, label in rows],
            "split": [""] * len(rows),
        }
    )
    try:
        found = divide(frame, SplitRule((0.6, 0.2, 0.2), seed=seed), "subject", "here")
    except PrepError:
        return
    sides = frame.with_columns(split=pl.Series(found.splits)).group_by("subject").agg(pl.col("split").n_unique())
    assert set(sides["split"]) == {1}
