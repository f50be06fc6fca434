"""The whole image against the reference's order of operations: from HU in floating point, a pass of its own for every augmentation."""

import albumentations as A
import cv2
import numpy as np
import pydicom
import pytest
import torch

from cache_schema import Cache
from trainer.data.augment import Augmentation
from trainer.data.image import MEAN, STD, make_image
from trainer.data.items import Item
from trainer.data.order import ScheduledItem, Training, generator
from trainer.data.source import Source
from trainer.settings.settings import AugmentSettings

SIZE, BOX, FIRST = 512, (120, 150, 400, 417), 12
"""the box's square is 280 x 280: about the middle of what the reference cuts"""
SQUARE = (120, 143, 400, 423)


@pytest.fixture(scope="module")
def study(tiny_cache):
    """(id, three slices of HU, float64) as pydicom alone reads them."""
    id = Cache(tiny_cache).ids[0]
    slices = []
    for file in sorted((tiny_cache.parent / "rsna" / "train_images" / id).iterdir(), key=lambda f: int(f.stem)):
        dataset = pydicom.dcmread(file)
        slices.append((dataset.ImagePositionPatient[2], dataset))
    ordered = [dataset for _, dataset in sorted(slices, key=lambda pair: -pair[0])][FIRST : FIRST + 3]
    return id, np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in ordered])


def reference(hu, numbers, settings, interpolation):
    """(3, h, w) HU -> ((SIZE, SIZE, 3) float normalised, (SIZE, SIZE) bool: pixels that no pass took from outside its frame)."""
    x0, y0, x1, y1 = SQUARE
    crop = torch.from_numpy(hu[:, y0:y1, x0:x1])[None]
    resized = torch.nn.functional.interpolate(crop, (SIZE, SIZE), mode=interpolation, align_corners=False)[0].numpy()
    window = np.clip(resized, -500, 1300)
    low = window.min(axis=(1, 2), keepdims=True)
    image = ((window - low) / (window.max(axis=(1, 2), keepdims=True) - low) * 255).astype(np.uint8).transpose(1, 2, 0)
    inside, u = np.pad(np.full((SIZE - 4, SIZE - 4), 255, np.uint8), 2), numbers
    if u[1] < settings.flip:
        image = A.HorizontalFlip(p=1)(image=image)["image"]
    if u[2] < settings.contrast:
        image = np.clip(image * (1 + (2 * u[3] - 1) * 0.2), 0, 255).astype(np.uint8)
    if u[4] < settings.affine:
        angle, scale, dx, dy = (2 * u[5:9] - 1) * (20, 0.2, 0.2, 0.2)
        matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, 1 + scale)
        matrix[:, 2] += dx * SIZE, dy * SIZE
        image, inside = (cv2.warpAffine(a, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR) for a in (image, inside))
    if u[9] < settings.warp:
        move = _grid(u) if u[10] < 0.5 else _affine(u)
        image, inside = move(image, cv2.BORDER_REFLECT_101), move(inside, cv2.BORDER_CONSTANT)
    if u[0] < settings.cutout:
        for x, y in u[33:].reshape(-1, 2):
            left, top = (max(0, int(v * (SIZE + 1)) - 25) for v in (x, y))
            image[top : top + 51, left : left + 51] = 0
    normalised = A.Normalize(MEAN / 255, STD / 255, max_pixel_value=255)(image=image)["image"]
    return normalised, cv2.erode(inside, np.ones((5, 5), np.uint8)) == 255


def _grid(u):
    cell, edges = SIZE // 5, []
    for multipliers in (2 * u[11:17] - 1, 2 * u[17:23] - 1):
        axis, previous = np.zeros(SIZE, np.float32), 0.0
        for index, start in enumerate(range(0, SIZE, cell)):
            end = start + cell
            if end > SIZE:
                end, current = SIZE, SIZE
            else:
                current = previous + cell * (1 + 0.05 * multipliers[index])
            axis[start:end] = np.linspace(previous, current, end - start)
            previous = current
        edges.append(axis)
    map_x, map_y = np.meshgrid(*edges)
    return lambda image, border: cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=border)


def _affine(u):
    points = np.float32([[426, 426], [426, 86], [86, 86]])
    moved = points + ((2 * u[23:29] - 1).reshape(3, 2) * 50).astype(np.float32)
    matrix = cv2.getAffineTransform(points, moved)
    return lambda image, border: cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=border)


def levels_apart(study, tiny_cache, key, settings, interpolation):
    """(difference in grey levels of every pixel, which of them the reference takes from inside its frames)."""
    id, hu = study
    item = Item(key, id, FIRST, 3, 30)
    source = Source(tiny_cache, Training([item], 1, 1), Augmentation(SIZE, 7, settings), {id: BOX})
    ours = (
        make_image(source.sample(ScheduledItem(0, item)), SIZE, interpolation)[0].astype(np.float32).transpose(1, 2, 0)
    )
    theirs, inside = reference(hu, generator(7, 0, key, 3).random(49), settings, interpolation)
    return np.abs(ours - theirs) * STD, inside


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_stretch_resize_flip_gain_and_shift_scale_rotate(interpolation, study, tiny_cache):
    """But for the lines along the crop's edges, which ours fade over a native pixel and the reference over one of its frame."""
    for key in range(12):
        apart, inside = levels_apart(study, tiny_cache, key, AugmentSettings(warp=0, reverse=0), interpolation)
        assert inside.mean() > 0.5
        assert apart[inside].mean() < 0.7 and np.percentile(apart[inside], 99.9) < 6


def test_grid_distortion_and_random_affine_where_the_reference_does_not_look_outside(study, tiny_cache):
    for key in range(12):
        apart, inside = levels_apart(study, tiny_cache, key, AugmentSettings(warp=1, reverse=0), "bilinear")
        assert inside.mean() > 0.5
        assert apart[inside].mean() < 0.7 and np.percentile(apart[inside], 99.9) < 6
