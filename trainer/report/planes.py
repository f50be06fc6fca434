"""Upright planes of a study in millimetres, each slice at its z."""

from typing import NamedTuple

import numpy as np

from cache_schema import Study
from cache_schema.layout import CHUNK_SLICES
from cache_schema.study import Box

MOST_SLICES = 4 * CHUNK_SLICES
"""in memory at a time"""


class Plane(NamedTuple):
    """A sagittal or coronal plane of the whole frame."""

    image: np.ndarray
    """(slices, columns or rows) uint8, one row for each slice; 0 where a cropped study holds nothing"""
    pixel_mm: float
    z: np.ndarray
    """(slices,) mm, decreasing"""

    @property
    def width_mm(self) -> float:
        return self.image.shape[1] * self.pixel_mm

    def even(self, rows: int) -> np.ndarray:
        """(rows, width) uint8: evenly spaced from head to feet; each shows the slice that is nearest to it."""
        edges = slice_edges(self.z)
        wanted = edges[0] + (np.arange(rows) + 0.5) / rows * (edges[-1] - edges[0])
        return self.image[np.searchsorted(-edges[1:-1], -wanted, side="right")]


def slice_edges(z: np.ndarray) -> np.ndarray:
    """(n,) mm, decreasing -> (n + 1,): halfway between neighbours, and as far beyond the first and the last; 1 mm thick if n is 1."""
    if len(z) == 1:
        return np.array([z[0] + 0.5, z[0] - 0.5])
    between = (z[1:] + z[:-1]) / 2
    return np.concatenate([[2 * z[0] - between[0]], between, [2 * z[-1] - between[-1]]])


def middle_planes(study: Study, box: Box) -> tuple[Plane, Plane]:
    """The sagittal and the coronal plane through the middle of a box (native pixels), read once, a few slices at a time."""
    record = study.record
    left, top, right, bottom = record.stored_region
    x = min(max((box[0] + box[2]) // 2, left), right - 1)
    y = min(max((box[1] + box[3]) // 2, top), bottom - 1)
    sagittal = np.zeros((record.slices, record.rows), np.uint8)
    coronal = np.zeros((record.slices, record.columns), np.uint8)
    for first in range(0, record.slices, MOST_SLICES):
        part = slice(first, min(first + MOST_SLICES, record.slices))
        found = study.read(part.start, part.stop)
        sagittal[part, top:bottom] = found[:, :, x - left]
        coronal[part, left:right] = found[:, y - top]
    return Plane(sagittal, record.pixel_spacing[0], study.z), Plane(coronal, record.pixel_spacing[1], study.z)
