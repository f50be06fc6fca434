"""Tasks and studies on Dask: workers that die, the neighbours of those that kill them, and no worker at all."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import dask
import numpy as np
import pandas as pd
import pytest
from deaths import WAYS, die_among_the_sound, segfault
from dicom_files import STUDY, dataset, encode, expected_grey, picture, write
from distributed import LocalCluster
from pydicom import uid
from pydicom.encaps import encapsulate
from test_isolated_task import has_ended, isolated_processes
from tiny_rsna import IDS, PREFIX, SLICES, hu_of, write_study

from cache_schema import Cache
from cache_schema.errors import UsageError
from preprocess.build.build_cache import build_cache
from preprocess.build.dask_pool import DASK_SETTINGS, Pool, local_cluster
from preprocess.build.isolated_task import Died
from preprocess.build.job import FILES_A_TASK, BuildJob
from preprocess.headers.source_files import SourceFiles

LIMIT = 500_000_000
"""bytes of memory a worker: enough for small studies"""
SIZE = 4096
"""pixels a side of a slice of which eight at a time need more"""


@pytest.fixture(scope="module")
def small_workers():
    """The address of a scheduler with one worker of little memory."""
    options = {"threads_per_worker": 1, "memory_limit": LIMIT, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(DASK_SETTINGS), LocalCluster(n_workers=1, **options) as cluster:
        yield cluster.scheduler_address


def write_study_too_large(source):
    """Eight slices of 4096 x 4096 in small files, as the study STUDY."""
    frame = encode(picture(0, SIZE, SIZE), uid.RLELossless, 16)
    for number in range(1, 9):
        ds = dataset(picture(), syntax=uid.RLELossless, z=-2.0 * number, number=number)
        ds.Rows = ds.Columns = SIZE
        ds.PixelData = encapsulate([frame])
        write(source / "train_images" / STUDY / f"{number}.dcm", ds)


def check_cache(folder, refused):
    """Sound studies are there, with their pixels; returns why the others are not, by id."""
    cache = Cache(folder)
    assert cache.ids == sorted(IDS[:3])
    for number, id in enumerate(IDS[:3], start=1):
        assert np.array_equal(cache.read(id, 0, SLICES), expected_grey(hu_of(number)))
    report = pd.read_csv(folder / "report.csv", dtype=str, keep_default_na=False)
    rows = report[report["severity"] == "refused"]
    assert rows["id"].tolist() == refused and set(rows["reason"]) == {"worker_died"}
    return rows["message"].tolist()


@pytest.mark.check
@pytest.mark.parametrize("workers", [1, 4])
def test_no_task_is_lost_because_many_others_kill_many_workers(workers):
    done = die_among_the_sound(workers, ways=[*WAYS] * 2, sound=60)
    assert (done.deadly, done.unnamed, done.sound, done.sound_lost) == (2 * len(WAYS), 0, 61, 0)
    assert not isolated_processes()


def test_what_is_lost_with_a_worker_is_tried_once_more_alone_and_no_neighbour_of_a_deadly_task_is_refused(tmp_path):
    marks, lines = str(tmp_path), []

    def task(name):
        with open(f"{marks}/{name}", "a") as tries:
            tries.write("x")
        if name.startswith("deadly") or (name == "crowded" and multiprocessing.parent_process() is not None):
            os.kill(os.getpid(), signal.SIGKILL)
        return name.upper()

    names = ["a", "deadly 1", "b", "crowded", "c", "deadly 2", *(f"sound {number}" for number in range(20))]
    with Pool(1, None, lines.append) as pool:
        found = dict(pool.run(task, names))
    died = {names[number] for number, result in found.items() if isinstance(result, Died)}
    assert died == {"deadly 1", "deadly 2"} and "died of SIGKILL" in found[1].message
    assert all(found[number] == name.upper() for number, name in enumerate(names) if name not in died)
    tries = {name: (tmp_path / name).stat().st_size for name in names}
    # one that waited beside another that killed its worker has its first try alone
    assert all(tries[name] <= 2 for name in (*died, "crowded")), tries
    # a result that a dying worker still held is computed anew, and three workers die
    assert all(tries[name] <= 5 for name in names), tries
    assert any("lost with workers that died" in line for line in lines) and not isolated_processes()


@pytest.mark.check
def test_on_a_scheduler_a_study_over_the_workers_memory_is_refused_and_says_so(small_workers, tmp_path):
    for n in (1, 2, 3):
        write_study(tmp_path / "rsna", n)
    write_study_too_large(tmp_path / "rsna")
    source, cache = tmp_path / "rsna", tmp_path / "cache"
    result = build_cache(source, cache, folds=2, scheduler=small_workers, tell=lambda line: None)
    assert (result.exit_status, result.published, result.refused) == (3, 3, 1)
    (message,) = check_cache(tmp_path / "cache", [STUDY])
    peak = int(message.split("peak ")[1].split(" MB")[0])
    assert message.startswith("ran out of memory") and "limit 500 MB" in message and 500 <= peak < 900
    assert PREFIX not in message and not isolated_processes()


@pytest.mark.check
def test_on_a_scheduler_a_lone_task_dies_without_its_worker(small_workers):
    def task(name):
        if name == "deadly":
            segfault()
        return os.getpid(), os.getppid()

    with Pool(None, small_workers, lambda line: None) as pool:
        found = dict(pool.run(task, ["deadly", "sound"]))
        assert "died of SIGSEGV" in found[0].message and len(found[1]) == 2
        ((worker, _),) = dict(pool.run(task, ["sound"])).values()
        assert pool._alone(task, "sound")[1] == worker
        assert isinstance(pool._alone(task, "deadly"), Died)
        assert dict(pool.run(task, ["sound"]))[0][0] == pool._alone(task, "sound")[1] == worker


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.check)])
def test_on_a_scheduler_a_lone_task_ends_when_its_build_does(small_workers, tmp_path, end):
    code = f"""if True:
        import time
        from preprocess.build.dask_pool import Pool
        def task(path):
            open(path, "x").close()
            time.sleep(600)
        with Pool(None, {small_workers!r}, lambda line: None) as pool:
            pool._started()
            pool._alone(task, {str(tmp_path / "begun")!r})
    """
    build = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "begun").exists():
            assert build.poll() is None
            time.sleep(0.02)
        (pid,) = isolated_processes()
        build.send_signal(end)
        assert build.wait(20) and has_ended(pid)
    finally:
        build.kill()
        build.wait()


@pytest.mark.check
def test_a_local_build_says_that_a_study_needs_more_than_its_workers_have(tmp_path):
    for n in (1, 2, 3):
        write_study(tmp_path / "rsna", n)
    write_study_too_large(tmp_path / "rsna")
    # Dask gives each worker its share of what this limit says, whatever the kernel makes of it
    limited = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_RSS, (int(sys.argv.pop()),) * 2); "
    start = "from preprocess.cli import main; sys.exit(main())"
    arguments = ["build-cache", str(tmp_path / "rsna"), str(tmp_path / "cache"), "--workers", "2"]
    command = [sys.executable, "-c", limited + start, *arguments, str(LIMIT * 2)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 3 and "Traceback" not in ran.stderr, ran.stderr
    (message,) = check_cache(tmp_path / "cache", [STUDY])
    assert message.startswith("ran out of memory") and "limit " in message and "peak " in message


def test_a_header_pass_that_kills_its_process_says_which_files_it_was_over(tmp_path):
    class DeadlyHeaders:
        def run(self, function, batches):
            return ((n, Died("died of SIGSEGV") if n else function([])) for n, _ in enumerate(batches))

    job = BuildJob(tmp_path, None, None, None, None, "", None, False, False, lambda line: None)
    with pytest.raises(UsageError, match=f"files {FILES_A_TASK + 1} to {2 * FILES_A_TASK}, .* died of SIGSEGV"):
        job.read_headers(SourceFiles([(str(tmp_path), [f"{number}.dcm" for number in range(300)])]), DeadlyHeaders())


def test_a_run_without_a_worker_left_ends_with_one_line(monkeypatch):
    monkeypatch.setattr("preprocess.build.dask_pool.POLL_SECONDS", 0.2)
    monkeypatch.setattr("preprocess.build.dask_pool.NO_WORKER_SECONDS", 1)
    with (
        local_cluster(1) as few,
        Pool(None, few.scheduler_address, lambda line: None) as pool,
    ):
        results = pool.run(time.sleep, [0, 60])
        next(results)
        few.scale(0)
        with pytest.raises(UsageError, match="no worker for"):
            next(results)
