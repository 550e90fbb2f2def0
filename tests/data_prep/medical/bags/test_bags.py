"""Features and labels become bags: whatever layout, whatever is wrong with some of them, killed or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import torch

from data_prep.common.errors import ConfigError, IncompleteError, LabelError, LeakError, PrepError, RejectsExceededError
from data_prep.common.manifest import verify_files
from data_prep.medical.wsi.bags.bags import prepare
from data_prep.medical.wsi.bags.planted import write_planted_bags
from tests.data_prep.helpers import ROOT, kill_and_continue, tree
from tests.data_prep.medical.bags.helpers import (
    SLIDES,
    bag,
    damage,
    index,
    places,
    rejects,
    run,
    values,
    write_native,
    write_table,
)

NAMES = [row[1] for row in SLIDES]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "slides.csv")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return write_native(tmp_path / "features")


def test_what_is_prepared(tmp_path: Path, features: Path, table: Path) -> None:
    out = tmp_path / "out"
    card = run(features, out, table)
    assert (card["domain"], card["kind"], card["feature_dim"], card["encoder"]) == ("medical", "bags", 4, "vit")
    assert (card["mpp"], card["patch_size"], card["classes"]) == (0.5, 256, ["normal", "tumor"])
    assert card["group"] == {"name": "patient", "kept_apart": True, "groups": 12}
    assert len(card["sources"]) == len(NAMES) + 1 and card["rejects"] == {"count": 0, "share": 0.0}
    everything = index(out)
    assert everything["name"].to_list() == NAMES and everything["row"].to_list() == list(range(24))
    assert everything.columns[:7] == ["row", "name", "patient", "label", "site", "patches", "file"]
    held = []
    for split in ("train", "valid", "test"):
        part = index(out, split)
        assert part.schema["row"] == pl.UInt64 and part.schema["label"] == pl.UInt32
        assert part["row"].to_list() == list(range(part.height)) and part.height == card["splits"][split]["rows"] > 0
        assert everything.filter(split=split).drop("row", "split").equals(part.drop("row"))
        held.append(set(part["patient"]))
        verify_files(out, {item["path"]: item["sha256"] for item in card["splits"][split]["parts"]})
    assert len(set.union(*held)) == sum(map(len, held)) == 12
    for patient, slide, label, site in SLIDES:
        row = everything.row(by_predicate=pl.col("name") == slide, named=True)
        assert (row["patient"], card["classes"][row["label"]], row["site"]) == (patient, label, site)
        assert (row["size_level0"], row["width"], row["height"], row["patches"]) == (512.0, 4096, 2048, 6)
        with h5py.File(out / row["file"]) as file:
            stored, coords = file[row["dataset"]], file[row["coords"]]
            assert stored.chunks is None and stored.dtype == np.float32 and coords.dtype == np.int64
            assert np.array_equal(stored[()], values(slide)) and np.array_equal(coords[()], places(6))
    assert run(features, out, table) == card
    with pytest.raises(ConfigError, match="other options"):
        run(features, out, table, seed=1)


def test_features_of_any_tool_give_the_same_bags(tmp_path: Path, features: Path, table: Path) -> None:
    run(features, tmp_path / "native", table)
    clam, trident = tmp_path / "clam", tmp_path / "trident" / "features_vit"
    for folder in (clam / "pt_files", clam / "h5_files", trident):
        folder.mkdir(parents=True)
    with h5py.File(tmp_path / "acmil.h5", "w") as acmil:
        for slide in NAMES:
            x, coords = values(slide), places(6)
            torch.save(torch.from_numpy(x), clam / "pt_files" / f"{slide}.pt")
            damage(clam / "h5_files" / f"{slide}.h5", x, coords.astype(np.int32))
            damage(trident / f"{slide}.svs.h5", x[None], coords)
            acmil[f"{slide}/feat"], acmil[f"{slide}/coords"] = x.astype(np.float16), coords
    for name, raw in (
        ("clam", clam),
        ("pt", clam / "pt_files"),
        ("trident", trident),
        ("acmil", tmp_path / "acmil.h5"),
    ):
        card = run(raw, tmp_path / name / "out", table)
        assert index(tmp_path / name / "out")["name"].to_list() == NAMES
        assert len(card["sources"]) == (2 if name == "acmil" else 25)
        for slide in NAMES[:3]:
            found = bag(tmp_path / name / "out", slide)
            wanted = values(slide).astype(np.float16 if name == "acmil" else np.float32)
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
    assert index(tmp_path / "pt" / "out")["coords"].to_list() == [""] * 24
    splits = [index(tmp_path / name / "out")["split"].to_list() for name in ("clam", "pt", "trident", "acmil")]
    assert splits == [index(tmp_path / "native")["split"].to_list()] * 4


def test_labels_beside_the_features_need_no_table(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "acmil.h5", "w") as file:
        for i in range(12):
            file[f"BRACS_{i}/feat"] = values(str(i)).astype(np.float16)
            file[f"BRACS_{i}"].attrs["label"] = (0, 4, 6)[i % 3]
    with pytest.raises(ConfigError, match="no column of patients"):
        run(tmp_path / "acmil.h5", tmp_path / "out")
    card = run(tmp_path / "acmil.h5", tmp_path / "out", patients="slide", label_map="bracs-3", ratios=(0.5, 0.25, 0.25))
    assert card["classes"] == ["benign", "atypical", "malignant"] and card["group"]["name"] == "slide"
    assert sorted(index(tmp_path / "out")["label"]) == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(ConfigError, match="no labels are stored beside these features; give --table"):
        run(write_native(tmp_path / "native"), tmp_path / "no")


def test_classes_are_told_and_rare_ones_warned_of(tmp_path: Path, features: Path, capsys: Any) -> None:
    rows = [(case, slide, "rare" if case in ("p00", "p02") else label, site) for case, slide, label, site in SLIDES]
    run(features, tmp_path / "out", write_table(tmp_path / "t.csv", rows))
    said = capsys.readouterr().err
    assert "classes: normal 8 slides of 4 patients; rare 4 slides of 2 patients; tumor 12 slides of 6 patients" in said
    assert said.count("warning: class") == 1 and "class 'rare' has 2 patients: too few" in said


def test_patients_spelled_in_two_ways_stay_together(tmp_path: Path, features: Path) -> None:
    rows = [(case.upper() if slide.endswith(".1") else case, slide, *rest) for case, slide, *rest in SLIDES]
    card = run(features, tmp_path / "out", write_table(tmp_path / "t.csv", rows))
    assert card["group"]["groups"] == 12
    sides = [("train" if index % 2 else "test") for index in range(len(rows))]
    listed = [(*row, side) for row, side in zip(rows, sides, strict=True)]
    path = write_table(tmp_path / "u.csv", listed, "case_id,slide_id,label,site,split")
    with pytest.raises(LeakError, match=r"patient 'P01' is in train .* and in test"):
        run(features, tmp_path / "no", path)


def test_bags_in_place_are_not_copied(tmp_path: Path, features: Path, table: Path) -> None:
    one, other = features / f"{NAMES[0]}.h5", features / f"{NAMES[1]}.h5"
    damage(one, values(NAMES[0])[None])  # [1, N, D]
    damage(other, np.concatenate([values(NAMES[1]), np.full((1, 4), np.nan, np.float32)]), places(7))
    out = tmp_path / "out"
    run(features, out, table, in_place=True, max_bad=0.2)
    assert sorted(path.name for path in (out / "bags").iterdir()) == [one.name, other.name]
    rows = index(out)
    assert rows["file"].to_list()[2:] == [str((features / f"{name}.h5").resolve()) for name in NAMES[2:]]
    for name in NAMES:
        assert np.array_equal(bag(out, name), values(name))
    run(features, tmp_path / "half", table, in_place=True, dtype="float16", max_bad=0.2)
    assert bag(tmp_path / "half", NAMES[5]).dtype == np.float16


def test_rows_of_nan_are_left_out_and_too_many_reject_the_slide(
    tmp_path: Path, features: Path, table: Path, capsys: Any
) -> None:
    x = values(NAMES[0], rows=20)
    x[3, 1], x[7, 0] = np.nan, np.inf
    damage(features / f"{NAMES[0]}.h5", x, places(20))
    damage(features / f"{NAMES[1]}.h5", np.where(np.arange(6)[:, None] < 2, np.nan, values(NAMES[1])), places(6))
    out = tmp_path / "out"
    card = run(features, out, table, max_rejects=0.1)
    assert np.array_equal(bag(out, NAMES[0]), np.delete(x, [3, 7], axis=0))
    with h5py.File(out / "bags" / f"{NAMES[0]}.h5") as file:
        assert np.array_equal(file["coords"][()], np.delete(places(20), [3, 7], axis=0))
    assert card["counts"]["bad_rows"] == 2 and card["rejects"]["count"] == 1
    status = pl.read_parquet(out / "slides.parquet")
    assert status.filter(name=NAMES[0]).select("patches", "bad_rows").row(0) == (18, 2)
    assert rejects(out)[0]["excerpt"] == NAMES[1] and "NaN or infinity in 2 of 6 rows" in rejects(out)[0]["reason"]
    said = capsys.readouterr().err
    assert "left out of 1 slides, 2 in all" in said and f"left out: {NAMES[1]} ({NAMES[1]}.h5)" in said


@pytest.mark.parametrize(
    ("x", "coords", "reason"),
    [
        (np.zeros((0, 4), np.float32), np.zeros((0, 2), np.int64), "no patches, an empty bag"),
        (values("a"), places(5), "6 rows of features but 5 coordinates"),
        (np.full((3, 4), np.nan, np.float32), places(3), "NaN or infinity in 3 of 3 rows"),
        (np.full((3, 4), 1e300), places(3), "beyond the range of float32"),
        (None, places(3), "holds patches, but no features"),
    ],
    ids=["empty", "lengths", "nan", "float64", "no-features"],
)
def test_a_slide_that_cannot_be_used_is_named(
    tmp_path: Path, features: Path, table: Path, x: Any, coords: Any, reason: str
) -> None:
    damage(features / f"{NAMES[4]}.h5", x, coords)
    with pytest.raises(RejectsExceededError, match=rf"{NAMES[4]}\.h5: .*1 of 24 records are unusable"):
        run(features, tmp_path / "out", table)
    assert not (tmp_path / "out" / "dataset.json").exists()
    card = run(features, tmp_path / "out", table, max_rejects=0.05)
    assert card["counts"]["slides"] == 23 and NAMES[4] not in index(tmp_path / "out")["name"]
    assert [(item["excerpt"], reason in item["reason"]) for item in rejects(tmp_path / "out")] == [(NAMES[4], True)]


@pytest.mark.parametrize("cut", [0, 40, 700, 1500])
def test_truncated_features_are_named(tmp_path: Path, features: Path, table: Path, cut: int) -> None:
    path = features / f"{NAMES[3]}.h5"
    path.write_bytes(path.read_bytes()[:cut])
    run(features, tmp_path / "out", table, max_rejects=0.05)
    assert [item["excerpt"] for item in rejects(tmp_path / "out")] == [NAMES[3]]


def test_slides_without_label_or_without_features(tmp_path: Path, features: Path, capsys: Any) -> None:
    rows = [(*row[:2], "" if row[1] == NAMES[0] else row[2], row[3]) for row in SLIDES if row[1] != NAMES[2]]
    table = write_table(tmp_path / "t.csv", [*rows, ("p77", "x.1", "tumor", "A")])
    with pytest.raises(RejectsExceededError, match="3 of 25 records are unusable"):
        run(features, tmp_path / "out", table)
    run(features, tmp_path / "out", table, max_rejects=0.2)
    found = {(item["excerpt"], item["field"], item["reason"]) for item in rejects(tmp_path / "out")}
    assert found == {
        (f"{NAMES[0]}: ", "label", "label missing"),
        ("x.1", "slide", "slide without features"),
        (NAMES[2], "label", "slide without a row in the table"),
    }
    card = run(features, tmp_path / "ignored", table, unmatched="ignore", max_rejects=0.05)
    assert card["counts"]["slides"] == 22 and card["rejects"]["count"] == 1
    assert "ignored: 1 slides of the table without features, 1 slides with features" in capsys.readouterr().err


def test_names_that_do_not_match_are_shown_side_by_side(tmp_path: Path, features: Path) -> None:
    table = write_table(tmp_path / "t.csv", [("p", "S-1", 0), ("q", "S-2", 1)], "case_id,slide_id,label")
    with pytest.raises(ConfigError, match=r"none of its 2 slides has features .* 'S-1', the features 's00\.0'"):
        run(features, tmp_path / "out", table)


def test_features_of_different_encoders_are_refused(tmp_path: Path, features: Path, table: Path, capsys: Any) -> None:
    write_native(features, NAMES[:1], dim=5)
    with pytest.raises(ConfigError, match=r"slide 's01\.0' has 4 features per patch, 's00\.0' has 5"):
        run(features, tmp_path / "out", table)
    write_native(features, NAMES[:1], encoder="resnet")
    with pytest.raises(ConfigError, match=r"encoder resnet \(slide s00\.0\) and vit \(slide s01\.0\)"):
        run(features, tmp_path / "out", table)
    with h5py.File(write_native(features, NAMES[:1]) / f"{NAMES[0]}.h5", "a") as file:
        file["coords"].attrs["target_mpp"] = 0.25
    assert run(features, tmp_path / "out", table)["mpp"] is None
    assert "warning: slides of different mpp: mpp 0.25 (slide s00.0) and 0.5" in capsys.readouterr().err


def test_float16_is_kept_and_asked_for(tmp_path: Path, features: Path, table: Path) -> None:
    large = values(NAMES[0])
    large[0, 0] = 1e5
    damage(features / f"{NAMES[0]}.h5", large, places(6))
    run(features, tmp_path / "out", table, dtype="float16")
    assert bag(tmp_path / "out", NAMES[0]).dtype == np.float32 and bag(tmp_path / "out", NAMES[1]).dtype == np.float16
    assert np.isfinite(bag(tmp_path / "out", NAMES[0])).all()


def test_splits_may_be_given(tmp_path: Path, features: Path, table: Path, capsys: Any) -> None:
    (tmp_path / "s.csv").write_text(
        ",train,val,test\n0,s00.0,,s02.0\n1,s01.0,,s02.1\n2,s01.1,,gone\n3,s03.0,,\n4,s04.0,,\n"
    )
    card = run(features, tmp_path / "out", table, splits=str(tmp_path / "s.csv"), valid_share=0.5)
    assert index(tmp_path / "out", "test")["name"].to_list() == ["s02.0", "s02.1"]
    assert card["splits"]["train"]["rows"] + card["splits"]["valid"]["rows"] == 5
    assert index(tmp_path / "out")["split"].null_count() == 17
    assert (card["split_rule"]["kind"], card["split_rule"]["not_found"]) == ("list", ["gone"])
    said = capsys.readouterr().err
    assert "names 1 slides (gone)" in said and "in no split: 17 slides" in said and "50% of the training" in said
    (tmp_path / "s.csv").write_text(",train,val,test\n0,s02.0,s01.0,s02.1\n1,s03.0,,s00.0\n")
    with pytest.raises(
        LeakError, match=r"s\.csv: patient 'p02' is in train \(slide s02\.0\) and in test \(slide s02\.1\)"
    ):
        run(features, tmp_path / "leak", table, splits=str(tmp_path / "s.csv"))
    assert not (tmp_path / "leak" / "dataset.json").exists()


def test_an_official_column_is_followed(tmp_path: Path, features: Path) -> None:
    rows = [(*row[:3], ("train", "train", "val", "test")[int(row[0][1:]) % 4]) for row in SLIDES]
    table = write_table(tmp_path / "t.csv", rows, "case_id,slide_id,label,split_info")
    test_only = write_table(tmp_path / "u.csv", [(*row[:3], "test") for row in SLIDES], "case_id,slide_id,label,split")
    with pytest.raises(LabelError, match="the training split has no slides"):
        run(features, tmp_path / "x", test_only)
    card = run(features, tmp_path / "out", table)
    assert card["split_rule"]["kind"] == "column"
    assert set(index(tmp_path / "out", "test")["patient"]) == {"p03", "p07", "p11"}
    card = run(features, tmp_path / "own", table, splits="stratified")
    assert set(index(tmp_path / "own", "test")["patient"]) != {"p03", "p07", "p11"}
    assert run(features, tmp_path / "hashed", table, splits="hashed")["split_rule"]["kind"] == "hashed"


def test_options_out_of_range(tmp_path: Path, features: Path, table: Path) -> None:
    wrong: list[dict[str, Any]] = [{"max_rejects": -1}, {"max_bad": 1}, {"dtype": "int8"}, {"ratios": (1, 1, 1)}]
    for options in [*wrong, {"valid_share": 1}, {"n_shot": -1}, {"executor": "cloud"}, {"workers": 0}]:
        with pytest.raises(ConfigError):
            run(features, tmp_path / "out", table, **{"executor": "local", **options})


# -- interrupted, shared, repeated


WORKER = """
import sys
from pathlib import Path
from data_prep.medical.wsi.bags.bags import prepare
if __name__ == "__main__":
    raw, table, out, executor = sys.argv[1:]
    prepare("bags", Path(raw), Path(out), table=Path(table), workers=2, executor=executor, progress=False)
