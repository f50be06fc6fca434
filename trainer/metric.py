"""The competition's loss, as numbers, and the weights of the other stages' errors. The same weights train (trainer.stages.losses)."""

import numpy as np
from numpy.typing import ArrayLike

POSITIVE_WEIGHTS = (14.0,) + (2.0,) * 7
"""of patient_overall, then of C1..C7, where the label is 1 (reference 7.1)"""
NEGATIVE_WEIGHTS = (7.0,) + (1.0,) * 7
NONZERO_WEIGHT = 2.0
"""the squared error of a ratio or fracture of a slice counts twice where its label is not exactly 0 (reference 7.1)"""
CLIP = 1e-15


def weighted_log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean over studies of the weighted log loss, row-normalised: each study's weights sum to 1 (reference 7.1, 7.2).

    Both (N, 8): patient_overall, then C1..C7. A NaN label is left out of its study's mean, a study without any label
    out of the mean over studies. Raises ValueError for other shapes, no labelled study and NaN probabilities.
    """
    loss = study_losses(labels, probabilities)
    if np.isnan(loss).all():
        raise ValueError("no study has a label")
    return float(np.nanmean(loss))


def study_losses(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """(N,) float64 loss of each study, NaN where it has no label. Arguments as in weighted_log_loss."""
    losses = target_losses(labels, probabilities)
    return np.where(study_weights(labels).any(1), losses.sum(1), np.nan)


def target_losses(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """(N, 8) float64: what each target adds to its study's loss; 0 where its label is NaN. Arguments as in weighted_log_loss."""
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if labels.ndim != 2 or labels.shape[1] != len(POSITIVE_WEIGHTS) or labels.shape != probabilities.shape:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} must both be (N, 8)")
    if np.isnan(probabilities).any():
        raise ValueError("probabilities hold NaN")
    clipped = probabilities.clip(CLIP, 1 - CLIP)
    entropy = -np.where(labels > 0.5, np.log(clipped), np.log1p(-clipped))
    return study_weights(labels) * entropy


def study_weights(labels: ArrayLike) -> np.ndarray:
    """(N, 8) float64 weights that sum to 1 in each row; 0 where the label is NaN."""
    labels = np.asarray(labels, np.float64)
    weights = np.where(labels > 0.5, POSITIVE_WEIGHTS, NEGATIVE_WEIGHTS) * ~np.isnan(labels)
    return weights / np.maximum(weights.sum(1, keepdims=True), 1)
