"""The competition's metric, and the weights that the losses of trainer.stages.losses share with it."""

import numpy as np
from numpy.typing import ArrayLike

POSITIVE_WEIGHTS = (14.0,) + (2.0,) * 7
"""of patient_overall, then C1..C7, for label 1 (reference 7.1)"""
NEGATIVE_WEIGHTS = (7.0,) + (1.0,) * 7
NONZERO_WEIGHT = 2.0
"""of the squared error of a slice's ratio or fracture if its label is not exactly 0 (reference 7.1)"""
CLIP = 1e-15


def weighted_log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean over studies of the weighted log loss, row-normalised: each study's weights sum to 1 (reference 7.1, 7.2).

    Both (N, 8): patient_overall, then C1..C7. Ignores NaN labels, and studies without any label. Raises ValueError for
    other shapes, no labelled study and NaN probabilities.
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
    """(N, 8) float64: each target's part of its study's loss, 0 if its label is NaN. Arguments as in weighted_log_loss."""
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if labels.ndim != 2 or labels.shape[1] != len(POSITIVE_WEIGHTS) or labels.shape != probabilities.shape:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} must both be (N, 8)")
    if np.isnan(probabilities).any():
        raise ValueError("probabilities contain NaN")
    clipped = probabilities.clip(CLIP, 1 - CLIP)
    entropy = -np.where(labels > 0.5, np.log(clipped), np.log1p(-clipped))
    return study_weights(labels) * entropy


def study_weights(labels: ArrayLike) -> np.ndarray:
    """(N, 8) float64 weights, which sum to 1 in each row; 0 if the label is NaN."""
    labels = np.asarray(labels, np.float64)
    weights = np.where(labels > 0.5, POSITIVE_WEIGHTS, NEGATIVE_WEIGHTS) * ~np.isnan(labels)
    return weights / np.maximum(weights.sum(1, keepdims=True), 1)
