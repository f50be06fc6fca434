import numpy as np
import pytest

from trainer.data.items import Item, adaptive_stride, starts, triplets, whole_studies, windows


@pytest.mark.parametrize("stride", [1, 12, 16, 7])
@pytest.mark.parametrize("slices", [1, 50, 95, 96, 97, 98, 352])
def test_windows_cover_every_slice_and_stay_inside(slices, stride):
    found = windows([("a", slices)], 96, stride)
    shown = [item.z_index() for item in found]
    assert all(len(index) == 96 for index in shown)
    assert set(np.concatenate(shown)) - {-1} == set(range(slices))
    assert all((index >= 0).all() for index in shown) or len(found) == 1


def test_window_starts_are_the_multiples_of_the_stride_and_the_last_that_fits():
    assert starts(352, 96, 16) == [*range(0, 257, 16)]
    assert starts(98, 96, 16) == [0, 2]
    assert starts(96, 96, 16) == [0]
    assert starts(40, 96, 16) == [0]


def test_a_short_study_is_one_window_padded_at_the_end():
    (item,) = windows([("a", 50)], 96, 12)
    assert item.z_index()[:50].tolist() == list(range(50))
    assert (item.z_index()[50:] == -1).all()


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 6, 352])
def test_triplets_of_a_prediction_cover_every_slice(slices):
    found = np.concatenate([item.z_index() for item in triplets([("a", slices)], every=3)])
    assert set(found) - {-1} == set(range(slices))


def test_training_triplets_start_at_every_slice_that_has_two_behind_it():
    assert [item.start for item in triplets([("a", 6)], every=1)] == [0, 1, 2, 3]


def test_keys_are_unique_over_studies():
    found = triplets([("a", 9), ("b", 9)], every=1)
    assert [item.key for item in found] == list(range(len(found)))


@pytest.mark.parametrize(
    ("z_range", "slices", "start", "frames"),
    [((10, 40), 60, 8, 33), ((0, 60), 60, 0, 60), ((1, 59), 59, 0, 57), ((4, 5), 6, 2, 3), ((0, 1), 1, 0, 3)],
)
def test_a_whole_study_is_its_z_range_with_a_margin_in_whole_triplets(z_range, slices, start, frames):
    (item,) = whole_studies([("a", slices)], {"a": z_range})
    assert (item.start, item.frames) == (start, frames)


def test_thinning_takes_every_step_th_slice_from_a_phase():
    assert Item(0, "a", 10, 6, 100).z_index(step=3, phase=2).tolist() == [12, 15, 18, 21, 24, 27]


def test_the_adaptive_stride_is_that_of_the_reference():
    assert [adaptive_stride(n) for n in (200, 267, 352, 5000)] == [10, 7, 6, 1]
