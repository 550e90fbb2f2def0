"""Whatever files hold: pictures are used or rejected with a reason, lists end in one line; queries can be found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.common.errors import CorruptRecordError, PrepError
from data_prep.common.fingerprints import CORRELATION, find_close_hashes, find_near, perceptual_hash
from data_prep.finegrained.images import ImageRules, Shot, find_region, look_at_block
from data_prep.finegrained.roles import Seen, draw_roles
from data_prep.finegrained.splitting import SplitRule, divide_identities, held_out_of
from data_prep.finegrained.veri776 import read_labels
from tests.data.finegrained import make
from tests.data_prep.finegrained.helpers import rejects, run

SHARED_FOLDER = [HealthCheck.function_scoped_fixture]
NUMBERS = st.one_of(st.integers(-20, 80).map(float), st.floats(-1e12, 1e12))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".pgm"])
def test_truncated_and_flipped_pictures_are_used_or_rejected(tmp_path, suffix):
    image = Image.fromarray(make.pixels(1)).convert("L" if suffix == ".pgm" else "RGB")
    image.save(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    shots = []
    for number in range(80):
        data = bytearray(whole)
        if number % 2:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            for _ in range(3):
                data[int(rng.integers(0, min(len(data), 600)))] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{number:03d}{suffix}"
        path.write_bytes(data)
        shots.append(Shot(number, str(path), None, False))
    (tmp_path / "out").mkdir()
    assert look_at_block(shots, ImageRules(), tmp_path / "out") == {"images": len(shots)}
    facts = pl.read_parquet(tmp_path / "out/facts.parquet")
    used = facts.filter(pl.col("reason") == "")
    assert (used["width"] > 0).all() and (used["right"] <= used["width"]).all() and (used["bottom"] > used["top"]).all()
    assert facts.filter(pl.col("reason") != "").height > 10


@settings(max_examples=40, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(data=st.data())
def test_truncated_and_flipped_matlab_files_end_in_one_line(tmp_path, data):
    packed = data.draw(st.booleans())
    folder = tmp_path / f"packed-{packed}"
    if not folder.exists():
        make.write_cars(folder, per_class=2, packed=packed)
        (folder / "cars_annos.mat").rename(folder / "whole")
    whole = bytearray((folder / "whole").read_bytes())
    keep = data.draw(st.integers(0, len(whole)))
    if data.draw(st.booleans()):
        whole = whole[:keep]
    else:
        whole[min(keep, len(whole) - 1)] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "cars_annos.mat").write_bytes(whole)
    try:
        run("cars", folder, tmp_path / "out", max_rejects=1.0)
    except PrepError as error:
        assert "\n" not in str(error)
    for name in ("dataset.json", "rejects.parquet", "duplicates.parquet"):
        (tmp_path / "out" / name).unlink(missing_ok=True)


@settings(max_examples=40, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(content=st.one_of(st.binary(max_size=80), st.text(max_size=60).map(lambda text: f"<a>{text}</a>".encode())))
def test_damaged_labels_end_in_one_line(tmp_path, content):
    path = tmp_path / "train_label.xml"
    path.write_bytes(content)
    try:
        assert isinstance(read_labels(path), dict)
    except CorruptRecordError as error:
        assert str(error).startswith(str(path))


@settings(max_examples=25, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30), max_size=5),
    name=st.sampled_from(["images_variant_test.txt", "images_box.txt", "variants.txt"]),
)
def test_damaged_lists_reject_or_end_in_one_line(tmp_path, lines, name):
    raw = tmp_path / "raw"
    if not raw.exists():
        make.write_aircraft(raw, per_split=3)
    path = raw / "fgvc-aircraft-2013b/data" / name
    before = path.read_bytes()
    try:
        path.write_bytes(before + "\n".join(lines).encode())
        run("aircraft", raw, tmp_path / "out", max_rejects=1.0)
        listed = {record for source, record, _ in rejects(tmp_path / "out") if source == name}
        if name == "images_variant_test.txt":
            assert len(listed) == sum(bool(line.strip()) for line in lines)
    except PrepError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(before)
        for published in ("dataset.json",):
            (tmp_path / "out" / published).unlink(missing_ok=True)


@settings(max_examples=200, deadline=None)
@given(
    box=st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    margin=st.floats(0, 2),
    trim=st.integers(0, 30),
)
def test_regions_lie_in_the_picture_and_hold_the_box(box, size, margin, trim):
    try:
        (left, top, right, bottom), _ = find_region(size, box, ImageRules(margin, trim), Path("a.png"))
    except CorruptRecordError:
        return
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1] - trim
    if box is not None:
        assert left <= max(box[0], 0) and right >= min(box[2], size[0])
        assert top <= max(box[1], 0) and bottom >= min(box[3], size[1] - trim)


PICTURES = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("123")), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(pictures=PICTURES, ignore=st.booleans(), queries=st.none() | st.integers(1, 3), seed=st.integers(0, 5))
def test_drawn_queries_have_a_match_and_are_no_more_than_asked_for(pictures, ignore, queries, seed):
    names = [f"{at:02d}" for at in range(len(pictures))]
    seen = Seen([name for name, _ in pictures], [camera for _, camera in pictures], ignore)
    roles = draw_roles(seen, names, queries, seed)
    asked = {row for row, role in enumerate(roles) if role == "query"}
    assert seen.with_match(roles) == asked
    counts: dict[tuple[str, str], int] = {}
    for row in asked:
        key = (pictures[row][0], "" if ignore else pictures[row][1])
        counts[key] = counts.get(key, 0) + 1
    held = Counter((name, "" if ignore else camera) for name, camera in pictures)
    assert all(count <= (max(held[key] // 2, 1) if queries is None else queries) for key, count in counts.items())
    if queries is None and ignore:
        assert counts == {key: count // 2 for key, count in held.items() if count > 1}
    # whoever can be found is asked for
    assert {pictures[row][0] for row in asked} == seen.usable()
    order = np.random.default_rng(seed).permutation(len(pictures))
    shuffled = Seen([pictures[row][0] for row in order], [pictures[row][1] for row in order], ignore)
    again = draw_roles(shuffled, [names[row] for row in order], queries, seed)
    assert {order[row] for row, role in enumerate(again) if role == "query"} == asked


@settings(max_examples=100, deadline=None)
@given(pictures=PICTURES, ratios=st.sampled_from([None, (0.5, 0.2, 0.3), (1.0, 0.0, 0.0)]), seed=st.integers(0, 5))
def test_identities_are_never_on_two_sides(pictures, ratios, seed):
    frame = pl.DataFrame(
        {
            "name": [f"{at:02d}" for at in range(len(pictures))],
            "label": [name for name, _ in pictures],
            "camera": [camera for _, camera in pictures],
            "split": [""] * len(pictures),
        }
    )
    split = divide_identities(frame, SplitRule(ratios, seed=seed), "somewhere")
    sides: dict[str, set[str]] = {}
    for (name, _), side, role in zip(pictures, split.splits, split.roles, strict=True):
        sides.setdefault(name, set()).add(side)
        assert (role == "") == (side == "train")
    assert all(len(found) == 1 for found in sides.values())


@given(trained=st.integers(0, 2000), scarce=st.integers(0, 2000))
def test_held_out_identities_are_enough_and_never_more_than_half(trained, scarce):
    held = held_out_of(trained, trained)
    assert held != 1 and 2 * held <= trained
    assert held == trained // 10 if trained >= 100 else held <= 10
    assert held >= min(10, trained // 5)
    assert held_out_of(trained, min(scarce, trained)) <= min(held, scarce)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), grain=st.integers(1, 6), noise=st.floats(0, 10))
def test_near_duplicates_are_all_close_pairs_whose_ranks_agree(seed, grain, noise):
    rng = np.random.default_rng(seed)
    smooth = [make.pixels(at, (32, 32))[..., 0].astype(float) for at in range(grain + 24)]
    kinds = [
        smooth[at] + rng.uniform(0, 0.2) * (smooth[grain + n] - 128)
        for n, at in enumerate(rng.integers(grain, size=24))
    ]
    small = np.stack([np.clip(kind + rng.normal(0, noise, kind.shape), 0, 255).astype(np.uint8) for kind in kinds])
    hashes = np.array([perceptual_hash(one) for one in small], dtype=np.uint64)
    wanted = []
    for first, second in find_close_hashes(hashes).tolist():
        ranks = [pl.Series(small[at].reshape(-1)).rank().to_numpy() for at in (first, second)]
        correlation = np.corrcoef(ranks)[0, 1]
        if abs(correlation - CORRELATION) > 1e-5:
            wanted += [(first, second)] * bool(correlation > CORRELATION)
    near = find_near(hashes, lambda rows: small[rows])
    assert set(wanted) <= set(zip(near.first.tolist(), near.second.tolist(), strict=True))
    assert (near.correlation >= CORRELATION).all()


def test_hostile_names_stay_inside_the_raw_folder(tmp_path):
    raw = make.write_folder(tmp_path / "raw", ("a", "b"), 4)
    make.picture(tmp_path / "secret.png", 1)
    rows = [f"{name}/{at:03d}.png,{name}" for name in "ab" for at in range(4)]
    rows += ["../secret.png,a", f"{tmp_path}/secret.png,a", "..\\secret.png,a", "a/\x00.png,a", ",a", "/,a", ".,a"]
    (raw / "table.csv").write_text("\n".join(["image,label", *rows]))
    run("csv", raw, tmp_path / "out", max_rejects=1.0)
    assert [record for _, record, _ in rejects(tmp_path / "out")] == list(range(8, 15))
