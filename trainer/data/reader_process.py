"""A process that reads for a training, as `trainer.data.readers` starts it.

It knows functions by a number, calls them where it is asked to, and answers with their arrays: large ones in memory that both
processes see, all else over the socket. It ends with its parent, works in one thread, and imports no torch.
"""

import mmap
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

import cv2
import numpy as np

from cache_schema.errors import CspineError
from trainer.process.child import end_with_parent

ALIGNED = 64
"""bytes: where an array may begin in shared memory"""
LARGE = 1 << 14
"""bytes of an array from which on it goes through shared memory"""


class Open(NamedTuple):
    """The file descriptor of the shared memory follows it over the socket."""

    number: int
    function: Callable[[int], Sequence[np.ndarray]]
    size: int
    """bytes of shared memory"""


class Close(NamedTuple):
    number: int


class Read(NamedTuple):
    number: int
    first: int
    count: int
    offset: int
    """of the part of the shared memory that the answer may fill"""
    room: int
    """its bytes"""


class Answer(NamedTuple):
    number: int
    first: int
    results: list[list[Any]] | None
    """of function(first), function(first + 1), ..., packed"""
    error: Exception | None = None


class SharedArray(NamedTuple):
    """Where an array lies in shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


def packed(results: Sequence[Sequence[np.ndarray]], memory: mmap.mmap, offset: int, room: int) -> list[list[Any]]:
    """Large arrays as Places in the memory's part, as far as they fit; others as they are."""
    end, made = offset + room, []
    for result in results:
        row: list[Any] = []
        for array in result:
            start = -(-offset // ALIGNED) * ALIGNED
            if array.nbytes < LARGE or start + array.nbytes > end:
                row.append(array)
                continue
            np.ndarray(array.shape, array.dtype, memory, start)[...] = array
            row.append(SharedArray(start, array.shape, array.dtype.str))
            offset = start + array.nbytes
        made.append(row)
    return made


def unpacked(row: Sequence[Any], memory: mmap.mmap) -> list[np.ndarray]:
    """The arrays; those in shared memory are what lies there now."""
    return [
        np.ndarray(each.shape, each.dtype, memory, each.offset) if isinstance(each, SharedArray) else each
        for each in row
    ]


def main() -> None:
    """sys.argv: the socket's file descriptor, the parent's process number."""
    end_with_parent(int(sys.argv[2]))
    cv2.setNumThreads(1)  # each process would start as many as there are cores
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent ended first
        serve(Connection(int(sys.argv[1])))


def serve(connection: Connection) -> None:
    """Until the other end is closed."""
    known: dict[int, tuple[Callable[[int], Sequence[np.ndarray]], mmap.mmap]] = {}
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Open):
            descriptor = recv_handle(connection)
            known[message.number] = message.function, mmap.mmap(descriptor, message.size)
            os.close(descriptor)
        elif isinstance(message, Close):
            del known[message.number]
        else:
            connection.send(_answer(message, *known[message.number]))


def _answer(asked: Read, function: Callable[[int], Sequence[np.ndarray]], memory: mmap.mmap) -> Answer:
    try:
        results = [function(k) for k in range(asked.first, asked.first + asked.count)]
        return Answer(asked.number, asked.first, packed(results, memory, asked.offset, asked.room))
    except Exception as error:
        return Answer(asked.number, asked.first, None, _that_travels(error))


def _that_travels(error: Exception) -> Exception:
    """The error itself, with where it was raised if that is a mistake in the program; another with its words where it
    cannot be pickled."""
    if not isinstance(error, CspineError | OSError):
        error.add_note("in a reading process:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
