"""This project."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import process_time, sleep

import cv2
import numpy as np
import torch

from benchmarks.peers.image import Item, Look
from benchmarks.peers.way import Files, Way
from benchmarks.suite.items import Items, items_of
from cache_schema import Cache, CacheWriter
from preprocess import studies
from trainer.data.loader import Batch, Loader
from trainer.settings.settings import DataSettings

cv2.setNumThreads(1)
torch.set_num_threads(1)
TRIPLETS_A_BATCH = 16
QUIET_SECONDS, QUIET_SHARE = 0.05, 0.04


class Cspine(Way):
    """Its loader makes the items of its own schedule; they are checked to be the ones asked for."""

    PACKAGES: Sequence[str] = ("cspine", "zarr", "nvidia-dali-cuda130", "torch")

    def prepare(self, files: Files) -> None:
        writer = CacheWriter(self.folder / "cache")
        for study in studies(_root_of(files)):
            writer.publish(study)
        writer.finish()

    def open(self, files: Files, look: Look) -> None:
        self.look = look
        self._windows: Iterator[Batch] | None = None

    def image(self, item: Item) -> np.ndarray:
        return self.images([item])[0]

    def images(self, items: Sequence[Item]) -> list[np.ndarray]:
        """A shuffle buffer of triplets by a fresh reader; or the next batch of windows, and the one after it prefetched, since no work
        may be left to another measurement."""
        if items[0].frames == 3:
            batches = self._batches(items, TRIPLETS_A_BATCH, workers=0)
            parts = range(0, len(items), TRIPLETS_A_BATCH)
            found = [self._next(batches, items[k : k + TRIPLETS_A_BATCH]) for k in parts]
            return [image for batch in found for image in batch]
        if self._windows is None:
            self._windows = self._batches(items, len(items), workers=0)
        windows = self._next(self._windows, items)
        _until_quiet()
        return windows

    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        return self._batches(items, 1, workers)

    def first(self, items: Sequence[Item]) -> object:
        return self._next(self._batches(items, len(items), workers=0), items)

    def _batches(self, items: Sequence[Item], batch: int, workers: int) -> Iterator[Batch]:
        own = self._items(items[0].frames)
        settings = DataSettings(size=self.look.size, workers=workers)
        return iter(Loader(own.source, batch, settings, torch.device("cpu")))

    def _items(self, frames: int) -> Items:
        windows, triplets = items_of(Cache(self.folder / "cache"))
        return windows if frames > 3 else triplets

    @staticmethod
    def _next(loader: Iterator[Batch], items: Sequence[Item]) -> list[np.ndarray]:
        batch = next(loader)
        made = [(entry.item.id, entry.item.start) for entry in batch.entries]
        if made != [(item.id, item.start) for item in islice(items, len(made))]:
            raise ValueError("its schedule has other items than those asked for")
        return [image.numpy() for image in batch.images.split(batch.triplets)]


def _root_of(files: Files) -> Path:
    """The folder that the studies' folders lie in."""
    return Path(next(iter(files.values()))[0]).parents[1]


def _until_quiet() -> None:
    while True:
        spent = process_time()
        sleep(QUIET_SECONDS)
        if process_time() - spent < QUIET_SHARE * QUIET_SECONDS:
            return
