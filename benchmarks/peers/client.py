"""The parent's side: a process in a peer's environment, asked line by line.

    with Peer("png", folder) as peer:
        peer.ask({"do": "prepare", "files": files})

`serve` lists the requests.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.peers.ways import WAYS
from cache_schema.errors import CspineError, UsageError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "work" / "peers"
OURS = ("PYTHON", "CSPINE", "VIRTUAL_ENV", "CONDA", "DALI", "ZARR", "OMP_", "MKL_")
"""environment variables that begin so are not handed on"""


class PeerFailed(CspineError):
    """A peer that answered with an error, or ended."""

    exit_status = 1


def interpreter(way: str) -> Path:
    """The interpreter of a way's environment; raises UsageError where `make peers` has not made it."""
    chosen = WAYS[way]
    if not chosen.environment:
        return Path(sys.executable)
    folder = ENVIRONMENTS / chosen.environment
    if not (folder / ".installed").exists():
        raise UsageError("has no environment", where=chosen.name, expected=folder, do="run make peers")
    return folder / "bin" / "python"


class Peer:
    """A running peer. python: another interpreter than its environment's. patience: seconds that an answer may take."""

    def __init__(self, way: str, folder: Path, python: Path | str | None = None, patience: float = 1800):
        self.name, self.patience = WAYS[way].name, patience
        command = [str(python or interpreter(way)), "-m", "benchmarks.peers.serve", way, str(folder.absolute())]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        pipe = subprocess.PIPE
        self.began = time.perf_counter()
        self._errors = open(f"{folder}.log", "a")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**kept, "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"},
            stdin=pipe,
            stdout=pipe,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that what it leaves running can be ended with it
        )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; raises PeerFailed for an error or none. What the peer printed lies in FOLDER.log."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], self.patience)[0]:
                self._end()
                raise PeerFailed(f"has not answered in {self.patience:g} s", where=f"{self.name}, {request.get('do')}")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerFailed("has ended", where=self.name, do=f"see {self._errors.name}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"], where=f"{self.name}, {request.get('do')}")
        return answer

    def close(self) -> None:
        """Ends the process, by the end of its input, and what it left running."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # a library's threads may not end
            self._process.wait(20)
        self._end()
        self._process.stdout.close()
        self._errors.close()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @classmethod
    def first(
        cls, way: str, folder: Path, opened: dict[str, Any], items: list[dict], batch: int, python: str | None = None
    ) -> float:
        """Wall milliseconds from the start of a fresh process to its first batch in memory. opened: the fields of `open`."""
        with cls(way, folder, python) as peer:
            peer.ask({**opened, "do": "open"})
            peer.ask({"do": "first", "items": items, "batch": batch})
            return (time.perf_counter() - peer.began) * 1e3
