"""The arrays of one study as files: chunks packed and unpacked, read cropped.

What lies on disk is plain Zarr v3, and the tests read it through zarr. Here the chunks of our one layout are packed and
unpacked directly: zarr's event loop costs more per chunk than the codec, and has no place in a data loader's forks.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd

from cache_schema.chunks import CRC_BYTES, Chunk, read_files, read_packed, unread
from cache_schema.documents import checksum, chunk_checksum
from cache_schema.layout import (
    ARRAYS,
    CHUNK_SLICES,
    GROUP,
    ZSTD_LEVEL,
    array_document,
    chunk_file,
    chunk_starts,
    schema_of,
)
from cache_schema.local_copy import LocalCopy
from cache_schema.scratch import Scratch
from cache_schema.store_path import Place, StorePath
from cache_schema.study import Box


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


_chunk = Scratch()


def read_array(
    folder: Place, name: str, chunks: Mapping[str, Chunk], shape: tuple[int, ...], copy: LocalCopy | None = None
) -> np.ndarray:
    """A whole small array of a study, kept in one chunk. Raises CacheError where it is missing or does not check.

    chunks: of the study, as `StoredPixels` takes them. shape: by the study's record.
    """
    listed = _listed(folder, name, chunks)
    out = np.empty(read_shape(folder, name, chunks, shape), ARRAYS[name][0])
    for data in read_packed(folder, [listed], copy):
        _unpack_listed(folder, listed, data, out)
    return out


def read_shape(
    folder: Place, name: str, chunks: Mapping[str, Chunk], shape: tuple[int, ...], shard: int | None = None
) -> tuple[int, ...]:
    """The shape of a study's array. Raises CacheError where its zarr.json is not what the schema has.

    shape: by the record. In a store the list of the study's files tells that the zarr.json says so too: no request.
    """
    file = f"{name}/{GROUP}"
    if isinstance(folder, StorePath):
        document = checksum(array_document(name, shape, shard))
        if chunks[file][1:] != (0, document["bytes"], int(document["crc32c"], 16)):
            raise unread(folder, f"{file} is not what schema {schema_of(shard)} has")
        return shape
    try:
        data = (folder / file).read_bytes()
        shape = tuple(map(int, json.loads(data)["shape"]))
        expected = array_document(name, shape, shard)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise unread(folder, f"{file} cannot be read ({type(error).__name__})") from error
    if expected != data:
        raise unread(folder, f"{file} is not what schema {schema_of(shard)} has")
    return shape


class StoredPixels:
    """The pixels of a study in a cache. Picklable; holds no file open between reads.

    chunks: where each chunk lies, by its name; one with another CRC belongs to another study. shape: by the record.
    shard: slices in a file, None where each chunk is one. copy: on this machine, of a study in a store.
    """

    def __init__(
        self,
        folder: Place,
        chunks: Mapping[str, Chunk],
        shape: tuple[int, int, int],
        shard: int | None = None,
        copy: LocalCopy | None = None,
    ):
        self.folder, self.chunks, self.expected, self.shard, self.copy = folder, chunks, shape, shard, copy
        self._shape: tuple[int, ...] | None = None

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w). Raises CacheError where a chunk is missing or does not check."""
        return self.unpacked(z0, z1, box, self.packed(z0, z1))

    def packed(self, z0: int, z1: int) -> Iterator[np.ndarray]:
        """The stored bytes, uint8 (n,), of each chunk with these slices, valid until the next one. Raises CacheError."""
        return read_packed(self.folder, self._chunks(z0, z1), self.copy)

    def unpacked(self, z0: int, z1: int, box: Box | None, packed: Iterable[np.ndarray]) -> np.ndarray:
        """As `read`, from the chunks that `packed` gave."""
        if self._shape is None:
            self._shape = read_shape(self.folder, "pixels", self.chunks, self.expected, self.shard)
        slices, rows, columns = self._shape
        x0, y0, x1, y1 = box or (0, 0, columns, rows)
        if z1 > slices or y1 > rows or x1 > columns:
            raise unread(self.folder, "pixels have another shape than the record says")
        out = np.empty((z1 - z0, y1 - y0, x1 - x0), np.uint8)
        whole = out.shape[1:] == (rows, columns)
        for first, chunk, data in zip(chunk_starts(z0, z1), self._chunks(z0, z1), packed, strict=True):
            begin, end = max(z0, first), min(z1, first + CHUNK_SLICES)
            part = out[begin - z0 : end - z0]
            if whole and end - begin == CHUNK_SLICES:
                _unpack_listed(self.folder, chunk, data, part)
                continue
            held = _chunk(CHUNK_SLICES, rows, columns)
            _unpack_listed(self.folder, chunk, data, held)
            part[...] = held[begin - first : end - first, y0:y1, x0:x1]
        return out

    def _chunks(self, z0: int, z1: int) -> list[Chunk]:
        return [_listed(self.folder, "pixels", self.chunks, first) for first in chunk_starts(z0, z1)]


def _listed(folder: Place, name: str, chunks: Mapping[str, Chunk], first: int = 0) -> Chunk:
    try:
        return chunks[chunk_file(name, first)]
    except KeyError:
        raise unread(folder, f"{chunk_file(name, first)} is not listed in its {GROUP}") from None


def _unpack_listed(folder: Place, chunk: Chunk, data: np.ndarray, out: np.ndarray) -> None:
    try:
        unpack(data, out)
    except ValueError as error:
        raise unread(folder, f"{chunk.file} does not check ({type(error).__name__})") from error
    if chunk.crc != int.from_bytes(data[-CRC_BYTES:].tobytes(), "little"):
        raise unread(folder, f"{chunk.file} is not the one that the study's {GROUP} lists")


def is_as_listed(file: str, data: bytes, listed: Mapping[str, Any]) -> bool:
    """Whether a file of a study holds what the study's record lists of it."""
    if "chunks" in listed:
        ends = zip(accumulate(size for size, _ in listed["chunks"]), listed["chunks"], strict=True)
        # the CRC of the whole shard is the same where two chunks are swapped
        in_place = all(_ends_with(data[end - CRC_BYTES : end], crc) for end, (_, crc) in ends)
        return in_place and checksum(data) == {name: listed[name] for name in ("bytes", "crc32c")}
    if file.endswith(GROUP):
        return checksum(data) == listed
    return chunk_checksum(data) == listed and _ends_with(data, listed["crc32c"])


def checked_files(folder: Place, files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """The files that a study's record lists, with their names. Raises CacheError for one that is not as listed."""
    for name, data in read_files(folder, list(files)):
        if not is_as_listed(name, data, files[name]):
            raise unread(folder, f"{name} is not the one that the study's {GROUP} lists")
        yield name, data


def _ends_with(chunk: bytes, crc: str) -> bool:
    """Whether a chunk's last bytes hold the CRC that the record lists, in little endian."""
    return chunk[-CRC_BYTES:] == bytes.fromhex(crc)[::-1]
