"""A pool of reading processes that all loaders of a run share: training, evaluations, prediction.

DALI ties its parallel readers to one pipeline, and torch's DataLoader its workers to one dataset: with either, each
evaluation starts processes again. Data comes through anonymous memory (memfd): a container's small /dev/shm does not limit
it, and a killed process leaves nothing behind.
"""

import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

import numpy as np
import torch

from cache_schema.errors import CspineError
from cache_schema.machine import this_machine
from trainer.data.reader_process import ALIGNED, Answer, Close, Function, Open, Read, unpacked
from trainer.settings.settings import DataSettings

START = "from trainer.data.reader_process import main; main()"
MOST_WORKERS = 6
"""for data.workers=auto"""
REQUEST_BYTES = 4 << 20
"""most bytes of one request, unless a single item is larger"""
EXIT_SECONDS = 2.0
"""time for a process to exit after its connection closes"""


class ReaderDied(CspineError):
    """A reading process ended unexpectedly."""

    exit_status = 1


def wanted_workers(settings: DataSettings, device: torch.device) -> int:
    """data.workers, with auto replaced by a number."""
    if settings.workers != "auto":
        return settings.workers
    if device.type == "cpu":
        return 0
    here = this_machine().shared(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(MOST_WORKERS, here.cores - 1)


class Readers:
    """Starts its processes on first use. Not thread-safe."""

    def __init__(self, workers: int):
        self.workers = workers
        self._numbers = count()
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []
        self._answers: dict[tuple[int, int], Answer] = {}
        """received before they were needed, by the number of the reading and their first item"""
        self._open: set[int] = set()

    def read(self, function: Function, most_bytes: int, batch: int, limit: int | None = None) -> "Reading":
        """function(0), function(1), ... in order, `limit` of them or endless, read ahead by all processes.

        most_bytes: upper bound of one result. batch: the last `batch` results stay valid.
        """
        return Reading(self, function, most_bytes, batch, limit)

    def close(self) -> None:
        """Ends the processes. Open readings then raise ReaderDied."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._connections = [], []

    def begin(self, function: Function, size: int) -> tuple[int, list[mmap.mmap]]:
        """Sends the function to all processes. Returns its number, and `size` bytes of memory shared with each process."""
        self._start()
        number, memories = next(self._numbers), []
        self._open.add(number)
        for worker, process in enumerate(self._processes):
            descriptor = os.memfd_create("cspine-reader")
            try:
                os.ftruncate(descriptor, size)
                memories.append(mmap.mmap(descriptor, size))
                self.ask(worker, Open(number, function, size))
                self._use(worker, partial(send_handle, handle=descriptor, destination_pid=process.pid))
            finally:
                os.close(descriptor)
        return number, memories

    def end(self, number: int) -> None:
        """Drops the function, and its answers that have yet to arrive."""
        self._open.discard(number)
        self._answers = {key: answer for key, answer in self._answers.items() if key[0] != number}
        for worker in range(len(self._connections)):
            with suppress(ReaderDied):  # the next request raises it
                self.ask(worker, Close(number))

    def ask(self, worker: int, message: Open | Close | Read) -> None:
        self._use(worker, lambda connection: connection.send(message))

    def answer(self, worker: int, number: int, first: int) -> Answer:
        """Waits for an answer. Raises what the function raised, and ReaderDied if the process has ended."""
        while (number, first) not in self._answers:
            found: Answer = self._use(worker, Connection.recv)
            if found.number in self._open:
                self._answers[found.number, found.first] = found
        found = self._answers.pop((number, first))
        if found.error is not None:
            raise found.error
        return found

    def _start(self) -> None:
        if self._processes:
            return
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # Ctrl-C in a terminal must reach their parent only, which ends them
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self.workers):
                ours, theirs = socket.socketpair()
                with theirs:
                    command = [sys.executable, "-P", "-c", START, str(theirs.fileno()), str(os.getpid())]
                    process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
                self._processes.append(process)
                self._connections.append(Connection(ours.detach()))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _use(self, worker: int, function: Callable[[Connection], Any]) -> Any:
        """function(the worker's connection). Raises ReaderDied if the process has ended."""
        if worker >= len(self._connections):
            raise ReaderDied("the reading processes were closed")
        try:
            return function(self._connections[worker])
        except (EOFError, ConnectionError):
            raise self._died(self._processes[worker]) from None

    def _died(self, process: subprocess.Popen) -> ReaderDied:
        try:
            status = process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            status = 1
        what = f"ended with status {status}" if status >= 0 else f"was killed ({signal.Signals(-status).name})"
        cause = ", probably out of memory" if -status in (signal.SIGKILL, signal.SIGBUS) else ""
        do = f"set data.workers lower (now {self.workers}), or a smaller batch"
        return ReaderDied(f"a reading process {what}{cause}", do=do)


class Reading(Iterator[list[np.ndarray]]):
    """The results of `Readers.read`. Its user closes it."""

    def __init__(self, readers: Readers, function: Function, most_bytes: int, batch: int, limit: int | None):
        self.readers, self.limit, self.k = readers, limit, 0
        self.chunk = max(1, min(batch, REQUEST_BYTES // max(1, most_bytes)))
        """items per request; requests go to the processes in turn, and each process fills the parts of its memory in turn"""
        per_batch = -(-batch // self.chunk) + 1
        self.parts = -(-2 * per_batch // readers.workers) + 1
        self.ahead = readers.workers * self.parts - per_batch
        """requests sent ahead; more would overwrite results of the batch in use"""
        self.room = self.chunk * (most_bytes + ALIGNED)
        self.requested = 0
        self.number, self.memories = readers.begin(function, self.parts * self.room)
        self._results: list[list[np.ndarray]] = []

    def __next__(self) -> list[np.ndarray]:
        if self.limit is not None and self.k >= self.limit:
            raise StopIteration
        request, position = divmod(self.k, self.chunk)
        while self.requested < request + self.ahead and (
            self.limit is None or self.requested * self.chunk < self.limit
        ):
            self._request(self.requested)
            self.requested += 1
        if not position:
            worker = request % self.readers.workers
            answer = self.readers.answer(worker, self.number, self.k)
            self._results = [unpacked(row, self.memories[worker]) for row in answer.results]
        self.k += 1
        return self._results[position]

    def _request(self, request: int) -> None:
        turn, worker = divmod(request, self.readers.workers)
        first, last = request * self.chunk, (request + 1) * self.chunk
        last = last if self.limit is None else min(last, self.limit)
        self.readers.ask(worker, Read(self.number, first, last, turn % self.parts * self.room, self.room))

    def close(self) -> None:
        self.readers.end(self.number)
