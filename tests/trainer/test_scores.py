"""Scores and baselines against hand-made numbers; a baseline must never see the rows it is scored on."""

import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest

from cache_schema import LEVELS, TARGETS
from cache_schema.columns import FRACTURES
from cache_schema.errors import CacheError
from trainer.metric import study_weights, weighted_log_loss
from trainer.scores.baselines import best_constants, fit_curve
from trainer.scores.score_terms import iou
from trainer.scores.scores import (
    Score,
    read_scores,
    render,
    render_levels,
    score,
    score_folds,
    write_scores,
)
from trainer.settings.stage_registry import stage_class

BOX = ["x0", "y0", "x1", "y1"]
RNG = np.random.default_rng(0)
bbox_scores = partial(score, stage_class("bbox"))
vertebra_scores = partial(score, stage_class("vertebrae"))
slice_fracture_scores = partial(score, stage_class("slice_fracture"))
study_fracture_scores = partial(score, stage_class("study_fracture"))


def boxes(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "z_index", *BOX, "has_box"])


def slices(id: str, ratios: np.ndarray) -> pd.DataFrame:
    """(n, 7) ratios of one study, a row a slice."""
    frame = pd.DataFrame(ratios, columns=list(LEVELS), dtype=float)
    frame.insert(0, "z_index", np.arange(len(ratios)))
    frame.insert(0, "id", id)
    return frame


def weighted_error(values: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(np.where(targets != 0, 2, 1) * (values - targets) ** 2))


# baselines


def test_intersection_over_union():
    a = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [2, 0, 0, 2]], float)
    b = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 2, 2]], float)
    assert iou(a, b).tolist() == pytest.approx([1, 1 / 3, 0, 0])


def test_best_constants_are_beaten_by_no_other_constant():
    targets = np.where(RNG.random((200, 3)) < 0.6, 0, RNG.random((200, 3)))
    weights = np.where(targets != 0, 2.0, 1.0)
    best = best_constants(targets, weights)
    least = weighted_error(best, targets)
    for step in (-0.01, 0.01):
        for column in range(3):
            assert weighted_error(best + step * np.eye(3)[column], targets) > least
    labels = (RNG.random((200, 8)) < 0.2).astype(float)
    constants = best_constants(labels, study_weights(labels))
    least = weighted_log_loss(labels, np.tile(constants, (200, 1)))
    for step in (-0.01, 0.01):
        for column in range(8):
            assert weighted_log_loss(labels, np.tile(constants + step * np.eye(8)[column], (200, 1))) > least


def test_a_curve_is_the_weighted_mean_over_the_relative_index_and_fills_gaps():
    relative = np.linspace(0, 1, 9)
    curve = fit_curve(np.tile(relative, 2), np.tile(relative, 2)[:, None], np.ones((18, 1)))
    assert curve(np.linspace(0, 1, 50))[:, 0] == pytest.approx(np.linspace(0, 1, 50))
    heavy = fit_curve(np.zeros(2), np.array([[0.0], [0.9]]), np.array([[1.0], [2.0]]))
    assert heavy(np.array([0.0, 1.0]))[:, 0] == pytest.approx([0.6, 0.6])


# the four stages


def test_stage_1_scores_iou_on_triplets_with_a_box_beside_the_training_mean_box():
    truth = boxes([("a", 1, 0, 0, 10, 10, 1.0), ("a", 4, 0, 0, 10, 20, 1.0), ("a", 7, *[np.nan] * 4, 0.0)])
    training = boxes([("t", 1, 0, 0, 10, 30, 1.0), ("t", 4, 0, 0, 10, 10, 1.0), ("t", 7, *[np.nan] * 4, 0.0)])
    predicted = boxes([("a", 4, 0, 0, 10, 20, 0.9), ("a", 1, 0, 0, 5, 10, 0.1), ("a", 7, 3, 3, 9, 9, 0.9)])
    (score,) = bbox_scores(predicted, truth, training, variant="01B")
    assert score[:5] == ("bbox", "01B", "held_out", 1, "iou")
    assert score.value == pytest.approx((1 + 0.5) / 2)
    assert score.baseline_value == pytest.approx((0.5 + 1) / 2)
    assert score.ratio == pytest.approx(1) and score.higher_is_better


