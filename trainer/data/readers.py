"""Processes that read for this one, started once and used by every loader that it opens: training, evaluations, prediction.

A pool of the project's own, since DALI ties its parallel readers to one pipeline and torch's DataLoader its workers to one
dataset: with either, each evaluation starts processes anew. What they have read comes through memory without a name
(memfd), which a container's small /dev/shm does not bound and no killed process leaves behind.
"""

import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

import numpy as np
import torch

from cache_schema.errors import CspineError
from trainer.data.reader_process import ALIGNED, Answer, Close, Open, Read, unpacked
from trainer.settings.settings import DataSettings

START = "from trainer.data.reader_process import main; main()"
MOST_WORKERS = 6
"""of data.workers=auto"""
BYTES_ASKED = 4 << 20
"""that a process reads for one question, at most unless one item is larger"""
ENDS = 2.0
"""seconds that a process has to end once nothing is asked of it any more"""


class ReaderDied(CspineError):
    """A reading process ended in the middle of its work."""

    exit_status = 1


def wanted_workers(settings: DataSettings, device: torch.device) -> int:
    """data.workers, with auto as a number."""
    if settings.workers != "auto":
        return settings.workers
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST_WORKERS, cores - 1))


class Readers:
    """Starts its processes when it is first asked for something. Not for several threads."""

    def __init__(self, workers: int):
        self.workers = workers
        self._numbers = count()
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []
        self._answers: dict[tuple[int, int], Answer] = {}
        """those that came before they were asked for, by the number of their reading and their first item"""
        self._open: set[int] = set()

    def read(
        self, function: Callable[[int], Sequence[np.ndarray]], most_bytes: int, batch: int, limit: int | None = None
    ) -> "Reading":
        """function(0), function(1), ... in order, `limit` of them or without end, read ahead by all processes.

        most_bytes: of what one call returns. batch: so many results are valid at a time, counted from the last.
        """
        return Reading(self, function, most_bytes, batch, limit)

    def close(self) -> None:
        """Ends the processes. Readings that are open raise ReaderDied."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(ENDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._connections = [], []

    def begin(self, function: Callable[[int], Sequence[np.ndarray]], size: int) -> tuple[int, list[mmap.mmap]]:
        """Its number, and the memory that is shared with each process, of `size` bytes."""
        self._start()
        number, memories = next(self._numbers), []
        self._open.add(number)
        for worker, process in enumerate(self._processes):
            descriptor = os.memfd_create("cspine-reader")
            try:
                os.ftruncate(descriptor, size)
                memories.append(mmap.mmap(descriptor, size))
                self.ask(worker, Open(number, function, size))
                self._told(worker, lambda connection, fd=descriptor, pid=process.pid: send_handle(connection, fd, pid))
            finally:
                os.close(descriptor)
        return number, memories

    def end(self, number: int) -> None:
        """Answers that are still to come are dropped."""
        self._open.discard(number)
        self._answers = {key: answer for key, answer in self._answers.items() if key[0] != number}
        for worker in range(len(self._connections)):
            with suppress(ReaderDied):  # whoever asks it for more is told
                self.ask(worker, Close(number))

    def ask(self, worker: int, message: Open | Close | Read) -> None:
        self._told(worker, lambda connection: connection.send(message))

    def answer(self, worker: int, number: int, first: int) -> Answer:
        """Waits for it. Raises what the function raised, and ReaderDied where the process has ended."""
        while (number, first) not in self._answers:
            found: Answer = self._told(worker, lambda connection: connection.recv())
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
        # a terminal's Ctrl-C goes to their parent alone, which ends them
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

    def _told(self, worker: int, act: Callable[[Connection], Any]) -> Any:
        """What comes of the act on a worker's connection."""
        if worker >= len(self._connections):
            raise ReaderDied("the reading processes were ended")
        try:
            return act(self._connections[worker])
        except (EOFError, ConnectionError):
            raise self._died(self._processes[worker]) from None

    def _died(self, process: subprocess.Popen) -> ReaderDied:
        try:
            status = process.wait(ENDS)
        except subprocess.TimeoutExpired:
            status = 1
        do = f"give fewer data.workers (there were {self.workers}), or a smaller batch"
        if status >= 0:
            return ReaderDied(f"a reading process ended with status {status}", do=do)
        name = signal.Signals(-status).name
        likely = ", most likely for want of memory" if -status in (signal.SIGKILL, signal.SIGBUS) else ""
        return ReaderDied(f"a reading process was killed ({name}){likely}", do=do)


class Reading(Iterator[list[np.ndarray]]):
    """What `Readers.read` returns. Closed by whoever opened it."""

    def __init__(
        self,
        readers: Readers,
        function: Callable[[int], Sequence[np.ndarray]],
        most_bytes: int,
        batch: int,
        limit: int | None,
    ):
        self.readers, self.limit, self.k = readers, limit, 0
        self.chunk = max(1, min(batch, BYTES_ASKED // max(1, most_bytes)))
        """items a question; each process answers every so-manieth question, in parts of its memory that take turns"""
        of_a_batch = -(-batch // self.chunk) + 1
        self.parts = -(-2 * of_a_batch // readers.workers) + 1
        self.ahead = readers.workers * self.parts - of_a_batch
        """questions from the one that is read on: more would overwrite what the batch in use still has"""
        self.room = self.chunk * (most_bytes + ALIGNED)
        self.asked = 0
        self.number, self.memories = readers.begin(function, self.parts * self.room)
        self._results: list[list[np.ndarray]] = []

    def __next__(self) -> list[np.ndarray]:
        if self.limit is not None and self.k >= self.limit:
            raise StopIteration
        question, place = divmod(self.k, self.chunk)
        while self.asked < question + self.ahead and (self.limit is None or self.asked * self.chunk < self.limit):
            self._ask(self.asked)
            self.asked += 1
        if not place:
            worker = question % self.readers.workers
            found = self.readers.answer(worker, self.number, self.k)
            self._results = [unpacked(row, self.memories[worker]) for row in found.results]
        self.k += 1
        return self._results[place]

    def _ask(self, question: int) -> None:
        worker, turn = question % self.readers.workers, question // self.readers.workers % self.parts
        first = question * self.chunk
        many = self.chunk if self.limit is None else min(self.chunk, self.limit - first)
        self.readers.ask(worker, Read(self.number, first, many, turn * self.room, self.room))

    def close(self) -> None:
        self.readers.end(self.number)
