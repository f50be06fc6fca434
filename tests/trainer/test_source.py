"""Pixels from a cache: the same bytes from every reader, worker count and loader, and one line for a damaged chunk."""

import shutil

import numpy as np
import pytest
import torch

from cache_schema import Cache
from cache_schema.errors import CspineError
from cache_schema.study import square_around
from trainer.config import AugmentSettings, DataSettings
from trainer.data.draws import Drawing
from trainer.data.items import triplets, whole_studies, windows
from trainer.data.loader import Loader
from trainer.data.order import Evaluation, Place, Training
from trainer.data.source import Source, stretch

AUGMENT = AugmentSettings(reverse=0.5)


def lengths(cache):
    return [(row.id, int(row.slices)) for row in cache.index.itertuples()]


def boxes_of(cache):
    return {id: (100 + 5 * k, 120, 300, 333) for k, id in enumerate(cache.ids)}


@pytest.mark.parametrize("kind", ["triplets", "windows", "studies"])
@pytest.mark.parametrize("cropped", [False, True])
def test_pixels_are_those_of_the_study_whatever_is_kept_in_memory(kind, cropped, tiny_cache):
    cache = Cache(tiny_cache)
    items = {
        "triplets": triplets(lengths(cache), every=7),
        "windows": windows(lengths(cache), 12, 9),
        "studies": whole_studies(lengths(cache), {id: (3, 20) for id in cache.ids}),
    }[kind]
    boxes = boxes_of(cache) if cropped else None
    drawing = Drawing(64, 5, AUGMENT, thin=0.6)
    for keep in (0, 10_000, 10**9):
        source = Source(tiny_cache, Training(items, 1, 2), drawing, boxes, keep_bytes=keep)
        for item in items[::3]:
            draw = drawing(0, item)
            index = item.z_index(draw.step, draw.phase)
            study = cache.study(item.id)
            pixels = study.read(0, study.record.slices)[index[index >= 0]]
            if cropped:
                x0, y0, x1, y1 = square_around(boxes[item.id], study.record.rows, study.record.columns)
                pixels = pixels[:, y0:y1, x0:x1]
            expected = stretch(pixels, pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2)))
            expected = expected[::-1] if draw.reverse else expected
            assert np.array_equal(source.pixels(Place(0, item), draw), expected)


@pytest.mark.parametrize("loader", ["dali", "plain"])
def test_batches_are_the_same_with_and_without_reading_processes(loader, tiny_cache):
    cache = Cache(tiny_cache)
    items = triplets(lengths(cache), every=3)

    def batches(workers, batch):
        schedule = Evaluation(items[:16], batch)
        source = Source(tiny_cache, schedule, Drawing(64, 5, AUGMENT), limit=schedule.steps * batch)
        settings = DataSettings(size=64, loader=loader, workers=workers)
        found = list(Loader(source, batch, settings, torch.device("cpu")))
        return torch.cat([batch.images for batch in found]), [
            place.item.key for batch in found for place in batch.places
        ]

    pixels, order = batches(0, 4)
    assert order == list(range(16))
    for workers, batch in ((1, 4), (0, 1)):
        again, same = batches(workers, batch)
        assert same == order and torch.equal(again, pixels)


@pytest.mark.parametrize(("loader", "workers"), [("dali", 0), ("dali", 1), ("plain", 1)])
def test_a_damaged_chunk_is_one_line_that_names_the_study(loader, workers, tiny_cache, tmp_path):
    shutil.copytree(tiny_cache, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    chunk = next(
        path
        for path in sorted((tmp_path / "cache" / cache.ids[0] / "pixels").rglob("*"))
        if path.stat().st_size > 10_000
    )
    data = bytearray(chunk.read_bytes())
    data[5000] ^= 1
    chunk.write_bytes(data)
    schedule = Evaluation(triplets(lengths(cache)[:1], every=3), 2)
    source = Source(tmp_path / "cache", schedule, Drawing(64), limit=schedule.steps * 2)
    with pytest.raises(CspineError) as error:
        list(Loader(source, 2, DataSettings(size=64, loader=loader, workers=workers), torch.device("cpu")))
    assert cache.ids[0] in str(error.value) and "\n" not in str(error.value) and "Traceback" not in str(error.value)
