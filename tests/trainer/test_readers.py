"""Reading processes: what they read, what each takes of the machine, and how they end."""

import errno
import os
import signal
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from reading import Failing, Unpicklable, numbers, opencv_threads, too_large

from cache_schema import Cache
from cache_schema.errors import CspineError, StaleStudy
from trainer import train
from trainer.data.augment import Augmentation
from trainer.data.items import windows
from trainer.data.loader import Loader
from trainer.data.order import Training
from trainer.data.reader_pool import REQUEST_BYTES, ReaderDied, Readers
from trainer.data.reader_process import LARGE
from trainer.data.source import Source
from trainer.settings.settings import AugmentSettings, DataSettings

TICK = 1 / os.sysconf("SC_CLK_TCK")
ENOUGH = 0.3
"""seconds of CPU time of one reading process, of which a second thread would have a good part"""


@pytest.fixture(scope="module")
def shared():
    found = Readers(2)
    yield found
    found.close()


@pytest.fixture
def readers(shared):
    """Two, the same for all tests that end none of them."""
    assert not shared._open, "each test closes its readings"
    yield shared
    for number in list(shared._open):
        shared.end(number)


@pytest.fixture
def own():
    found = Readers(2)
    yield found
    found.close()


def pids(readers: Readers) -> list[int]:
    return [process.pid for process in readers._processes]


