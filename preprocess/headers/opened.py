"""A file of a source, open for reading: on a disk, or in a store by ranges of bytes."""

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, NamedTuple, cast

from cache_schema.errors import CspineError, advice_on, reason_of
from cache_schema.store_path import Bytes, Place, StorePath, place_named, soon

FIRST_BYTES = 1 << 16
"""of a file in a store, that the first request asks for: nearly every header"""
NEXT_BYTES = 1 << 20
AHEAD = 16
"""files of a store, that are asked for before it is their turn"""
BLOCKS, BLOCK_BYTES = 4, 1 << 23
"""of a file that is copied: how many are asked for at once"""


class FileState(NamedTuple):
    """What tells one state of a file from another. mtime_ns: nanoseconds; of a file in a store a hash of its ETag."""

    size: int
    mtime_ns: int


@contextmanager
def opened(path: str | os.PathLike, first: int = FIRST_BYTES) -> Iterator[tuple[io.FileIO, FileState]]:
    """A file without a buffer of Python's, and its state. first: bytes to ask a store for at once, such as all.

    Raises OSError, and StoreError where a store cannot be reached.
    """
    place = place_named(os.fspath(path))
    if isinstance(place, StorePath):
        file = _StoreFile(place, first)
        yield cast(io.FileIO, file), file.state
        return
    with open(place, "rb", buffering=0) as raw:
        status = os.fstat(raw.fileno())
        yield raw, FileState(status.st_size, status.st_mtime_ns)


Opening = AbstractContextManager[tuple[io.FileIO, FileState]]


def opened_in_turn(files: Iterable[tuple[str, int]]) -> Iterator[Opening]:
    """`opened` of each (path, bytes to ask a store for at once), to be entered one after another.

    Of files in a store the next are asked for while one is used: there waiting is all it costs.
    """
    waiting = deque[Opening | Future[_StoreFile]]()
    coming = (_asked(place_named(path), path, first) for path, first in files)
    try:
        waiting.extend(islice(coming, AHEAD))
        while waiting:
            asked = waiting.popleft()
            yield _when_there(asked) if isinstance(asked, Future) else asked
            waiting.extend(islice(coming, 1))
    finally:
        for asked in waiting:
            if isinstance(asked, Future):
                asked.cancel()


def _asked(place: Place, path: str, first: int) -> "Opening | Future[_StoreFile]":
    return soon(_StoreFile, place, first) if isinstance(place, StorePath) else opened(path, first)


@contextmanager
def _when_there(asked: "Future[_StoreFile]") -> Iterator[tuple[io.FileIO, FileState]]:
    file = asked.result()
    yield cast(io.FileIO, file), file.state


def state_of(tag: str, size: int) -> FileState:
    """Of a file in a store, by its ETag."""
    return FileState(size, int.from_bytes(hashlib.sha256(tag.encode()).digest()[:7], "big"))


class _StoreFile(io.RawIOBase):
    """Reads a file in a store; what it has asked for last is kept."""

    def __init__(self, place: StorePath, first: int):
        super().__init__()
        self.name = str(place)  # pydicom asks a file for it
        self._place, self._at, self._start = place, 0, 0
        self._held, tag, size = place.read_first(first)
        self.state = state_of(tag, size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.state.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer, up to the file's end."""
        view, begun = memoryview(buffer).cast("B"), self._at
        wanted = min(len(view), max(0, self.state.size - begun))
        while (done := self._at - begun) < wanted:
            if not self._start <= self._at < self._start + len(self._held):
                size = min(max(wanted - done, NEXT_BYTES), self.state.size - self._at)
                self._held = next(self._place.fetch([Bytes("", self._at, size)]))
                self._start = self._at
            begin = self._at - self._start
            found = self._held[begin : begin + wanted - done]
            view[done : done + len(found)] = found.data
            self._at += len(found)
        return wanted


class _Copy(NamedTuple):
    """Of a file in a store: one without a name, that goes with the process."""

    place: StorePath
    process: int
    file: IO[bytes]
    state: FileState


_last_copy: _Copy | None = None


@contextmanager
def opened_copy(path: str, state: FileState) -> Iterator[tuple[io.FileIO, FileState]]:
    """`opened`, for a file of which many parts are read: one in a store is copied to this machine first. The last copy is kept,
    for as long as it has this state."""
    global _last_copy
    place = place_named(path)
    if not isinstance(place, StorePath):
        with opened(path) as found:
            yield found
        return
    copy = _last_copy
    if copy is None or (copy.place, copy.process, copy.state) != (place, os.getpid(), state):
        _last_copy = None
        _last_copy = copy = _copied(place)
    with open(f"/proc/self/fd/{copy.file.fileno()}", "rb", buffering=0) as raw:  # a position of its own
        yield raw, copy.state


@contextmanager
def _room_for_a_copy() -> Iterator[None]:
    """This machine's own error is not taken for one of the source."""
    try:
        yield
    except OSError as error:
        what = f"a file of many frames could not be copied to the temporary folder, TMPDIR ({reason_of(error)})"
        raise CspineError(what, do=advice_on(error)) from None


def _copied(place: StorePath) -> _Copy:
    with _room_for_a_copy():
        file = TemporaryFile()  # noqa: SIM115 it is kept open
    size = _StoreFile(place, 1).state.size
    for start in range(0, size, BLOCKS * BLOCK_BYTES):
        end = min(size, start + BLOCKS * BLOCK_BYTES)
        parts = [Bytes("", at, min(BLOCK_BYTES, end - at)) for at in range(start, end, BLOCK_BYTES)]
        for block in place.fetch(parts):
            with _room_for_a_copy():
                file.write(block.data)
                file.flush()
    return _Copy(place, os.getpid(), file, _StoreFile(place, 1).state)  # of now, so that a change meanwhile shows


@contextmanager
def on_disk(path: str | Place) -> Iterator[Path]:
    """The file itself, or a copy of one in a store for as long as it is needed. Raises as `opened`."""
    place = place_named(str(path))
    if isinstance(place, Path):
        yield place
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, place.name)
        copy.write_bytes(place.read_bytes())
        yield copy


def copy_to_disk(place: StorePath, folder: Path) -> None:
    """Copy what lies below a place in a store into a folder; the same content gets the same time."""
    listed = place.listing()
    for name, data in zip(listed, place.fetch([Bytes(name) for name in listed]), strict=True):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.data)
        os.utime(file, ns=(0, state_of(listed[name].tag, listed[name].size).mtime_ns))
