"""The image that a network is shown: both loaders and DALI's operators against OpenCV, albumentations and plain arithmetic."""

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from samples import SIZE, random_samples

from cache_schema.study import square_around
from trainer.data import resident
from trainer.data.augment import AugmentParams, no_augmentation
from trainer.data.image import MEAN, STD, make_image
from trainer.data.loader import Loader
from trainer.data.source import assemble, stretch
from trainer.settings.settings import DataSettings


def one_by_one(sample, interpolation):
    """Every slice and every step by itself, coordinates in double precision: where one lies between two steps of OpenCV's, that
    makes a grey level or two."""
    (a, b, c), (d, e, f) = np.float64(sample.matrix)
    map_x = np.float32(a * sample.axis_x + b * sample.axis_y + c - 0.5)
    map_y = np.float32(d * sample.axis_x + e * sample.axis_y + f - 0.5)
    out = []
    for k, frame in enumerate(sample.pixels[..., 0]):
        moved = cv2.remap(frame, map_x, map_y, interpolation, borderMode=cv2.BORDER_CONSTANT)
        for (y, x), (height, width) in zip(
            sample.hole_start.reshape(-1, 2).astype(int), sample.hole_shape.reshape(-1, 2).astype(int), strict=True
        ):
            moved[y : y + height, x : x + width] = 0
        out.append((moved - MEAN[k % 3]) / STD[k % 3])
    return np.stack(out).reshape(-1, 3, SIZE, SIZE)


@pytest.mark.parametrize("loader", ["dali", "plain"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("frames", [3, 12, 15])
def test_both_loaders_show_what_slice_by_slice_arithmetic_gives(frames, interpolation, loader):
    source = random_samples(8, frames)
    settings = DataSettings(size=SIZE, interpolation=interpolation, loader=loader)
    (batch,) = Loader(source, 8, settings, torch.device("cpu"))
    assert batch.images.dtype == torch.float16 and batch.triplets == [frames // 3] * 8
    way = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[interpolation]
    expected = np.concatenate([one_by_one(sample, way) for sample in source.samples])
    levels = np.abs(batch.images.numpy().astype(np.float32) - expected) * STD[:, None, None]
    assert levels.max() < 3 and (levels > 0.2).mean() < 1e-4


def test_items_of_different_length_share_a_batch():
    source = random_samples(2, 6)
    source.samples[1] = random_samples(2, 15).samples[1]
    (batch,) = Loader(source, 2, DataSettings(size=SIZE), torch.device("cpu"))
    assert batch.triplets == [2, 5] and batch.images.shape == (7, 3, SIZE, SIZE)


def test_normalisation_is_per_slice_of_a_triplet():
    pixels = np.full((3, SIZE, SIZE), 100, np.uint8)
    found = make_image(assemble(pixels, no_augmentation(SIZE)), SIZE)
    mean, std = (0.22363983, 0.18190407, 0.2523437), (0.32451536, 0.2956294, 0.31335256)
    for channel in range(3):
        assert np.allclose(found[0, channel], (100 / 255 - mean[channel]) / std[channel], atol=1e-3)


def test_stretch_is_the_reference_formula_for_each_slice():
    random = np.random.default_rng(1)
    pixels = random.integers(30, 200, (5, 40, 40)).astype(np.uint8)
    pixels[2] = 77
    found = stretch(pixels, pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2)))
    for before, after in zip(pixels, found, strict=True):
        span = int(before.max()) - int(before.min())
        expected = (before.astype(int) - before.min()) * 255 // span if span else np.zeros_like(before)
        assert np.array_equal(after, expected)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 100, 200, 151), (100, 75, 200, 175)),
        ((100, 100, 200, 150), (100, 75, 200, 175)),
        ((100, 100, 151, 200), (75, 100, 175, 200)),
        ((100, 2, 200, 20), (100, 0, 200, 61)),
        ((400, 100, 510, 400), (305, 100, 512, 400)),
        ((0, 0, 512, 512), (0, 0, 512, 512)),
    ],
)
def test_a_box_is_squared_and_clipped_as_in_the_reference(box, expected):
    assert square_around(box, 512, 512) == expected


@pytest.mark.parametrize("gain", [0.8, 0.9137, 1.0, 1.15, 1.2])
def test_gain_is_the_reference_s_contrast_of_the_stretched_slice(gain):
    """On the device of data.resident=gpu too, and with data.intensity=fixed; albumentations rounds where the reference truncates."""
    pixels = np.random.default_rng(2).integers(30, 230, (3, SIZE, SIZE)).astype(np.uint8)
    low, high = pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2))
    span = (high.astype(int) - low)[:, None, None]
    stretched = (pixels.astype(int) - low[:, None, None]) * 255 // span
    expected = np.floor(np.clip(np.float32(stretched) * np.float32(gain), 0, 255))
    assert np.array_equal(stretch(pixels, low, high, gain), expected)
    assert np.array_equal(resident.stretch(torch.from_numpy(pixels), gain).numpy(), expected)
    alone = np.floor(np.clip(np.float32(pixels) * np.float32(gain), 0, 255))
    assert np.array_equal(stretch(pixels, np.array([0] * 3), np.array([255] * 3), gain), alone)
    assert np.array_equal(resident.stretch(torch.from_numpy(pixels), gain, per_slice=False).numpy(), alone)
    limit = (gain - 1, gain - 1)
    transform = A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=limit, ensure_safe_range=False, p=1)
    theirs = np.stack([transform(image=frame)["image"] for frame in stretched.astype(np.uint8)])
    assert np.abs(theirs - expected).max() <= 1


def test_cut_outs_are_black_and_nothing_else_is():
    pixels = np.full((3, SIZE, SIZE), 200, np.uint8)
    same = no_augmentation(SIZE)
    holes = np.array([[10, 20, 19, 29], [80, 90, 96, 96], [5, 5, 5, 9]])
    found = make_image(assemble(pixels, AugmentParams(SIZE, same.matrix, same.axis_x, same.axis_y, holes)), SIZE)
    black = np.isclose(found[0].astype(np.float32), (-MEAN / STD)[:, None, None], atol=2e-3).all(0)
    expected = np.zeros((SIZE, SIZE), bool)
    for x0, y0, x1, y1 in holes:
        expected[y0:y1, x0:x1] = True
    assert np.array_equal(black, expected)
