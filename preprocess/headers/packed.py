"""Headers, and plans made of them, in sixty bytes a file instead of two thousand: pickled and compressed until they are needed.

Files of one series say mostly the same, which pickle keeps once where it is one object, and compression where it is not.
Packs are for memory and for the way between processes; none is written to a disk.
"""

import pickle
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from preprocess.headers.file_header import FileHeader

LEVEL = 1
"""higher levels save a twentieth and take twice the time"""
FULL, MOST_SMALL = 64, 8
"""headers in a pack that is left as it is; smaller packs are made one once there are so many"""


def pack(what: Any) -> bytes:
    return zlib.compress(pickle.dumps(what, pickle.HIGHEST_PROTOCOL), LEVEL)


def unpack(packed: bytes) -> Any:
    return pickle.loads(zlib.decompress(packed))


class PackedHeaders:
    """Headers of one study, in packs of those that were read together."""

    __slots__ = ("_full", "_small")

    def __init__(self, headers: Iterable[FileHeader] = ()):
        self._full: list[bytes] = []
        self._small: list[bytes] = []
        self._put(list(headers))

    @property
    def nbytes(self) -> int:
        return sum(len(packed) for packed in (*self._full, *self._small))

    def add(self, other: "PackedHeaders") -> None:
        """A study whose files lie far apart comes in many small packs: they are packed together."""
        self._full += other._full
        self._small += other._small
        if len(self._small) >= MOST_SMALL:
            headers = [header for packed in self._small for header in unpack(packed)]
            self._small = []
            self._put(headers)

    def _put(self, headers: list[FileHeader]) -> None:
        if headers:
            (self._full if len(headers) >= FULL else self._small).append(pack(headers))

    def __iter__(self) -> Iterator[FileHeader]:
        for packed in (*self._full, *self._small):
            yield from unpack(packed)
