"""Baselines: the constants, for stage 2 the curve, with the smallest loss on the training folds.

They are fitted on training rows only. A weighted mean minimises the weighted loss exactly.
"""

from typing import NamedTuple

import numpy as np

CURVE_BINS = 32
"""bins of the relative slice index: C1..C7 take about 0.76 of a study (reference 3.3), so each level spans about three bins"""


class Curve(NamedTuple):
    """Piecewise linear; constant outside its knots."""

    at: np.ndarray
    """(b,) relative slice index, increasing"""
    values: np.ndarray
    """(b, k)"""

    def __call__(self, relative: np.ndarray) -> np.ndarray:
        """(m,) -> (m, k)"""
        return np.stack([np.interp(relative, self.at, column) for column in self.values.T], axis=1)


def mean_box(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) native pixels -> (4,) their mean."""
    return boxes.mean(0)


def best_constants(targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, k) targets and weights -> (k,) the constants with the smallest weighted squared error or log loss.

    Targets of weight 0 are ignored and may be NaN. A column whose weights are all 0 gets 0.
    """
    total = weights.sum(0)
    return (weights * np.nan_to_num(targets)).sum(0) / np.where(total > 0, total, 1)


def fit_curve(relative: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Curve:
    """(n,) relative slice index in [0, 1], (n, k) targets and weights -> weighted means by bin, at its mean index."""
    place = np.minimum((relative * CURVE_BINS).astype(int), CURVE_BINS - 1)
    filled = np.unique(place)
    at = np.array([relative[place == b].mean() for b in filled])
    return Curve(at, np.stack([best_constants(targets[place == b], weights[place == b]) for b in filled]))
