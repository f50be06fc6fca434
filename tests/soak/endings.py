"""Plans that are ended in every way at random moments, and what is left of them: processes, and files in /dev/shm."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from trainings import SMALL  # noqa: E402

from benchmarks.phantoms import write_inputs  # noqa: E402

WAYS = (
    *("SIGKILL run", "SIGKILL reader", "SIGKILL child"),
    *("SIGINT plan", "SIGTERM plan", "SIGINT group", "SIGTERM group", "SIGKILL plan"),
)
"""child: what stands between the plan and its run"""
MARK = "CSPINE_MARK"
"""variable of the environment by which all processes that come from one are known"""
SECONDS, PATIENCE_SECONDS = 10, 120
LONG = "train.epochs=10000 train.batch=4 micro_batch=2 train.log_every=1 train.checkpoint_minutes=0 tracker=none"
STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL plan": -signal.SIGKILL, "SIGKILL": 1}


@dataclass
class Watched:
    """A process whose descendants are known, whatever session or parent they have."""

    process: subprocess.Popen
    mark: str
    shared: frozenset[str]
    """what lay in /dev/shm before"""

    @classmethod
    def start(cls, command: list[str], output: Path, **variables: str) -> "Watched":
        """In a session of its own, in which Ctrl-C is not ignored."""
        mark = uuid.uuid4().hex
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **variables, MARK: mark}
        shared = frozenset(os.listdir("/dev/shm"))
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        return cls(process, mark, shared)

    def living(self) -> dict[int, bytes]:
        """All that came from it, with their command lines."""
        found = {}
        for pid, environment in _read_all("environ"):
            if f"{MARK}={self.mark}".encode() in environment.split(b"\0"):
                found[pid] = _command_line(pid)
        return found

    def trainings(self) -> list[int]:
        """Those that train, not what watches or launches them."""
        return [
            pid
            for pid, line in self.living().items()
            if b"trainer/run.py" in line and b"process/child.py" not in line and b"torch.distributed.run" not in line
        ]

    def children(self) -> list[int]:
        """What stands between a plan and its runs."""
        return [pid for pid, line in self.living().items() if b"process/child.py" in line]

    def readers(self) -> list[int]:
        return [pid for pid, line in self.living().items() if b"reader_process" in line]

    def left_in_memory(self) -> set[str]:
        """New in /dev/shm, and of no living process."""
        new = set(os.listdir("/dev/shm")) - self.shared
        used = b"".join(maps for _, maps in _read_all("maps")) if new else b""
        return {name for name in new if f"/dev/shm/{name}".encode() not in used}

    def wait_for(self, find, seconds: float = PATIENCE_SECONDS) -> list[int]:
        """Until it finds something, or the process has ended."""
        deadline = time.monotonic() + seconds
        while not (found := find()) and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def what_is_left(self, seconds: float = SECONDS) -> str:
        """Once all has gone nothing, or what there is after so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := self.living()) or self.left_in_memory():
            if time.monotonic() > deadline:
                shared = sorted(self.left_in_memory())
                return f"left: {[line.replace(bytes(1), b' ')[:160] for line in left.values()]} {shared}"
            time.sleep(0.1)
        return ""

    def end_all(self) -> None:
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def end_plans(folder: Path, times: int, seed: int = 0) -> list[tuple[str, str, bool]]:
    """`times` plans of one run, each ended in one of WAYS at a moment anywhere from its start on. One row a way."""
    chance, wrong = random.Random(seed), {way: [] for way in WAYS}
    inputs = write_inputs(folder / "inputs", count=6, slices=30)
    words = [word for word in inputs if word.startswith("cache=")]  # tables are the plan's own to make
    for number in range(times):
        way = WAYS[number % len(WAYS)]
        loader = chance.choice(("dali", "dali", "plain"))
        reading, most = (True, 5) if chance.random() < 0.5 else (False, 25)
        given = [*words, *SMALL.split(), f"data.loader={loader}"]
        found = end_a_plan(folder / f"plan-{number}", way, given, chance.uniform(1, most), reading=reading)
        if found:
            wrong[way].append(f"{loader}: {found}")
    rows = []
    for place, (way, bad) in enumerate(wrong.items()):
        what = f"{len(range(place, times, len(WAYS)))} plans ended by {way}: status, one line, nothing left"
        rows.append((what, f"{len(bad)} not {'; '.join(bad)}".strip(), not bad))
    return rows


def end_a_plan(folder: Path, way: str, words: list[str], after: float, *, reading: bool) -> str:
    """A plan of one long training with two reading processes, ended so many seconds after its start, or after readers read.

    Returns what is wrong.
    """
    folder.mkdir(parents=True)
    plan, said = folder / "plan.yaml", folder / "said.txt"
    plan.write_text("runs:\n  - {stage: bbox, folds: [0]}\njobs: 1\n")
    own = [f"out={folder / 'runs'}", "data.workers=2", *LONG.split()]
    watched = Watched.start([sys.executable, "-m", "trainer.plan", str(plan), *words, *own], said)
    try:
        name, whom = way.split()
        find = {"run": watched.trainings, "reader": watched.readers, "child": watched.children}.get(whom)
        needed = watched.readers if reading else find
        if needed is not None and not watched.wait_for(needed):
            return f"it never came so far: {said.read_text()[-500:]}"
        time.sleep(after)
        number = getattr(signal, name)
        if whom == "group":
            os.killpg(watched.process.pid, number)
        elif find is None:
            watched.process.send_signal(number)
        else:
            os.kill(find()[-1], number)
        return _answer(watched, way, said)
    finally:
        watched.end_all()


def _answer(watched: Watched, way: str, said: Path) -> str:
    began = time.monotonic()
    expected = next(status for what, status in STATUS.items() if way.startswith(what))
    try:
        status = watched.process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        return f"it goes on after {SECONDS} s: {said.read_text()[-500:]}"
    wrong = watched.what_is_left(SECONDS - (time.monotonic() - began))
    text = said.read_text()
    if status != expected:
        wrong += f" status {status}: {text[-500:]}"
    if "Traceback" in text:
        wrong += f" a traceback: {text[-1500:]}"
    if expected == 1 and text.count("] failed after") != 1:
        wrong += f" the failure is not one line: {text[-500:]}"
    if expected in (130, 143) and text.count("interrupted") != 1:
        wrong += f" not one line of it: {text[-500:]}"
    return wrong.strip()


def _read_all(name: str) -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            yield int(entry.parent.name), entry.read_bytes()
        except OSError:
            continue


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
