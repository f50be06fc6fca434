"""What NCCL may use of /dev/shm, of which a container has 64 MB by default."""

import os
from collections.abc import Mapping
from pathlib import Path

SHARED = Path("/dev/shm")
ENOUGH = 512 << 20
"""bytes: NCCL takes about 10 MB for each pair of GPUs and channel, and does not start where it cannot have them"""
DISABLE = "NCCL_SHM_DISABLE"


def spare_shared_memory(environment: Mapping[str, str], free: int) -> dict[str, str]:
    """What to add to the environment of several processes on GPUs, before they connect: nothing where there is enough, or where
    the user has decided. free: bytes of /dev/shm."""
    return {} if free >= ENOUGH or DISABLE in environment else {DISABLE: "1"}


def free_shared_memory() -> int:
    """Bytes; enough where there is no such file system to run out of."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return ENOUGH
    return found.f_bavail * found.f_frsize
