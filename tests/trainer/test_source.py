"""Pixels from a cache: the same bytes from every reader, worker count and loader, and one line for a damaged chunk."""

import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from changes import other_pixels

from cache_schema import Cache, CacheWriter
from cache_schema.errors import CspineError, StaleStudy, UsageError
from cache_schema.layout import chunk_file
from cache_schema.store import ChangedStudy
from cache_schema.study import square_around
from trainer.data.augment import Augmentation
from trainer.data.items import triplets, whole_studies, windows
from trainer.data.loader import Loader, dali_batches
from trainer.data.order import Evaluation, ScheduledItem, Training
from trainer.data.reader_pool import wanted_workers
from trainer.data.resident import Crops, ResidentSource
from trainer.data.source import Source, stretch
from trainer.settings.settings import AugmentSettings, DataSettings

AUGMENT, CPU = AugmentSettings(reverse=0.5), torch.device("cpu")


def lengths(cache):
    return [(row.id, int(row.slices)) for row in cache.index.itertuples()]


def boxes_of(cache):
    return {id: (100 + 5 * k, 120, 300, 333) for k, id in enumerate(cache.ids)}


@pytest.mark.parametrize("kind", ["triplets", "windows", "studies"])
@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("intensity", ["per_slice", "fixed"])
def test_pixels_are_those_of_the_study_whatever_is_kept_in_memory(kind, cropped, intensity, tiny_cache):
    cache = Cache(tiny_cache)
    items = {
        "triplets": triplets(lengths(cache), every=7),
        "windows": windows(lengths(cache), 12, 9),
        "studies": whole_studies(lengths(cache), {id: (3, 20) for id in cache.ids}),
    }[kind]
    boxes = boxes_of(cache) if cropped else None
    augmentation = Augmentation(64, 5, AUGMENT, thin=0.6)
    gains = {augmentation(0, item).gain for item in items}
    assert 1 in gains and len(gains) > 3
    for keep in (0, 10_000, 10**9):
        source = Source(tiny_cache, Training(items, 1, 2), augmentation, boxes, intensity, keep_bytes=keep)
        for item in items[::3]:
            params = augmentation(0, item)
            index = item.z_index(params.step, params.phase)
            study = cache.study(item.id)
            pixels = study.read(0, study.record.slices)[index[index >= 0]]
            if cropped:
                x0, y0, x1, y1 = square_around(boxes[item.id], study.record.rows, study.record.columns)
                pixels = pixels[:, y0:y1, x0:x1]
            if intensity == "per_slice":
                pixels = stretch(pixels, pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2)))
            expected = np.minimum(pixels * np.float32(params.gain), 255).astype(np.uint8)
            expected = expected[::-1] if params.reverse else expected
            assert np.array_equal(source.pixels(ScheduledItem(0, item), params), expected)


@pytest.mark.parametrize(
    ("loader", "others"),
    [
        ("dali", [(0, 4, 0), (0, 1, 10**9), (1, 4, 10**9), (3, 1, 10**6)]),
        ("plain", [(0, 1, 10**9), (1, 4, 0)]),
    ],
)
def test_an_epoch_is_the_same_for_any_number_of_workers_batch_size_and_source(loader, others, tiny_cache):
    """Byte for byte and in the same order."""
    items = triplets(lengths(Cache(tiny_cache)), every=3)

    def epoch(workers, batch, keep):
        schedule = Training(items[:20], seed=1, batch=4, by_block=True)
        source = Source(tiny_cache, schedule, Augmentation(64, 5, AUGMENT), keep_bytes=keep, limit=20)
        settings = DataSettings(size=64, loader=loader, workers=workers)
        found = list(Loader(source, batch, settings, torch.device("cpu")))
        order = [entry.item.key for batch in found for entry in batch.entries]
        return torch.cat([batch.images for batch in found]), order

    pixels, order = epoch(0, 4, 0)
    assert sorted(order) == list(range(20)) != order
    for workers, batch, keep in others:
        again, same = epoch(workers, batch, keep)
        assert same == order and torch.equal(again, pixels), (workers, batch, keep)


