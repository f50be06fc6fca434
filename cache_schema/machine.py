"""The cores and the memory that this process may use: of the machine, and of the control groups that hold a container."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GROUPS = "sys/fs/cgroup"
CACHED = ("inactive_file", "active_file")
"""of a group's memory: files that the kernel drops when a process needs room"""


class Machine(NamedTuple):
    """What a process may use."""

    cores: int
    memory: int
    """free bytes"""

    def shared(self, processes: int) -> "Machine":
        """The part of each of several processes."""
        return Machine(max(1, self.cores // processes), self.memory // processes)


def this_machine(root: Path = Path("/")) -> Machine:
    """Limits of the groups above a group hold as well. root: where `proc` and `sys` lie."""
    return Machine(_cores(root), _free_memory(root))


def _cores(root: Path) -> int:
    """The cores that the scheduler may take for this process, or its groups' quota, rounded up."""
    quotas = []
    for folder in _groups(root, "cpu"):
        quota = (
            _text(folder / "cpu.max") or f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        )
        numbers = [int(word) for word in quota.split() if word.isdecimal()]
        if len(numbers) == 2 and all(numbers):  # without a limit `max` or -1 stands for the first
            quotas.append(math.ceil(numbers[0] / numbers[1]))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *quotas])


def _free_memory(root: Path) -> int:
    """Bytes that this process can take without swapping."""
    known = _table(root / "proc/meminfo").get("MemAvailable:")
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known is None else known << 10]
    for folder in _groups(root, "memory"):
        for most, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            limit, usage = _text(folder / most), _text(folder / used)
            if limit.isdecimal() and usage.isdecimal():  # `max` stands for no limit
                stat = _table(folder / "memory.stat")
                cached = sum(stat.get(prefix + name, 0) for name in CACHED)
                free.append(max(0, int(limit) - max(0, int(usage) - cached)))
    return min(free)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those above it, of both versions of control groups."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, own = line.split(":", 2)
        if number == "0":
            mounts = [root / GROUPS, root / GROUPS / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / GROUPS / controller]
        else:
            continue
        for mount in mounts:
            # a container may see its own group as the mount itself, and still name it by the path outside
            for place in (Path(own), *Path(own).parents):
                yield mount / place.relative_to("/")


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    """Stripped; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeError):
        return ""
