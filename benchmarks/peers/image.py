"""A window of slices -> the network's input, by a few lines of NumPy and OpenCV: the step of all peers that have none of their own.

Coordinates are those of the request: pixel i covers [i, i + 1), its centre is i + 0.5.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np


class Item(NamedTuple):
    """What to make of which slices: an item of a request, its lists as arrays."""

    id: str
    start: int
    frames: int
    step: int
    box: tuple[int, int, int, int] | None
    """x0 y0 x1 y1 inside the slice; None: the whole slice"""
    gain: float
    matrix: np.ndarray
    """(2, 3) float32: output coordinates, after the axes -> coordinates of the crop"""
    axis_x: np.ndarray
    """(size,) float32: the coordinate that each output column samples, before `matrix`"""
    axis_y: np.ndarray
    holes: list[list[int]]
    """x0 y0 x1 y1 in the output"""
    reverse: bool
    warp: str = "none"
    """the last geometric augmentation: none, grid or affine; a way with random numbers of its own needs it"""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Item":
        item = cls(**fields)
        arrays = {name: np.array(fields[name], np.float32) for name in ("matrix", "axis_x", "axis_y")}
        return item._replace(box=item.box and tuple(item.box), **arrays)

    @property
    def end(self) -> int:
        """One after the last slice."""
        return self.start + self.step * (self.frames - 1) + 1

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the box."""
        x0, y0, x1, y1 = self.box or (0, 0, None, None)
        return slice(y0, y1), slice(x0, x1)


class Look(NamedTuple):
    """What all finished images have in common."""

    size: int
    mean: np.ndarray
    """(3,) float32 grey levels, by slice of a triplet"""
    std: np.ndarray

    @classmethod
    def of(cls, request: dict[str, Any]) -> "Look":
        return cls(request["size"], np.array(request["mean"], np.float32), np.array(request["std"], np.float32))

    @property
    def tables(self) -> np.ndarray:
        """(3, 256) float16: each grey level, normalised, by slice of a triplet."""
        return ((np.arange(256) - self.mean[:, None]) / self.std[:, None]).astype(np.float16)


def stretched(slices: np.ndarray, gain: float) -> np.ndarray:
    """(n, h, w) uint8 -> the same shape: each slice's lowest..highest to 0..255, rounded down, then multiplied and clipped."""
    out = np.empty(slices.shape, np.uint8)
    gained = np.minimum(np.arange(256, dtype=np.float32) * np.float32(gain), 255).astype(np.uint8)
    for one, target in zip(slices, out, strict=True):
        low, high = int(one.min()), int(one.max())
        levels = np.clip(np.arange(256) - low, 0, high - low)
        cv2.LUT(one, gained[levels * 255 // max(1, high - low)], dst=target)
    return out


def sampled(item: Item) -> tuple[np.ndarray, np.ndarray]:
    """Two (size, size) float32 maps, x and y: the pixel index in the crop that each output pixel samples."""
    x, y = item.axis_x[None, :], item.axis_y[:, None]
    map_x, map_y = (a * x + b * y + (c - np.float32(0.5)) for a, b, c in item.matrix)
    return map_x, map_y


def in_order(frames: np.ndarray, item: Item) -> np.ndarray:
    """The slices that were read, in the order of the image; zeros where the study ends before the item."""
    if len(frames) < item.frames:
        frames = np.concatenate([frames, np.zeros((item.frames - len(frames), *frames.shape[1:]), frames.dtype)])
    return frames[::-1] if item.reverse else frames


def make_image(slices: np.ndarray, item: Item, look: Look) -> np.ndarray:
    """(n, h, w) uint8, cropped -> (frames / 3, 3, size, size) float16."""
    frames = in_order(stretched(slices, item.gain), item)
    map_x, map_y = sampled(item)
    tables = look.tables
    out = np.empty((item.frames, look.size, look.size), np.float16)
    for k, (frame, target) in enumerate(zip(frames, out, strict=True)):
        moved = cv2.remap(frame, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        cv2.LUT(moved, tables[k % 3].view(np.uint16), dst=target.view(np.uint16))  # which knows no float16
        for x0, y0, x1, y1 in item.holes:
            target[y0:y1, x0:x1] = tables[k % 3, 0]
    return out.reshape(-1, 3, look.size, look.size)
