"""The augmentation parameters of an item, a pure function of (seed, epoch, item). DALI only applies them.

Coordinates are continuous, in pixels of the square output image: pixel i covers [i, i + 1), its centre is i + 0.5. The reference's
libraries use pixel indices; `_from_index` adds the half pixel.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from trainer.data.items import Item
from trainer.data.order import generator
from trainer.settings.settings import AugmentSettings

GRID_CELLS, GRID_RANGE = 5, 0.05
"""reference 5: grid distortion"""
JITTER = 50 / 512
"""reference 5: the random affine moves three points by up to 50 px of 512"""
LONGEST_STEP = 4
"""reference 4.2: thinning"""


@dataclass(frozen=True)
class AugmentParams:
    """One item's augmentation parameters, the same for all its frames."""

    size: int
    matrix: np.ndarray
    """(2, 3) float64: output coordinates (after the axes below) -> coordinates of the resized crop, both in output pixels"""
    axis_x: np.ndarray
    """(size,) float32: the coordinate each output column samples, before `matrix`; its own centre without grid distortion"""
    axis_y: np.ndarray
    holes: np.ndarray
    """(n, 4) int: x0 y0 x1 y1 of the cutouts, exclusive ends"""
    gain: float = 1.0
    reverse: bool = False
    step: int = 1
    phase: int = 0

    def map_from_crop(self, height: int, width: int) -> np.ndarray:
        """(2, 3) float32: output coordinates -> coordinates of a (height, width) crop, resize included."""
        return (np.array([[width], [height]]) / self.size * self.matrix).astype(np.float32)

    def move_box(self, box: np.ndarray) -> np.ndarray:
        """(4,) x0 y0 x1 y1 in the resized crop -> the bounding box of its transformed corners, clipped to the output image."""
        x0, y0, x1, y1 = box
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)
        inverse = np.linalg.inv(np.vstack([self.matrix, [0, 0, 1]]))
        moved = corners @ inverse[:2, :2].T + inverse[:2, 2]
        centres = np.arange(self.size) + 0.5
        axes = zip((self.axis_x, self.axis_y), moved.T, strict=True)
        moved = np.stack([_invert(axis, centres, values) for axis, values in axes], axis=1)
        return np.clip(np.concatenate([moved.min(0), moved.max(0)]), 0, self.size)


def no_augmentation(size: int) -> AugmentParams:
    """Resize only."""
    centres = np.arange(size, dtype=np.float32) + 0.5
    return AugmentParams(size, np.eye(2, 3), centres, centres, np.zeros((0, 4), int))


def augment_params(
    seed: int, epoch: int, item: Item, settings: AugmentSettings, size: int, thin: float = 0.0
) -> AugmentParams:
    """One item's parameters. The number of random numbers is fixed, so that one augmentation's settings do not change another."""
    u = generator(seed, epoch, item.key, 3).random(33 + 2 * settings.holes)
    chain = np.eye(3)
    if u[1] < settings.flip:
        chain = np.array([[-1.0, 0, size], [0, 1, 0], [0, 0, 1]]) @ chain
    if u[4] < settings.affine:
        chain = _shift_scale_rotate(2 * u[5:9] - 1, settings, size) @ chain
    axis_x = axis_y = np.arange(size, dtype=np.float32) + 0.5
    if u[9] < settings.warp:
        if u[10] < 0.5:
            axis_x, axis_y = _grid_axis(2 * u[11:17] - 1, size), _grid_axis(2 * u[17:23] - 1, size)
        else:
            chain = _random_affine(2 * u[23:29] - 1, size) @ chain
    gain = 1.0 + (2 * u[3] - 1) * settings.contrast_range if u[2] < settings.contrast else 1.0
    holes = _holes(u[33:].reshape(-1, 2), settings, size) if u[0] < settings.cutout else np.zeros((0, 4), int)
    step, phase = _thinning(u[29:32], item, thin)
    reverse = bool(u[32] < settings.reverse) if item.frames == 3 else False
    return AugmentParams(size, np.linalg.inv(chain)[:2], axis_x, axis_y, holes, float(gain), reverse, step, phase)


def _from_index(matrix: np.ndarray) -> np.ndarray:
    """OpenCV's (2, 3) matrix on pixel indices -> (3, 3) on continuous coordinates."""
    linear, offset = matrix[:, :2], matrix[:, 2]
    full = np.eye(3)
    full[:2, :2], full[:2, 2] = linear, offset + 0.5 - linear @ [0.5, 0.5]
    return full


def _shift_scale_rotate(u: np.ndarray, settings: AugmentSettings, size: int) -> np.ndarray:
    angle, scale = u[0] * settings.rotate, 1 + u[1] * settings.scale
    matrix: np.ndarray = cv2.getRotationMatrix2D((size / 2, size / 2), angle, scale)
    matrix[:, 2] += u[2:4] * settings.shift * size
    return _from_index(matrix)


def _random_affine(u: np.ndarray, size: int) -> np.ndarray:
    middle, reach = size // 2, size // 3
    low, high = middle - reach, middle + reach
    points = np.array([[high, high], [high, low], [low, low]], np.float32)
    moved = points + (u.reshape(3, 2) * JITTER * size).astype(np.float32)
    return _from_index(cv2.getAffineTransform(points, moved))


def _grid_axis(u: np.ndarray, size: int) -> np.ndarray:
    """(size,) float32: cumulative cell widths, each stretched by up to 5 %. As in the reference they are not renormalised, and
    the remaining pixels run to the border."""
    cell = size // GRID_CELLS
    axis, previous = np.empty(size, np.float32), 0.0
    for index, start in enumerate(range(0, size, cell)):
        end = min(start + cell, size)
        current = previous + cell * (1 + GRID_RANGE * u[index]) if start + cell <= size else float(size)
        axis[start:end] = np.linspace(previous, current, end - start, dtype=np.float32)
        previous = current
    return axis + 0.5


def _invert(axis: np.ndarray, centres: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Output coordinates that sample `values`. The axis is extrapolated with slope 1."""
    inside = np.interp(values, axis, centres)
    return inside + np.minimum(values - axis[0], 0) + np.maximum(values - axis[-1], 0)


def _holes(u: np.ndarray, settings: AugmentSettings, size: int) -> np.ndarray:
    side = int(size * settings.hole_size)
    first = np.clip((u * (size + 1)).astype(int) - side // 2, 0, size)
    return np.concatenate([first, np.minimum(first + side, size)], axis=1)


def _thinning(u: np.ndarray, item: Item, probability: float) -> tuple[int, int]:
    longest = min(LONGEST_STEP, (item.slices - item.start) // item.frames)
    if u[0] >= probability or longest < 2:
        return 1, 0
    step = 2 + int(u[1] * (longest - 1))
    return step, int(u[2] * step)


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a list of items; seed=None: resize only."""

    size: int
    seed: int | None = None
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    thin: float = 0.0

    def __call__(self, epoch: int, item: Item) -> AugmentParams:
        if self.seed is None:
            return no_augmentation(self.size)
        return augment_params(self.seed, epoch, item, self.augment, self.size, self.thin)
