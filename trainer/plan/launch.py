"""One run of a plan in a process of its own, under its lease: on this machine, or on a Dask worker."""

import collections
import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.lease import INHERITED, Held, hold, lease_file

RUN_SCRIPT = Path(__file__).resolve().parents[1] / "run.py"
CHILD = Path(__file__).resolve().with_name("child.py")
LAST_LINES = 15


class RunOrder(NamedTuple):
    """A run to make, as it is sent to whoever makes it."""

    name: str
    words: tuple[str, ...]
    out: Path
    attempt: str
    """unique to each time that a plan starts the run"""
    devices: tuple[str, ...] | None = None
    """GPUs; None: whatever the process that starts it sees"""


class Outcome(NamedTuple):
    status: int | None
    """the run's exit status; None where another process holds its lease"""
    seconds: float
    last: list[str]
    """last lines of its output, or who holds the lease"""


def command(words: Sequence[str], processes: int = 1) -> list[str]:
    """The run as a command; over several GPUs under torch's launcher, which finds a free port by itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(RUN_SCRIPT), *words]


def shown(words: Sequence[str]) -> str:
    """The run as a line for a shell in the project's folder."""
    return shlex.join(["python", "trainer/run.py", *words])


def log_file(out: Path, name: str) -> Path:
    return out / "logs" / f"{name.replace('/', '-')}.log"


def launch(order: RunOrder, children: set[subprocess.Popen] | None = None) -> Outcome:
    """Makes a run and waits for it; its output goes to RUNS/logs. It ends when this process does.

    An order is carried out once: one that comes again, because Dask lost the worker that had it, fails (no retries of
    training). children: where the child's handle stands while it runs.
    """
    started = time.monotonic()
    children = set() if children is None else children
    lease = lease_file(order.out, order.name)
    lease.parent.mkdir(parents=True, exist_ok=True)
    mark = lease.with_name(f"{lease.stem}.{order.attempt}.begun")
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return Outcome(1, 0.0, ["the worker that made it was lost; a training is not tried again by itself"])
    try:
        with contextlib.ExitStack() as stack:
            child: list[subprocess.Popen] = []
            token = stack.enter_context(hold(lease, lost=lambda: [each.terminate() for each in child]))
            return _attend(order, token, child, children, started)
    except Held as error:
        return Outcome(None, time.monotonic() - started, [error.what])


def forget(order: RunOrder) -> None:
    """Once the outcome is known."""
    lease = lease_file(order.out, order.name)
    lease.with_name(f"{lease.stem}.{order.attempt}.begun").unlink(missing_ok=True)


def _attend(
    order: RunOrder, token: str, child: list[subprocess.Popen], children: set[subprocess.Popen], started: float
) -> Outcome:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", INHERITED: token}
    if order.devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(order.devices)
    process = subprocess.Popen(
        [sys.executable, "-P", str(CHILD), str(os.getpid()), *command(order.words, len(order.devices or ()) or 1)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    child.append(process)
    children.add(process)
    last = collections.deque[str](maxlen=LAST_LINES)
    log = log_file(order.out, order.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w", buffering=1) as file:
            for line in process.stdout:
                file.write(line)
                last.append(line.rstrip())
        status = process.wait()
    finally:
        children.discard(process)
    return Outcome(status, time.monotonic() - started, list(last))
