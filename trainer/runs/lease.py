"""Leases: a run or table under RUNS is made by one process at a time, also across machines with a shared file system."""

import contextlib
import json
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cache_schema.errors import UsageError
from trainer.process.command import is_main
from trainer.runs.locks import LOCK, locked

HEARTBEAT = 5.0
"""seconds between updates of the lease file's mtime"""
SILENCE = 180.0
"""seconds without a heartbeat after which a holder on another machine counts as dead; network file systems may show it a
minute late"""
INHERITED = "CSPINE_LEASE"
"""environment variable with the token of the parent process's lease"""


class LeaseTaken(UsageError):
    """Another process holds the lease."""


def lease_file(out: Path, name: str) -> Path:
    return out / ".leases" / f"{name.replace('/', '-')}.json"


@contextlib.contextmanager
def hold(path: Path, lost: Callable[[], None]) -> Iterator[str]:
    """Holds the lease while the block runs; yields its token. Raises LeaseTaken if another living process holds it.

    A process that inherited the lease (INHERITED) uses its parent's. lost: called once, from the heartbeat's thread, if
    another process has taken the lease over.
    """
    inherited = os.environ.get(INHERITED)
    if inherited and inherited == _read(path).get("token"):
        yield inherited
        return
    token, stop = _take(path), threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            try:
                if json.loads(path.read_text())["token"] != token:
                    return lost()
                os.utime(path)
            except FileNotFoundError:
                return lost()
            except (OSError, ValueError):
                continue  # the file system fails temporarily; the lease is not lost

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield token
    finally:
        stop.set()
        thread.join()
        # if this fails, the lease ends with this process
        with contextlib.suppress(OSError), locked(path.parent):
            if _read(path).get("token") == token:
                path.unlink()


def hold_run(out: Path, name: str) -> contextlib.AbstractContextManager[str | None]:
    """Holds a run's lease in the main process; a process that loses it, as after a long suspension, ends."""
    if not is_main():
        return contextlib.nullcontext()
    return hold(lease_file(out, name), lost=lambda: os.kill(os.getpid(), signal.SIGTERM))


def share(path: Path, token: str, pid: int) -> None:
    """Extends a lease to a child process on this machine: it stays valid while the child lives."""
    with locked(path.parent):
        held = _read(path)
        if held.get("token") == token:
            _write(path, held | {"child": pid, "child_born": _born(pid)})


def holder(path: Path) -> str | None:
    """A description of the living holder; None if there is none."""
    if not path.parent.is_dir():
        return None
    with locked(path.parent):
        return _living(path)


def _take(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    with locked(path.parent):
        if other := _living(path):
            raise LeaseTaken(f"is being made by {other}", where=path.stem, do="wait, or end it first")
        _write(path, {"token": token, "machine": _machine(), "pid": os.getpid(), "born": _born("self")})
    return token


def _living(path: Path) -> str | None:
    try:
        held = _read(path)
    except OSError as error:
        return f"an unknown process: its lease cannot be read ({error.strerror})"
    if not held:
        return None
    pid = held["pid"]
    if held["machine"] == _machine():
        alive = _born(pid) == held["born"] is not None
        if not alive and "child" in held and _born(held["child"]) == held.get("child_born") is not None:
            pid, alive = held["child"], True
    else:
        # both times by the file system's clock
        alive = (path.parent / LOCK).stat().st_mtime - path.stat().st_mtime < SILENCE
    return f"process {pid} on {held['machine'].partition('/')[0]}" if alive else None


def _write(path: Path, held: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{held['token']}")
    beside.write_text(json.dumps(held))
    beside.replace(path)


def _read(path: Path) -> dict[str, Any]:
    """The content of a lease; empty if there is none or it is invalid."""
    try:
        held = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    whole = isinstance(held, dict) and {"token", "machine", "pid", "born"} <= held.keys()
    texts, numbers = ("token", "machine"), ("pid", "child")
    whole = whole and all(isinstance(held[name], str) for name in texts)
    return held if whole and all(isinstance(held.get(name, 0), int) for name in numbers) else {}


def _machine() -> str:
    """Equal for processes that share process ids: host, boot and PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"


def _born(pid: int | str) -> str | None:
    """Start time of a process, in clock ticks since boot; None if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
