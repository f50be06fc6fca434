"""Heat maps: hot where the detail is, in the coordinates of the slice."""

import numpy as np
import pytest
import torch

from trainer.answers.answer import SuspectedSlice
from trainer.data.augment import no_augmentation
from trainer.data.image import NORMALISED
from trainer.models import SliceFractureModel
from trainer.models.backbone import Backbone
from trainer.predictor.heat_maps import heat_map, window_around
from trainer.report.heat_map import HeatMap, native_point

SIZE = 128


@pytest.fixture(scope="module")
def network() -> SliceFractureModel:
    torch.manual_seed(0)
    return SliceFractureModel(Backbone("test_efficientnet_gn"), dropout=0.5)


def black_window() -> np.ndarray:
    """(4, 3, SIZE, SIZE) float16."""
    return np.broadcast_to(NORMALISED[:, 0, None, None], (4, 3, SIZE, SIZE)).copy()


@pytest.mark.parametrize(("row", "column"), [(20, 90), (100, 40)])
def test_only_where_there_is_detail_can_it_be_hot(row, column, network):
    window = black_window()
    window[2, :, row : row + 8, column : column + 8] = NORMALISED[:, 255, None, None]
    window[1, :, 60:70, 60:70] = NORMALISED[:, 255, None, None]  # in another triplet
    heat = heat_map(network, window, 2, "C4")
    assert heat.shape == (SIZE, SIZE) and heat.dtype == np.float32 and heat.min() >= 0 and heat.max() == 1
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert abs(y - row - 4) < 16 and abs(x - column - 4) < 16
    assert np.array_equal(heat, heat_map(network.train(), window, 2, "C4")), "no dropout, whatever the mode was"
    assert not np.array_equal(heat, heat_map(network, window, 2, "C5"))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_without_detail_nothing_is_hot(network):
    with torch.inference_mode():
        assert not heat_map(network, black_window(), 1, "C1").any()


def test_relative_positions_are_taken_by_a_network_that_needs_them():
    torch.manual_seed(0)
    relative = SliceFractureModel(Backbone("test_efficientnet_gn"), positional="relative")
    window = black_window()
    window[2, :, 50:60, 50:60] = 1
    with pytest.raises(ValueError, match="relative"):
        heat_map(relative, window, 2, "C4")
    assert heat_map(relative, window, 2, "C4", np.linspace(0, 1, 12)).max() == 1


def test_a_point_of_the_map_lies_where_the_image_was_cut_out():
    square = (100, 40, 340, 200)
    matrix = no_augmentation(SIZE).map_from_crop(160, 240).astype(float)
    for x, y in ((0.5, 0.5), (64, 32), (127.5, 100)):
        native = np.array(native_point(square, (SIZE, SIZE), x, y))
        assert np.allclose(native - square[:2], matrix @ [x, y, 1], atol=1e-4)
    values = np.zeros((16, 32), np.float32)
    values[3, 8] = 1
    heat = HeatMap(SuspectedSlice("C1", 5, 6, 0.5), values, square)
    assert heat.peak() == (100 + 8.5 * 240 / 32, 40 + 3.5 * 160 / 16)


def test_a_slice_is_seen_in_the_window_that_has_it_most_in_its_middle():
    item, step = window_around("a", 96, 24, 12, 49)
    assert (item.start, step) == (36, 4) and item.z_index()[3 * step + 1] == 49
    assert window_around("a", 96, 24, 12, 1)[1] == 0
    assert window_around("a", 10, 24, 12, 9) == (window_around("a", 10, 24, 12, 1)[0], 3)
    with pytest.raises(ValueError, match="no triplet"):
        window_around("a", 96, 24, 12, 50)
