"""The time of each part of a training item's way from the cache to the network, one item after the other in this process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from cache_schema.arrays import StoredPixels
from cache_schema.study import Box
from trainer.data.image import make_image
from trainer.data.image_torch import warp_items
from trainer.data.loader import to_device
from trainer.data.order import Training
from trainer.data.source import Sample, Source, assemble
from trainer.loop import Run
from trainer.tuning.autotune import wait

PARTS = ("read", "decode", "stretch", "augment", "warp", "targets", "copy")


@dataclass
class Clock:
    """Seconds by part."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


class TimedPixels(StoredPixels):
    """The same pixels, with the time for reading chunks apart from the time for decoding them."""

    def __init__(self, pixels: StoredPixels, clock: Clock):
        super().__init__(pixels.folder, pixels.chunks, pixels.expected, pixels.shard, pixels.copy)
        self.clock = clock

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        with self.clock.part("read"):
            packed = [chunk.copy() for chunk in self.packed(z0, z1)]
        with self.clock.part("decode"):
            return self.unpacked(z0, z1, box, packed)


def part_seconds(
    run: Run, schedule: Training, ids: list[str], seconds: float, most: int
) -> tuple[dict[str, float], int]:
    """(part -> mean seconds per item, number of items) of the schedule's first items, for at most about `seconds`.

    With data.resident=ram or data.store_cache, which make later epochs faster than the first, the items are read twice, and the
    second time counts. No parts with data.resident=gpu, which reads nothing while it trains.
    """
    data = run.settings.data
    if data.resident == "gpu":
        return {}, 0
    loader = run.loader(schedule, 1, run.augmentation(), ids, targets=True, keep_chunks=run.by_block)
    again = data.resident == "ram" or data.store_cache is not None
    found, items = _timed(run, loader.source, schedule, seconds, most)
    if again:
        found, items = _timed(run, loader.source, schedule, seconds, items)
    return {part: each / items for part, each in found.seconds.items()}, items


def _timed(run: Run, source: Source, schedule: Training, seconds: float, most: int) -> tuple[Clock, int]:
    """The time of each part, and the number of items: one at least."""
    clock, ends, data = Clock(), time.monotonic() + seconds, run.settings.data
    for k in range(most):
        entry = schedule[k]
        item, study = entry.item, source.reader.study(entry.item.id)
        assert isinstance(study.pixels, StoredPixels)  # it is a cache's
        study.pixels = TimedPixels(study.pixels, clock)
        with clock.part("augment"):
            params = source.params(entry)
        native = source.native(item, params)
        with clock.part("stretch"):
            stretched = source.stretched(item, params, native)
        with clock.part("augment"):
            sample = assemble(stretched, params, item.key)
        _image(sample, run.accelerator.device, data.size, data.interpolation, clock)
        with clock.part("targets"):
            run.stage.targets(entry, item.z_index(params.step, params.phase), params)
        if time.monotonic() > ends:
            break
    return clock, k + 1


def _image(sample: Sample, device: torch.device, size: int, interpolation: str, clock: Clock) -> None:
    """Warps the sample as the loader does: by OpenCV on a CPU, on the device itself on a GPU."""
    if device.type != "cuda":
        with clock.part("warp"):
            image = make_image(sample, size, interpolation)
        with clock.part("copy"):
            torch.cat([torch.from_numpy(image)])
        return
    with clock.part("copy"):
        given = [to_device(torch.from_numpy(np.ascontiguousarray(each)), device) for each in sample[:4]]
        wait(device)
    pixels, matrix, axis_x, axis_y = ([each] for each in given)
    with clock.part("warp"):
        warp_items(pixels, matrix, axis_x, axis_y, interpolation)
        wait(device)
