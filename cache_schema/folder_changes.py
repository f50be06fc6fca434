"""Changes to a cache in a folder: a study is built beside the others and renamed into place."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cache_schema.arrays import is_as_listed
from cache_schema.documents import sync, sync_and_read, write_early
from cache_schema.errors import CacheError, UsageError, naming, reason_of
from cache_schema.layout import BUILD_FOLDER, GROUP, INDEX, LABELS, REPORT, is_valid_id
from cache_schema.study_writer import Files, Fill


class FolderChanges:
    """path: the folder of the cache."""

    def __init__(self, path: Path):
        self.path, self.build_folder = path, path / BUILD_FOLDER

    def check(self) -> None:
        """Raises UsageError where the folder holds something else."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError("is a file", where=self.path, expected="a folder for the cache")
        is_new = self.path.is_dir() and not (self.path / GROUP).exists()
        if is_new and any(not _is_ours(entry) for entry in self.path.iterdir()):
            raise UsageError("is neither empty nor a cache", where=self.path, expected="a new folder or a cache")

    def publish(self, id: str, fill: Fill) -> None:
        """Write a study's files by `fill`, and its zarr.json last; what is raised meanwhile leaves the cache as it was."""
        part = self._aside("new", id)
        made = {part}

        def write(name: str, data: bytes) -> None:
            file = part / name
            if file.parent not in made:
                file.parent.mkdir()
                made.add(file.parent)
            write_early(file, data)

        try:
            with naming(part):
                part.mkdir()
                document, files = fill(write)
                write(GROUP, document)
                _sync_study(part, files)
            self._swap(part, self.path / id)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def remove(self, id: str) -> None:
        """Take a study out of the cache. Nothing happens where there is none."""
        aside = self._aside("new", id)
        try:
            os.rename(self.path / id, aside)
        except FileNotFoundError:
            return
        sync(self.path)
        shutil.rmtree(aside)

    def undo(self) -> None:
        shutil.rmtree(self.path)

    def studies(self) -> list[Path]:
        """Folders of all studies on disk, sorted by id."""
        return sorted(entry for entry in self.path.iterdir() if is_valid_id(entry.name) and (entry / GROUP).is_file())

    places = studies

    @contextmanager
    def locked(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the cache for changes; calls `waiting` once where another process holds it, then waits."""
        with open(self.build_folder / "lock", "wb") as lock:
            if not self._lock(lock, fcntl.LOCK_NB):
                waiting()
                self._lock(lock)
            yield

    def _lock(self, lock: IO[bytes], how: int = 0) -> bool:
        """Whether the lock is ours now. Raises UsageError where the file system has no locks."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | how)
        except BlockingIOError:
            return False
        except OSError as error:
            do = "keep the cache on a file system with locks (flock)"
            raise UsageError(f"cannot be locked ({reason_of(error)})", where=self.path, do=do) from error
        return True

    def sweep(self) -> None:
        """Clear what killed writers left behind. Call it under `locked`, while no process publishes."""
        for aside in sorted(self.build_folder.glob("old/*")):
            there = self.path / aside.name.rpartition("-")[0]
            if not there.exists():
                os.rename(aside, there)  # killed between taking the old study out and putting the new one in
        for kind in ("old", "new"):
            shutil.rmtree(self.build_folder / kind, ignore_errors=True)
        for part in self.build_folder.glob(".*.part"):
            part.unlink(missing_ok=True)

    def _aside(self, kind: str, id: str) -> Path:
        folder = self.build_folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{id}-{secrets.token_hex(6)}"

    def _swap(self, part: Path, final: Path) -> None:
        """Old aside, new in, old removed: who opens the study meanwhile gets old, new or none."""
        old = []
        while True:
            try:
                os.rename(part, final)
                break
            except OSError as error:
                # another writer may have taken the old study out since
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not final.exists():
                    raise
            aside = self._aside("old", final.name)
            try:
                os.rename(final, aside)
                old.append(aside)
            except FileNotFoundError:  # another writer took it
                continue
        sync(self.path)
        for aside in old:
            shutil.rmtree(aside, ignore_errors=True)


def _sync_study(folder: Path, files: Files) -> None:
    """Flush every file, then the names, then the record: it must not outlive what it lists."""
    for name, listed in files.items():
        if not is_as_listed(name, sync_and_read(folder / name), listed):
            raise CacheError(f"{name} reads back changed", where=folder, do="check the disk")
    for place in (*sorted({(folder / name).parent for name in files}), folder, folder / GROUP):
        sync(place)
    sync(folder.parent)


def _is_ours(entry: Path) -> bool:
    """Whether it may lie in a cache whose root document was never written, or was lost."""
    known = entry.name in (BUILD_FOLDER, INDEX, LABELS, REPORT)
    return known or (is_valid_id(entry.name) and (entry / GROUP).is_file() and (entry / "pixels" / GROUP).is_file())
