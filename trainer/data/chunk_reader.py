"""Reads slices of a cache's studies, and keeps decoded chunks in memory up to a budget."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from cache_schema import Cache, Study
from cache_schema.layout import CHUNK_SLICES, chunk_starts
from cache_schema.study import Box

OPEN_STUDIES = 256


class Recent:
    """The most recently used values of a function, up to a total cost."""

    def __init__(self, budget: float, cost: Callable[[Any], float]):
        self.budget, self.cost, self.total = budget, cost, 0.0
        self.values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[..., Any], *arguments: Any) -> Any:
        """The value of a key; make(*arguments) if it is new."""
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key]
        value = self.values[key] = make(*arguments)
        self.total += self.cost(value)
        while self.total > self.budget and len(self.values) > 1:
            self.total -= self.cost(self.values.popitem(last=False)[1])
        return value


class Reader:
    """Reads slices of a cache's studies. keep_bytes: of decoded and cropped chunks to keep."""

    def __init__(self, cache: Cache, keep_bytes: int = 0):
        self.cache, self.keep_bytes = cache, keep_bytes
        self._studies = Recent(OPEN_STUDIES, lambda study: 1)
        self._chunks = Recent(keep_bytes, lambda chunk: chunk.nbytes)

    def study(self, id: str) -> Study:
        return self._studies.get(id, self.cache.study, id)

    def read(self, id: str, z0: int, z1: int, box: Box | None) -> np.ndarray:
        """(z1 - z0, h, w) uint8."""
        study = self.study(id)
        if not self.keep_bytes:
            return study.read(z0, z1, box)
        parts = []
        for first in chunk_starts(z0, z1):
            last = min(first + CHUNK_SLICES, study.record.slices)
            chunk = self._chunks.get((id, first, box), _read_chunk, study, first, last, box)
            parts.append(chunk[max(0, z0 - first) : z1 - first])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _read_chunk(study: Study, first: int, last: int, box: Box | None) -> np.ndarray:
    """A copy, so that a crop does not keep the whole chunk in memory."""
    return np.ascontiguousarray(study.read(first, last, box))