def test_each_item_is_drawn_once_in_a_process(tiny_cache, monkeypatch):
    """For its pixels, its slice numbers and its targets alike; with data.resident=gpu too."""
    drawn = []
    own = Augmentation.__call__
    monkeypatch.setattr(Augmentation, "__call__", lambda self, *given: drawn.append(given) or own(self, *given))
    items, cache = windows(lengths(Cache(tiny_cache)), 12, 9), Cache(tiny_cache)
    for resident in (False, True):
        source = Source(tiny_cache, Training(items, 1, 4), Augmentation(64, 5, AUGMENT), boxes_of(cache), limit=12)
        if resident:
            batches = dali_batches(ResidentSource(source, Crops(cache, CPU)), 4, DataSettings(size=64), CPU, None)
            for k, (_, _, keys) in enumerate(batches):
                for i, key in enumerate(keys):
                    entry = source.schedule[4 * k + i]
                    assert entry.item.key == key and source.params(entry).size == 64
        else:
            loader = Loader(source, 4, DataSettings(size=64), CPU, targets=lambda *given: {"a": np.zeros(1)})
            assert len(list(loader)) == 3
        assert len(drawn) == 12 == len(set(drawn))
        drawn.clear()


def test_a_loader_that_starts_at_any_step_shows_what_was_due(tiny_cache):
    """Twice stopped inside an epoch, then across its edge."""
    items = windows(lengths(Cache(tiny_cache)), 12, 9)

    def shown(first, last):
        schedule = Training(items, 1, 4, step=first)
        source = Source(tiny_cache, schedule, Augmentation(64, 5, AUGMENT, thin=0.6), limit=(last - first) * 4)
        found = list(Loader(source, 4, DataSettings(size=64), torch.device("cpu")))
        return [entry for batch in found for entry in batch.entries], torch.cat([batch.images for batch in found])

    steps = Training(items, 1, 4).steps_per_epoch
    entries, pixels = shown(0, 2 * steps)
    parts = [shown(*part) for part in ((0, 1), (1, 3), (3, steps + 2), (steps + 2, 2 * steps))]
    assert [entry for part, _ in parts for entry in part] == entries
    assert torch.equal(torch.cat([part for _, part in parts]), pixels)


@pytest.mark.parametrize("intensity", ["per_slice", "fixed"])
def test_crops_kept_on_a_device_give_the_same_pictures(intensity, tiny_cache):
    """On the CPU as the device; on a GPU the same code runs on the GPU's tensors."""
    cache, cpu, settings = Cache(tiny_cache), torch.device("cpu"), DataSettings(size=64)
    for items in (triplets(lengths(cache), every=7), windows(lengths(cache), 36, 6)):
        source = Source(
            tiny_cache,
            Training(items, 1, 2),
            Augmentation(64, 5, AUGMENT, thin=0.6),
            boxes_of(cache),
            intensity,
            limit=6,
        )
        on_device = ResidentSource(source, Crops(cache, cpu))
        expected = dali_batches(source, 2, settings, cpu, None)
        for found, same in zip(dali_batches(on_device, 2, settings, cpu, None), expected, strict=True):
            assert found[1:] == same[1:] and torch.equal(found[0], same[0])


def test_crops_that_do_not_fit_are_refused_before_anything_is_read(tiny_cache, monkeypatch):
    monkeypatch.setattr(Crops, "_room", lambda self: 10**6)
    with pytest.raises(UsageError, match=r"needs 0\.0 GiB for 6 studies"):
        Crops(Cache(tiny_cache), torch.device("cpu")).load(boxes_of(Cache(tiny_cache)))


def test_no_gpu_is_one_line_for_crops_in_its_memory(tiny_cache):
    cache = Cache(tiny_cache)
    source = Source(tiny_cache, Training(triplets(lengths(cache), every=7), 1, 2), Augmentation(64), boxes_of(cache))
    with pytest.raises(UsageError, match="needs a GPU"):
        next(iter(Loader(source, 2, DataSettings(size=64, resident="gpu"), torch.device("cpu"))))


def test_reading_processes_are_for_gpus_unless_a_number_is_given(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16))
    assert wanted_workers(DataSettings(), cpu) == 0 and wanted_workers(DataSettings(workers=3), cpu) == 3
    assert wanted_workers(DataSettings(), gpu) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert wanted_workers(DataSettings(), gpu) == 3 and wanted_workers(DataSettings(workers=0), gpu) == 0


