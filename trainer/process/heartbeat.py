"""What a long-lived command says of itself: when it was last at work, on what, and by when it will be heard of again.

It is written by the work itself, between two steps, and not by a thread that would go on while the work hangs. Imports only fast
modules: a container's health check runs every half minute.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FILE = "heartbeat.json"
OFTEN = 1.0
"""seconds within which a further beat of the same kind is not written"""


class Beat(NamedTuple):
    time: float
    """seconds since the epoch, as the next one"""
    until: float
    doing: str


class Heartbeat:
    """A file in `folder` that is replaced whole."""

    def __init__(self, folder: Path):
        self._path, self._last = folder / FILE, Beat(0, 0, "")

    def beat(self, doing: str, seconds: float) -> None:
        """doing: in a word or two. seconds: within which the next beat comes unless something hangs. Raises OSError."""
        now = time.time()
        if doing == self._last.doing and 0 <= now - self._last.time < OFTEN:
            return
        self._last = Beat(now, now + seconds, doing)
        part = self._path.with_name(f".{FILE}.part")
        part.write_text(json.dumps(self._last._asdict()))
        os.replace(part, self._path)

    def end(self) -> None:
        """After a clean end nothing is said to be at work."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_beat(folder: Path) -> Beat | None:
    """The last beat; None where there is none, or no readable one."""
    try:
        found = json.loads((folder / FILE).read_bytes())
        return Beat(float(found["time"]), float(found["until"]), str(found["doing"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
