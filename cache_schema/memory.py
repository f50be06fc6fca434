"""Studies held in memory, behind the interface of a Study and of a Cache."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from cache_schema.columns import index_frame, index_row
from cache_schema.layout import PIXEL_HASH
from cache_schema.store import Cache
from cache_schema.study import Box, Study, blocks, value_range

Item = TypeVar("Item")
Read = TypeVar("Read")


class HeldPixels:
    """The pixels of a study in one array.

    pixels: uint8 (n, h, w). seconds: that reading and decoding them took. plan: of the files that they were read from, for
    who writes results beside them; None for those of a cache.
    """

    def __init__(self, pixels: np.ndarray, seconds: float = 0, plan: Any = None):
        self.pixels, self.seconds, self.plan = pixels, seconds, plan
        self.value_range = value_range(pixels)
        """uint8 (n, 2): min and max of each slice"""

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w), a view."""
        x0, y0, x1, y1 = (0, 0, self.pixels.shape[2], self.pixels.shape[1]) if box is None else box
        return self.pixels[z0:z1, y0:y1, x0:x1]


def held(study: Study, since: float | None = None) -> Study:
    """The study with all its pixels in memory, and the record of what reading them told. Raises as `Study.read`.

    since: `time.perf_counter()` when opening it began.
    """
    if isinstance(study.pixels, HeldPixels):
        return study
    started = time.perf_counter() if since is None else since
    pixels = np.empty(study.record.shape, np.uint8)
    first = 0
    for block in blocks(study):
        pixels[first : first + len(block)] = block
        first += len(block)
    record = study.record_after_reading()
    kept = HeldPixels(pixels, time.perf_counter() - started, getattr(study.pixels, "plan", None))
    return Study(record, study.z, study.slice_number, kept, study.slice_box, study.vertebra_ratio)


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item], count: int = 1) -> Generator[Read, None, None]:
    """`read` of each item, in order: `count` threads read the next ones while the caller uses this one."""
    left = iter(items)
    with ThreadPoolExecutor(count) as threads:
        coming = deque(threads.submit(read, item) for item in islice(left, count))
        while coming:
            found = coming.popleft().result()
            coming.extend(threads.submit(read, item) for item in islice(left, 1))
            yield found
            del found


class MemoryCache(Cache):
    """Some studies in memory, as a cache without labels. They never change, and nothing of it is on a disk."""

    def __init__(self, studies: Iterable[Study], pixel_hash: str = PIXEL_HASH):
        self.path = Path("memory")
        self.attributes = {"pixel_hash": pixel_hash}
        self._studies = {study.id: study for study in studies}
        rows = [index_row(study.record, {"files": {}, "digest": ""}) for study in self._studies.values()]
        self.index = index_frame(rows)
        self.labels: pd.DataFrame | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__  # with the pixels

    def study(self, id: str) -> Study:
        return self._studies[id]

    def require_unchanged(self, id: str) -> None:
        pass

    def check_fresh(self, id: str) -> None:
        pass

    def __repr__(self) -> str:
        return f"MemoryCache({len(self._studies)} studies)"
