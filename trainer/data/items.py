"""The items of a dataset: triplets, slice windows and whole studies, as plain descriptions. Pure functions.

A slice's z_index counts from 0 at the head. Where a study ends before an item does, the item is padded; padding has z_index -1.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

ADAPTIVE_WINDOWS = 2000
"""reference 4.2: variant 04F's stride is round(2000 / z-range)"""
STUDY_MARGIN = 2
"""slices added on both sides of the study box's z-range, so that the outer triplets are complete (reference 4.4)"""


class Item(NamedTuple):
    """`frames` slices of one study, starting at `start`. `key` is unique in its list and seeds the augmentation."""

    key: int
    id: str
    start: int
    frames: int
    slices: int
    """number of slices in the study"""

    @property
    def middle(self) -> int:
        """A triplet's middle slice, or the last slice if the study ends before it."""
        return min(self.start + 1, self.slices - 1)

    def z_index(self, step: int = 1, phase: int = 0) -> np.ndarray:
        """(frames,) int64 slice indices, -1 in padding."""
        index = self.start + phase + step * np.arange(self.frames)
        return np.where(index < self.slices, index, -1)


def triplets(studies: Iterable[tuple[str, int]], *, every: int) -> list[Item]:
    """Three consecutive slices. every=1: one at each slice (training); every=3: disjoint, but the last ends on the last slice."""
    return _number((id_, start, 3, n) for id_, n in studies for start in starts(n, 3, every))


def windows(studies: Iterable[tuple[str, int]], frames: int, stride: int | dict[str, int]) -> list[Item]:
    """Windows of `frames` slices. stride: in slices, for all studies or by id."""
    return _number(
        (id_, start, frames, n)
        for id_, n in studies
        for start in starts(n, frames, stride if isinstance(stride, int) else stride[id_])
    )


def whole_studies(studies: Iterable[tuple[str, int]], ranges: dict[str, tuple[int, int]]) -> list[Item]:
    """One item per study: its z-range (z_from, z_to exclusive) with a margin, cut to a multiple of three slices."""
    rows = []
    for id_, n in studies:
        z_from, z_to = ranges[id_]
        first, last = max(0, z_from - STUDY_MARGIN), min(n, z_to + STUDY_MARGIN)
        rows.append((id_, first, max(3, (last - first) // 3 * 3), n))
    return _number(rows)


def starts(slices: int, frames: int, stride: int) -> list[int]:
    """Multiples of the stride, and the start of the last window that fits. They cover every slice if stride <= frames."""
    last = max(0, slices - frames)
    return sorted({*range(0, last + 1, stride), last})


def middles(z_index: np.ndarray) -> np.ndarray:
    """(3 n,) slice indices -> (n,) of the triplets' middle slices; the first slice if the study ends with it, -1 in padding."""
    return np.where(z_index[1::3] >= 0, z_index[1::3], z_index[0::3])


def adaptive_stride(z_range: int) -> int:
    """Stride in slices. z_range: last slice minus first slice of the study box."""
    return max(1, round(ADAPTIVE_WINDOWS / max(1, z_range)))


def _number(rows: Iterable[tuple[str, int, int, int]]) -> list[Item]:
    return [Item(key, *row) for key, row in enumerate(rows)]
