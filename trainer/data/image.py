"""The network's input images by OpenCV and lookup tables: for DALI's graph on a CPU, and for the plain loader."""

from dataclasses import dataclass

import cv2
import numpy as np

from trainer.data.buffers import Buffers
from trainer.data.source import Sample, Source

MEAN = np.array([0.22363983, 0.18190407, 0.2523437], np.float32) * 255
STD = np.array([0.32451536, 0.2956294, 0.31335256], np.float32) * 255
"""of each slice of a triplet, in grey levels (reference 2.4)"""
NORMALISED = ((np.arange(256, dtype=np.float32) - MEAN[:, None]) / STD[:, None]).astype(np.float16)
"""(3, 256): each grey level, normalised, by slice of a triplet"""
INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
REMAP_SLICES = 4
"""slices in one call of cv2.remap, as channels of one image: a third of the time for the same pixels"""

_images = Buffers()


def make_image(sample: Sample, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """A sample -> (frames / 3, 3, size, size) float16: remapped, normalised, with cutouts."""
    (a, b, c), (d, e, f) = sample.matrix
    map_x = a * sample.axis_x + b * sample.axis_y + (c - np.float32(0.5))
    map_y = d * sample.axis_x + e * sample.axis_y + (f - np.float32(0.5))
    frames = sample.pixels[..., 0]
    out = _images((len(frames), size, size), np.float16)
    for first in range(0, len(frames), REMAP_SLICES):
        part = slice(first, first + REMAP_SLICES)
        remapped = _remap(frames[part], map_x, map_y, INTERPOLATION[interpolation])
        for k, (frame, target) in enumerate(zip(remapped, out[part], strict=True), first):
            cv2.LUT(
                frame, NORMALISED[k % 3].view(np.uint16), dst=target.view(np.uint16)
            )  # LUT does not support float16
    holes = np.hstack([sample.hole_start.reshape(-1, 2), sample.hole_shape.reshape(-1, 2)]).astype(int)
    for y, x, height, width in holes:
        for k in range(3):
            out[k::3, y : y + height, x : x + width] = NORMALISED[k, 0]
    return out.reshape(-1, 3, size, size)


@dataclass
class ImageReader:
    """k -> (the source's k-th image, (1,) int64 its item's key)."""

    source: Source
    size: int
    interpolation: str

    def __call__(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.source.read(k)
        return make_image(sample, self.size, self.interpolation), sample.key


def _remap(frames: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, interpolation: int) -> list[np.ndarray]:
    """(n <= REMAP_SLICES, h, w) uint8 through (size, size) maps of pixel indices -> n images; 0 outside."""
    channels = [*frames, *[frames[-1]] * (REMAP_SLICES - len(frames))]
    remapped = cv2.remap(cv2.merge(channels), map_x, map_y, interpolation, borderMode=cv2.BORDER_CONSTANT)
    return list(cv2.split(remapped)[: len(frames)])
