"""Whether reading processes can hand their samples over: a container's /dev/shm often holds 64 MB, and a full one kills them."""

import os
import sys
from functools import lru_cache

from trainer.config import DataSettings
from trainer.data.source import Source

FOLDER = "/dev/shm"
DALI_BATCHES = 4
"""batches of samples that DALI keeps in shared memory with a prefetch queue of two (measured)"""
SPARE = 16 << 20


def workers_with_room(settings: DataSettings, source: Source, batch: int) -> int:
    """`settings.workers`, or 0 where shared memory would not hold what they read; then one line on stderr says so."""
    if not settings.workers:
        return 0
    if settings.loader == "dali":
        need = DALI_BATCHES * batch * source.largest_sample()
    else:  # two batches a worker are on their way, and one is in use
        need = (2 * settings.workers + 1) * batch * source.most_frames() * settings.size**2 * 2
    room = _room()
    if room is None or need + SPARE <= room:
        return settings.workers
    _say(
        f"{FOLDER} has {room >> 20} MB free and {settings.workers} reading processes need {(need + SPARE) >> 20} MB: "
        "reading in the training process instead; start a container with a larger --shm-size"
    )
    return 0


def _room() -> int | None:
    try:
        status = os.statvfs(FOLDER)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


@lru_cache
def _say(line: str) -> None:
    """Once a process."""
    print(line, file=sys.stderr, flush=True)
