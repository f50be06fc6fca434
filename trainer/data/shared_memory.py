"""How many processes read, and whether they can hand their samples over: a container's /dev/shm often holds 64 MB, and a
full one kills them."""

import os
import sys
from functools import lru_cache

import torch

from trainer.config import DataSettings
from trainer.data.source import Source

FOLDER = "/dev/shm"
DALI_BATCHES = 4
"""batches of samples that DALI keeps in shared memory with a prefetch queue of two (measured)"""
SPARE = 16 << 20
MOST_WORKERS = 6
"""of data.workers=auto"""


def wanted_workers(settings: DataSettings, device: torch.device) -> int:
    """data.workers, with auto as a number."""
    if settings.workers != "auto":
        return settings.workers
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST_WORKERS, cores - 1))


def workers_with_room(settings: DataSettings, source: Source, batch: int, device: torch.device) -> int:
    """As many as are wanted, or 0 where shared memory would not hold what they read; then one line on stderr says so."""
    workers = wanted_workers(settings, device)
    if not workers:
        return 0
    if settings.loader == "dali":
        need = DALI_BATCHES * batch * source.largest_sample()
    else:  # two batches a worker are on their way, and one is in use
        need = (2 * workers + 1) * batch * source.most_frames() * settings.size**2 * 2
    room = _room()
    if room is None or need + SPARE <= room:
        return workers
    _say(
        f"{FOLDER} has {room >> 20} MB free and {workers} reading processes need {(need + SPARE) >> 20} MB: "
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
