"""Alternatives to this project's images: from DICOM as in the reference, with albumentations from arrays or PNG files, and with a few
lines of OpenCV and NumPy.
"""

from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pydicom
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from cache_schema.study import Box
from trainer.data.image import MEAN, STD
from trainer.data.source import Sample
from trainer.settings.settings import AugmentSettings

SIZE = 512
SIGMA, ALPHA = 50, 1
"""reference 5: the elastic field"""


def decoded(files: list[Path], box: Box | None) -> np.ndarray:
    """(n, SIZE, SIZE) uint8 as in reference 2: rescaled, cropped, resized as floats, windowed, stretched slice by slice."""
    slices = []
    for file in files:
        dataset = pydicom.dcmread(file)
        slices.append(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
    hu = np.stack(slices)
    if box is not None:
        x0, y0, x1, y1 = box
        crop = torch.from_numpy(hu[:, y0:y1, x0:x1])[None]
        hu = interpolate(crop, (SIZE, SIZE), mode="bilinear", align_corners=False)[0].numpy()
    window = np.clip(hu, -500, 1300)
    low = window.min(axis=(1, 2), keepdims=True)
    return ((window - low) / (window.max(axis=(1, 2), keepdims=True) - low) * 255).astype(np.uint8)


def from_png(folder: Path, z0: int, z1: int) -> np.ndarray:
    return np.stack([np.asarray(cv2.imread(f"{folder}/{z}.png", cv2.IMREAD_UNCHANGED)) for z in range(z0, z1)])


def cropped(slices: np.ndarray, box: Box | None) -> np.ndarray:
    """(n, SIZE, SIZE) uint8: cropped, resized by OpenCV and stretched."""
    if box is not None:
        x0, y0, x1, y1 = box
        slices = np.stack([cv2.resize(one[y0:y1, x0:x1], (SIZE, SIZE)) for one in slices])
    low, high = slices.min(axis=(1, 2), keepdims=True), slices.max(axis=(1, 2), keepdims=True)
    return ((slices - low).astype(np.float32) * (255 / np.maximum(1, high - low))).astype(np.uint8)


class Albumentations:
    """The settings' augmentations by albumentations, the same for all images of an item. warp: the last geometric one."""

    def __init__(self, settings: AugmentSettings):
        s = settings
        before = [
            A.HorizontalFlip(p=s.flip),
            A.RandomBrightnessContrast(0, s.contrast_range, ensure_safe_range=False, p=s.contrast),
            A.Affine(
                scale=(1 - s.scale, 1 + s.scale),
                translate_percent=(-s.shift, s.shift),
                rotate=(-s.rotate, s.rotate),
                balanced_scale=False,
                p=s.affine,
            ),
        ]
        side = (s.hole_size, s.hole_size)
        after = [A.CoarseDropout((s.holes, s.holes), side, side, p=s.cutout)] if s.holes else []
        self._normalise = A.Normalize(MEAN / 255, STD / 255, max_pixel_value=255)
        reflect = cv2.BORDER_REFLECT_101
        warps = {
            "none": [],
            "grid": [A.GridDistortion(5, 0.05, border_mode=reflect, p=1)],
            "affine": [A.Affine(shear=(-8, 8), scale=(0.9, 1.1), border_mode=reflect, p=1)],
        }
        self._compose = {name: A.Compose([*before, *warp, *after]) for name, warp in warps.items()}

    def __call__(self, slices: np.ndarray, warp: str) -> np.ndarray:
        """(n, SIZE, SIZE) uint8 -> (n / 3, 3, SIZE, SIZE) float16."""
        return self._normalised(self._augmented(slices, warp))

    def reference(self, slices: np.ndarray, warp: str, seed: int) -> np.ndarray:
        """The same, with the reference's elastic field after a random affine, computed for every image as there."""
        images = self._augmented(slices, warp)
        if warp == "affine":
            images = np.stack([elastic(image, seed) for image in images])
        return self._normalised(images)

    def _augmented(self, slices: np.ndarray, warp: str) -> np.ndarray:
        images = np.ascontiguousarray(slices.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
        return self._compose[warp](images=images)["images"]

    def _normalised(self, images: np.ndarray) -> np.ndarray:
        return self._normalise(images=images)["images"].transpose(0, 3, 1, 2).astype(np.float16)


def with_opencv(sample: Sample) -> np.ndarray:
    """A sample -> (frames / 3, 3, SIZE, SIZE) float16, by a remap and a lookup table per slice."""
    matrix = sample.matrix
    map_x, map_y = (row[0] * sample.axis_x + row[1] * sample.axis_y + (row[2] - np.float32(0.5)) for row in matrix)
    tables = ((np.arange(256) - MEAN[:, None]) / STD[:, None]).astype(np.float16)
    holes = [slice_.astype(int) for slice_ in (sample.hole_start.reshape(-1, 2), sample.hole_shape.reshape(-1, 2))]
    out = np.empty((len(sample.pixels), SIZE, SIZE), np.float16)
    for k, (frame, target) in enumerate(zip(sample.pixels[..., 0], out, strict=True)):
        moved = cv2.remap(frame, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        np.take(tables[k % 3], moved, out=target, mode="clip")
        for (y, x), (height, width) in zip(*holes, strict=True):
            target[y : y + height, x : x + width] = tables[k % 3, 0]
    return out.reshape(-1, 3, SIZE, SIZE)


def elastic(image: np.ndarray, seed: int) -> np.ndarray:
    """Applies a displacement field of smoothed noise. It moves pixels by at most 0.01, but costs its time in the reference."""
    random = np.random.default_rng(seed)
    dx, dy = (gaussian_filter(random.random((SIZE, SIZE)) * 2 - 1, SIGMA) * ALPHA for _ in range(2))
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    maps = (x + dx).astype(np.float32), (y + dy).astype(np.float32)
    return cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
