"""Tasks on Dask: a dying worker, and no worker at all."""

import os
import signal
import time

import pytest

from cache_schema.errors import UsageError
from preprocess.cluster import TRIES, Pool, local_cluster


def test_a_worker_that_dies_costs_its_task_a_counted_retry_and_never_the_run(tmp_path):
    marks = str(tmp_path)

    def task(name):
        with open(f"{marks}/{name}", "a") as tries:
            tries.write("x")
        if name == "deadly" or (name == "once" and os.path.getsize(f"{marks}/once") == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return name.upper()

    names = ["a", "deadly", "b", "once", "c", "d"]
    with Pool(2, None, lambda line: None) as pool:
        found = dict(pool.run(task, names))
    assert [found[n] for n in range(6)] == ["A", None, "B", "ONCE", "C", "D"]
    tries = {name: (tmp_path / name).stat().st_size for name in names}
    assert tries["deadly"] == tries["once"] == TRIES
    # a result that a dying worker still held is computed anew
    assert all(tries[name] <= TRIES for name in ("a", "b", "c", "d")), tries


def test_a_run_without_a_worker_left_ends_with_one_line(monkeypatch):
    monkeypatch.setattr("preprocess.cluster.LOOK_SECONDS", 0.2)
    monkeypatch.setattr("preprocess.cluster.LONELY_SECONDS", 1)
    with (
        local_cluster(1) as few,
        Pool(None, few.scheduler_address, lambda line: None) as pool,
    ):
        results = pool.run(time.sleep, [0, 60])
        next(results)
        few.scale(0)
        with pytest.raises(UsageError, match="no worker has been left"):
            next(results)
