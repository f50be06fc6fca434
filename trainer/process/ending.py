"""How a command ends when it is told to: SIGINT and SIGTERM are one line and a status, whatever it is in the middle of.

Imports nothing that takes time: a command answers from its first line on.
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
"""seconds after which a process that was told to end does so, whatever its libraries still wait for"""
EXIT_GRACE = 3.0
"""seconds that what is to be done at the exit of a failed process may take"""

ELASTIC = "TORCHELASTIC_RUN_ID"
"""set by torch's launcher, and by Accelerate's over several processes"""
LAUNCHERS = {b"accelerate", b"accelerate.commands.launch"}
"""as Accelerate's launcher of one process is called"""


class Interrupted(KeyboardInterrupt):
    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def answer_at_once(line: str) -> None:
    """Until `answered` takes over, while a command's modules are imported: a signal prints the line and ends the process."""

    def answer(number: int, frame: object) -> None:
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"{line}\n".encode())
        os._exit(128 + number)

    for number in _listened_to():
        signal.signal(number, answer)


def end_with_launcher() -> None:
    """Where torch's or Accelerate's launcher started this process, it is told to end when that dies."""
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")[:3]
    except OSError:
        words = []
    if ELASTIC in os.environ or not LAUNCHERS.isdisjoint(os.path.basename(word) for word in words):
        end_with_parent(parent, signal.SIGTERM)


@contextlib.contextmanager
def answered(say: Callable[[], None]) -> Iterator[list[int]]:
    """While the block runs the first SIGINT or SIGTERM raises Interrupted in it; more of them change nothing. Yields their numbers:
    a library that is called just then may make another error of it.

    A library may be in the middle of long work, or wait for a process that is dead: where the block has not ended after
    GRACE seconds, `say` is called and the process ends with the status.
    """
    numbers = _listened_to()
    told: list[int] = []
    if not numbers:
        yield told
        return

    def answer(number: int, frame: object) -> None:
        told.append(number)
        if len(told) == 1:
            raise Interrupted(number)

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    threading.Thread(target=_end_in_time, args=(reading, say), daemon=True).start()
    before = {number: signal.signal(number, answer) for number in numbers}
    # written to by the signal itself, even while no Python runs in the main thread
    waker = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield told
    finally:
        signal.set_wakeup_fd(waker)
        for number, handler in before.items():
            signal.signal(number, handler)
        writing.close()


def leave(status: int) -> NoReturn:
    """Ends this process with a status. One that failed does not wait for threads or processes of its libraries."""
    if not status:
        sys.exit(0)
    threading.Thread(target=lambda: (time.sleep(EXIT_GRACE), os._exit(status)), daemon=True).start()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _listened_to() -> list[int]:
    """Those of the signals that somebody has not asked this process to ignore, as a shell does for what runs behind it."""
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
