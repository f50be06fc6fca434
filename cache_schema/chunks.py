"""The packed chunks of a study: where each lies, and its bytes from a folder, from a store, or from a local copy of a store's."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cache_schema.errors import CacheError
from cache_schema.layout import CHUNK_SLICES, chunk_file
from cache_schema.local_copy import LocalCopy
from cache_schema.scratch import Scratch
from cache_schema.store_kinds import DamagedFile
from cache_schema.store_path import Bytes, Place, StorePath

CRC_BYTES = 4
FILES_AT_ONCE = 16


class Chunk(NamedTuple):
    """Where a chunk lies: a file of its study, the first byte, how many; and the CRC-32C of all but its last four bytes."""

    file: str
    start: int
    size: int
    crc: int


def chunks_of(attributes: dict[str, Any]) -> dict[str, Chunk]:
    """What a study's zarr.json lists, by the name that a chunk has where each is a file of its own."""
    found = {}
    for file, listed in attributes["files"].items():
        name = sys.intern(file)  # the same in every study
        if "chunks" not in listed:
            found[name] = Chunk(name, 0, listed["bytes"], int(listed["crc32c"], 16))
            continue
        first, start = int(file.split(".")[1]) * attributes["shard_slices"], 0
        for size, crc in listed["chunks"]:
            found[sys.intern(chunk_file("pixels", first))] = Chunk(name, start, size, int(crc, 16))
            first, start = first + CHUNK_SLICES, start + size
    return found


_file = Scratch()


def read_packed(folder: Place, chunks: Sequence[Chunk], copy: LocalCopy | None = None) -> Iterator[np.ndarray]:
    """uint8 (bytes,) of each chunk, valid until the next one. Raises CacheError where a file is missing or of another length.

    copy: of the store, on this machine; what it has is not fetched again.
    """
    if isinstance(folder, StorePath):
        yield from _from_store(folder, chunks, copy)
        return
    for file, start, size, _ in chunks:
        try:
            with open(f"{folder}/{file}", "rb", buffering=0) as source:
                data = _file(size)
                source.seek(start)
                if source.readinto(data.data) != size:
                    raise ValueError("became shorter while it was read")
        except FileNotFoundError as error:
            raise unread(folder, f"{file} is missing") from error
        except (OSError, ValueError) as error:
            raise unread(folder, f"{file} does not check ({type(error).__name__})") from error
        yield data


def _from_store(folder: StorePath, chunks: Sequence[Chunk], copy: LocalCopy | None) -> Iterator[np.ndarray]:
    """All are asked for at once, neighbours in one shard by one request; each is given as soon as those before it are there."""
    found = {} if copy is None else {chunk: data for chunk in chunks if (data := copy.get(folder, chunk)) is not None}
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        last = runs[-1][-1] if runs else None
        if chunk in found:
            continue
        if last is not None and last.file == chunk.file and last.start + last.size == chunk.start:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    bodies = folder.fetch([Bytes(run[0].file, run[0].start, sum(chunk.size for chunk in run)) for run in runs])
    left = iter(runs)
    for chunk in chunks:
        if chunk not in found:
            try:
                body, start = next(bodies), 0
            except (FileNotFoundError, DamagedFile) as error:
                what = "is missing" if isinstance(error, FileNotFoundError) else "does not check (it is too short)"
                raise unread(folder, f"{os.path.relpath(str(error), folder.key)} {what}") from error
            for each in next(left):
                found[each] = data = body[start : start + each.size]
                start += each.size
                if copy is not None:
                    copy.put(folder, each, data)
        yield found.pop(chunk)


def read_files(folder: Place, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Files of a study with their names, in order; of a store some at a time. Raises CacheError where one is missing."""
    for first in range(0, len(names), FILES_AT_ONCE):
        some = names[first : first + FILES_AT_ONCE]
        bodies = folder.fetch([Bytes(name) for name in some]) if isinstance(folder, StorePath) else None
        for name in some:
            try:
                yield name, (folder / name).read_bytes() if bodies is None else next(bodies).tobytes()
            except FileNotFoundError as error:
                raise unread(folder, f"{name} is missing") from error


def unread(folder: Place, what: str) -> CacheError:
    return CacheError(what, where=folder, do="remove this folder: the same build-cache, or crop, makes it again")
