"""Warnings of pydicom repeat what a header says, which may be a name: they are not printed while files are read."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_within = 0
_before: "warnings.catch_warnings[None] | None" = None


@contextmanager
def warnings_off() -> Iterator[None]:
    """No warning is printed meanwhile. What is printed is a setting of the whole process: the last thread to leave restores it."""
    global _within, _before
    with _lock:
        if _within == 0:
            _before = warnings.catch_warnings()
            _before.__enter__()
            warnings.simplefilter("ignore")
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0 and _before is not None:
                _before.__exit__(None, None, None)
                _before = None
