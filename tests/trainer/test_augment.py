"""Augmentation parameters against the libraries whose behaviour they restate: OpenCV and albumentations."""

import cv2
import numpy as np
import pytest

from trainer.data.augment import _grid_axis, augment_params, no_augmentation
from trainer.data.items import Item
from trainer.settings.settings import AugmentSettings

ITEM = Item(5, "a", 0, 96, 400)
NOTHING = {"reverse": 0, "flip": 0, "contrast": 0, "affine": 0, "warp": 0, "cutout": 0}


def settings(**chosen):
    return AugmentSettings(**{**NOTHING, **chosen})


def picture(size=96):
    return cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (size, size)).astype(np.uint8), (0, 0), 2)


def shown(params, image):
    """The whole map at once, by cv2.remap."""
    m = params.map_from_crop(*image.shape)
    x, y = params.axis_x[None], params.axis_y[:, None]
    maps = [np.float32(row[0] * x + row[1] * y + row[2] - 0.5) for row in m]
    return cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def test_a_draw_depends_on_seed_epoch_and_item_alone():
    full = AugmentSettings()
    one, same = augment_params(1, 2, ITEM, full, 512), augment_params(1, 2, ITEM, full, 512)
    assert np.array_equal(one.matrix, same.matrix) and np.array_equal(one.holes, same.holes)
    for other in (
        augment_params(2, 2, ITEM, full, 512),
        augment_params(1, 3, ITEM, full, 512),
        augment_params(1, 2, ITEM._replace(key=6), full, 512),
    ):
        assert not np.array_equal(one.holes, other.holes)


def test_switching_one_augmentation_off_moves_no_other():
    with_flip, without = (augment_params(1, 0, ITEM, AugmentSettings(flip=p), 512) for p in (1, 0))
    assert np.array_equal(with_flip.holes, without.holes) and with_flip.gain == without.gain


def test_a_still_draw_only_resizes():
    image = picture(60)
    expected = cv2.resize(image, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert np.abs(shown(no_augmentation(96), image).astype(int)[1:-1, 1:-1] - expected[1:-1, 1:-1]).max() <= 1


def test_a_flip_is_a_mirror():
    image = picture()
    assert np.array_equal(shown(augment_params(0, 0, ITEM, settings(flip=1), 96), image), image[:, ::-1])


@pytest.mark.parametrize("epoch", range(6))
def test_shift_scale_rotate_is_that_of_opencv_about_the_centre(epoch):
    size, image = 96, picture()
    moved = augment_params(3, epoch, ITEM, settings(affine=1), size)
    from trainer.data.order import generator

    u = 2 * generator(3, epoch, ITEM.key, 3).random(49)[5:9] - 1
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), 20 * u[0], 1 + 0.2 * u[1])
    matrix[:, 2] += u[2:] * 0.2 * size
    expected = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    difference = np.abs(shown(moved, image).astype(int) - expected)
    assert difference.mean() < 0.2 and np.percentile(difference, 99) <= 2


def test_the_grid_axis_is_the_running_sum_of_stretched_cells():
    u = np.array([1.0, -1.0, 0.5, 0.0, 0.2, 0.0])
    axis = _grid_axis(u, 512) - 0.5
    edges = np.cumsum([0, *(102 * (1 + 0.05 * u[:5]))])
    assert np.allclose(axis[[0, 102, 204, 306, 408]], edges[:5], atol=1e-3)
    assert np.allclose(axis[[101, 203, 305, 407, 509]], edges[1:], atol=1e-3)
    assert axis[511] == 512


def test_ranges_and_probabilities_are_those_of_the_reference():
    every = [augment_params(0, 0, ITEM._replace(key=k), AugmentSettings(), 512) for k in range(1500)]
    gains = np.array([d.gain for d in every])
    assert gains.min() >= 0.8 and gains.max() <= 1.2
    assert abs((gains == 1).mean() - 0.25) < 0.05
    grid = np.array([not np.allclose(d.axis_x, no_augmentation(512).axis_x) for d in every])
    assert abs(grid.mean() - 0.25) < 0.05
    assert all(len(d.holes) == 8 for d in every)
    side = np.concatenate([d.holes[:, 2:] - d.holes[:, :2] for d in every])
    assert side.max() == 51 and side.min() >= 0
    flips = np.array([np.linalg.det(d.matrix[:, :2]) < 0 for d in every])
    assert abs(flips.mean() - 0.5) < 0.05


@pytest.mark.parametrize("key", range(8))
def test_a_box_moves_with_its_picture(key):
    size, image = 128, np.zeros((200, 160), np.uint8)
    box = np.array([60, 70, 110, 140])
    image[box[1] : box[3], box[0] : box[2]] = 255
    chosen = augment_params(0, 0, ITEM._replace(key=key), AugmentSettings(cutout=0, contrast=0), size)
    seen = np.argwhere(shown(chosen, image) > 127)
    moved = chosen.move_box(box * size / np.array([160, 200, 160, 200]))
    expected = [*seen.min(0)[::-1], *(seen.max(0)[::-1] + 1)]
    assert np.abs(moved - expected).max() <= 2.5


def test_thinning_stays_inside_the_study_and_is_skipped_where_the_study_is_short():
    for key in range(300):
        found = augment_params(0, 0, ITEM._replace(key=key), settings(), 64, thin=0.6)
        index = ITEM.z_index(found.step, found.phase)
        assert 1 <= found.step <= 4 and found.phase < found.step and (index >= 0).all()
    steps = {augment_params(0, 0, ITEM._replace(key=key), settings(), 64, thin=0.6).step for key in range(300)}
    assert steps == {1, 2, 3, 4}
    short = ITEM._replace(slices=191)
    assert all(augment_params(0, 0, short._replace(key=key), settings(), 64, thin=1.0).step == 1 for key in range(50))
