"""Buffers that are used again and again."""

import math
import threading

import numpy as np


class Scratch(threading.local):
    """A buffer for each thread, used again and again: touching new pages costs more than reading a file into them."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, *shape: int) -> np.ndarray:
        """uint8 of this shape, uninitialised; valid until the next call in this thread."""
        size = math.prod(shape)
        if len(self._buffer) < size:
            self._buffer = np.empty(size, np.uint8)
        return self._buffer[:size].reshape(shape)
