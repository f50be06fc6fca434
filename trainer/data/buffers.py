"""Memory for images that is used again: touching new pages costs more than making the image that goes there."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

KEPT_BYTES = 512 << 20
"""of free memory for each `Buffers`"""


class Buffers:
    """Gives arrays whose memory comes back here once the array and all its views are gone, tensors included. For any thread."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._free: dict[int, np.ndarray] = {}
        """by id; the last one came back last. Only single operations on it: another thread, or the garbage collector, may come
        between two"""

    @property
    def free(self) -> list[np.ndarray]:
        """The memory that nothing shows."""
        return list(self._free.values())

    def __call__(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        lease = _Lease(self, self._fitting(size), size)
        return np.asarray(lease).view(dtype).reshape(shape)

    def give_back(self, memory: np.ndarray) -> None:
        """Keeps what came back last, up to `kept_bytes`."""
        self._free[id(memory)] = memory
        kept = 0
        for each in reversed(self.free):
            kept += len(each)
            if kept > self.kept_bytes:
                self._free.pop(id(each), None)

    def _fitting(self, size: int) -> np.ndarray:
        """The smallest free memory that is large enough and not much too large; else new memory."""
        for memory in sorted(self.free, key=len):
            if size <= len(memory) <= 2 * size and self._free.pop(id(memory), None) is not None:
                return memory
        return np.empty(size, np.uint8)


class _Lease:
    """The base of an array and of all its views. Gives the memory back when the last of them is gone."""

    def __init__(self, buffers: Buffers, memory: np.ndarray, size: int):
        self.buffers, self.memory = buffers, memory
        self.__array_interface__ = memory[:size].__array_interface__

    def __del__(self) -> None:
        self.buffers.give_back(self.memory)
