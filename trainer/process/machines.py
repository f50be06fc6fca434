"""A run over several machines: each process notices when another one fails or is lost, and ends with one line.

Collectives notice a closed connection, but not a frozen process or a pulled cable, and a time limit on them cannot tell a lost
process from a main process that writes for an hour. So every process renews a key in the launcher's TCPStore from a thread of
its own, whatever its main thread waits for. The main process watches all others, and they watch it and the store.

Imports torch only where a run has several machines.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from cache_schema.errors import UsageError

BEAT, SILENCE = 1.0, 40.0
"""seconds between renewals, and after which a process that renews nothing is lost"""
START = 120.0
"""the same until all are connected: they import libraries, which holds the GIL, perhaps from a slow network file system"""
GRACE = 5
"""beats for the main thread to end with an error of its own, and for the first process of a machine to print its line"""
VERDICT_SECONDS = SILENCE + 3 * GRACE * BEAT
"""after an error of a collective: until it is clear whether a process is lost"""
FAREWELL = 10.0
"""most seconds for which the main process, whose launcher holds the store, waits until the others know why it ends"""
CONNECTING, COLLECTIVE = timedelta(minutes=10), timedelta(hours=2)
"""time limits of the process group: until all are connected, and of a collective"""
AGAIN = "start the same command again on every machine: it resumes from the last checkpoint"
DONE, ENDED = "done", "ended"
VERDICT = "verdict"
COMMUNICATION = re.compile(r"\bgloo\b|NCCL", re.IGNORECASE)


class Machines:
    """One process of a run over several machines. One thread talks to the store, and may have to wait for it; one judges."""

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        end: Callable[[str], None],
        *,
        where: str = "",
        beat: float = BEAT,
        silence: float = SILENCE,
    ):
        """store: a torch.distributed.Store of this run. end: ends this process with a line; called at most once, from a thread.
        where: the store's address, for messages."""
        self.store, self.rank, self._end, self.where = store, rank, end, where
        self.beat, self.silence, self.host = beat, silence, socket.gethostname()
        self.connected = False
        """set by the session when collectives work"""
        self._watched = [each for each in range(world) if each != rank] if rank == 0 else [0]
        self._heard = dict.fromkeys(self._watched, time.monotonic())
        self._found: dict[int, str] = {}
        self._verdict: list[Any] | None = None
        self._exchanged, self._store_gone = time.monotonic(), False
        self._state = self._line = ""
        self._wake, self._told, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._claim = threading.Lock()
        for work in (self._talk, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def agree(self, facts: Mapping[str, str], decision: object = None) -> Any:
        """The main process's decision, when all processes have called this.

        facts: name -> value. Raises UsageError for one that is not as in the main process. decision: JSON; only the main
        process's counts.
        """
        self.store.set(f"facts/{self.rank}", json.dumps([dict(facts), decision]))
        for each in self._watched:
            while not self.store.check([f"facts/{each}"]):
                time.sleep(self.beat / 4)
        main, decided = json.loads(self.store.get("facts/0"))
        for name, own in facts.items():
            if own != main.get(name):
                what = f"{name} is not the same on all machines: {own} on {self.host}, {main.get(name)} on the main one"
                raise UsageError(what, do="make the machines equal, then start the same command on each")
        return decided

    def failed(self, what: str) -> None:
        """Tells the others why this process ends. Does not return if its end has begun already."""
        if not self._claim.acquire(blocking=False):
            threading.Event().wait()
        self._say(ENDED, f"rank {self.rank} on {self.host}: {what}")
        self._wait_for_others()

    def finish(self) -> None:
        """This process is done. Returns when the main process is, too: all end as it does."""
        self._say(DONE)
        while self.rank and self._found.get(0) != DONE:
            time.sleep(self.beat / 4)
        self._stopped.set()

    def _say(self, state: str, line: str = "") -> None:
        self._told.clear()
        self._line, self._state = line, state
        self._wake.set()
        self._told.wait(GRACE * self.beat)

    def _wait_for_others(self) -> None:
        """In the main process: until all that are not lost know that it ends."""
        until = time.monotonic() + FAREWELL
        while self.rank == 0 and not self._store_gone and (now := time.monotonic()) < until:
            living = [each for each in self._watched if now - self._heard[each] < self.silence]
            if all(self._found.get(each) in (DONE, ENDED) for each in living):
                return
            time.sleep(self.beat / 4)

    def _talk(self) -> None:
        count = 0
        while not self._stopped.is_set():
            self._wake.clear()
            state, line = self._state, self._line
            try:
                if line:
                    self.store.compare_set(VERDICT, "", json.dumps([self.rank, line]))  # the first one counts
                self.store.set(f"beat/{self.rank}", state or f"{count} {self.host}")
                for each in self._watched:
                    if each in self._found or self.store.check([f"beat/{each}"]):
                        value = self.store.get(f"beat/{each}").decode()
                        if value != self._found.get(each):
                            self._found[each], self._heard[each] = value, time.monotonic()
                if self._verdict is None and self.store.check([VERDICT]):
                    self._verdict = json.loads(self.store.get(VERDICT))
            except RuntimeError:  # of torch: the connection is closed
                self._store_gone = True
                self._told.set()
                return
            self._exchanged, count = time.monotonic(), count + 1
            if state == self._state:
                self._told.set()
                self._wake.wait(self.beat)

    def _judge(self) -> None:
        judged = time.monotonic()
        while not self._stopped.wait(self.beat / 2):
            paused, judged = time.monotonic() - judged, time.monotonic()
            if (line := self._finding(judged, paused)) is None:
                continue
            if self._verdict is not None:
                self._say(ENDED)
                time.sleep(GRACE * self.beat)  # the main thread may raise the same error in all processes
            if self._claim.acquire(blocking=False):
                self._say(ENDED, line)
                self._wait_for_others()
                self._end(line)
            return

    def _finding(self, now: float, paused: float) -> str | None:
        """Why this process must end; None if all is well."""
        if self._verdict is not None:
            return self._verdict[1]
        limit = self.silence if self.connected else max(START, self.silence)
        if paused > limit:
            return f"this process was suspended for {paused:.0f} s, and the others have given it up; {AGAIN}"
        if self._store_gone or now - self._exchanged > limit:
            what = "has ended" if self._store_gone else f"has not answered for {limit:.0f} s"
            line = f"the launcher of the main machine ({self.where}) {what}: that machine is lost"
            return f"{line}, or its output says why; {AGAIN}"
        for each, heard in self._heard.items():
            found = self._found.get(each, " a machine that has not started it")
            if found not in (DONE, ENDED) and now - heard > limit:
                where = f"rank {each} on {found.partition(' ')[2]}"
                return f"{where} has been silent for {limit:.0f} s: its process or machine is lost or frozen; {AGAIN}"
        return None


joined: Machines | None = None
"""set while a run over several machines works in this process"""


@contextmanager
def together() -> Iterator[None]:
    """In the block, a process that a torch launcher started on one of several machines ends with the others, as they with it.

    Raises UsageError if it cannot join them.
    """
    global joined
    environment = os.environ
    several = int(environment.get("GROUP_WORLD_SIZE", "1")) > 1
    if not several or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield
        return
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a closed connection prints the stack of the C++ code
    from torch.distributed import PrefixStore, TCPStore

    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENCE))
    except RuntimeError:
        raise UsageError("the launcher of the main machine does not answer", where=f"{host}:{port}") from None
    own = PrefixStore(f"cspine/{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    joined = Machines(own, rank, world, _end_process, where=f"{host}:{port}")
    yield
    joined.finish()
    joined = None  # after an error `failed` still needs it


def failed(text: str) -> None:
    """Tells the other machines why this process ends."""
    if joined is not None:
        joined.failed(text)


def failed_by(error: BaseException) -> None:
    """Before the traceback of an error. Does not return if the error comes from the loss of another process."""
    if joined is not None:
        of_torch = type(error).__module__.startswith("torch.distributed") or COMMUNICATION.search(str(error))
        if isinstance(error, RuntimeError) and of_torch:
            time.sleep(VERDICT_SECONDS)
        joined.failed(f"failed with {type(error).__name__}: look at its output")


def is_first_here() -> bool:
    """Whether this is the first of the run's processes on its machine."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def _end_process(line: str) -> None:
    if is_first_here():
        with suppress(OSError):
            print(f"error: {line}", file=sys.stderr, flush=True)
    else:  # a launcher ends all processes of its machine with the first
        time.sleep(GRACE * BEAT)
    os._exit(1)