def test_stage_2_scores_the_clipped_weighted_error_beside_the_training_curve():
    truth = slices("a", np.eye(7)[[0, 0, 1, 1]] * 0.5)
    training = slices("t", np.eye(7)[[0, 0, 1, 1]] * 0.8)
    predicted = slices("a", np.eye(7)[[0, 0, 1, 1]] * 1.4).assign(windows=2)
    (score,) = vertebra_scores(predicted, truth, training)
    assert score.value == pytest.approx(2 * 0.5**2 / 7)
    assert score.baseline_value == pytest.approx(2 * 0.3**2 / 7)
    assert not score.higher_is_better


def test_a_study_of_another_length_meets_the_curve_at_its_own_relative_index():
    ramp = np.linspace(0.1, 1, 300)[:, None] * np.ones(7)
    training = slices("t", ramp)
    (score,) = vertebra_scores(slices("a", ramp[::3]), slices("a", ramp[::3]), training)
    assert score.value == 0 and score.baseline_value < 1e-3


def pseudo(id: str, n: int, fractured: float) -> pd.DataFrame:
    frame = slices(id, RNG.random((n, 7)).round(3))
    frame[list(FRACTURES)] = frame[list(LEVELS)].to_numpy() * fractured
    return frame


def test_stage_3_sums_its_three_errors_at_the_predicted_slices():
    truth, training = pseudo("a", 9, 1.0), pseudo("t", 9, 0.0)
    predicted = truth[truth["z_index"].isin([1, 4, 7])].copy()
    predicted["any_frac"] = predicted[list(FRACTURES)].max(axis=1)
    (perfect,) = slice_fracture_scores(predicted, truth, training)
    assert perfect.value == pytest.approx(0)
    seen = predicted.copy()
    predicted[[*FRACTURES, "any_frac"]] = 0.0
    (score,) = slice_fracture_scores(predicted, truth, training)
    fractures = weighted_error(np.zeros((3, 7)), seen[list(FRACTURES)].to_numpy())
    any_fracture = weighted_error(np.zeros(3), seen["any_frac"].to_numpy())
    assert score.value == pytest.approx(fractures + any_fracture)
    ratios = training[list(LEVELS)].to_numpy()
    constants = (np.where(ratios != 0, 2, 1) * ratios).sum(0) / np.where(ratios != 0, 2, 1).sum(0)
    expected = weighted_error(constants, seen[list(LEVELS)].to_numpy()) + fractures + any_fracture
    assert score.baseline_value == pytest.approx(expected)


def test_stage_3_leaves_unknown_fractures_out():
    truth, training = pseudo("a", 6, np.nan), pseudo("t", 6, 0.0)
    predicted = truth.fillna(7.0).assign(any_frac=7.0)
    (score,) = slice_fracture_scores(predicted, truth, training)
    assert score.value == pytest.approx(0)


def labelled(ids: list[str], prevalence: float = 0.4) -> pd.DataFrame:
    frame = pd.DataFrame({"id": ids})
    frame[list(TARGETS)] = (RNG.random((len(ids), 8)) < prevalence).astype(float)
    return frame


def test_stage_4_scores_the_competitions_loss_beside_the_training_constants():
    truth, training = labelled(["a", "b", "c"]), labelled([f"t{i}" for i in range(30)])
    predicted = truth.sample(frac=1, random_state=0)
    predicted[list(TARGETS)] = predicted[list(TARGETS)] * 0.6 + 0.2
    (score,) = study_fracture_scores(predicted, truth, training)
    assert score.n == 3
    assert score.value == pytest.approx(-math.log(0.8))
    known = training[list(TARGETS)].to_numpy()
    constants = best_constants(known, study_weights(known))
    assert score.baseline_value == pytest.approx(weighted_log_loss(truth[list(TARGETS)], np.tile(constants, (3, 1))))
    assert score.ratio == pytest.approx(score.value / score.baseline_value)


