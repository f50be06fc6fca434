"""A worker process of `trainer.data.reader_pool`.

It holds functions by number, calls them on request and returns their arrays: large ones in shared memory, others over the
socket. It ends with its parent, works in one thread, and does not import torch.
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
"""bytes: alignment of arrays in shared memory"""
LARGE = 1 << 14
"""bytes from which an array goes through shared memory"""


Function = Callable[[int], Sequence[np.ndarray]]
"""k -> the arrays of the k-th result"""


class Open(NamedTuple):
    """The file descriptor of the shared memory follows over the socket."""

    number: int
    function: Function
    size: int
    """bytes of shared memory"""


class Close(NamedTuple):
    number: int


class Read(NamedTuple):
    number: int
    first: int
    last: int
    """exclusive"""
    offset: int
    """of the part of shared memory for the answer"""
    room: int
    """bytes of this part"""


class Answer(NamedTuple):
    number: int
    first: int
    results: list[list[Any]]
    """of function(first), function(first + 1), ..., packed; none after an error"""
    error: Exception | None = None


class SharedArray(NamedTuple):
    """An array's location in shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


def packed(results: Sequence[Sequence[np.ndarray]], memory: mmap.mmap, offset: int, room: int) -> list[list[Any]]:
    """Copies large arrays into this part of the memory while it has room, and replaces them by a SharedArray."""
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
    """The arrays of one result. Those in shared memory are views."""
    return [
        np.ndarray(each.shape, each.dtype, memory, each.offset) if isinstance(each, SharedArray) else each
        for each in row
    ]


def main() -> None:
    """sys.argv: the socket's file descriptor, the parent's process id."""
    end_with_parent(int(sys.argv[2]))
    cv2.setNumThreads(1)  # the default is one thread per core in each process
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent ended first
        serve(Connection(int(sys.argv[1])))


def serve(connection: Connection) -> None:
    """Answers requests until the other end closes."""
    known: dict[int, tuple[Function, mmap.mmap]] = {}
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


def _answer(request: Read, function: Function, memory: mmap.mmap) -> Answer:
    try:
        results = [function(k) for k in range(request.first, request.last)]
        return Answer(request.number, request.first, packed(results, memory, request.offset, request.room))
    except Exception as error:
        return Answer(request.number, request.first, [], _picklable(error))


def _picklable(error: Exception) -> Exception:
    """The error, with its traceback as a note if it is a bug; a RuntimeError with its message if it cannot be pickled."""
    if not isinstance(error, CspineError | OSError):
        error.add_note("in a reading process:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
