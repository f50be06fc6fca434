"""The competition's loss against hand-made numbers and the anchors of reference 7.2."""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from trainer.metric import study_weights, weighted_log_loss
from trainer.scores.baselines import best_constants
from trainer.stages.losses import study_fracture_loss, total

TARGETS = ["patient_overall", *(f"C{i}" for i in range(1, 8))]
FOLDS = (
    Path(os.environ.get("CSPINE_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
    / "train_folded_v01.csv"
)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    if not FOLDS.is_file():
        pytest.skip(f"no {FOLDS.name}: name its folder by CSPINE_REFERENCE")
    return pd.read_csv(FOLDS)[TARGETS].to_numpy(float)


def test_half_prevalence_and_best_constants_score_as_the_reference_says(labels):
    best = best_constants(labels, study_weights(labels))
    assert best == pytest.approx([0.5309, 0.1027, 0.1930, 0.0512, 0.0752, 0.1105, 0.1842, 0.2559], abs=5e-5)
    scores = [weighted_log_loss(labels, np.broadcast_to(p, labels.shape)) for p in (0.5, labels.mean(0), best)]
    assert scores == pytest.approx([0.6931, 0.5638, 0.5573], abs=5e-5)


def test_every_study_counts_the_same_whatever_its_labels():
    labels = np.array([[1, 0, 0, 0, 0, 0, 0, 1], [0] * 8])
    probabilities = np.full((2, 8), 0.5)
    probabilities[0, 0], probabilities[0, 7] = 0.9, 0.2
    first = -(14 * math.log(0.9) + 6 * math.log(0.5) + 2 * math.log(0.2)) / (14 + 6 + 2)
    assert weighted_log_loss(labels, probabilities) == pytest.approx((first + math.log(2)) / 2)


def test_the_metric_is_the_loss_that_stage_4_trains_on():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 8)), rng.integers(0, 2, (20, 8)).astype(float)
    labels[3, 4], labels[7] = np.nan, np.nan
    loss = total(study_fracture_loss(torch.tensor(logits), torch.tensor(labels))).item()
    assert weighted_log_loss(labels, 1 / (1 + np.exp(-logits))) == pytest.approx(loss, rel=1e-5)


def test_a_sure_and_wrong_answer_costs_much_but_not_everything():
    assert weighted_log_loss(np.ones((1, 8)), np.zeros((1, 8))) == pytest.approx(-math.log(1e-15))
    assert weighted_log_loss(np.zeros((1, 8)), np.ones((1, 8))) == pytest.approx(-math.log(1e-15), rel=1e-2)
    assert weighted_log_loss(np.ones((1, 8)), np.ones((1, 8))) < 1e-12


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        (np.zeros((2, 7)), np.zeros((2, 7))),
        (np.zeros((2, 8)), np.zeros((3, 8))),
        (np.zeros((1, 8)), np.full((1, 8), np.nan)),
        (np.full((1, 8), np.nan), np.zeros((1, 8))),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, probabilities):
    with pytest.raises(ValueError):
        weighted_log_loss(labels, probabilities)