def test_stage_4_leaves_unlabelled_studies_out_and_takes_nullable_integers():
    truth, training = labelled(["a", "b"]), labelled([f"t{i}" for i in range(9)])
    predicted = truth.assign(**dict.fromkeys(TARGETS, 0.5))
    truth = truth.astype(dict.fromkeys(TARGETS, "Int8"))
    truth.loc[1, list(TARGETS)] = pd.NA
    truth.loc[0, "C3"] = pd.NA
    (score,) = study_fracture_scores(predicted, truth, training)
    assert score.n == 1 and score.value == pytest.approx(math.log(2))


# what may be scored


def test_a_held_out_row_without_a_prediction_is_refused_rather_than_left_out():
    truth = slices("a", np.ones((4, 7)))
    with pytest.raises(CacheError, match="1 held-out rows are not predicted"):
        vertebra_scores(truth[:3], truth, truth)
    with pytest.raises(CacheError, match="b: 1 held-out"):
        study_fracture_scores(labelled(["a"]), labelled(["a", "b"]), labelled(["t"]))
    with pytest.raises(CacheError, match="b: 1 held-out studies"):
        slice_fracture_scores(
            pseudo("a", 3, 0.0).assign(any_frac=0.0),
            pd.concat([pseudo("a", 3, 0.0), pseudo("b", 3, 0.0)]),
            pseudo("t", 3, 0.0),
        )


def test_predictions_without_a_truth_are_left_aside():
    truth = slices("a", np.ones((4, 7)))
    both = pd.concat([truth, slices("unsegmented", np.zeros((4, 7)))])
    (score,) = vertebra_scores(both, truth, truth)
    assert score.n == 1 and score.value == 0


def test_nothing_held_out_gives_no_score():
    truth = labelled(["a"])
    assert study_fracture_scores(truth, truth[:0], truth) == []


def test_each_fold_is_held_against_the_baseline_of_the_others():
    labels = labelled([f"s{i}" for i in range(40)])
    folds = pd.Series(np.arange(40) % 2, index=labels["id"])
    labels.loc[folds.to_numpy() == 0, list(TARGETS)] = 1.0
    predicted = labels.assign(**dict.fromkeys(TARGETS, 0.5))
    score, *by_target = score_folds(stage_class("study_fracture"), predicted, labels, folds)
    assert [row.target for row in by_target] == list(TARGETS)
    losses = []
    for fold in (0, 1):
        own, others = (labels.loc[folds.to_numpy() == k, list(TARGETS)].to_numpy() for k in (fold, 1 - fold))
        constants = best_constants(others, study_weights(others)).clip(1 / 22, 21 / 22)
        losses.append(weighted_log_loss(own, np.tile(constants, (20, 1))))
    assert score.n == 40 and score.baseline_value == pytest.approx(np.mean(losses))
    one, *_ = score_folds(stage_class("study_fracture"), predicted[folds.to_numpy() == 0], labels, folds)
    assert one.n == 20 and one.baseline_value == pytest.approx(losses[0])


def test_splits_are_scored_apart_beside_the_same_baseline():
    truth, training = labelled(["a", "b", "c"]), labelled([f"t{i}" for i in range(30)])
    predicted = truth.assign(**dict.fromkeys(TARGETS, 0.5))
    splits = {"held_out": ["a", "b", "c"], "held_out_unsegmented": ["b"], "none": []}
    scores = study_fracture_scores(predicted, truth, training, splits=splits)
    assert [(s.split, s.n) for s in scores] == [("held_out", 3), ("held_out_unsegmented", 1)]
    (alone,) = study_fracture_scores(predicted[1:2], truth[1:2], training)
    assert scores[1].baseline_value == pytest.approx(alone.baseline_value)


# bounds


