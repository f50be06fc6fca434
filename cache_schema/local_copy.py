"""A copy on this machine of the chunks that were read from a store, up to a budget, shared by processes and by runs.

A file a chunk, named by the study's place and what its record lists of the chunk: another content has another name. Nothing is flushed
or locked: a torn file does not check, and is fetched again.

Once the budget is full, what is there stays, and chunks that nobody has read for a day make room for new ones: an epoch
reads everything once, so that throwing out the oldest would throw out what is read next.
"""

import hashlib
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from cache_schema.errors import UsageError, reason_of
from cache_schema.store_path import StorePath

if TYPE_CHECKING:
    from cache_schema.chunks import Chunk

UNREAD_SECONDS = 24 * 3600.0
READ_SECONDS = 3600.0
"""how long after a read the next one is noted"""
COUNTED_EVERY = 64 << 20
"""bytes that a process writes before it counts what all have written"""
FOLDER_LETTERS = 2


@dataclass
class LocalCopy:
    """folder: made where it is not there. budget: bytes, which each process may pass by COUNTED_EVERY."""

    folder: Path
    budget: int
    _written: int = field(default=COUNTED_EVERY, init=False)
    """by this process since it counted"""
    _room: int = field(default=0, init=False)
    """bytes left when it counted"""

    def check(self) -> None:
        """Raises UsageError where the folder cannot be made or written to."""
        try:
            probe = self.folder / f".{secrets.token_hex(6)}.part"
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"cannot hold a copy ({reason_of(error)})", where=f"data.store_cache={self.folder}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_written": COUNTED_EVERY, "_room": 0}

    def get(self, study: StorePath, chunk: "Chunk") -> np.ndarray | None:
        """uint8 (bytes,) of a chunk, checked; None where there is no copy, or a damaged one."""
        path = self._path(study, chunk)
        try:
            with open(path, "rb", buffering=0) as file:
                read = os.fstat(file.fileno()).st_mtime
                data = np.frombuffer(file.read(), np.uint8)
        except OSError:
            return None
        if len(data) != chunk.size or google_crc32c.value(data[:-4]) != chunk.crc:
            with suppress(OSError):
                path.unlink()
            return None
        if time.time() - read > READ_SECONDS:
            with suppress(OSError):
                os.utime(path)
        return data

    def put(self, study: StorePath, chunk: "Chunk", data: np.ndarray) -> None:
        """Keep a chunk where there is room. A disk that is full, or gone, is no error: the store has it."""
        if len(data) != chunk.size or google_crc32c.value(data[:-4]) != chunk.crc:
            return
        path = self._path(study, chunk)
        part = path.with_name(f".{secrets.token_hex(6)}.part")
        with suppress(OSError):
            if not self._has_room(len(data)):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(data.data)
                os.replace(part, path)
            except OSError:
                part.unlink(missing_ok=True)
                self._room = 0
                raise

    def _has_room(self, size: int) -> bool:
        if self._written >= COUNTED_EVERY:
            self._room, self._written = self.budget - self._make_room(), 0
        self._written += size
        self._room -= size
        return self._room >= 0

    def _make_room(self) -> int:
        """Bytes kept, after files that nobody has read for a day were removed where the budget is full."""
        now, total, old = time.time(), 0, []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                with suppress(OSError):
                    status = os.stat(path)
                    total += status.st_size
                    if now - status.st_mtime > UNREAD_SECONDS:
                        old.append((status.st_mtime, status.st_size, path))
        for _, size, path in sorted(old):
            if total + COUNTED_EVERY <= self.budget:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size
        return total

    def _path(self, study: StorePath, chunk: "Chunk") -> Path:
        name = hashlib.sha256(f"{study}\n{chunk.file}\n{chunk.start}\n{chunk.size}\n{chunk.crc}".encode()).hexdigest()
        return self.folder / name[:FOLDER_LETTERS] / name
