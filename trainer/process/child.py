"""`python child.py PARENT COMMAND ...`: runs the command, and ends with it, or with the process PARENT, all that it has left.

A run's processes have processes of their own: readers, the ranks of a launcher in sessions of theirs, a tracker of shared
memory. Whichever way the run or the plan ends, this one stays behind as the parent of what is left, and ends that too.
Nothing is imported here but the standard library: one of these waits beside every run.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""prctl(2): the signal this process gets when the thread that started it ends, which outlives exec; and that what its
descendants leave without a parent becomes its own child"""
WAITED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
GRACE, TRACKER_GRACE, PATIENCE = 4.0, 5.0, 10.0
"""seconds that a run has to end by itself, that what clears shared memory has after it, and after which what the system
cannot end (it waits for a disk) is left to it"""
TRACKER = b"multiprocessing.resource_tracker"
"""in the command line of the process that removes what the others leave in /dev/shm, once all of them are gone"""
POLL = 0.05


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """This process gets the signal when its parent dies, or now where that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def main(words: list[str]) -> int:
    """The command's exit status; 128 and its number where a signal ended it."""
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
    _end_what_is_left()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _reaped(run: int) -> int | None:
    """Buries the dead. Returns the run's wait status where it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        if pid == run:
            found = status


def _end(run: int) -> int:
    """Asks the run to end, then makes it. Returns its wait status."""
    os.kill(run, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while (status := _reaped(run)) is None:
        if time.monotonic() > deadline:
            os.kill(run, signal.SIGKILL)
        signal.sigtimedwait(WAITED, POLL)
    return status


def _end_what_is_left() -> None:
    began = time.monotonic()
    while (left := _descendants()) and (waited := time.monotonic() - began) < PATIENCE:
        trackers = {pid for pid in left if TRACKER in _command_line(pid)}
        # these wait for the others, and go by themselves
        for pid in left if waited > TRACKER_GRACE else left - trackers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        signal.sigtimedwait(WAITED, POLL)
        _reaped(0)


def _descendants() -> set[int]:
    """All living processes that come from this one."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                state, parent = _read(f"{entry.path}/stat").rpartition(b")")[2].split()[:2]
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


def _command_line(pid: int) -> bytes:
    try:
        return _read(f"/proc/{pid}/cmdline")
    except OSError:
        return b""


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
