"""Batches for the training loop: pixels from DALI or the plain loader, targets from the stage.

A loader has no state of its own. It starts where its schedule starts; a checkpoint stores only (epoch, step).
It does not go through `Accelerator.prepare()`: each rank reads its own items only, and every epoch is whole optimiser steps.
"""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch

from cache_schema.errors import UsageError
from trainer.data.augment import AugmentParams
from trainer.data.buffers import Buffers
from trainer.data.image import ImageReader
from trainer.data.order import ScheduledItem
from trainer.data.reader_pool import Readers, wanted_workers
from trainer.data.resident import Crops, ResidentSource
from trainer.data.source import Source
from trainer.settings.settings import DataSettings

Targets = Callable[[ScheduledItem, np.ndarray, AugmentParams], dict[str, np.ndarray]]
"""(scheduled item, (frames,) z_index, augmentation parameters) -> the item's targets by name"""
ImageBatches = Iterator[tuple[torch.Tensor, list[int], list[int]]]
"""(images (sum of triplets, 3, size, size) float16 on the device, triplets of each item, keys of the items) of each batch"""


@dataclass
class Batch:
    images: torch.Tensor
    """(sum of triplets, 3, size, size) float16, all items concatenated; or their features, (sum of triplets, width) float32"""
    triplets: list[int]
    """number of triplets of each item"""
    entries: list[ScheduledItem]
    z_index: list[np.ndarray]
    """(3 * triplets,) slice indices of each item, -1 in padding"""
    targets: dict[str, torch.Tensor]
    """(items, ...) float32"""

    def windows(self) -> torch.Tensor:
        """Items of one length as (items, triplets, 3, size, size) images, or (items, triplets, width) features."""
        return self.images.view(len(self.entries), -1, *self.images.shape[1:])


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies to the device without blocking the host, through pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


_batches = Buffers()


