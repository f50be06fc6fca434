"""One run of a plan, as a child process that holds its lease, on this machine or a Dask worker."""

import contextlib
import glob
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cache_schema.errors import CspineError
from trainer.runs.lease import INHERITED, LeaseTaken, hold, lease_file, share

PACKAGE = Path(__file__).resolve().parents[1]
RUN_SCRIPT, CHILD = PACKAGE / "run.py", PACKAGE / "process" / "child.py"
LAST_LINES, LAST_BYTES = 15, 16384
STOP_SECONDS = 8.0
"""for all runs together"""


class RunOrder(NamedTuple):
    """A run to make. Picklable."""

    name: str
    words: tuple[str, ...]
    out: Path
    attempt: str
    """unique to each start of the run by a plan"""
    devices: tuple[str, ...] | None = None
    """GPUs; None: those visible to the parent process"""


class RunOutcome(NamedTuple):
    status: int | None
    """the exit status, 128 + its number after a signal; None if another process holds the lease"""
    seconds: float
    last: list[str]
    """last lines of its output, or the lease's holder"""


def command(words: Sequence[str], processes: int = 1) -> list[str]:
    """The run's command; over several GPUs with torch's launcher, which finds a free port itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(RUN_SCRIPT), *words]


def shown(words: Sequence[str]) -> str:
    """The run as a line for a shell."""
    return shlex.join(["python", "-m", "trainer.run", *words])


def log_file(out: Path, name: str) -> Path:
    return out / "logs" / f"{name.replace('/', '-')}.log"


class Stopped(CspineError):
    """This process starts no more runs."""


class Children:
    """The runs of this process. After `stop` it starts no more."""

    def __init__(self) -> None:
        self._lock, self._running, self._stopped = threading.Lock(), set[subprocess.Popen](), False

    def start(self, order: RunOrder, token: str, log: BinaryIO) -> subprocess.Popen:
        """Starts a run in a session of its own: a signal to this process group reaches it only through `stop`."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", INHERITED: token}
        if order.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(order.devices)
        run = command(order.words, len(order.devices or ()) or 1)
        with self._lock:
            if self._stopped:
                raise Stopped("was not started: the plan has ended")
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD), str(os.getpid()), *run],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def wait(self, process: subprocess.Popen) -> int:
        """Waits for a run. Returns its exit status."""
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """Ends all runs and their child processes."""
        with self._lock:
            self._stopped, left = True, list(self._running)
        _terminate(left)
        deadline = time.monotonic() + STOP_SECONDS
        for process in left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in left:
            process.kill()


def launch(order: RunOrder, children: Children | None = None) -> RunOutcome:
    """Makes a run and waits for it. Its output goes to RUNS/logs. It ends when this process does.

    An order runs once. Dask repeats the order of a lost worker; the repetition fails, because training is not retried.
    children: keeps track of the run's process.
    """
    started = time.monotonic()
    children = children or Children()
    lease, mark = lease_file(order.out, order.name), _mark(order)
    lease.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return RunOutcome(1, 0.0, ["its worker was lost; a training is not retried automatically"])
    running: list[subprocess.Popen] = []
    try:
        with hold(lease, lost=lambda: _terminate(running)) as token:
            remove_marks(order.out, order.name, but=mark)  # of plans that were killed: this one holds the lease
            outcome = _attend(order, token, running, children, started)
    except (LeaseTaken, Stopped) as error:
        mark.unlink(missing_ok=True)
        status = None if isinstance(error, LeaseTaken) else 1
        return RunOutcome(status, time.monotonic() - started, [error.what])
    if outcome.status == 0:
        mark.unlink(missing_ok=True)  # a repetition finds the run done
    return outcome


def _terminate(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()


def remove_mark(order: RunOrder) -> None:
    """Removes the mark that an order has started, once its outcome is known."""
    _mark(order).unlink(missing_ok=True)


def remove_marks(out: Path, name: str, but: Path | None = None) -> None:
    """Removes the marks of all attempts at a run."""
    lease = lease_file(out, name)
    for mark in lease.parent.glob(f"{glob.escape(lease.stem)}.*.begun"):
        if mark != but:
            mark.unlink(missing_ok=True)


def _mark(order: RunOrder) -> Path:
    lease = lease_file(order.out, order.name)
    return lease.with_name(f"{lease.stem}.{order.attempt}.begun")


def _attend(
    order: RunOrder, token: str, running: list[subprocess.Popen], children: Children, started: float
) -> RunOutcome:
    path = log_file(order.out, order.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as log:
        process = children.start(order, token, log)
    running.append(process)
    with contextlib.suppress(OSError):  # without it the lease ends with this process
        share(lease_file(order.out, order.name), token, process.pid)
    status = children.wait(process)
    status = status if status >= 0 else 128 - status  # the run's parent was killed, and the run with it
    return RunOutcome(status, time.monotonic() - started, _last_lines(path))


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]
