"""Where in a slice the stage-3 network sees a level's fracture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cache_schema.study import Box
from trainer.answers.answer import SuspectedSlice
from trainer.data.items import Item, windows

if TYPE_CHECKING:

    pass


@dataclass(frozen=True)
class HeatMap:
    """The heat map of a suspected slice, over the part of the slice that the network was shown."""

    suspected: SuspectedSlice
    values: np.ndarray
    """(h, w) float32 in [0, 1]"""
    square: Box
    """what the values cover: native pixels of the slice (cache_schema.study.square_around)"""

    def peak(self) -> tuple[float, float]:
        """x, y of the middle of the hottest cell, in native pixels: pixel i covers [i, i + 1)."""
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        return native_point(self.square, self.values.shape, float(column) + 0.5, float(row) + 0.5)


def native_point(square: Box, shape: tuple[int, ...], x: float, y: float) -> tuple[float, float]:
    """x, y in an image of `shape` (h, w) that shows a square of a slice, resized -> x, y in native pixels.

    Continuous coordinates: pixel i covers [i, i + 1). The same map as `AugmentParams.map_from_crop` without augmentation.
    """
    x0, y0, x1, y1 = square
    return x0 + x * (x1 - x0) / shape[1], y0 + y * (y1 - y0) / shape[0]


def window_around(id: str, slices: int, frames: int, stride: int, z_index: int) -> tuple[Item, int]:
    """The window of prediction that has the slice as a triplet's middle, nearest to its own middle; and that triplet's step.

    Raises ValueError for a slice that no window has in the middle of a triplet.
    """
    shown = [
        (item, step)
        for item in windows([(id, slices)], frames, stride)
        for step, start in enumerate(range(item.start, item.start + frames, 3))
        if min(start + 1, slices - 1) == z_index and start < slices
    ]
    if not shown:
        raise ValueError(f"z_index {z_index} is no triplet's middle in windows of {frames} slices, {stride} apart")
    return min(shown, key=lambda each: (abs(each[1] - (frames // 3 - 1) / 2), each[0].start))
