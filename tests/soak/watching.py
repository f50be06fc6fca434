"""A watch, the process that feeds it, and what became of the studies; used by the tests and by the soak."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

QUIET, EVERY = 2, 1
THREADS = "train.threads=1"
"""other numbers add up in another order, and answers are compared to the last bit"""
PATIENCE_SECONDS = 1800
HERE = Path(__file__).parent


class Watched:
    """Starts, kills and ends `trainer predict watch=`. Leave it by `with`: nothing goes on then."""

    def __init__(self, into: Path, out: Path, models: Path):
        self.into, self.out, self.models = into, out, models
        self._log = out.with_name("watch.log")
        self._links = out.with_name("first-answers")
        self._links.mkdir()
        self._processes: list[subprocess.Popen] = []

    @property
    def process(self) -> subprocess.Popen:
        return self._processes[-1]

    def start(self) -> None:
        words = [f"watch={self.into}", f"models={self.models}", f"out={self.out}", f"quiet={QUIET}", f"every={EVERY}"]
        words.append(THREADS)
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "trainer.predict", *words, "report=false"]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def feed(self, source: Path, seed: int, pause: float = 0.01) -> subprocess.Popen:
        command = [sys.executable, HERE / "feeding.py", source, self.into, f"--seed={seed}", f"--pause={pause}"]
        feeder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._processes.insert(0, feeder)
        return feeder

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Looks at the answers again and again meanwhile. Raises AssertionError if the watch ends, or nothing comes of it."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.note_answers()
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < until, self.output()
            time.sleep(0.02)
        self.note_answers()

    def note_answers(self) -> None:
        """A link to each answer as it was first seen: an answer that is made again is another file."""
        for path in self.out.glob("answers/*.json"):
            with suppress(FileExistsError, FileNotFoundError):
                os.link(path, self._links / path.name)

    def answers(self) -> set[str]:
        return {path.stem for path in self.out.glob("answers/*.json")}

    def table(self) -> set[str]:
        """Ids in predictions.csv."""
        with suppress(FileNotFoundError), (self.out / "predictions.csv").open() as file:
            return {row["id"] for row in csv.DictReader(file)}
        return set()

    def refused(self) -> list[dict[str, str]]:
        with suppress(FileNotFoundError), (self.out / "refused.csv").open() as file:
            return list(csv.DictReader(file))
        return []

    def answered_more_than_once(self, fed: dict[str, list[Any]]) -> dict[str, int]:
        """Studies that came without a pause after which they may count as whole, and were answered again, by their number of answers.

        fed: what the feeder printed.
        """
        self.note_answers()
        said = self.output()
        counts = {id: said.count(f"{id}: answered") for id, (_, pause) in fed.items() if pause < QUIET}
        again = {id for id in counts if not (self.out / f"answers/{id}.json").samefile(self._links / f"{id}.json")}
        return {id: max(count, 1 + (id in again)) for id, count in counts.items() if count > 1 or id in again}

    def output(self) -> str:
        return self._log.read_text()

    def looks(self) -> float:
        """Seconds since the epoch of the last sign of life."""
        return json.loads((self.out / "heartbeat.json").read_bytes())["time"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def documents(out: Path) -> dict[str, dict[str, Any]]:
    """id -> what an answer says, without the seconds that it took. Raises where one is not whole."""
    found = {}
    for path in sorted(out.glob("answers/*.json")):
        document = json.loads(path.read_bytes())
        del document["answer"]["seconds"]
        found[path.stem] = document["answer"]
    return found


def same_answers(watched: Watched, out: Path, predict: Callable[[list[str]], int] | None = None) -> int:
    """Number of studies of IN, as it is now, whose answer is that of `trainer predict source=`, for the folder and for each zip.

    predict: the command's main; by default it runs in processes of its own.
    """
    own, same = documents(watched.out), 0
    for number, source in enumerate([watched.into, *sorted(watched.into.rglob("*.zip"))]):
        words = [f"source={source}", f"models={watched.models}", f"out={out / str(number)}", "report=false", THREADS]
        assert (predict or _predict)(words) in (0, 3)  # 3: the folder's zips are files of no study
        for id, document in documents(out / str(number)).items():
            assert own[id] == document, id
            same += 1
    return same


def _predict(words: list[str]) -> int:
    command = [sys.executable, "-m", "trainer.predict", *words]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode
