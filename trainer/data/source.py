"""From an item to its pixels, cropped at native resolution and stretched, and its augmentation parameters.

A Source opens files on first use, so that it is small when pickled for reading processes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cache_schema import Cache
from cache_schema.errors import CacheError, UsageError
from cache_schema.store import ChangedStudy
from cache_schema.study import Box, square_around
from trainer.data.augment import Augmentation, AugmentParams
from trainer.data.chunk_reader import Reader, Recent
from trainer.data.items import Item
from trainer.data.order import Schedule, ScheduledItem, Training

MOST_SKIPPED = 20
"""consecutive unreadable items after which `skip` gives up"""
PARAMS_KEPT = 1024
"""per process: more than the items prefetched"""
TRIPLET_CHUNKS_BYTES = 256 << 20
"""decoded chunks that a reading process keeps for random triplets: twice one shuffle buffer's (trainer.data.order)"""


class Sample(NamedTuple):
    """One item, the input of `trainer.data.dali` and `trainer.data.image`."""

    pixels: np.ndarray
    """(frames, height, width, 1) uint8, stretched and with gain; padding slices 0"""
    matrix: np.ndarray
    """(2, 3) float32, output -> crop coordinates"""
    axis_x: np.ndarray
    """(1, size) float32"""
    axis_y: np.ndarray
    """(size, 1) float32"""
    hole_start: np.ndarray
    """(2 n,) float32: y x of each cutout, in pixels; one empty cutout if there is none"""
    hole_shape: np.ndarray
    key: np.ndarray
    """(1,) int64: `Item.key` of the item that was read"""


