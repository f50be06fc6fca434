"""How a command ends on SIGINT and SIGTERM: with one line and an exit status, at any time.

Imports only fast modules, so that a command can handle signals from its start.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from trainer.process.child import end_with_parent

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 8.5
"""seconds after which a signalled process exits even if its libraries still wait"""
EXIT_GRACE = 3.0
"""seconds for the exit handlers of a failed process"""

ELASTIC = "TORCHELASTIC_RUN_ID"
"""set by torchrun, and by `accelerate launch` with several processes"""
LAUNCHERS = {b"accelerate", b"accelerate.commands.launch"}
"""command names of `accelerate launch`, which sets no variable for one process"""


def answer_at_once(line: str) -> None:
    """While a command's modules are imported, until `answered`: a signal prints the line and ends the process."""

    def answer(number: int, frame: object) -> None:
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"{line}\n".encode())
        os._exit(128 + number)

    for number in _listened_to():
        signal.signal(number, answer)


def end_with_launcher() -> None:
    """A process started by torchrun or `accelerate launch` gets SIGTERM when its launcher ends."""
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")[:3]
    except OSError:
        words = []
    if ELASTIC in os.environ or not LAUNCHERS.isdisjoint(os.path.basename(word) for word in words):
        end_with_parent(parent, signal.SIGTERM)


@contextlib.contextmanager
def answered(say: Callable[[], None]) -> Iterator[list[int]]:
    """In the block, the first SIGINT or SIGTERM raises KeyboardInterrupt; further ones are ignored. Yields the list of their numbers,
    because a library may turn the exception into another one.

    If a library keeps the block running for more than GRACE seconds, calls `say` and ends the process.
    """
    numbers = _listened_to()
    told: list[int] = []
    if not numbers:
        yield told
        return

    def answer(number: int, frame: object) -> None:
        told.append(number)
        if len(told) == 1:
            raise KeyboardInterrupt

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    threading.Thread(target=_end_in_time, args=(reading, say), daemon=True).start()
    before = {number: signal.signal(number, answer) for number in numbers}
    # the C signal handler writes to it, even while no Python code runs in the main thread
    waker = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield told
    finally:
        signal.set_wakeup_fd(waker)
        for number, handler in before.items():
            signal.signal(number, handler)
        writing.close()


def leave(status: int) -> NoReturn:
    """Exits with a status; if it is not 0, without waiting for threads or processes of libraries."""
    if not status:
        sys.exit(0)
    timer = threading.Timer(EXIT_GRACE, os._exit, (status,))
    timer.daemon = True
    timer.start()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _listened_to() -> list[int]:
    """The signals that this process does not ignore, as a shell makes background processes do."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _end_in_time(reading: socket.socket, say: Callable[[], None]) -> None:
    with reading:
        while (told := reading.recv(1)) and told[0] not in SIGNALS:
            continue
        until = time.monotonic() + GRACE
        while told and (left := until - time.monotonic()) > 0:
            reading.settimeout(left)
            try:
                if not reading.recv(1):
                    return  # the block has ended
            except TimeoutError:
                break
    if told:
        say()
        os._exit(128 + told[0])
