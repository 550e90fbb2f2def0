from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import auc, roc_auc_score

from domains.common.errors import PreparedDataError
from domains.medical.evaluation import evaluate_diagnosis, report_tables, shortcuts
from domains.medical.figures import figures
from domains.medical.patients import implied_thresholds, patient_table, units


def predictions(rows=400, classes=2, seed=0, patients=120, threshold=None, **columns):
    """A table as `test` writes it: patients of a few images each, all of one label."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, patients, rows)
    labels = rng.integers(0, classes, patients)[owner]
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 1.2
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    table = {"row": np.arange(rows), "name": [f"image-{i}" for i in range(rows)], "patient": [f"P{i}" for i in owner]}
    table |= {"label": labels, **{f"probability_{k}": p[:, k] for k in range(classes)}}
    table["predicted"] = p.argmax(axis=1) if threshold is None else (p[:, 1] >= threshold).astype(int)
    return pl.DataFrame(table | columns)


def test_images_and_patients_are_measured():
    frame = predictions()
    found = evaluate_diagnosis(frame, ["negative", "positive"], replicates=60)
    assert found["auroc"].value == pytest.approx(roc_auc_score(frame["label"], frame["probability_1"]))
    assert found["auroc"].units == frame["patient"].n_unique()
    means = frame.group_by("patient").agg(pl.col("label").first(), pl.col("probability_1").mean())
    assert found["patient_auroc"].value == pytest.approx(roc_auc_score(means["label"], means["probability_1"]))
    assert found["patient_auroc"].value > found["auroc"].value, "averaging over images of one patient removes noise"
    assert {"sensitivity_positive", "patient_ppv_negative", "patient_brier"} <= set(found)


def test_a_patient_of_one_image_needs_no_metrics_of_patients():
    frame = predictions().unique("patient", maintain_order=True)
    assert not any(name.startswith("patient_") for name in evaluate_diagnosis(frame, replicates=2))
    nameless = predictions().with_columns(patient=pl.lit(""))
    assert evaluate_diagnosis(nameless, replicates=2)["auroc"].units == 400, (
        "rows without a patient stand for themselves"
    )


def test_patients_whose_label_changes():
    """A time series: the illness of P0 is gone in its second image."""
    frame = pl.DataFrame(
        {
            "patient": ["P0", "P0", "P1", "P1", "P2"],
            "label": [1, 0, 1, 1, 0],
            "probability_0": [0.1, 0.8, 0.7, 0.2, 0.9],
            "probability_1": [0.9, 0.2, 0.3, 0.8, 0.1],
            "predicted": [1, 0, 0, 1, 0],
        }
    )
    left = patient_table(frame)
    assert left["patient"].to_list() == ["P1", "P2"]
    assert left["probability_1"].to_list() == pytest.approx([0.55, 0.1])
    highest = patient_table(frame, aggregation="max", conflicts="highest")
    assert highest["label"].to_list() == [1, 1, 0]
    assert highest["probability_1"].to_list() == pytest.approx([0.9, 0.8, 0.1])
    assert highest["probability_0"].to_list() == pytest.approx([0.1, 0.2, 0.9])
    assert evaluate_diagnosis(frame, replicates=5)["patient_auroc"].units == 2
    text = str(report_tables(frame, {})["Patients"])
    assert "'patients': 3" in text
    assert "unless asked for)': 1" in text


def test_the_threshold_of_images_decides_on_patients():
    frame = predictions(threshold=0.8)
    assert implied_thresholds(frame)[None] == pytest.approx(0.8, abs=0.02)
    patients = patient_table(frame)
    assert (patients["predicted"] == (patients["probability_1"] >= 0.8).cast(int)).mean() > 0.97
    given = patient_table(frame, threshold=0.3)
    assert (given["predicted"] == (given["probability_1"] >= 0.3).cast(int)).all()
    assert implied_thresholds(predictions(classes=3)) == {None: None}


def test_pooled_folds_keep_their_thresholds_and_patients():
    one = predictions(seed=1, threshold=0.3).with_columns(fold=pl.lit(0))
    two = predictions(seed=2, threshold=0.7).with_columns(fold=pl.lit(1))
    both = pl.concat([one, two])
    cut = implied_thresholds(both)
    assert cut[0] == pytest.approx(0.3, abs=0.02)
    assert cut[1] == pytest.approx(0.7, abs=0.02)
    patients = patient_table(both)
    alone = patient_table(one, threshold=cut[0])
    assert patients.filter(pl.col("fold") == 0)["predicted"].to_list() == alone["predicted"].to_list()
    assert evaluate_diagnosis(both, replicates=3)["patient_auroc"].units == both["patient"].n_unique()


def test_three_classes():
    found = evaluate_diagnosis(predictions(classes=3), ["normal", "pneumonia", "covid"], replicates=20)
    assert found["patient_auroc_covid"].value > 0.7
    maxima = patient_table(predictions(classes=3), aggregation="max")
    shares = maxima.select(pl.sum_horizontal(f"probability_{k}" for k in range(3))).to_series()
    assert shares.to_list() == pytest.approx([1] * len(maxima))


def of_sources(frame, source):
    return frame.with_columns(source=pl.Series(source))


class TestSources:
    def test_a_source_that_is_the_label_is_told(self):
        frame = predictions()
        frame = of_sources(frame, ["ricord" if y else "rsna" for y in frame["label"]])
        warning = shortcuts(frame, ["negative", "positive"])
        assert len(warning) == 1
        assert warning[0].startswith("No source has rows of two classes (negative from rsna; positive from ricord)")
        assert "source-control" in warning[0]
        found = evaluate_diagnosis(frame, replicates=2)
        assert "within_source_auroc" not in found, "nothing can be compared inside a source"
        tables = report_tables(frame, found)
        row = tables["By source"][0]
        assert row["AUROC"] == "-"
        assert next(iter(tables)) == "Read before trusting the numbers"

    def test_a_model_of_the_source_fails_within_sources(self):
        """Scores that follow the source alone look good, and are worth nothing inside a source."""
        rng = np.random.default_rng(0)
        frame = predictions(rows=2000, patients=2000)
        source = np.where(rng.random(2000) < np.where(frame["label"].to_numpy() == 1, 0.9, 0.1), "a", "b")
        p = np.where(source == "a", 0.8, 0.2) + 0.1 * rng.random(2000)
        frame = of_sources(frame, source).with_columns(
            probability_1=pl.Series(p), probability_0=pl.Series(1 - p), predicted=pl.Series((p > 0.5).astype(int))
        )
        found = evaluate_diagnosis(frame, ["negative", "positive"], replicates=40)
        assert found["auroc"].value > 0.85
        assert found["within_source_auroc"].low < 0.5 < found["within_source_auroc"].high
        warning = shortcuts(frame, ["negative", "positive"])
        assert "source alone, without any image, reaches an AUROC of 0.8" in warning[0]

    def test_it_is_the_mean_over_pairs_inside_sources(self):
        frame = of_sources(predictions(rows=300), list(np.random.default_rng(1).choice(["x", "y", ""], 300)))
        won = pairs = 0
        for value in "xy":
            part = frame.filter(pl.col("source") == value)
            y = part["label"]
            weight = y.sum() * (len(y) - y.sum())
            won, pairs = won + weight * roc_auc_score(y, part["probability_1"]), pairs + weight
        got = evaluate_diagnosis(frame, replicates=2)["within_source_auroc"].value
        assert got == pytest.approx(won / pairs)

    def test_a_class_of_one_source_only(self):
        frame = predictions(rows=600, patients=600)
        source = [("mixed", "other")[i % 2] if y == 0 else "mixed" for i, y in enumerate(frame["label"])]
        warning = shortcuts(of_sources(frame, source), ["negative", "positive"])
        assert warning[0].startswith("Every row of class positive comes from source mixed")

    def test_views_and_sites_have_tables_too(self):
        rng = np.random.default_rng(3)
        frame = predictions(view=rng.choice(["PA", "AP", ""], 400), site=rng.choice(list("abcdefgh"), 400))
        tables = report_tables(frame, evaluate_diagnosis(frame, ["no", "yes"], replicates=2))
        assert list(tables) == ["Patients", "By view", "By site"], "nothing to warn of"
        views = tables["By view"]
        assert {row["view"] for row in views} == {"PA", "AP", "unknown"}
        assert sum(row["rows"] for row in views) == 400
        assert sum(row["yes"] for row in views) == frame["label"].sum()
        assert "[" in views[0]["sensitivity"]

    def test_many_sites_are_gathered(self):
        frame = predictions(rows=400, site=[f"s{i % 60}" for i in range(400)])
        rows = report_tables(frame, {})["By site"]
        assert len(rows) == 40
        assert rows[-1]["site"] == "21 others"
        assert sum(row["rows"] for row in rows) == 400


def test_units_do_not_mix_names_and_places():
    frame = pl.DataFrame({"patient": ["1", "", "r1", None, "1"]})
    assert len(set(units(frame).tolist())) == 4


def test_a_table_without_labels_is_refused():
    with pytest.raises(PreparedDataError, match="lack the columns label"):
        evaluate_diagnosis(predictions().drop("label"))


TITLES = [
    "Receiver operating characteristic",
    "Precision and recall",
    "Calibration",
    "Confusion matrix",
    "Probabilities by class",
]


def test_pictures_of_two_classes():
    frame = predictions(threshold=0.4, view=np.random.default_rng(0).choice(["PA", "AP"], 400))
    metrics = evaluate_diagnosis(frame, ["benign", "malignant"], replicates=10)
    pictures = figures(frame, metrics)
    assert [picture.title for picture in pictures] == [*TITLES, "AUROC by view"]
    curve = pictures[0].figure.axes[0]
    x, y = (curve.lines[0].get_data()[axis] for axis in (0, 1))
    assert auc(x, y) == pytest.approx(metrics["auroc"].value)
    texts = [text.get_text() for text in curve.get_legend().get_texts()]
    found, spared = metrics["sensitivity"].value, metrics["specificity"].value
    assert texts[1] == f"decisions: sensitivity {found:.3f}, specificity {spared:.3f}"
    labels = [text.get_text() for text in pictures[4].figure.axes[0].get_legend().get_texts()]
    assert labels[2] == "threshold 0.400"
    table = [text.get_text() for text in pictures[3].figure.axes[0].texts]
    assert sum(int(text.split("\n")[0]) for text in table) == 400


@pytest.mark.parametrize("classes", [3, 9, 25])
def test_pictures_of_more_classes(classes):
    frame = predictions(rows=300, classes=classes, patients=300)
    pictures = figures(frame, evaluate_diagnosis(frame, replicates=3))
    assert [picture.title for picture in pictures] == [*TITLES[:4], "Probability of the true class"]
    assert len(pictures[0].figure.axes[0].lines) == classes + 1
    for picture in pictures:
        picture.figure.canvas.draw()


def test_pictures_of_one_class():
    frame = predictions().filter(pl.col("label") == 1)
    assert [picture.title for picture in figures(frame, evaluate_diagnosis(frame, replicates=3))] == TITLES[2:]