def stretch(pixels: np.ndarray, low: np.ndarray, high: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """(n, h, w) uint8 -> the same shape: maps each slice's low..high to 0..255, rounded down, and a constant slice to 0
    (reference 2.2); then multiplies by the gain in float32, clips and truncates (reference 5)."""
    stretched = np.empty(pixels.shape, np.uint8)
    gained = np.minimum(np.arange(256, dtype=np.float32) * np.float32(gain), 255).astype(np.uint8)
    for slice_, target, dark, bright in zip(pixels, stretched, low.tolist(), high.tolist(), strict=True):
        levels = np.clip(np.arange(256) - dark, 0, bright - dark)
        cv2.LUT(slice_, gained[levels * 255 // max(1, bright - dark)], dst=target)
    return stretched


@dataclass
class Source:
    """The k-th sample of one rank, for DALI's external source and the plain loader.

    Pickled with the cache's index: reading processes open the studies of that index, or raise ChangedStudy.
    """

    cache: Cache | Path
    """an open cache, or its folder"""
    schedule: Schedule
    augmentation: Augmentation
    boxes: dict[str, Box] | None = None
    """study boxes in native pixels by id; None for whole slices"""
    intensity: str = "per_slice"
    keep_bytes: int = 0
    limit: int | None = None
    """number of samples; None: endless"""
    skip: bool = False
    """replace training items that cannot be read; otherwise they raise CacheError"""

    def __post_init__(self) -> None:
        self._opened = self.cache if isinstance(self.cache, Cache) else Cache(self.cache)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_params", "reader", "squares")  # each process has its own
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __call__(self, info: Any) -> tuple[np.ndarray, ...]:
        """DALI's per-sample callback; `info.idx_in_epoch` never restarts. A plain tuple, because DALI rebuilds it by its type."""
        if self.limit is not None and info.idx_in_epoch >= self.limit:
            raise StopIteration
        return tuple(self.read(info.idx_in_epoch))

    def read(self, k: int) -> Sample:
        """The k-th sample."""
        entry = self.schedule[k]
        for _ in range(MOST_SKIPPED if self.skip else 0):
            try:
                return self.sample(entry)
            except ChangedStudy:
                raise
            except CacheError:
                entry = self.instead(entry)
        return self.sample(entry)

    def instead(self, entry: ScheduledItem) -> ScheduledItem:
        """Replaces an item that cannot be read; only where `skip` is set, for a training schedule."""
        assert isinstance(self.schedule, Training)
        return self.schedule.instead(entry)

    @cached_property
    def squares(self) -> dict[str, Box]:
        """The part of each slice that is read, by id of all items' studies."""
        return squares(self._opened, {item.id for item in self.schedule.items}, self.boxes)

    def most_frames(self) -> int:
        return max(item.frames for item in self.schedule.items)

    def largest_sample(self) -> int:
        """Upper bound of the bytes of one item's pixels."""
        return max((y1 - y0) * (x1 - x0) for x0, y0, x1, y1 in self.squares.values()) * self.most_frames()

    def sample(self, entry: ScheduledItem) -> Sample:
        params = self.params(entry)
        return assemble(self.pixels(entry, params), params, entry.item.key)

    def params(self, entry: ScheduledItem) -> AugmentParams:
        """The item's augmentation parameters in this epoch, kept for its pixels and targets."""
        return self._params.get((entry.epoch, entry.item), self.augmentation, entry.epoch, entry.item)

    @cached_property
    def _params(self) -> Recent:
        return Recent(PARAMS_KEPT, lambda kept: 1)

    @cached_property
    def reader(self) -> Reader:
        return Reader(self._opened, self.keep_bytes)

    def pixels(self, entry: ScheduledItem, params: AugmentParams) -> np.ndarray:
        """(frames, h, w) uint8: cropped, stretched and multiplied by the gain; padding is 0."""
        return self.stretched(entry.item, params, self.native(entry.item, params))

    def native(self, item: Item, params: AugmentParams) -> np.ndarray:
        """(slices, h, w) uint8: the item's slices in the order of the study, cropped, without padding."""
        index = self._slices(item, params)
        if self.boxes is None and self.reader.study(item.id).record.origin is not None:
            raise UsageError(
                "is a cropped study", where=item.id, do="use a cache of whole slices, or a variant that crops"
            )
        box = None if self.boxes is None else self.squares[item.id]
        return self.reader.read(item.id, int(index[0]), int(index[-1]) + 1, box)[:: params.step]

    def stretched(self, item: Item, params: AugmentParams, found: np.ndarray) -> np.ndarray:
        """(slices, h, w) uint8 as `native` gives them -> (frames, h, w)."""
        if self.intensity == "fixed":
            low, high = np.zeros(len(found), int), np.full(len(found), 255)
        elif self.boxes is None:
            low, high = self.reader.study(item.id).value_range[self._slices(item, params)].T
        else:
            low, high = found.min(axis=(1, 2)), found.max(axis=(1, 2))
        if self.intensity == "per_slice" or params.gain != 1:
            found = stretch(found, low, high, params.gain)
        if len(found) < item.frames:
            found = np.concatenate([found, np.zeros((item.frames - len(found), *found.shape[1:]), np.uint8)])
        return found[::-1] if params.reverse else found

    @staticmethod
    def _slices(item: Item, params: AugmentParams) -> np.ndarray:
        """(slices,) z_index of the item's slices, without padding."""
        index = item.z_index(params.step, params.phase)
        return index[index >= 0]


def squares(cache: Cache, ids: Iterable[str], boxes: dict[str, Box] | None) -> dict[str, Box]:
    """The part of each slice that is read, by study: the square around its box, or the whole slice without boxes."""
    sizes = cache.index.set_index("id")[["rows", "columns"]].astype(int)
    found = {}
    for id in sorted(set(ids)):
        rows, columns = (int(size) for size in sizes.loc[id])
        found[id] = (0, 0, columns, rows) if boxes is None else square_around(boxes[id], rows, columns)
    return found


def assemble(pixels: np.ndarray, params: AugmentParams, key: int = 0) -> Sample:
    """Pixels (frames, h, w) uint8 and augmentation parameters -> a sample."""
    holes = params.holes if len(params.holes) else np.zeros((1, 4), int)
    return Sample(
        np.ascontiguousarray(pixels)[..., None],
        params.map_from_crop(*pixels.shape[1:]),
        params.axis_x[None].astype(np.float32),
        params.axis_y[:, None].astype(np.float32),
        holes[:, [1, 0]].astype(np.float32).ravel(),
        (holes[:, [3, 2]] - holes[:, [1, 0]]).astype(np.float32).ravel(),
        np.array([key], np.int64),
    )
