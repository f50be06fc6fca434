"""One holder at a time for what is being made under RUNS: a file with a heartbeat, on whatever file system they share."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from cache_schema.errors import UsageError

HEARTBEAT = 5.0
"""seconds between signs of life"""
SILENCE = 180.0
"""seconds without one after which a holder on another machine is taken for dead; a network file system may show them a minute late"""
INHERITED = "CSPINE_LEASE"
"""environment variable by which a child works under its parent's lease"""


class Held(UsageError):
    """Somebody else is making it."""


def lease_file(out: Path, name: str) -> Path:
    return out / ".leases" / f"{name.replace('/', '-')}.json"


@contextlib.contextmanager
def hold(path: Path, lost: Callable[[], None]) -> Iterator[str]:
    """Holds the lease while the block runs; yields its token. Raises Held where another living process has it.

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
        with _alone(path.parent):
            if _read(path).get("token") == token:
                path.unlink()


def holder(path: Path) -> str | None:
    """Who holds the lease now, in words; None where nobody living does."""
    if not path.parent.is_dir():
        return None
    with _alone(path.parent):
        return _living(path)


def _take(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    with _alone(path.parent):
        if other := _living(path):
            raise Held(f"is being made by {other}", where=path.stem, do="wait, or end it first")
        beside = path.with_name(f".{path.name}.{token}")
        beside.write_text(
            json.dumps({"token": token, "machine": _machine(), "pid": os.getpid(), "born": _born("self")})
        )
        beside.replace(path)
    return token


def _living(path: Path) -> str | None:
    try:
        held = _read(path)
    except OSError as error:
        return f"somebody whose lease cannot be read just now ({error.strerror})"
    if not held:
        return None
    if held["machine"] == _machine():
        alive = _born(held["pid"]) == held["born"]
    else:
        # both times by the file system's clock
        alive = (path.parent / ".lock").stat().st_mtime - path.stat().st_mtime < SILENCE
    return f"process {held['pid']} on {held['machine'].partition('/')[0]}" if alive else None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.fileno())
        yield


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


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
