"""One process at a time over a folder that several machines may share."""

import contextlib
import errno
import fcntl
import os
import sys
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from cache_schema.errors import naming

LOCK, EXCLUSIVE = ".lock", ".lock.exclusive"
"""files in the folder: the one that is locked, touched by everybody who has it; and the one that stands for it without flock"""
WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""how a file system says that it has none: Lustre as it is mounted by default, NFS without its lock daemon"""
ABANDONED = 30.0
"""seconds after which an exclusive file is taken for a dead process's: what is done under a lock takes milliseconds"""
POLL = 0.02


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until nobody else is in such a block of this folder. Raises OSError where the folder cannot be written."""
    with (folder / LOCK).open("a") as lock:
        try:
            with naming(folder):
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in WITHOUT_FLOCK:
                raise
            _say(folder, error.strerror)
            kept = _exclusive_file(folder)
        else:
            kept = contextlib.nullcontext()
        with kept:
            os.utime(lock.fileno())
            yield


@contextlib.contextmanager
def _exclusive_file(folder: Path) -> Iterator[None]:
    path = folder / EXCLUSIVE
    while True:
        try:
            made = os.fstat(descriptor := os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            os.close(descriptor)
            break
        except FileExistsError:
            if not _abandoned(path):
                time.sleep(POLL)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == made.st_ino:  # else another took this process for dead
                path.unlink()


def _abandoned(path: Path) -> bool:
    """Whether a dead process's file was taken away."""
    try:
        found = path.stat()
        lock = path.with_name(LOCK)
        os.utime(lock)
        if lock.stat().st_mtime - found.st_mtime < ABANDONED:  # both by the file system's clock
            return False
        aside = path.with_name(f"{EXCLUSIVE}.{uuid.uuid4().hex}")
        path.rename(aside)
        if aside.stat().st_ino != found.st_ino:  # another was quicker, and this is its own
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()
    except FileNotFoundError:
        pass
    return True


@lru_cache
def _say(folder: Path, reason: str) -> None:
    """Once a process."""
    print(
        f"{folder}: the file system has no flock ({reason}); exclusive files stand for it", file=sys.stderr, flush=True
    )
