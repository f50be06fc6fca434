"""The arrays of one study as files: read cropped, written a chunk at a time.

What lies on disk is plain Zarr v3, and the tests read it through zarr. Here the chunks of our one layout are packed and
unpacked directly: zarr's event loop costs more per chunk than the codec, and has no place in a data loader's forks.
"""

import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd

from cache_schema.documents import checksum, chunk_checksum
from cache_schema.errors import CacheError
from cache_schema.layout import ARRAYS, CHUNK_SLICES, GROUP, ZSTD_LEVEL, array_document, chunk_file, chunk_starts
from cache_schema.study import Box

CRC_BYTES = 4


def pack(values: np.ndarray) -> bytes:
    """One chunk of an array as it lies on disk: bytes in order (little endian), zstd, their CRC-32C (little endian)."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    packed = zstd.compress(plain, ZSTD_LEVEL, False)
    return packed + google_crc32c.value(packed).to_bytes(CRC_BYTES, "little")


def unpack(data: np.ndarray, out: np.ndarray) -> None:
    """The inverse of `pack`: a file's bytes (n,) uint8 into a contiguous array of the chunk's shape.

    Raises ValueError where checksum or size are wrong.
    """
    packed = data[:-CRC_BYTES]
    if google_crc32c.value(packed) != int.from_bytes(data[-CRC_BYTES:].tobytes(), "little"):
        raise ValueError("the checksum differs")
    try:
        found = zstd.decompress(packed, out)
    except Exception as error:  # numcodecs raises RuntimeError and ValueError
        raise ValueError("no chunk of this size") from error
    if memoryview(found).nbytes != out.nbytes:
        raise ValueError("no chunk of this size")


class Scratch(threading.local):
    """A buffer for each thread, used again and again: touching new pages costs more than reading a file into them."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, *shape: int) -> np.ndarray:
        """uint8 of this shape, uninitialised; valid until the next call in this thread."""
        size = math.prod(shape)
        if len(self._buffer) < size:
            self._buffer = np.empty(size, np.uint8)
        return self._buffer[:size].reshape(shape)


_file, _chunk = Scratch(), Scratch()


def read_array(folder: Path, name: str, listed: Mapping[str, int] | None = None) -> np.ndarray:
    """A whole small array of a study, kept in one chunk. Raises CacheError where it is missing or does not check.

    listed: as `StoredPixels` takes it.
    """
    out = np.empty(read_shape(folder, name), ARRAYS[name][0])
    _read_chunk(folder, chunk_file(name), out, listed)
    return out


def read_shape(folder: Path, name: str) -> tuple[int, ...]:
    """The shape of a study's array. Raises CacheError where its zarr.json is not what schema 1 has."""
    file = f"{name}/{GROUP}"
    try:
        data = (folder / file).read_bytes()
        shape = tuple(map(int, json.loads(data)["shape"]))
        expected = array_document(name, shape)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unread(folder, f"{file} cannot be read ({type(error).__name__})") from error
    if expected != data:
        raise _unread(folder, f"{file} is not what schema 1 has")
    return shape


class StoredPixels:
    """The pixels of a study in a cache. Picklable; holds no file open between reads."""

    def __init__(self, folder: Path, listed: Mapping[str, int] | None = None):
        """listed: the CRC-32C of each of the study's files, by name; a chunk with another one belongs to another study."""
        self.folder, self.listed = folder, listed
        self._shape: tuple[int, ...] | None = None

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w). Raises CacheError where a chunk is missing or does not check."""
        if self._shape is None:
            self._shape = read_shape(self.folder, "pixels")
        slices, rows, columns = self._shape
        x0, y0, x1, y1 = box or (0, 0, columns, rows)
        if z1 > slices or y1 > rows or x1 > columns:
            raise _unread(self.folder, "pixels have another shape than the record says")
        out = np.empty((z1 - z0, y1 - y0, x1 - x0), np.uint8)
        whole = out.shape[1:] == (rows, columns)
        for first in chunk_starts(z0, z1):
            begin, end = max(z0, first), min(z1, first + CHUNK_SLICES)
            part = out[begin - z0 : end - z0]
            if whole and end - begin == CHUNK_SLICES:
                _read_chunk(self.folder, chunk_file("pixels", first), part, self.listed)
                continue
            chunk = _chunk(CHUNK_SLICES, rows, columns)
            _read_chunk(self.folder, chunk_file("pixels", first), chunk, self.listed)
            part[...] = chunk[begin - first : end - first, y0:y1, x0:x1]
        return out


def _read_chunk(folder: Path, file: str, out: np.ndarray, listed: Mapping[str, int] | None) -> None:
    try:
        with open(f"{folder}/{file}", "rb", buffering=0) as source:
            size = os.fstat(source.fileno()).st_size
            data = _file(size)
            if source.readinto(data.data) != size:
                raise ValueError("became shorter while it was read")
        unpack(data, out)
    except FileNotFoundError as error:
        raise _unread(folder, f"{file} is missing") from error
    except (OSError, ValueError) as error:
        raise _unread(folder, f"{file} does not check ({type(error).__name__})") from error
    if listed is not None and listed.get(file) != int.from_bytes(data[-CRC_BYTES:].tobytes(), "little"):
        raise _unread(folder, f"{file} is not the one that the study's {GROUP} lists")


def is_as_listed(file: str, data: bytes, listed: Mapping[str, Any]) -> bool:
    """Whether a file of a study holds what the study's record lists of it."""
    if file.endswith(GROUP):
        return checksum(data) == listed
    return chunk_checksum(data) == listed and data[-CRC_BYTES:] == bytes.fromhex(listed["crc32c"])[::-1]


def _unread(folder: Path, what: str) -> CacheError:
    return CacheError(what, where=folder, do="remove this folder: the same build-cache, or crop, makes it again")


class StudyWriter:
    """Writes the arrays of one study below `folder` and lists their files as they are written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, dict] = {}

    def write_block(self, first: int, block: np.ndarray, shape: tuple[int, int, int]) -> None:
        """One chunk of the pixels: (<= 8, h, w) uint8, the first of them slice `first`."""
        if not self.files:
            self._create("pixels", shape)
        if len(block) < CHUNK_SLICES:  # Zarr keeps whole chunks, filled up
            block = np.concatenate([block, np.zeros((CHUNK_SLICES - len(block), *block.shape[1:]), np.uint8)])
        self._write("pixels", first, block)

    def write_small(self, name: str, values: np.ndarray) -> None:
        self._create(name, values.shape)
        self._write(name, 0, values)

    def _create(self, name: str, shape: tuple[int, ...]) -> None:
        (self.folder / name).mkdir(parents=True)
        document = array_document(name, shape)
        (self.folder / name / GROUP).write_bytes(document)
        self.files[f"{name}/{GROUP}"] = checksum(document)

    def _write(self, name: str, first: int, values: np.ndarray) -> None:
        file, data = chunk_file(name, first), pack(values)
        (self.folder / file).write_bytes(data)
        self.files[file] = chunk_checksum(data)
