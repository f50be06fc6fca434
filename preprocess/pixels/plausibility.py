"""Whether the values of a scan look like Hounsfield units, by a sample of every slice without padding."""

from collections.abc import Sequence

import numpy as np

from preprocess.pixels.grey_tables import LOOKS, MEASURED, WordTables

SAMPLES = 32
"""a side of a slice"""
LEAST_AIR, LEAST_TISSUE = 1e-3, 0.01
"""shares of the sample: a scan of a neck shows air around it and in the windpipe, and is made of soft tissue"""
MOST_BRIGHT_EDGE = 0.5
"""share of the samples on the frame's edge that may lie at the top of the window"""
MOST_METAL = 0.1
"""more of it than an implant shows is values that wrapped: air of -1000 HU in 12 unsigned bits is 3096"""

Sample = np.ndarray
"""int (2, 32): how many samples of a slice, and of its edge, look like what (sums of bits)"""


def sample_of(stored: np.ndarray, tables: WordTables) -> Sample:
    """stored: words of a slice, (rows, columns)."""
    down, across = max(1, stored.shape[0] // SAMPLES), max(1, stored.shape[1] // SAMPLES)
    edge = np.concatenate((stored[0, ::across], stored[-1, ::across], stored[::down, 0], stored[::down, -1]))
    return np.stack(
        [np.bincount(tables.looks[words].ravel(), minlength=2 * MEASURED) for words in (stored[::down, ::across], edge)]
    )


def why_implausible(samples: Sequence[Sample]) -> str | None:
    """One phrase where the values of all slices together are hardly HU; None where they may be."""
    if not samples:
        return None
    inner, edge = np.sum(samples, axis=0)
    pixels, edges = _count(inner, MEASURED), _count(edge, MEASURED)
    if not pixels:
        return None
    air, tissue, metal = (_count(inner, LOOKS[kind][0]) / pixels for kind in ("air", "tissue", "metal"))
    if edges and _count(edge, LOOKS["bright"][0]) > MOST_BRIGHT_EDGE * edges:
        return "the edge of the frame, which should be air, is at the top of the intensity window"
    if metal > MOST_METAL:
        return f"{metal:.0%} of the pixels are above {LOOKS['metal'][1]:.0f} HU, as if values had wrapped"
    if air < LEAST_AIR:
        return "there is no air"
    if tissue < LEAST_TISSUE:
        return "there is no soft tissue"
    return None


def _count(looks: np.ndarray, bit: int) -> int:
    return int(looks[(np.arange(len(looks)) & bit) > 0].sum())
