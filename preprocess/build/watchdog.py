"""Deadlines for decoders: one that hangs cannot be interrupted, so the process that it hangs in is ended.

The kernel's timer ends the process even while the decoder holds the interpreter's lock, which no thread could.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cache_schema.study import Box, Pixels
from preprocess.build import isolated_task

STALL_SECONDS = 120.0
"""for up to 8 slices, or to open a study: a hundred times what the slowest decoder and a slow disk need"""

_lock = threading.Lock()
_deadlines: dict[object, float] = {}


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End this process, by SIGALRM, unless the block is left in time. Blocks of several threads may be open at once."""
    token = object()
    isolated_task.note_deadline(seconds)
    _set(token, time.monotonic() + seconds)
    try:
        yield
    finally:
        _set(token, None)


def _set(token: object, when: float | None) -> None:
    with _lock:
        if when is None:
            del _deadlines[token]
        else:
            _deadlines[token] = when
        first = min(_deadlines.values(), default=None)
        signal.setitimer(signal.ITIMER_REAL, 0 if first is None else max(1e-3, first - time.monotonic()))


class GuardedPixels:
    """Pixels of which every read has a deadline; all else is that of the pixels themselves."""

    def __init__(self, pixels: Pixels):
        self._pixels = pixels

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        with deadline(STALL_SECONDS):
            return self._pixels.read(z0, z1, box)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pixels, name)
