"""A lock on a folder that several machines may share."""

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from cache_schema.errors import naming
from trainer.process.command import warn_once

LOCK, EXCLUSIVE = ".lock", ".lock.exclusive"
"""files in the folder: the one that is locked and touched by its holder, and its replacement on file systems without flock"""
WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""errors of file systems without flock: Lustre with its default mount options, NFS without its lock daemon"""
ABANDONED = 30.0
"""seconds after which the process of an exclusive file counts as dead: locks are held for milliseconds"""
POLL = 0.02


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock while the block runs. Raises OSError if the folder is not writable."""
    with (folder / LOCK).open("a") as lock, contextlib.ExitStack() as stack:
        try:
            with naming(folder):
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in WITHOUT_FLOCK:
                raise
            warn_once(f"{folder}: the file system has no flock ({error.strerror}); an exclusive file replaces it")
            stack.enter_context(_exclusive_file(folder))
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
            if os.stat(path).st_ino == made.st_ino:  # else another process took over
                path.unlink()


def _abandoned(path: Path) -> bool:
    """Whether the exclusive file of a dead process was removed, or is gone."""
    try:
        found = path.stat()
        lock = path.with_name(LOCK)
        os.utime(lock)
        if lock.stat().st_mtime - found.st_mtime < ABANDONED:  # both times by the file system's clock
            return False
        aside = path.with_name(f"{EXCLUSIVE}.{uuid.uuid4().hex}")
        path.rename(aside)
        if aside.stat().st_ino != found.st_ino:  # another process took over first, and this is its file
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()
    except FileNotFoundError:
        pass
    return True
