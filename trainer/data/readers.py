"""Processes that read for this one: they end when it does, and it ends, in one line, where one of them dies.

DALI and torch wait for what a reading process has promised, DALI for ever: they are asked in a thread, and given up where a
reader has died.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import cv2

from cache_schema.errors import CspineError
from trainer.plan.child import end_with_parent

LIKELY = {signal.SIGKILL: "memory", signal.SIGBUS: "room in /dev/shm"}
POLL = 0.5
"""seconds between looks at the readers while nothing comes from them"""
NO_WARNING = "ignore:resource_tracker"
"""what the process that clears /dev/shm after a killed one is not to write into its log"""


class ReaderDied(CspineError):
    """A reading process ended in the middle of its work."""

    exit_status = 1


class InReader:
    """A source as it travels to a reading process, which from then on ends with the process that it came from, and reads in
    one thread."""

    def __init__(self, source: Callable[[Any], Any]):
        self.source, self.parent = source, os.getpid()

    def __call__(self, info: Any) -> Any:
        """As DALI calls it."""
        return self.source(info)

    def __setstate__(self, state: dict[str, Any]) -> None:
        end_with_parent(state["parent"])
        cv2.setNumThreads(1)  # each would start as many as there are cores
        self.__dict__.update(state)


class Readers:
    """The processes that were started in `starting`."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """A terminal's Ctrl-C goes to their parent alone, which ends them."""
        _ensure_tracker()
        before = set(multiprocessing.active_children())
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        except (ConnectionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("Worker"):
                raise
            raise ReaderDied("a reading process died as it began", do="give fewer data.workers") from error
        finally:
            self.processes = [each for each in multiprocessing.active_children() if each not in before]
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @contextlib.contextmanager
    def asked(self, call: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
        """The function, which waits for readers, as one that raises ReaderDied where it would wait for a dead one."""
        if not self.processes:
            yield call
            return
        asked = _Asked(call)
        _open.append(self)
        try:
            yield asked
        finally:
            _open.remove(self)
            asked.close()


_open: list[Readers] = []
"""all whose work is waited for; a training's stay open while its held-out fold is read by others"""


def require_alive() -> None:
    """Raises ReaderDied where any reader of this process has ended."""
    for readers in _open:
        if not all(process.is_alive() for process in readers.processes):
            time.sleep(POLL)  # a signal to all processes reaches this one too, and is the better answer
            ended = [process.exitcode for process in readers.processes if process.exitcode is not None]
            # DALI ends the others itself
            status = next((status for status in ended if status != -signal.SIGTERM), ended[0])
            do = f"give fewer data.workers (there were {len(readers.processes)}), or a smaller batch"
            raise ReaderDied(f"a reading process {_end(status)}", do=do)


def _end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    likely = LIKELY.get(-status)
    return f"was killed ({signal.Signals(-status).name})" + (f", most likely for want of {likely}" if likely else "")


class _Asked:
    """Calls a function in a thread, which is left behind where a reader has died."""

    def __init__(self, call: Callable[[], Any]):
        self.is_waiting = False
        self._questions: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_answer, args=(call, self._questions, self._answers), daemon=True)
        self._thread.start()

    def __call__(self) -> Any:
        self._questions.put(True)
        self.is_waiting = True
        while True:
            try:
                result, error = self._answers.get(timeout=POLL)
                break
            except queue.Empty:
                require_alive()
        self.is_waiting = False
        if error is None:
            return result
        if not isinstance(error, StopIteration):
            require_alive()  # else it is no more than what follows from that
        raise error

    def close(self) -> None:
        self._questions.put(False)
        if not self.is_waiting:
            self._thread.join()


def _answer(call: Callable[[], Any], questions: queue.SimpleQueue, answers: queue.SimpleQueue) -> None:
    while questions.get():
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))


def _ensure_tracker() -> None:
    """Before SIGINT is blocked, which its start would end; and without its warning of what a killed process left to it."""
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{warnings},{NO_WARNING}" if warnings else NO_WARNING
    try:
        resource_tracker.ensure_running()
    finally:
        if warnings is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = warnings
