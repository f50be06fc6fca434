"""One run of a plan in a process of its own, under its lease: on this machine, or on a Dask worker."""

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
"""for all runs together; each ends what it has started within seconds"""


class RunOrder(NamedTuple):
    """A run to make, as it is sent to whoever makes it."""

    name: str
    words: tuple[str, ...]
    out: Path
    attempt: str
    """unique to each time that a plan starts the run"""
    devices: tuple[str, ...] | None = None
    """GPUs; None: whatever the process that starts it sees"""


class RunOutcome(NamedTuple):
    status: int | None
    """the run's exit status, 128 and its number where a signal ended it; None where another process holds its lease"""
    seconds: float
    last: list[str]
    """last lines of its output, or who holds the lease"""


def command(words: Sequence[str], processes: int = 1) -> list[str]:
    """The run as a command; over several GPUs under torch's launcher, which finds a free port by itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(RUN_SCRIPT), *words]


def shown(words: Sequence[str]) -> str:
    """The run as a line for a shell."""
    return shlex.join(["python", "-m", "trainer.run", *words])


def log_file(out: Path, name: str) -> Path:
    return out / "logs" / f"{name.replace('/', '-')}.log"


class Stopped(CspineError):
    """No more runs are started here."""


class Children:
    """The runs that this process has started; once stopped, it starts no more."""

    def __init__(self) -> None:
        self._lock, self._running, self._stopped = threading.Lock(), set[subprocess.Popen](), False

    def start(self, order: RunOrder, token: str, log: BinaryIO) -> subprocess.Popen:
        """In a session of its own, so that a signal to this process and its group is answered here, by `stop`."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", INHERITED: token}
        if order.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(order.devices)
        run = command(order.words, len(order.devices or ()) or 1)
        with self._lock:
            if self._stopped:
                raise Stopped("was not started: the plan was ended")
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
        """Its exit status."""
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """Ends all of them, with all that came from them."""
        with self._lock:
            self._stopped, left = True, list(self._running)
        for process in left:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in left:
            process.kill()


def launch(order: RunOrder, children: Children | None = None) -> RunOutcome:
    """Makes a run and waits for it; its output goes to RUNS/logs. It ends when this process does.

    An order is carried out once: one that comes again, because Dask lost the worker that had it, fails (no retries of
    training). children: where the run's process stands while it runs.
    """
    started = time.monotonic()
    children = children or Children()
    lease, mark = lease_file(order.out, order.name), _mark(order)
    lease.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return RunOutcome(1, 0.0, ["the worker that made it was lost; a training is not tried again by itself"])
    running: list[subprocess.Popen] = []
    try:
        with hold(lease, lost=lambda: [process.terminate() for process in running]) as token:
            forget_all(order.out, order.name, but=mark)  # of plans that were killed: nobody else has the lease
            outcome = _attend(order, token, running, children, started)
    except (LeaseTaken, Stopped) as error:
        mark.unlink(missing_ok=True)
        status = None if isinstance(error, LeaseTaken) else 1
        return RunOutcome(status, time.monotonic() - started, [error.what])
    if outcome.status == 0:
        mark.unlink(missing_ok=True)  # one that comes again finds the run done
    return outcome


def forget(order: RunOrder) -> None:
    """Once the outcome is known."""
    _mark(order).unlink(missing_ok=True)


def forget_all(out: Path, name: str, but: Path | None = None) -> None:
    """All marks of attempts at a run."""
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
    with contextlib.suppress(OSError):  # then it lives as long as this process alone
        share(lease_file(order.out, order.name), token, process.pid)
    status = children.wait(process)
    status = status if status >= 0 else 128 - status  # what watches the run was killed, and took it along
    return RunOutcome(status, time.monotonic() - started, _last_lines(path))


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]