"""


def test_killed_in_the_middle_of_tasks_then_continued(tmp_path: Path, features: Path, table: Path) -> None:
    run(features, tmp_path / "serial", table)
    out = tmp_path / "out"
    found = kill_and_continue(tmp_path, WORKER, [features, table, out, "serial"], out, [3, 24])
    assert found == tree(tmp_path / "serial")


def test_two_processes_give_the_same_bytes(tmp_path: Path, features: Path, table: Path) -> None:
    run(features, tmp_path / "serial", table)
    prepare("bags", features, tmp_path / "out", table=table, workers=2, progress=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


def test_shards_give_the_same_bytes(tmp_path: Path, features: Path, table: Path) -> None:
    run(features, tmp_path / "serial", table)
    for _ in range(3):
        for share in range(2):
            try:
                run(features, tmp_path / "out", table, shard=f"{share}/2")
            except IncompleteError as error:
                assert "run the other shards" in str(error)
    assert tree(tmp_path / "out") == tree(tmp_path / "serial")


def test_finished_slides_are_kept_and_damaged_ones_made_again(
    tmp_path: Path, features: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.medical.wsi.bags import packing

    out, read, original = tmp_path / "out", [], packing.read_features

    def fail(*_: Any) -> dict[str, Any]:
        raise PrepError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.medical.wsi.bags.index.write_index", fail)
        with pytest.raises(PrepError, match="stop here"):
            run(features, out, table)
    assert not (out / "dataset.json").exists()
    (out / ".work" / "bags" / "000005" / "bag.h5").write_bytes(b"damaged")

    def count(entry: Any, *rest: Any) -> Any:
        read.append(entry.slide)
        return original(entry, *rest)

    monkeypatch.setattr(packing, "read_features", count)
    run(features, out, table)
    assert read == [NAMES[5]]
    run(features, tmp_path / "fresh", table)
    assert tree(out) == tree(tmp_path / "fresh")


def test_torch_stays_out_of_bags_without_pt_files(tmp_path: Path, features: Path, table: Path) -> None:
    script = tmp_path / "script.py"
    modules = ("apply", "wsi.bags.mil_csv", "wsi.bags.splitting")
    others = "".join(f"import data_prep.medical.{module}\n" for module in modules)
    script.write_text(others + WORKER + "    assert not {'torch', 'timm', 'domains'} & set(sys.modules)\n")
    command = [sys.executable, script, features, table, tmp_path / "out", "serial"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr.startswith("classes: ")


# -- planted


def test_planted_lesions_are_found_only_by_looking_at_single_patches(tmp_path: Path) -> None:
    planted = write_planted_bags(tmp_path, patients=40, seed=3)
    out = tmp_path / "out"
    card = run(planted.features, out, planted.table)
    assert card["classes"] == ["normal", "tumor"] and card["encoder"] == "planted"
    truth, rows = pl.read_parquet(planted.truth), index(out)
    shares = truth.group_by("slide").agg(pl.col("lesion").mean()).sort("slide")
    assert ((shares["lesion"] > 0).to_numpy() == rows["label"].to_numpy().astype(bool)).all()
    assert shares.filter(pl.col("lesion") > 0)["lesion"].mean() == pytest.approx(0.06, abs=0.02)
    bags = {name: bag(out, name).astype(np.float64) for name in rows["name"]}
    lesion = np.concatenate([truth.filter(slide=name)["lesion"].to_numpy() for name in bags])
    everything = np.concatenate(list(bags.values()))
    axis = everything[lesion].mean(axis=0) - everything[~lesion].mean(axis=0)
    axis /= np.linalg.norm(axis)
    score = np.array([np.sort(x @ axis)[-5:].mean() for x in bags.values()])
    length = np.array([np.linalg.norm(x, axis=1).max() for x in bags.values()])
    labels = rows["label"].to_numpy()

    def auroc(scores: np.ndarray) -> float:
        return float((scores[labels == 1][:, None] > scores[labels == 0]).mean())

    assert auroc(score) > 0.97 and auroc(length) < 0.75
    again = write_planted_bags(tmp_path / "again", patients=40, seed=3)
    assert tree(again.features) == tree(planted.features)
