"""`python child.py PARENT COMMAND ...`: runs the command and, when it or the process PARENT ends, kills all its descendants.

A run starts further processes: readers, and the ranks of a launcher, which have their own sessions. This process is their
subreaper: it becomes the parent of orphans and kills them, however the run or the plan ends. It imports only the standard
library, as one such process waits for every run.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""options of prctl(2): the signal sent to this process when its parent thread ends, kept across exec; and orphaned descendants
become its children"""
WAITED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
GRACE, PATIENCE = 4.0, 10.0
"""seconds between SIGTERM and SIGKILL, and until processes that do not end (they wait for a disk) are given up"""
POLL = 0.05


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Sends this process the signal when its parent ends, or now if it has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def main(words: list[str]) -> int:
    """The command's exit status; 128 + number if a signal ended it."""
    parent, *command = words
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    end_with_parent(int(parent), signal.SIGTERM)
    own = os.getpid()
    run = os.fork()
    if not run:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        end_with_parent(own, signal.SIGTERM)
        os.execvp(command[0], command)
    status = None
    while status is None and signal.sigwait(WAITED) == signal.SIGCHLD:
        status = _reaped(run)
    if status is None:
        status = _end(run)
    _kill_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _reaped(run: int) -> int | None:
    """Reaps ended children. Returns the run's wait status if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == run:
                found = ended[1]
    return found


def _end(run: int) -> int:
    """Sends SIGTERM and after GRACE seconds SIGKILL. Returns the run's wait status."""
    os.kill(run, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while (status := _reaped(run)) is None:
        if time.monotonic() > deadline:
            os.kill(run, signal.SIGKILL)
        signal.sigtimedwait(WAITED, POLL)
    return status


def _kill_descendants() -> None:
    until = time.monotonic() + PATIENCE
    while (left := _descendants()) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait(WAITED, POLL)
        _reaped(0)


def _descendants() -> set[int]:
    """All living descendants of this process."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"{entry.path}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):  # it has just gone
                continue
            if state not in b"ZX":
                children.setdefault(int(parent), []).append(int(entry.name))
    found, unseen = set(), [os.getpid()]
    while unseen:
        of_this = children.get(unseen.pop(), [])
        found.update(of_this)
        unseen += of_this
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
