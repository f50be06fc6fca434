"""Which levels are broken: prevalences of the competition, spread evenly over studies without one study knowing of
another."""

import numpy as np

from cache_schema.layout import LEVELS
from preprocess.phantom.seeds import Stream, stream

PREVALENCE = (0.0723, 0.1412, 0.0362, 0.0535, 0.0802, 0.1372, 0.1947)
"""Share of studies with each level broken (reference 1.2)."""
BROKEN_LEVELS = (1058, 623, 239, 64, 26, 7, 2)
"""Studies of the competition with 0, 1, 2, ... broken levels (reference 1.2); 0.476 have any."""
STEP = 0.6180339887498949
"""The golden step: multiples of it modulo 1 fill the unit interval evenly, however many are taken."""


def draw_labels(seed: int, index: int, prevalence: float | None = None) -> tuple[int, ...]:
    """The broken levels (1..7) of study `index`, a function of its arguments alone.

    By default one golden sequence over `index` is read as a rank in the competition's studies sorted by how many and
    which levels are broken, so that even two dozen studies hold close to 47.6 % broken ones and levels near
    PREVALENCE. With `prevalence` every level is drawn by itself with that probability.
    """
    if prevalence is not None:
        rng = stream(seed, Stream.LABELS, index)
        return tuple(int(n) for n in np.flatnonzero(rng.random(len(LEVELS)) < prevalence) + 1)
    rank = (stream(seed, Stream.LABELS).random() + index * STEP) % 1
    edges = np.cumsum((0, *BROKEN_LEVELS)) / sum(BROKEN_LEVELS)
    count = int(np.searchsorted(edges, rank, side="right")) - 1
    within = (rank - edges[count]) / (edges[count + 1] - edges[count])
    ends = np.cumsum(_shares(count))[:-1]
    return tuple(int(n) + 1 for n in np.searchsorted(ends, within + np.arange(count), side="right"))


def _shares(count: int) -> np.ndarray:
    """Probability of each level to be among `count` broken ones: proportional to its prevalence, at most 1."""
    weight = np.array(PREVALENCE)
    share = np.zeros(len(LEVELS))
    free = np.ones(len(LEVELS), bool)
    while count:
        share[free] = (count - (~free).sum()) * weight[free] / weight[free].sum()
        if not (share > 1).any():
            break
        free &= share <= 1
        share[~free] = 1
    return share
