"""One holder at a time for what is being made under RUNS: a file with a heartbeat, on whatever file system they share."""

import contextlib
import json
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from cache_schema.errors import UsageError
from trainer.process.command import is_main
from trainer.runs.locks import LOCK, alone

HEARTBEAT = 5.0
"""seconds between signs of life"""
SILENCE = 180.0
"""seconds without one after which a holder on another machine is taken for dead; a network file system may show them a minute late"""
INHERITED = "CSPINE_LEASE"
"""environment variable by which a child works under its parent's lease"""


class LeaseTaken(UsageError):
    """Somebody else is making it."""


def lease_file(out: Path, name: str) -> Path:
    return out / ".leases" / f"{name.replace('/', '-')}.json"


@contextlib.contextmanager
def hold(path: Path, lost: Callable[[], None]) -> Iterator[str]:
    """Holds the lease while the block runs; yields its token. Raises LeaseTaken where another living process has it.

    A process that was started under the lease (INHERITED) goes on under it. lost: called from the heartbeat's thread,
    once, should another have taken the lease after a long silence of this process.
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
                continue  # a file system that does not answer just now has given the lease to nobody

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield token
    finally:
        stop.set()
        thread.join()
        # what is made is made; a lease that cannot be given back ends with this process
        with contextlib.suppress(OSError), alone(path.parent):
            if _read(path).get("token") == token:
                path.unlink()


def hold_run(out: Path, name: str) -> contextlib.AbstractContextManager:
    """Keeps a second process off the same run; one that lost it in a long sleep ends at once."""
    if not is_main():
        return contextlib.nullcontext()
    return hold(lease_file(out, name), lost=lambda: os.kill(os.getpid(), signal.SIGTERM))


def share(path: Path, token: str, pid: int) -> None:
    """Keeps the lease of this token alive as long as that process of this machine lives, should its holder die before it."""
    with alone(path.parent):
        held = _read(path)
        if held.get("token") == token:
            _write(path, held | {"child": pid, "child_born": _born(pid)})


def holder(path: Path) -> str | None:
    """Who holds the lease now, in words; None where nobody living does."""
    if not path.parent.is_dir():
        return None
    with alone(path.parent):
        return _living(path)


def _take(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    with alone(path.parent):
        if other := _living(path):
            raise LeaseTaken(f"is being made by {other}", where=path.stem, do="wait, or end it first")
        _write(path, {"token": token, "machine": _machine(), "pid": os.getpid(), "born": _born("self")})
    return token


def _living(path: Path) -> str | None:
    try:
        held = _read(path)
    except OSError as error:
        return f"somebody whose lease cannot be read just now ({error.strerror})"
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


def _write(path: Path, held: dict) -> None:
    beside = path.with_name(f".{path.name}.{held['token']}")
    beside.write_text(json.dumps(held))
    beside.replace(path)


def _read(path: Path) -> dict:
    """What a holder wrote; empty where there is none, or it is damaged."""
    try:
        held = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    whole = isinstance(held, dict) and {"token", "machine", "pid", "born"} <= held.keys()
    texts, numbers = ("token", "machine"), ("pid", "child")
    whole = whole and all(isinstance(held[name], str) for name in texts)
    return held if whole and all(isinstance(held.get(name, 0), int) for name in numbers) else {}


def _machine() -> str:
    """Processes that see each other's numbers have the same."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"


def _born(pid: int | str) -> str | None:
    """When a process began, in clock ticks since boot; None where there is none or it is but a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