@pytest.mark.parametrize(("loader", "workers"), [("dali", 0), ("plain", 0)])
def test_items_that_cannot_be_read_give_way_and_are_counted(loader, workers, tiny_cache, tmp_path, capfd):
    shutil.copytree(tiny_cache, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    damage(cache.path / cache.ids[0])
    items = triplets(lengths(cache), every=3)
    source = Source(cache.path, Training(items, 1, 4), Augmentation(64, 5, AUGMENT), limit=len(items), skip=True)
    loader = Loader(source, 4, DataSettings(size=64, loader=loader, workers=workers), torch.device("cpu"))
    entries = [entry for batch in loader for entry in batch.entries]
    assert 2 <= loader.skipped < len(items) and len(entries) == len(items)
    lost = {item for item in items if item.id == cache.ids[0]} - {entry.item for entry in entries}
    assert lost and all(item.start <= 7 for item in lost)
    told = capfd.readouterr().err
    assert f"{cache.ids[0]}: slices" in told and f"({loader.skipped} so far)" in told
    again = Source(tiny_cache, Training(items, 1, 4), source.augmentation)
    for k, entry in enumerate(entries):
        assert np.array_equal(source.read(k).pixels, again.sample(entry).pixels)


def test_memory_stays_flat_over_twenty_epochs(tiny_cache):
    cache, statm = Cache(tiny_cache), Path("/proc/self/statm")
    schedule = Training(windows(lengths(cache), 12, 9), 1, 4)
    epoch, seen = schedule.steps_per_epoch, []
    source = Source(tiny_cache, schedule, Augmentation(64, 5, AUGMENT, thin=0.6), boxes_of(cache))
    for step, _ in enumerate(Loader(source, 4, DataSettings(size=64), torch.device("cpu"))):
        if step % epoch == 0:
            seen.append(int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20)
        if step == 20 * epoch:
            break
    assert max(seen[10:]) - max(seen[2:8]) < 8, seen


def damage(study):
    """One bit of its first chunk."""
    chunk = study / chunk_file("pixels")
    data = bytearray(chunk.read_bytes())
    data[5000] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize(("loader", "workers"), [("dali", 0), ("dali", 1), ("plain", 1)])
def test_a_damaged_chunk_is_one_line_that_names_the_study(loader, workers, tiny_cache, tmp_path):
    shutil.copytree(tiny_cache, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    damage(cache.path / cache.ids[0])
    schedule = Evaluation(triplets(lengths(cache)[:1], every=3), 2)
    source = Source(tmp_path / "cache", schedule, Augmentation(64), limit=schedule.steps * 2)
    with pytest.raises(CspineError) as error:
        list(Loader(source, 2, DataSettings(size=64, loader=loader, workers=workers), torch.device("cpu")))
    assert cache.ids[0] in str(error.value) and "\n" not in str(error.value) and "Traceback" not in str(error.value)


def replace(path, id):
    """By a build that has not ended."""
    CacheWriter(path).publish(other_pixels(Cache(path).study(id)))


@pytest.mark.parametrize(("loader", "workers"), [("dali", 0), ("dali", 1), ("plain", 1)])
@pytest.mark.parametrize("skip", [False, True])
def test_a_study_replaced_under_a_loader_is_shown_as_it_was_or_ends_it(loader, workers, skip, tiny_cache, tmp_path):
    """In one line, whatever process reads; it is no damage that others are shown in place of."""
    cache = Cache(shutil.copytree(tiny_cache, tmp_path / "cache"))
    items = windows(lengths(cache), 12, 9)
    source = Source(cache.path, Training(items, 1, 4), Augmentation(64, 5, AUGMENT), skip=skip)
    before = Source(tiny_cache, source.schedule, source.augmentation)
    loader = Loader(source, 4, DataSettings(size=64, loader=loader, workers=workers), torch.device("cpu"))
    expected = iter(Loader(before, 4, DataSettings(size=64), torch.device("cpu")))
    with pytest.raises((StaleStudy, ChangedStudy)) as error:
        for step, (found, same) in enumerate(zip(loader, expected, strict=False)):
            assert torch.equal(found.images, same.images) and step < 40
            if step == 1:
                replace(cache.path, cache.ids[0])
    assert cache.ids[0] in str(error.value) and "\n" not in str(error.value) and loader.skipped == 0


def test_a_source_in_another_process_reads_the_studies_of_the_index_it_was_given(tiny_cache, tmp_path):
    cache = Cache(shutil.copytree(tiny_cache, tmp_path / "cache"))
    source = Source(cache.path, Evaluation(triplets(lengths(cache), every=3), 2), Augmentation(64))
    travelled = pickle.dumps(source)
    replace(cache.path, cache.ids[0])
    CacheWriter(cache.path).finish()
    with pytest.raises(ChangedStudy, match="was changed after the index was written"):
        pickle.loads(travelled).read(0)
    assert Source(cache.path, source.schedule, source.augmentation).read(0).pixels.shape[0] == 3
