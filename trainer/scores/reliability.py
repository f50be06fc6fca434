"""How well probabilities agree with labels: log loss, Brier score, calibration error, ROC and thresholds, with bounds.

Pure functions. values: (n,) float64 probabilities; labels: (n,) float64, 0 or 1; one of each for a study.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.scores.scores import BOOTSTRAPS, BOUNDS

BINS = 10
SENSITIVITIES = (0.9, 0.95)
CELLS = 4_000_000
"""of the arrays that a bootstrap holds at a time"""


@dataclass(frozen=True)
class Bounded:
    """A value with its 95 % bootstrap bounds over studies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CalibrationError(Bounded):
    """The expected calibration error. Chance alone makes it greater than 0: the bounds are corrected for that, and may lie
    below the value. low is 0 where a perfect calibration would often show such a value."""

    chance: float
    """what a perfect calibration of so many studies would show on average"""


@dataclass(frozen=True)
class Bin:
    """Studies of neighbouring values."""

    n: int
    mean: float
    """of the values"""
    positives: int


@dataclass(frozen=True)
class Reliability:
    log_loss: float
    """mean over studies, unweighted"""
    brier: Bounded
    ece: CalibrationError
    bins: tuple[Bin, ...]
    """of equal count, by increasing values"""


@dataclass(frozen=True)
class OperatingPoint:
    """A value of at least the threshold counts as positive. The bounds hold for this threshold."""

    aim: float
    """the sensitivity that the threshold was chosen for"""
    threshold: float
    sensitivity: Bounded
    specificity: Bounded


def reliability(values: np.ndarray, labels: np.ndarray) -> Reliability:
    order, edges = np.argsort(values, kind="stable"), bin_edges(len(values))
    squares = (values - labels) ** 2
    brier = bounded(squares.mean(), bootstrap(lambda counts: counts @ squares / len(squares), len(squares)))
    parts = zip(np.split(values[order], edges[1:]), np.split(labels[order], edges[1:]), strict=True)
    bins = tuple(Bin(len(each), float(each.mean()), int(true.sum())) for each, true in parts)
    return Reliability(log_loss(values, labels), brier, calibration_error(values, labels), bins)


def log_loss(values: np.ndarray, labels: np.ndarray) -> float:
    """The mean over studies; infinite for a value of 0 or 1 that is wrong."""
    return float(-np.where(labels > 0.5, np.log(values), np.log1p(-values)).mean())


def bin_edges(n: int) -> np.ndarray:
    """(bins,) where each of at most BINS bins begins; their sizes differ by 1 at most, the first ones are the larger."""
    sizes = [len(part) for part in np.array_split(np.arange(n), min(BINS, n))]
    return np.cumsum([0, *sizes[:-1]])


def calibration_error(values: np.ndarray, labels: np.ndarray) -> CalibrationError:
    """The mean over bins of equal count of |mean value - share of positives|, weighted by the bins' counts.

    A resample is uneven by chance twice, so the percentiles of its errors lie too high: the bounds are those of the basic
    bootstrap, 2 x value - percentile.
    """
    n, order = len(values), np.argsort(values, kind="stable")
    sorted_values, edges = values[order], bin_edges(n)
    gaps = sorted_values - labels[order]

    def errors(rows: np.ndarray) -> np.ndarray:
        """(draws, n) value - label, sorted by value -> (draws,)"""
        return np.abs(np.add.reduceat(rows, edges, axis=1)).sum(1) / n

    def resampled(counts: np.ndarray) -> np.ndarray:
        places = np.repeat(np.tile(np.arange(n, dtype=np.int32), len(counts)), counts.ravel())
        return errors(gaps[places].reshape(counts.shape))

    rng = np.random.default_rng(0)
    perfect = [errors(sorted_values - (rng.random((size, n)) < sorted_values)) for size in _blocks(n)]
    by_chance, value = np.concatenate(perfect), float(errors(gaps[None])[0])
    below, above = np.percentile(bootstrap(resampled, n), BOUNDS)
    low = 0.0 if value <= np.percentile(by_chance, BOUNDS[1]) else max(0.0, 2 * value - float(above))
    return CalibrationError(value, low, max(0.0, 2 * value - float(below)), float(by_chance.mean()))


def roc(values: np.ndarray, labels: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(false positives, true positives) at falling thresholds, from (0, 0) to all; points on a straight line are left out."""
    starts, true, false = _by_value(values, labels)
    steps = np.stack([np.add.reduceat(false, starts), np.add.reduceat(true, starts)], axis=1)[::-1].astype(int)
    turns = (steps[1:, 0] * steps[:-1, 1] != steps[1:, 1] * steps[:-1, 0]).tolist()
    points = np.concatenate([[[0, 0]], steps.cumsum(0)]).tolist()
    return tuple((a, b) for (a, b), kept in zip(points, [True, *turns, True], strict=True) if kept)


def auc(values: np.ndarray, labels: np.ndarray) -> Bounded:
    """The chance that a positive has the higher value than a negative; equal values count one half. Needs both."""
    starts, true, false = _by_value(values, labels)
    order = np.argsort(values, kind="stable")

    def areas(counts: np.ndarray) -> np.ndarray:
        drawn = counts[:, order]
        positives, negatives = (np.add.reduceat(drawn * own, starts, axis=1) for own in (true, false))
        below = negatives.cumsum(1) - negatives / 2
        pairs = positives.sum(1) * negatives.sum(1)
        return (positives * below).sum(1) / np.where(pairs > 0, pairs, np.nan)

    return bounded(areas(np.ones((1, len(values))))[0], bootstrap(areas, len(values)))


def operating_point(values: np.ndarray, labels: np.ndarray, aim: float) -> OperatingPoint:
    """The highest threshold that reaches the sensitivity, halfway to the next lower value. Needs both kinds of label."""
    positive = labels > 0.5
    ranked = np.sort(values[positive])[::-1]
    reached = ranked[math.ceil(aim * len(ranked) - 1e-9) - 1]
    threshold = float((reached + values[values < reached].max(initial=0.0)) / 2)
    found = [_share((values >= threshold) == truth, positive == truth) for truth in (True, False)]
    return OperatingPoint(aim, threshold, *found)


def bounded(value: float, drawn: np.ndarray) -> Bounded:
    """With the percentiles of the bootstrap; NaN draws, which lack one kind of label, are ignored."""
    low, high = np.nanpercentile(drawn, BOUNDS)
    return Bounded(float(value), float(low), float(high))


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int) -> np.ndarray:
    """(BOOTSTRAPS,) of a statistic of (draws, n) counts: how often a draw has each study. The seed is fixed."""
    rng, found = np.random.default_rng(0), []
    for size in _blocks(n):
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        found.append(statistic(np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)))
    return np.concatenate(found)


def _blocks(n: int) -> list[int]:
    """Sizes of parts of BOOTSTRAPS draws, each of CELLS cells at most."""
    most = max(1, CELLS // n)
    return [min(most, BOOTSTRAPS - first) for first in range(0, BOOTSTRAPS, most)]


def _by_value(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted by value: where each distinct value begins, the labels, and 1 - labels."""
    order = np.argsort(values, kind="stable")
    _, starts = np.unique(values[order], return_index=True)
    return starts, labels[order], 1 - labels[order]


def _share(chosen: np.ndarray, among: np.ndarray) -> Bounded:
    both = (chosen & among).astype(np.float64)

    def shares(counts: np.ndarray) -> np.ndarray:
        total = counts @ among.astype(np.float64)
        return counts @ both / np.where(total > 0, total, np.nan)

    return bounded(both.sum() / among.sum(), bootstrap(shares, len(both)))
