"""One task in a process of its own, which may die without harm to others, and a sentence on how it died."""

import ctypes
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

POLL_SECONDS = 0.02
"""how often to look at the memory of the process: the fastest that fills it gets 0.1 GB further meanwhile"""
PR_SET_PDEATHSIG = 1
DEADLINE = struct.Struct("<d")
"""an answer begins with the seconds of the last deadline that the process set itself, 0 for none"""
ALONE = "in a process of its own"
START = (
    "import pickle, sys; parent, answer, sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from preprocess.build.isolated_task import work; work(parent, answer)"
)

_answer: int | None = None
"""the file for the answer, in a process that was started for a task"""


@dataclass(frozen=True)
class Died:
    """A task's process died though it was alone. message: how, said of the task: "died of SIGSEGV ..."."""

    message: str


@dataclass(frozen=True)
class _End:
    """How a process ended. code: its exit status, or minus its signal; peak: bytes of memory."""

    code: int
    peak: int
    was_over: bool
    """it needed more than its limit and was ended for that"""
    for_memory: bool
    """the kernel ended a process meanwhile because memory ran out"""


def run_alone(
    work: bytes, limit: int | None, environment: Mapping[str, object], is_needed: Callable[[], bool] = lambda: True
) -> Any:
    """The result of a task run in a new process, or `Died`. Raises what the task raises.

    work: the pickled (function, task). limit: bytes of memory that the process may fill. The process dies with this
    one, and when this call is left by an exception. Raises InterruptedError once it `is_needed` no longer.
    """
    with TemporaryFile() as given, TemporaryFile() as answer:
        pickle.dump((os.getpid(), answer.fileno(), sys.path), given)
        given.write(work)
        given.seek(0)
        with _process(given, answer, environment) as process:
            end = _wait(process, limit, is_needed)
        answer.seek(0)
        (deadline,) = DEADLINE.unpack(answer.read(DEADLINE.size) or bytes(DEADLINE.size))
        try:
            good, result = pickle.load(answer)
        except (EOFError, pickle.UnpicklingError):
            return Died(_how_it_died(end, limit, deadline))
    if end.code:
        return Died(_how_it_died(end, limit, deadline))
    if not good:
        raise result
    return result


def run_alone_on_worker(work: bytes) -> Any:
    """`run_alone` for a worker of Dask: in a child of the worker, within the worker's memory limit."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks[worker.get_current_task()]
    limit = worker.memory_manager.memory_limit
    return run_alone(work, limit, os.environ, is_needed=lambda: task.state != "cancelled")


@contextmanager
def _process(given: IO, answer: IO, environment: Mapping[str, object]) -> Iterator[subprocess.Popen]:
    """The running process; whatever is left of it is killed. A session of its own keeps a terminal's Ctrl-C from it."""
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=given,
        pass_fds=[answer.fileno()],
        start_new_session=True,
        env={name: str(value) for name, value in environment.items()},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen, limit: int | None, is_needed: Callable[[], bool]) -> _End:
    """Until the process has ended, or has been ended because it fills more memory than `limit`.

    Its memory is looked at from outside: the kernel's own limit (RLIMIT_AS) counts mapped files and what was set aside
    but never touched, several times what a decoder fills.
    """
    kills, peak, was_over = _kills_for_memory(), 0, False
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        filled, highest = _memory(process.pid)
        peak = max(peak, highest)
        if limit and filled > limit:
            was_over = True
            os.kill(process.pid, signal.SIGKILL)
        if not is_needed():
            raise InterruptedError("nothing waits for this task any longer")
        time.sleep(POLL_SECONDS)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:  # a child begins with its parent's peak
        peak = max(peak, usage.ru_maxrss << 10)
    return _End(process.returncode, peak, was_over, _kills_for_memory() > kills)


def _memory(pid: int) -> tuple[int, int]:
    """Bytes that a process fills now, and has filled at most; 0 where the system does not say."""
    found = {"VmRSS": 0, "VmHWM": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for name, value in (line.split(":", 1) for line in lines):
        if name in found:
            found[name] = int(value.split()[0]) << 10
    return found["VmRSS"], found["VmHWM"]


def _kills_for_memory() -> int:
    """How many processes the kernel has ended because the memory of the machine or of a control group ran out."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def _how_it_died(end: _End, limit: int | None, deadline: float) -> str:
    peak = f"peak {end.peak / 1e6:.0f} MB"
    if end.was_over and limit:
        return f"ran out of memory {ALONE}: {peak}, limit {limit / 1e6:.0f} MB (of a Dask worker)"
    if end.code >= 0:
        return f"ended {ALONE} with exit status {end.code} and no result"
    if end.code == -signal.SIGALRM and deadline:
        return f"hung for {deadline:g} s {ALONE} and was ended (SIGALRM)"
    if end.code == -signal.SIGKILL and end.for_memory:
        from distributed.system import MEMORY_LIMIT

        least = f"limit {MEMORY_LIMIT / 1e6:.0f} MB (of the machine or its control group)"
        return f"ran out of memory {ALONE} and was ended by the kernel (SIGKILL): {peak}, {least}"
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    room = "" if space == resource.RLIM_INFINITY else f", address space limited to {space / 1e6:.0f} MB (ulimit -v)"
    return f"died of {_name(-end.code)} {ALONE} ({peak}{room})"


def _name(number: int) -> str:
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"


def work(parent: int, answer: int) -> None:
    """All that the new process does: the task of its standard input, into the file `answer`."""
    global _answer
    _die_with_parent(parent)
    _prefer_for_oom_kill()
    _answer = answer
    note_deadline(0)
    try:
        function, task = pickle.load(sys.stdin.buffer)
        found = (True, function(task))
    except Exception as error:
        found = (False, error)
    with open(answer, "wb") as file:
        file.seek(DEADLINE.size)
        file.write(_pickled(found))
    os._exit(0)  # libraries may yet crash as they are unloaded


def note_deadline(seconds: float) -> None:
    """For whoever waits for this process, where it was started for a task: what it sets itself a deadline of."""
    if _answer is not None:
        os.pwrite(_answer, DEADLINE.pack(seconds), 0)


def _pickled(found: tuple[bool, Any]) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(found)
    except Exception as error:  # a result, or an exception, that cannot be pickled
        return cloudpickle.dumps((False, TypeError(f"{type(found[1]).__name__} cannot be pickled: {error}")))


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that waits for it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        os._exit(1)


def _prefer_for_oom_kill() -> None:
    """Where memory runs out the kernel shall end this process, and neither the build nor a worker."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return