def empty(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """An uninitialised float16 tensor for a batch of images."""
    if device.type == "cpu":
        return torch.from_numpy(_batches(shape, np.float16))
    return torch.empty(shape, dtype=torch.float16, device=device)


class Loader:
    """Iterates over batches of `batch` items. device: computes and holds the images."""

    def __init__(
        self,
        source: Source,
        batch: int,
        settings: DataSettings,
        device: torch.device,
        targets: Targets | None = None,
        crops: Crops | None = None,
        readers: Readers | None = None,
    ):
        """crops: for data.resident=gpu. readers: shared by all loaders of a run; by default the loader starts its own."""
        self.source, self.batch, self.settings, self.device, self.targets = source, batch, settings, device, targets
        self.crops, self.readers = crops, readers
        self.skipped = 0
        """items that could not be read and were replaced (data.on_error=skip)"""

    def __iter__(self) -> Generator[Batch]:
        source, k = self.source, 0
        for images, triplets, keys in self._image_batches():
            entries = [self._entry(source.schedule[k + i], key) for i, key in enumerate(keys)]
            yield self._with_targets(images, triplets, entries)
            k += self.batch
            if source.limit is not None and k >= source.limit:
                return

    def _image_batches(self) -> ImageBatches:
        source, batch, settings, device = self.source, self.batch, self.settings, self.device
        if settings.resident == "gpu":
            if settings.loader != "dali":
                raise UsageError("data.resident=gpu needs data.loader=dali", do="set data.resident=ram or disk")
            if self.crops is None:
                raise UsageError("data.resident=gpu needs a GPU", do="set data.resident=ram or disk")
            yield from dali_batches(ResidentSource(source, self.crops), batch, settings, device, None)
            return
        make_batches = {"dali": dali_batches, "plain": plain_batches}[settings.loader]
        with ExitStack() as opened:
            readers = self.readers
            if readers is None and (workers := wanted_workers(settings, device)):
                readers = opened.enter_context(closing(Readers(workers)))
            yield from make_batches(source, batch, settings, device, readers)

    def _entry(self, entry: ScheduledItem, key: int) -> ScheduledItem:
        """The item that was read, which has this key. Counts and reports those that could not be."""
        while entry.item.key != key:
            self.skipped += 1
            item = entry.item
            line = f"{item.id}: slices {item.start} to {min(item.slices, item.start + item.frames) - 1} cannot be read and are skipped"
            print(f"{line} ({self.skipped} so far); preprocess verify names the damage", file=sys.stderr, flush=True)
            entry = self.source.instead(entry)
        return entry

    def _with_targets(self, images: torch.Tensor, triplets: list[int], entries: list[ScheduledItem]) -> Batch:
        params = [self.source.params(entry) for entry in entries]
        z_index = [entry.item.z_index(each.step, each.phase) for entry, each in zip(entries, params, strict=True)]
        targets = {}
        if self.targets is not None:
            rows = [self.targets(*row) for row in zip(entries, z_index, params, strict=True)]
            targets = {name: torch.from_numpy(np.stack([np.float32(row[name]) for row in rows])) for name in rows[0]}
        targets = {name: to_device(value, self.device) for name, value in targets.items()}
        return Batch(images, triplets, entries, z_index, targets)


def dali_batches(
    source: Source | ResidentSource, batch: int, settings: DataSettings, device: torch.device, readers: Readers | None
) -> ImageBatches:
    """Images by DALI. readers: read the samples of a Source; without them this process does."""
    try:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        from trainer.data.dali import graph, opencv_images, torch_images
    except ImportError as error:
        raise UsageError(f"DALI cannot be imported ({error})", do="install it, or set data.loader=plain") from None
    gpu = device.type == "cuda"
    # on the network's own stream the copy might block the host until the network has finished
    stream = torch.cuda.Stream(device) if gpu else None
    with ExitStack() as opened:
        pipe = graph(
            _read_ahead(source, batch, readers, opened) if readers and isinstance(source, Source) else source,
            settings.size,
            settings.interpolation,
            "gpu" if gpu else "cpu",
            torch_images if gpu else opencv_images,
            batch_size=batch,
            num_threads=4 if gpu else 1,
            device_id=device.index or 0 if gpu else None,
            prefetch_queue_depth=2,
            seed=0,
        )
        pipe.build()
        while True:
            try:
                found: Any = pipe.run()  # DALI's type hints lack the methods used below
            except StopIteration:
                return
            outputs, keys = found
            triplets = [tensor.shape()[0] for tensor in outputs]
            with torch.cuda.stream(stream):
                images = empty((sum(triplets), *outputs[0].shape()[1:]), device)
                for tensor, image in zip(outputs, images.split(triplets), strict=True):
                    feed_ndarray(tensor, image, cuda_stream=stream)
            if stream is not None:
                torch.cuda.current_stream(device).wait_stream(stream)
                images.record_stream(torch.cuda.current_stream(device))
            yield images, triplets, keys.as_array().ravel().tolist()


def _read_ahead(source: Source, batch: int, readers: Readers, opened: ExitStack) -> Callable[[Any], tuple]:
    """The source as DALI's per-sample callback, by the readers."""
    reading = readers.read(source.read, source.largest_sample(), batch, source.limit)
    opened.callback(reading.close)

    def following(info: Any) -> tuple[np.ndarray, ...]:
        return tuple(next(reading))

    return following


def plain_batches(
    source: Source, batch: int, settings: DataSettings, device: torch.device, readers: Readers | None
) -> ImageBatches:
    """Images without DALI, for machines where it cannot be installed. Readers also make the images."""
    make = ImageReader(source, settings.size, settings.interpolation)
    with ExitStack() as opened:
        made: Iterator[Any] = map(make, range(source.limit) if source.limit is not None else count())
        if readers is not None:
            most = source.most_frames() * settings.size**2 * 2
            made = readers.read(make, most, batch, source.limit)
            opened.callback(made.close)
        while found := list(islice(made, batch)):
            images = [torch.from_numpy(image) for image, _ in found]
            triplets = [len(image) for image in images]
            whole = empty((sum(triplets), *images[0].shape[1:]), torch.device("cpu"))
            torch.cat(images, out=whole)
            yield to_device(whole, device), triplets, [int(key[0]) for _, key in found]
