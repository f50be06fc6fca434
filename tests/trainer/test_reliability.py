"""Calibration error, Brier score, ROC and thresholds, each as worked out by hand or with bounds that cover what is there."""

import numpy as np
import pytest
from distorted import drawn, gap

from trainer.scores import reliability
from trainer.scores.calibration import CLIP
from trainer.scores.reliability import auc, bin_edges, calibration_error, operating_point, roc


def test_bins_of_equal_count_as_worked_out_by_hand():
    assert bin_edges(23).tolist() == [0, 3, 6, 9, 11, 13, 15, 17, 19, 21], "the first three bins have one more"
    assert bin_edges(4).tolist() == [0, 1, 2, 3]
    values = np.arange(20)[::-1] / 20
    labels = (values >= 0.5).astype(float)
    found = reliability.reliability(np.clip(values, CLIP, 1), labels)
    assert [each.n for each in found.bins] == [2] * 10 and [each.positives for each in found.bins] == [0] * 5 + [2] * 5
    assert found.bins[1].mean == pytest.approx(0.125) and found.bins[9].mean == pytest.approx(0.925)
    by_hand = (0.025 + 0.125 + 0.225 + 0.325 + 0.425 + 0.475 + 0.375 + 0.275 + 0.175 + 0.075) / 10
    assert found.ece.value == pytest.approx(by_hand, abs=1e-6)
    assert found.brier.value == pytest.approx(((values - labels) ** 2).mean(), abs=1e-6)


def test_a_perfect_calibration_shows_no_more_error_than_chance():
    found = [calibration_error(*drawn(400, seed=seed)[:2]) for seed in range(12)]
    assert np.mean([each.value for each in found]) == pytest.approx(np.mean([each.chance for each in found]), rel=0.15)
    assert sum(each.low == 0 for each in found) >= 11
    assert calibration_error(*drawn(20_000)[:2]).value < 0.01


@pytest.mark.parametrize(("slope", "shift"), [(2, 0), (1, 1), (3, -1)])
def test_bounds_cover_the_error_that_is_there(slope, shift):
    found = [calibration_error(*drawn(200, slope, shift, seed)[:2]) for seed in range(25)]
    assert sum(each.low <= gap(slope, shift) <= each.high for each in found) >= 21


def test_bounds_of_the_brier_score_and_the_area_cover_those_of_many_studies():
    many = reliability.reliability(*drawn(20_000)[:2]).brier.value, auc(*drawn(20_000)[:2]).value
    hits = [0, 0]
    for seed in range(1, 13):
        probabilities, labels, _ = drawn(150, seed=seed)
        for place, one in enumerate((reliability.reliability(probabilities, labels).brier, auc(probabilities, labels))):
            assert one.low < one.value < one.high
            hits[place] += one.low <= many[place] <= one.high
    assert min(hits) >= 10


def test_large_data_are_resampled_in_parts_to_the_same_draws(monkeypatch):
    probabilities, labels, _ = drawn(50)
    whole = auc(probabilities, labels), calibration_error(probabilities, labels)
    monkeypatch.setattr(reliability, "CELLS", 7000)
    assert whole == (auc(probabilities, labels), calibration_error(probabilities, labels))


def test_roc_and_area_with_ties_as_worked_out_by_hand():
    values, labels = np.array([0.1, 0.4, 0.4, 0.8, 0.8, 0.9]), np.array([0, 0, 1, 0, 1, 1.0])
    assert roc(values, labels) == ((0, 0), (0, 1), (2, 3), (3, 3)), "0.8 and 0.4 lie on one line"
    assert auc(values, labels).value == pytest.approx((1.5 + 2.5 + 3) / 9), "negatives below 0.4, 0.8 and 0.9"


def test_a_threshold_is_the_highest_that_reaches_its_sensitivity():
    labels = np.array([0, 0, 0, 0, 1] * 20, float)
    values = np.arange(1, 101) / 101
    point = operating_point(values, labels, 0.9)
    assert point.threshold == pytest.approx(14.5 / 101), "18 of 20 positives, at 15, 20, .. 100"
    assert point.sensitivity.value == 0.9 and point.specificity.value == 12 / 80
    assert point.specificity.low < 12 / 80 < point.specificity.high
    assert operating_point(values, labels, 0.95).sensitivity.value == 0.95
    assert operating_point(np.full(100, 0.3), labels, 0.9).specificity.value == 0
