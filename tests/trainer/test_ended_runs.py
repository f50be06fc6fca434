"""However a run, a reader or a plan ends, nothing of it is left, and one line says so."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from distributed import LocalCluster
from endings import LONG, MARK, ROOT, WAYS, Watched, end_a_plan

from cache_schema import Cache
from trainer.data.augment import Augmentation
from trainer.data.items import triplets
from trainer.data.loader import Batch, Loader
from trainer.data.order import Training
from trainer.data.reader_pool import ReaderDied, Readers
from trainer.data.source import Source
from trainer.plan.execute import failure
from trainer.plan.launch import RunOrder, RunOutcome, launch, remove_mark
from trainer.settings.settings import AugmentSettings, DataSettings

CHILD = ROOT / "trainer/process/child.py"
FAMILY = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"], start_new_session=True)
if sys.argv[1:]:
    os.kill(os.getpid(), int(sys.argv[1]))
signal.pause()
"""
"""a process that does not end when it is asked to, with a child in another session"""


def supervised(tmp_path: Path, *words: str) -> Watched:
    """A parent of a supervised family."""
    command = [sys.executable, "-I", str(CHILD)]
    parent = f"import os, subprocess, sys; sys.exit(subprocess.call([*{command}, str(os.getpid()), *sys.argv[1:]]))"
    return Watched.start(
        [sys.executable, "-c", parent, sys.executable, "-c", FAMILY, *words], tmp_path / f"{len(words)}.txt"
    )


def sleepers(watched: Watched) -> list[int]:
    return [pid for pid, line in watched.living().items() if line.startswith(b"sleep")]


def test_what_a_run_started_in_other_sessions_ends_with_the_plan_and_with_the_run(tmp_path):
    plan_killed = supervised(tmp_path)
    assert plan_killed.wait_for(lambda: sleepers(plan_killed), 20)
    plan_killed.process.kill()
    run_killed = supervised(tmp_path, str(int(signal.SIGKILL)))
    assert not run_killed.what_is_left() and run_killed.process.wait(5) == 128 + signal.SIGKILL
    assert not plan_killed.what_is_left()
    plan_killed.end_all()


def loading(cache: Path, loader: str, readers: Readers) -> Iterator[Batch]:
    """Without end."""
    lengths = [(row.id, int(row.slices)) for row in Cache(cache).index.itertuples()]
    source = Source(cache, Training(triplets(lengths, every=3), 1, 4), Augmentation(64, 5, AugmentSettings()))
    settings = DataSettings(size=64, loader=loader)
    return iter(Loader(source, 2, settings, torch.device("cpu"), readers=readers))


def readers_here() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"reader_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    ("loader", "evaluating"),
    [("dali", True), *(pytest.param(loader, False, marks=pytest.mark.check) for loader in ("dali", "plain"))],
)
def test_a_killed_reader_is_one_line_and_no_waiting(loader, evaluating, tiny_cache):
    """Also while a training waits, and what it holds out is read."""
    before, readers = readers_here(), Readers(2)
    training = loading(tiny_cache, loader, readers)
    next(training)
    batches = loading(tiny_cache, loader, readers) if evaluating else training
    first, _ = set(readers_here()) - set(before)
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ReaderDied) as died:
        for _ in batches:
            pass
    assert time.monotonic() - began < 10
    line = "a reading process was killed (SIGKILL), probably out of memory; set data.workers lower"
    assert f"{line} (now 2)" in str(died.value) and died.value.exit_status == 1
    training.close()
    readers.close()


def test_why_a_run_failed_is_one_line_where_it_is_known(tmp_path):
    log = tmp_path / "a.log"
    killed = failure(RunOutcome(137, 3.2, ["step 1/2"]), log)
    assert killed == f"failed after 3 s: it was killed (SIGKILL), probably out of memory; its log is {log}"
    said = failure(RunOutcome(2, 3.2, ["a warning", "error: no study is in fold 7"]), log)
    assert said == f"failed after 3 s: no study is in fold 7; its log is {log}"
    unknown = failure(RunOutcome(1, 3.2, ["Traceback", "KeyError: 'x'"]), log)
    assert unknown == f"failed after 3 s with status 1; the end of {log}:\n    Traceback\n    KeyError: 'x'"


def test_marks_of_attempts_at_a_run_do_not_pile_up(tmp_path):
    order = RunOrder("bbox-01B/fold0-seed1", ("stage=bbox",), tmp_path, "killed-1")
    other = RunOrder("bbox-01B/fold0-seed11", ("stage=bbox",), tmp_path, "b")
    assert launch(order).status == 2 and launch(other).status == 2, "no cache is given"
    assert launch(order._replace(attempt="killed-2")).status == 2
    left = sorted(path.name for path in (tmp_path / ".leases").glob("*.begun"))
    assert left == ["bbox-01B-fold0-seed1.killed-2.begun", "bbox-01B-fold0-seed11.b.begun"]
    remove_mark(order._replace(attempt="killed-2"))
    remove_mark(other)
    assert not list((tmp_path / ".leases").glob("*.begun"))


