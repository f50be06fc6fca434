"""Calibrations of data whose distortion is known, and the document that keeps one."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from distorted import drawn

from cache_schema import TARGETS
from cache_schema.documents import canonical_json, digest_of
from cache_schema.errors import CacheError
from trainer.look import reliability as look
from trainer.look.page import drawing
from trainer.scores import reliability
from trainer.scores.calibration import CLIP, Calibration, calibrate, calibrate_target, cross_fitted, logits, render

# fitting


@pytest.fixture
def few_draws(monkeypatch):
    """Where bounds are not the question."""
    monkeypatch.setattr(reliability, "BOOTSTRAPS", 20)


def test_a_known_distortion_is_undone(few_draws):
    target = calibrate_target(*drawn(20_000, slope=2, shift=1))
    assert target.method == "platt"
    assert target.slope == pytest.approx(0.5, abs=0.03) and target.intercept == pytest.approx(-0.5, abs=0.05)
    assert target.after.ece.value < 0.01 < 0.05 < target.before.ece.value
    assert target.after.brier.value < target.before.brier.value


def test_overconfidence_alone_is_undone_by_a_temperature(few_draws):
    probabilities, labels, folds = drawn(4000, slope=3, seed=1)
    target = calibrate_target(probabilities, labels, folds)
    assert target.slope == pytest.approx(1 / 3, abs=0.03) and abs(target.intercept) < 0.1
    assert target.method in ("temperature", "platt")
    straight = calibrate_target(*drawn(4000, slope=1, seed=1))
    assert straight.slope == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("seed", range(8))
def test_the_log_loss_of_held_out_studies_is_never_worse_and_mostly_as_predicted_where_that_is_right(few_draws, seed):
    target = calibrate_target(*drawn(60, seed=seed))
    assert target.after.log_loss <= target.before.log_loss
    if target.method == "identity":
        assert target.after == target.before and (target.slope, target.intercept) == (1, 0)


def test_each_fold_is_calibrated_by_the_others_alone(few_draws):
    probabilities, labels, folds = drawn(200, slope=2)
    own = folds == 0
    swapped = np.where(own, 1 - labels, labels)  # of no weight for the calibration of the fold's own studies
    first, second = (cross_fitted("platt", logits(probabilities), truth, folds) for truth in (labels, swapped))
    assert (first[own] == second[own]).all() and (first[~own] != second[~own]).all()


def test_a_model_that_is_wrong_way_round_gets_the_prevalence_and_is_not_turned(few_draws):
    probabilities, labels, folds = drawn(2000)
    target = calibrate_target(1 - probabilities, labels, folds)
    assert target.method == "platt" and target.slope == 0
    assert target(np.array([0.01, 0.99])) == pytest.approx([target.prevalence] * 2, abs=0.001)
    assert [(point.sensitivity.value, point.specificity.value) for point in target.operating_points] == [(1, 0)] * 2


def test_probabilities_of_0_and_1_that_are_wrong_stay_finite(few_draws):
    probabilities = np.array([0, 0, 0, 1, 1, 1, 0, 1] * 5, float)
    labels = np.array([0, 0, 1, 1, 1, 0, 0, 1] * 5, float)
    target = calibrate_target(probabilities, labels, np.arange(40) // 8.0)
    assert math.isfinite(target.before.log_loss) and target.after.log_loss < 0.7 < 3 < target.before.log_loss
    assert target(np.array([0, 1])) == pytest.approx([0.25, 0.75], abs=0.03)
    right = calibrate_target(labels, labels, np.arange(40) // 8.0)
    assert (right(np.array([0, 1])) >= CLIP).all() and (right(np.array([0, 1])) <= 1 - CLIP).all()


def test_all_positives_in_one_fold_leave_a_calibration_that_is_no_worse(few_draws):
    probabilities, labels = np.linspace(0.05, 0.6, 30), np.zeros(30)
    labels[[25, 29]] = 1
    target = calibrate_target(probabilities, labels, (np.arange(30) >= 24).astype(float))
    assert target.method and target.after.log_loss <= target.before.log_loss and math.isfinite(target.intercept)
    assert target.operating_points == () and target.missing == "operating points need 20 positives, there are 2"


@pytest.mark.parametrize(
    ("labels", "folds", "why"),
    [
        ([], [], "no held-out study has a label"),
        ([0, 0, 0], [0, 1, 2], "all labels are 0"),
        ([1, 1], [0, 1], "all labels are 1"),
        ([0, 1, 0], [2, 2, 2], "all studies are of one fold: nothing to cross-fit"),
    ],
)
def test_without_anything_to_cross_fit_there_is_none_and_it_says_why(labels, folds, why):
    target = calibrate_target(np.full(len(labels), 0.3), np.array(labels, float), np.array(folds, float))
    assert target.method is None and target.before is None and target.missing == why
    assert (target.n, target.positives) == (len(labels), sum(labels))


# the document


def table_of(n: int = 60) -> tuple[pd.DataFrame, pd.DataFrame]:
    """study_predictions and labels of n studies; C7 has no fracture, C1 few, one study has no fold, and one no label of C2."""
    ids = [f"s{place:03}" for place in range(n)]
    columns = {name: drawn(n, 2, 0.5, seed) for seed, name in enumerate(TARGETS)}
    folds = pd.array([None, *(place % 3 for place in range(1, n))], "Int64")
    predictions = pd.DataFrame({"id": ids, "fold": folds} | {name: each[0] for name, each in columns.items()})
    labels = pd.DataFrame({"id": ids} | {name: pd.array(each[1], "Int8") for name, each in columns.items()})
    labels["C7"] = pd.array([0] * n, "Int8")
    labels["C1"] = pd.array([0, 1, 1] + [0] * (n - 3), "Int8")
    labels.loc[5, "C2"] = None
    return predictions.assign(runs=1), labels


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibrate(*table_of(), "calibration 1", {"labels": "0" * 64})


def test_only_held_out_studies_with_a_label_count(made):
    assert made.targets["patient_overall"].n == 59 and made.targets["C2"].n == 58
    assert made.targets["C1"].positives == 2 and made.targets["C7"].missing == "all labels are 0"
    assert list(made.targets) == list(TARGETS) and "C7" not in made.usable


def test_a_document_reads_back_and_names_its_digest(made, tmp_path):
    path = tmp_path / "calibration.json"
    made.write(path)
    assert Calibration.read(path) == made
    document = json.loads(path.read_bytes())
    assert document == made.document() and document.pop("digest") == digest_of(document)
    assert list(Calibration.read(path).targets) == list(TARGETS)
    assert Calibration.from_document(made.document()) == made


def sealed(change, document: dict) -> bytes:
    document.pop("digest")
    change(document)
    return canonical_json(document | {"digest": digest_of(document)})


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["targets"].update(C9=document["targets"]["C1"]),
        lambda document: document["targets"]["C2"].update(slope=-1.0),
        lambda document: document["targets"]["C2"].update(method="guess"),
        lambda document: document["targets"]["C2"].pop("n"),
        lambda document: document.pop("targets"),
        lambda document: document.update(targets=[1]),
    ],
)
def test_a_document_that_is_none_is_one_line(change, made, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_bytes(sealed(change, made.document()))
    with pytest.raises(
        CacheError, match=r"calibration\.json: cannot be read as a calibration; make it again"
    ) as raised:
        Calibration.read(path)
    assert "\n" not in str(raised.value)


def test_a_flip_anywhere_in_the_file_is_refused(made, tmp_path):
    path = tmp_path / "calibration.json"
    made.write(path)
    data = path.read_bytes()
    for place in range(0, len(data), 997):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CacheError):
            Calibration.read(path)
    for other in (b"", b"[]", b"null", b"{}", data[:-1], data + b" "):
        path.write_bytes(other)
        with pytest.raises(CacheError):
            Calibration.read(path)


def test_one_study_and_a_table_are_calibrated_alike(made):
    predictions = table_of()[0]
    frame = made.columns(predictions)
    given = list(predictions.columns)
    assert list(frame.columns) == given + [f"{name}_calibrated" for name in TARGETS if name != "C7"]
    pd.testing.assert_frame_equal(frame[given], predictions)
    outputs = predictions.loc[7, list(TARGETS)].to_dict()
    calibrated = made.apply(outputs)
    assert set(calibrated) == set(TARGETS) - {"C7"}
    for name, value in calibrated.items():
        assert value == pytest.approx(frame.loc[7, f"{name}_calibrated"], rel=1e-12) and 0 < value < 1
    assert made.apply({"C2": 0.5, "unknown": 0.1}).keys() == {"C2"}
    assert math.isnan(made.apply({"C2": math.nan})["C2"])


def test_the_text_table_has_a_line_for_each_target(made):
    lines = render(made).splitlines()
    assert (
        len(lines) == 10 and lines[8].split()[:4] == ["C7", "59", "0", "none"] and lines[8].endswith("all labels are 0")
    )
    target = made.targets["C3"]
    assert lines[4].split()[:6] == [
        "C3", "59", str(target.positives), target.method, f"{target.before.log_loss:.4f}", f"{target.after.log_loss:.4f}"
    ]  # fmt: skip


def test_the_figure_shows_bins_and_roc_of_each_target(made):
    with drawing():
        (figure,) = look.pages(made)
    assert len(figure.axes) == 2 * len(TARGETS)
    left, right = figure.axes[6], figure.axes[7]  # of C3
    assert left.get_title("left") == "C3"
    bins = made.targets["C3"].after.bins
    np.testing.assert_allclose(left.lines[2].get_xydata(), [(each.mean, each.positives / each.n) for each in bins])
    np.testing.assert_allclose(right.lines[1].get_xydata()[[0, -1]], [(0, 0), (1, 1)])
    assert "no calibration: all labels are 0" in figure.axes[14].texts[0].get_text()
