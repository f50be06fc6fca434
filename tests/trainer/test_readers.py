"""Reading processes: what each takes of the machine."""

import multiprocessing
import os
from pathlib import Path

import cv2
import pytest
import torch

from cache_schema import Cache
from trainer.config import AugmentSettings, DataSettings
from trainer.data.draws import Drawing
from trainer.data.items import windows
from trainer.data.loader import Loader
from trainer.data.order import Training
from trainer.data.readers import InReader
from trainer.data.source import Source

TICK = 1 / os.sysconf("SC_CLK_TCK")
ENOUGH = 0.5
"""seconds of CPU time of one reading process, of which a second thread would have a good part"""


def source_of(cache: Path) -> Source:
    studies = [(row.id, int(row.slices)) for row in Cache(cache).index.itertuples()]
    return Source(cache, Training(windows(studies, 24, 3), 1, 4), Drawing(512, 5, AugmentSettings()))


def threads_of_opencv(_: InReader) -> int:
    return cv2.getNumThreads()


def seconds_by_thread(pid: int) -> list[float]:
    """CPU time of each thread of a process, most first."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return sorted(((int(fields[11]) + int(fields[12])) * TICK for fields in stats), reverse=True)


def test_a_reading_process_has_one_opencv_thread(tiny_cache):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(threads_of_opencv, (InReader(source_of(tiny_cache)),)) == 1


@pytest.mark.parametrize("loader", ["dali", "plain"])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.check)])
def test_no_more_than_one_thread_of_a_reading_process_works(loader, workers, tiny_cache):
    before = set(multiprocessing.active_children())
    settings = DataSettings(size=512, loader=loader, workers=workers)
    batches = iter(Loader(source_of(tiny_cache), 2, settings, torch.device("cpu")))
    next(batches)
    readers = [process.pid for process in set(multiprocessing.active_children()) - before]
    started = {pid: seconds_by_thread(pid) for pid in readers}
    while min(sum(seconds_by_thread(pid)) - sum(started[pid]) for pid in readers) < ENOUGH:
        next(batches)
    found = {pid: seconds_by_thread(pid) for pid in readers}
    batches.close()
    assert len(readers) == workers
    for pid, seconds in found.items():
        assert sum(seconds[1:]) - sum(started[pid][1:]) <= 0.1 * seconds[0], found
