"""The range of image statistics that a model was trained on, and what lies far from it."""

from types import SimpleNamespace

import numpy as np
import pytest

from cache_schema import Cache, Study
from cache_schema.study import Origin, SliceSpacing, StudyRecord
from trainer.answers.unlike import FACTOR, NAMES, RANGE, Range, TrainingRange, image_statistics, merged, training_range
from trainer.runs.file_names import MODEL_FILE
from trainer.runs.weights import weights_metadata


class Pixels:
    def __init__(self, volume: np.ndarray):
        self.volume, self.reads = volume, []

    def read(self, z0, z1, box=None):
        self.reads.append(z0)
        x0, y0, x1, y1 = box or (0, 0, *self.volume.shape[:0:-1])
        return self.volume[z0:z1, y0:y1, x0:x1]


def study(volume: np.ndarray, spacing: float | None = 2.0, **changes) -> Study:
    slices, rows, columns = volume.shape
    record = StudyRecord(
        **dict(id="a", study_uid="a", series_uid="a", rows=rows, columns=columns, slices=slices, position=(0, 0, 0)),
        **dict(
            orientation=(1, 0, 0, 0, 1, 0), transfer_syntax="", decoder="", source_digest="", pixel_spacing=(0.4, 0.9)
        ),
        spacing=spacing and (spacing, 0.4, 0.9),
        slice_spacing=spacing and SliceSpacing(min=spacing, median=spacing, max=spacing),
    ).model_copy(update=changes)
    return Study(record, -np.arange(slices) * 2.0, np.arange(slices), Pixels(volume))


def noisy(level: float, noise: float, shape=(20, 120, 100), seed=0) -> np.ndarray:
    drawn = level + noise * np.random.default_rng(seed).standard_normal(shape)
    return np.clip(drawn.round(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [1, 2, 5, 12])
def test_noise_is_measured_beside_edges_slopes_and_air(noise):
    volume = noisy(90, noise)
    volume[:, :, 50:] = noisy(160, noise, (20, 120, 50), seed=1)
    volume[:, :40] = 0
    slope = np.clip(volume + np.arange(120)[:, None] // 4 * (volume > 0), 0, 255).astype(np.uint8)
    assert image_statistics(study(slope))["noise"] == pytest.approx(noise, rel=0.15)


def test_statistics_are_those_of_the_study():
    found = image_statistics(study(noisy(90, 3)))
    assert found.keys() == NAMES.keys()
    assert found["grey_level"] == pytest.approx(90, abs=0.2)
    assert (found["slice_spacing"], found["rows"], found["columns"]) == (2.0, 120, 100)
    assert found["pixel_spacing"] == pytest.approx(0.6)


def test_a_box_and_a_range_are_looked_at_alone():
    volume = noisy(30, 1)
    volume[5:9, 20:60, 10:50] = noisy(200, 1, (4, 40, 40))
    own = study(volume)
    assert image_statistics(own, (10, 20, 50, 60), (5, 9))["grey_level"] == pytest.approx(200, abs=0.5)
    assert set(own.pixels.reads) == {5, 6, 7, 8}


def test_at_most_sixteen_slices_are_read():
    own = study(noisy(30, 1, (50, 20, 20)))
    image_statistics(own)
    assert len(own.pixels.reads) == 16 and {0, 49} <= set(own.pixels.reads)


def test_what_cannot_be_known_is_left_out():
    black = image_statistics(study(np.zeros((3, 20, 20), np.uint8), spacing=None))
    assert black.keys() == NAMES.keys() - {"noise", "slice_spacing"} and black["grey_level"] == 0
    part = study(noisy(90, 3), rows=400, columns=400, origin=Origin(x0=5, y0=5, rows=120, columns=100, parent="b"))
    assert image_statistics(part).keys() == NAMES.keys() - {"noise", "grey_level"}
    assert part.pixels.reads == [] and "noise" in image_statistics(part, (5, 5, 105, 125))


def test_what_lies_beyond_the_range_is_named():
    trained = TrainingRange.of({"slice_spacing": value, "rows": 512.0} for value in (1.0, 1.5, 2.0))
    assert trained.ranges["slice_spacing"] == Range(1.0, 2.0, 3)
    inside = ({"slice_spacing": value} for value in (1 / FACTOR, 1.2, 2 * FACTOR))
    assert not any(trained.unlike(statistics) for statistics in inside)
    (line,) = trained.unlike({"slice_spacing": 5.0, "rows": 512.0, "noise": 99.0})
    assert line == "the slice spacing is 5 mm, beside 1 to 2 in 3 training studies"
    assert len(trained.unlike({"slice_spacing": 0.5, "rows": 1024.0})) == 2


def test_a_range_is_the_same_after_writing_and_several_make_one():
    one = TrainingRange.of([{"noise": 1 / 3}, {"noise": 2.0, "rows": 9.0}])
    assert TrainingRange.from_json(one.to_json()) == one
    other = TrainingRange({"noise": Range(1.0, 4.0, 5)})
    assert merged([one, other]).ranges == {"noise": Range(0.333333, 4.0, 5), "rows": Range(9.0, 9.0, 1)}
    assert merged([]).unlike({"noise": 9.0}) == []
    for text in ("[1]", '{"noise": 3}', "no"):
        with pytest.raises(ValueError):
            TrainingRange.from_json(text)


def test_a_study_that_cannot_be_read_is_left_out(tiny_cache):
    cache = Cache(tiny_cache)

    def broken(id: str) -> Study:
        if id == cache.ids[0]:
            raise OSError
        return cache.study(id)

    found = training_range(SimpleNamespace(train_ids=lambda: cache.ids, study=broken))
    assert {own.n for own in found.ranges.values()} == {len(cache.ids) - 1}


def test_a_run_records_the_range_of_its_training_studies(chain, tiny_cache):
    cache = Cache(tiny_cache)
    fold = cache.labels.set_index("id")["fold"]
    run = chain[1]["study_fracture"][0]
    recorded = TrainingRange.from_json(weights_metadata(run / MODEL_FILE)[RANGE])
    own = TrainingRange.of(image_statistics(cache.study(id)) for id in cache.ids if fold[id] != 0)
    assert recorded == own and not any(recorded.unlike(image_statistics(cache.study(id))) for id in cache.ids)
