"""Probabilities that are distorted in a known way."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def drawn(n: int, slope: float = 1.0, shift: float = 0.0, seed: int = 0):
    """Probabilities whose logits are `slope` x the true ones + `shift`; labels; folds."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1, 1.5, n)
    labels = (rng.random(n) < sigmoid(true)).astype(float)
    return sigmoid(slope * true + shift), labels, np.arange(n) % 5.0


def gap(slope: float, shift: float) -> float:
    """The calibration error of `drawn` in ten bins, without chance: over the normal distribution of the true logits."""
    true = np.sort(np.random.default_rng(9).normal(-1, 1.5, 200_000))
    parts = np.array_split(sigmoid(slope * true + shift) - sigmoid(true), 10)
    return float(np.mean([abs(part.mean()) for part in parts]))
