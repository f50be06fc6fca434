"""A heat map over a slice: where it lies, and how it is drawn in."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cache_schema.study import Box
from trainer.answers.answer import SuspectedSlice

LEAST_HEAT = 0.25
"""a heat map below this share of its maximum is not laid over the image"""
OPACITY = 0.6
"""of a heat map at its maximum"""


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


def painted(image: np.ndarray, heat: HeatMap) -> np.ndarray:
    """(rows, columns) uint8, a whole slice -> (rows, columns, 3) uint8 RGB with the heat map over its square."""
    x0, y0, x1, y1 = heat.square
    values = cv2.resize(heat.values, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)[..., None]
    colours = cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    found = np.repeat(image[..., None], 3, axis=2)
    inside = found[y0:y1, x0:x1]
    share = OPACITY * np.where(values < LEAST_HEAT, 0, values)
    inside[:] = np.rint(inside * (1 - share) + colours * share)
    return found


def native_point(square: Box, shape: tuple[int, ...], x: float, y: float) -> tuple[float, float]:
    """x, y in an image of `shape` (h, w) that shows a square of a slice, resized -> x, y in native pixels.

    Continuous coordinates: pixel i covers [i, i + 1). The same map as `AugmentParams.map_from_crop` without augmentation.
    """
    x0, y0, x1, y1 = square
    return x0 + x * (x1 - x0) / shape[1], y0 + y * (y1 - y0) / shape[0]