def test_bounds_hold_the_ratio_repeat_exactly_and_shrink_with_studies():
    def width(n: int) -> float:
        truth, training = labelled([f"s{i:03}" for i in range(n)]), labelled([f"t{i}" for i in range(50)])
        predicted = truth.assign(**dict.fromkeys(TARGETS, 0.4))
        (score,) = study_fracture_scores(predicted, truth, training)
        assert score == study_fracture_scores(predicted, truth, training)[0]
        assert score.low < score.ratio < score.high
        return score.high - score.low

    assert width(400) < 0.6 * width(40)


def test_bounds_are_over_studies_not_rows():
    good, bad = slices("good", np.full((50, 7), 0.5)), slices("bad", np.full((50, 7), 0.5))
    predicted = pd.concat([good, bad.assign(**dict.fromkeys(LEVELS, 1.0))])
    training = slices("t", np.full((50, 7), 1.0))
    (score,) = vertebra_scores(predicted, pd.concat([good, bad]), training)
    assert (score.low, score.ratio, score.high) == pytest.approx((0, 0.5, 1))


def test_a_perfect_baseline_gives_no_ratio_and_still_a_file(tmp_path):
    truth = slices("a", np.full((4, 7), 0.5))
    (score,) = vertebra_scores(truth, truth, truth)
    assert score.baseline_value == pytest.approx(0, abs=1e-12)
    write_scores(tmp_path / "scores.json", [score._replace(ratio=math.nan, low=math.nan, high=math.nan)])
    assert json.loads((tmp_path / "scores.json").read_text())[0]["ratio"] is None


# scores.json and the table

SCORES = [
    Score("bbox", "01B", "held_out", 8, "iou", 0.8123, "training mean box", 0.55, 1.4769, 1.4, 1.55),
    Score(
        "study_fracture", "04F", "held_out", 24, "weighted_log_loss", 0.61, "training constants", 0.58, 1.052, 0.9, 1.2
    ),
]


def test_scores_json_is_a_list_of_flat_rows_and_reads_back(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(path, SCORES)
    rows = json.loads(path.read_text())
    assert " ".join(rows[0]) == "stage variant split n metric value baseline baseline_value ratio low high"
    assert rows[1]["value"] == 0.61 and read_scores(path) == SCORES
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_the_table_shows_every_number_on_one_line_a_score():
    text = render(SCORES)
    line = next(line for line in text.splitlines() if line.strip().startswith("bbox"))
    assert " ".join(line.split()) == "bbox 01B held_out 8 iou 0.8123 training mean box 0.5500 1.477 1.400 - 1.550"
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 140


def test_what_the_targets_add_is_the_score_and_each_has_its_own_bound():
    labels = labelled([f"s{i}" for i in range(60)])
    folds = pd.Series(np.arange(60) % 2, index=labels["id"])
    predicted = labels.assign(**{target: RNG.random(60) for target in TARGETS})
    predicted["C3"] = labels["C3"].astype(float)
    score, *by_target = score_folds(stage_class("study_fracture"), predicted, labels, folds)
    assert sum(row.value for row in by_target) == pytest.approx(score.value)
    assert sum(row.baseline_value for row in by_target) == pytest.approx(score.baseline_value)
    levels = {row.target: row for row in by_target}
    assert levels["C3"].value == pytest.approx(0, abs=1e-9) and levels["C3"].high < 0.01
    assert all(row.low <= row.ratio <= row.high for row in by_target)
    text = render_levels([score, *by_target])
    assert "study_fracture" in text and f"{levels['C5'].ratio:.2f} {levels['C5'].low:.2f}" in text
    assert render([score, *by_target]).count("study_fracture") == 1


def test_stage_3_has_a_score_for_the_fracture_of_each_level():
    truth = pd.concat([pseudo("a", 9, 1.0), pseudo("b", 9, 0.0)])
    predicted = truth.assign(any_frac=truth[list(FRACTURES)].max(axis=1))
    predicted["C2_frac"] += 0.5
    folds = pd.Series({"a": 0, "b": 1})
    rows = {row.target: row for row in score_folds(stage_class("slice_fracture"), predicted, truth, folds)}
    assert set(rows) == {None, "any", *LEVELS}
    assert rows["C1"].value == 0 and rows["C2"].value == pytest.approx((2 + 1) / 2 * 0.25)