@pytest.mark.parametrize(("workers", "batch"), [(2, 1), (2, 3), (2, 16), (1, 3), (3, 4)])
def test_results_come_in_order_and_a_batch_of_them_stays_whole(workers, batch, shared):
    readers = Readers(workers) if workers != 2 else shared
    reading = readers.read(numbers, LARGE + 8192, batch, limit=50)
    kept, ran = [], set()
    for k, (number, large, pid) in enumerate(reading):
        kept.append((k, large))
        assert number[0] == k and large.shape == ((LARGE + 1000 * (k % 5)) // 8,)
        assert all((array == place).all() for place, array in kept[-batch:]), "others still lie where they lay"
        ran.add(int(pid[0]))
    assert k == 49 and len(ran) == workers
    reading.close()
    if readers is not shared:
        readers.close()


def test_small_items_are_asked_for_together_and_large_ones_one_by_one(readers):
    assert readers.read(numbers, 1000, batch=8).chunk == 8
    assert readers.read(numbers, REQUEST_BYTES // 5, batch=64).chunk == 5
    assert readers.read(numbers, 2 * REQUEST_BYTES, batch=64).chunk == 1


def test_what_does_not_fit_its_memory_comes_all_the_same(readers):
    reading = readers.read(too_large, 2 * LARGE, 4, limit=12)
    for k, (first, second) in enumerate(reading):
        assert (first == k % 251).all() and (second == k % 241).all() and len(first) == 3 * LARGE


def test_readings_take_turns_on_the_same_processes(readers):
    """A training's goes on where it was once the evaluations that came between have ended."""
    training = readers.read(numbers, LARGE + 8192, 4)
    assert [int(number[0]) for number, *_ in islice(training, 10)] == list(range(10))
    before = pids(readers)
    for _ in range(3):
        evaluation = readers.read(numbers, LARGE + 8192, 16, limit=40)
        assert [int(number[0]) for number, *_ in evaluation] == list(range(40))
        evaluation.close()
        assert [int(number[0]) for number, *_ in islice(training, 1)] == [training.k - 1]
    left_early = readers.read(numbers, LARGE + 8192, 4)
    next(left_early)
    left_early.close()
    assert [int(number[0]) for number, *_ in islice(training, 10)] == list(range(13, 23))
    assert pids(readers) == before and not readers._answers.keys() - {(training.number, k) for k in range(100)}


def test_a_reading_process_has_one_opencv_thread(readers):
    assert [int(number[0]) for (number,) in readers.read(opencv_threads, 8, 1, limit=4)] == [1] * 4


@pytest.mark.parametrize(
    "failing",
    [
        Failing(CspineError, "is damaged", where="study", do="build it again"),
        Failing(StaleStudy, "was replaced", where="study"),
        Failing(OSError, errno.EIO, "Input/output error", "/a/b"),
    ],
    ids=lambda failing: failing.kind.__name__,
)
def test_an_error_comes_as_it_was_raised(failing, readers):
    reading = readers.read(failing, 8, 1)
    next(reading), next(reading)
    with pytest.raises(failing.kind) as raised:
        next(reading)
    assert str(raised.value) == str(failing.error()) and raised.value.__dict__ == failing.error().__dict__


def test_a_mistake_in_the_program_tells_where_it_was_made(readers):
    with pytest.raises(ZeroDivisionError, match="no") as raised:
        list(islice(readers.read(Failing(ZeroDivisionError, "no"), 8, 1), 3))
    assert "reading.py" in raised.value.__notes__[0] and "in __call__" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Unpicklable: one"):
        list(islice(readers.read(Failing(Unpicklable, "one", "two"), 8, 1), 3))
    assert not list(readers.read(numbers, 8, 1, limit=0))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_is_named_at_once(number, own):
    reading = own.read(numbers, LARGE + 8192, 2)
    next(reading)
    os.kill(pids(own)[1], number)
    began = time.monotonic()
    with pytest.raises(ReaderDied, match=f"a reading process was killed .{number.name}") as died:
        list(islice(reading, 1000))
    assert time.monotonic() - began < 5 and "set data.workers lower (now 2)" in str(died.value)


def test_closing_ends_the_processes(own):
    reading = own.read(numbers, LARGE + 8192, 2)
    next(reading)
    ended = pids(own)
    own.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in ended)
    with pytest.raises(ReaderDied, match="were closed"):
        list(islice(reading, 100))


def source_of(cache: Path) -> Source:
    studies = [(row.id, int(row.slices)) for row in Cache(cache).index.itertuples()]
    return Source(cache, Training(windows(studies, 24, 3), 1, 4), Augmentation(512, 5, AugmentSettings()))


@pytest.mark.parametrize("loader", ["dali", "plain"])
def test_a_reading_process_imports_no_torch(loader, tiny_cache, own):
    batches = iter(
        Loader(source_of(tiny_cache), 2, DataSettings(size=64, loader=loader), torch.device("cpu"), readers=own)
    )
    next(batches)
    for pid in pids(own):
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "cv2" in mapped and "libtorch" not in mapped
    batches.close()


def seconds_by_thread(pid: int) -> list[float]:
    """CPU time of each thread of a process, most first."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return sorted(((int(fields[11]) + int(fields[12])) * TICK for fields in stats), reverse=True)


@pytest.mark.parametrize(
    ("loader", "workers"),
    [
        ("dali", 1),
        *(pytest.param(*more, marks=pytest.mark.check) for more in (("dali", 2), ("plain", 1), ("plain", 2))),
    ],
)
def test_no_more_than_one_thread_of_a_reading_process_works(loader, workers, tiny_cache):
    readers, settings = Readers(workers), DataSettings(size=512, loader=loader)
    batches = iter(Loader(source_of(tiny_cache), 2, settings, torch.device("cpu"), readers=readers))
    next(batches)
    started = {pid: seconds_by_thread(pid) for pid in pids(readers)}
    while min(sum(seconds_by_thread(pid)) - sum(started[pid]) for pid in started) < ENOUGH:
        next(batches)
    found = {pid: seconds_by_thread(pid) for pid in started}
    batches.close()
    readers.close()
    assert len(found) == workers
    for pid, seconds in found.items():
        assert sum(seconds[1:]) - sum(started[pid][1:]) <= 0.1 * seconds[0], found


@pytest.mark.parametrize("loader", ["dali", pytest.param("plain", marks=pytest.mark.check)])
def test_evaluations_and_the_prediction_of_a_run_start_no_process(
    loader, tiny_cache, tiny_settings, tmp_path, monkeypatch
):
    """The run's two readers serve its training, an evaluation and its prediction; afterwards none is left."""
    started, begin = [], Readers._start

    def start(self):
        before = len(self._processes)
        begin(self)
        started.extend(self._processes[before:])

    monkeypatch.setattr(Readers, "_start", start)
    given = {"train.epochs": 2, "train.evaluate_every": 1, "data.workers": 2, "data.loader": loader}
    run = train(stage="bbox", cache=tiny_cache, out=tmp_path, config=tiny_settings, **given)
    scored = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "score" in line]
    assert len(scored) == 2 and len(started) == 2
    assert all(process.poll() is not None for process in started)