@pytest.mark.check
@pytest.mark.parametrize(("way", "loader"), [*((way, "dali") for way in WAYS), ("SIGKILL run", "plain")])
def test_nothing_is_left_of_a_plan_however_it_ends(way, loader, tiny_cache, tiny_settings, tmp_path):
    words = [f"cache={tiny_cache}", f"config={tiny_settings}", f"data.loader={loader}"]
    assert not end_a_plan(tmp_path / "plan", way, words, 3, reading=True)


@pytest.mark.check
@pytest.mark.parametrize(
    ("kind", "status", "loader"),
    [("SIGINT", 130, "dali"), ("SIGTERM", 143, "dali"), ("SIGKILL", -9, "dali"), ("SIGKILL", -9, "plain")],
)
def test_nothing_is_left_of_a_run_by_itself_however_it_ends(loader, kind, status, tiny_cache, tiny_settings, tmp_path):
    said = tmp_path / "said.txt"
    words = ["stage=bbox", f"cache={tiny_cache}", f"config={tiny_settings}", f"out={tmp_path}", *LONG.split()]
    command = [sys.executable, "trainer/run.py", *words, "data.workers=2", f"data.loader={loader}"]
    watched = Watched.start(command, said)
    try:
        assert watched.wait_for(lambda: "step 2/" in said.read_text()), said.read_text()
        assert len(watched.readers()) == 2
        watched.process.send_signal(getattr(signal, kind))
        assert watched.process.wait(10) == status
        assert not watched.what_is_left()
        text = said.read_text()
        assert "Traceback" not in text and text.count("interrupted: run the same command") == (kind != "SIGKILL")
    finally:
        watched.end_all()


@pytest.mark.check
def test_a_run_over_two_processes_ends_with_a_killed_plan(tiny_cache, tiny_settings, tmp_path):
    """Torch's launcher starts each in a session of its own."""
    words = ["stage=bbox", f"cache={tiny_cache}", f"config={tiny_settings}", f"out={tmp_path}", *LONG.split()]
    order = RunOrder("bbox-01B/fold0-seed1", (*words, "data.workers=2"), tmp_path, "a", ("0", "1"))
    script = f"from pathlib import *\nfrom trainer.plan.launch import *\nprint(launch({order!r}))"
    watched = Watched.start([sys.executable, "-c", script.replace("PosixPath", "Path")], tmp_path / "said.txt")
    log = tmp_path / "logs/bbox-01B-fold0-seed1.log"
    try:
        assert watched.wait_for(lambda: log.exists() and "step 2/" in log.read_text()), log.read_text()
        assert len(watched.trainings()) == 2 and len(watched.readers()) == 4
        watched.process.kill()
        assert not watched.what_is_left()
    finally:
        watched.end_all()


@pytest.mark.check
def test_a_killed_run_stops_no_other_run_of_the_plan(tiny_cache, tiny_settings, tmp_path):
    plan, said = tmp_path / "plan.yaml", tmp_path / "said.txt"
    plan.write_text(f"config: {tiny_settings}\nruns:\n  - {{stage: bbox, folds: [0, 1]}}\njobs: 1\n")
    words = [f"cache={tiny_cache}", f"out={tmp_path / 'runs'}", "data.workers=2", "data.loader=dali"]
    watched = Watched.start([sys.executable, "-m", "trainer.plan", str(plan), *words], said)
    try:
        assert watched.wait_for(watched.readers)
        os.kill(watched.trainings()[0], signal.SIGKILL)
        assert watched.process.wait(120) == 1
        text = said.read_text()
        assert text.count("it was killed (SIGKILL)") == 1 and text.count("] done in") == 1, text
        assert not watched.what_is_left()
        assert [path.name for path in (tmp_path / "runs/.leases").iterdir()] == [".lock"]
    finally:
        watched.end_all()


@pytest.mark.check
def test_what_an_interrupted_plan_has_begun_on_a_cluster_goes_on_there_as_long_as_its_worker(
    tiny_cache, tiny_settings, tmp_path, monkeypatch
):
    plan, said, log = tmp_path / "plan.yaml", tmp_path / "said.txt", tmp_path / "runs/logs/bbox-01B-fold0-seed1.log"
    plan.write_text(f"config: {tiny_settings}\nruns:\n  - {{stage: bbox, folds: [0]}}\n")
    words = [f"cache={tiny_cache}", f"out={tmp_path / 'runs'}", *LONG.split(), "data.workers=2"]
    monkeypatch.setenv(MARK, "of the cluster")
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        command = [sys.executable, "-m", "trainer.plan", str(plan), *words, f"scheduler={cluster.scheduler_address}"]
        watched = Watched.start(command, said)
        there = Watched(watched.process, "of the cluster", watched.shared)
        try:
            assert there.wait_for(lambda: log.exists() and "step 2/" in log.read_text()), said.read_text()
            watched.process.terminate()
            assert watched.process.wait(10) == 143 and "interrupted" in said.read_text()
            time.sleep(8)
            assert len(there.trainings()) == 1 and len(there.readers()) >= 2
        finally:
            watched.end_all()
    deadline = time.monotonic() + 10
    while left := there.trainings():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
