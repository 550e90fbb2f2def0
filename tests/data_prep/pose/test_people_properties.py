"""Whatever annotations hold: every record is kept, or rejected with a reason; what is kept is possible."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.pose.people.records import IMAGES, Notes, Rules, read_images, read_persons
from data_prep.pose.people.repair import Persons, repair

K = 3
RULES = Rules(K, 1, (1, 2))
KNOWN = pl.DataFrame(
    [[0, 1, "a.png", 64, 48, None, ""], [1, 2, "b.png", 64, 48, None, ""]], schema=IMAGES, orient="row"
)
NUMBERS = st.one_of(
    st.integers(-3, 70), st.floats(width=32), st.sampled_from([0, 1, 2, 1e9, -1e9, 2**63, 2**70, None, "3", "x", True])
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(st.integers(0, 5), NUMBERS),
        "image_id": st.one_of(st.integers(1, 3), NUMBERS),
        "category_id": st.integers(0, 3),
        "bbox": st.one_of(st.lists(NUMBERS, min_size=4, max_size=4), JSON),
        "area": NUMBERS,
        "iscrowd": st.one_of(st.integers(0, 1), NUMBERS),
        "num_keypoints": NUMBERS,
        "keypoints": st.one_of(
            st.lists(NUMBERS, min_size=9, max_size=9),
            st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=3, max_size=3),
            JSON,
        ),
        "segmentation": JSON,
    },
)


def raws(values: list[Any]) -> list[msgspec.Raw]:
    texts = [json.dumps(value).replace("NaN", "null").replace("-Infinity", "null") for value in values]
    return [msgspec.Raw(text.replace("Infinity", "null").encode()) for text in texts]


def check(persons: Persons) -> None:
    points, flags = persons.keypoints[:, :, :2], persons.keypoints[:, :, 2]
    assert np.isfinite(persons.keypoints).all() and np.isin(flags, (0, 1, 2)).all()
    assert (points[flags == 0] == 0).all()
    assert np.isfinite(persons.box).all() and (persons.box[:, 2:] >= 0).all() and (persons.area > 0).all()
    assert len(set(persons.id.tolist())) == len(persons.id)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(ENTRIES, JSON), max_size=6))
def test_every_annotation_is_kept_or_told(values: list[Any]) -> None:
    notes = Notes("file.json")
    persons = repair(read_persons(raws(values), KNOWN, RULES, notes), notes)
    check(persons)
    rejected = [reject.record for reject in notes.rejects]
    assert len(rejected) == len(set(rejected)) and not set(rejected) & set(persons.record.tolist())
    other = notes.counts["annotations_of_other_categories"]
    assert len(persons.record) + len(rejected) + other == len(values)
    assert persons.frame(K).height == len(persons.record)


@settings(max_examples=100, deadline=None)
@given(st.lists(ENTRIES, max_size=6))
def test_what_is_repaired_needs_no_repair(values: list[Any]) -> None:
    notes = Notes("file.json")
    once = repair(read_persons(raws(values), KNOWN, RULES, notes), notes)
    counted = (once.keypoints[:, :, 2] > 0).sum(1).astype(float)
    every = np.ones(len(once.id), bool)
    clean = Persons(
        once.record, once.id, every, once.image, once.crowd, counted, once.area, every, once.box, once.keypoints
    )
    again = Notes("file.json")
    twice = repair(clean, again)
    assert not again.rejects and {remark.field for remark in again.remarks} <= {"bbox"}
    assert np.array_equal(twice.keypoints, once.keypoints) and np.array_equal(twice.area, once.area)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            JSON,
            st.fixed_dictionaries(
                {"id": st.integers(0, 4), "file_name": st.sampled_from(["a.png", "b.png", ""])},
                optional={"width": NUMBERS, "height": NUMBERS, "crowdIndex": NUMBERS},
            ),
        ),
        max_size=6,
    )
)
def test_every_image_is_kept_or_told(values: list[Any]) -> None:
    notes = Notes("file.json")
    images = read_images(raws(values), RULES, notes)
    assert images["image_id"].n_unique() == len(images)
    assert len(images) + len(notes.rejects) == len(values)
