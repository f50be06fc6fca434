"""A plan as it runs: killed, failing, beside another execution, on a Dask cluster; and the pool of GPUs."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import LocalCluster

from cache_schema import Cache
from trainer import train
from trainer.plan.__main__ import main
from trainer.plan.costs import read_costs
from trainer.plan.execute import Execution
from trainer.plan.graph import read_plan
from trainer.plan.keys import DONE, STALE, states
from trainer.plan.launch import RunOrder, launch
from trainer.plan.pools import LocalPool
from trainer.runs.lease import holder, lease_file
from trainer.tables import make

ROOT = Path(__file__).resolve().parents[2]
PLANS = ROOT / "configs/plan"


def test_each_gpu_is_a_slot_and_is_given_out_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-7,1")
    monkeypatch.setattr("trainer.plan.pools.launch", lambda order, children: order.devices)
    pool = LocalPool(None)
    assert pool.slots == 4 and pool.spreads
    futures = [pool.submit(RunOrder(str(i), (), tmp_path, "a"), width) for i, width in enumerate((1, 2, 1, 4))]
    assert sorted(futures[3].result()) == ["1", "3", "5", "GPU-7"] and len(futures[1].result()) == 2
    pool.stop()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalPool(None).slots == 1 and not LocalPool(3).spreads and LocalPool(3).slots == 3


def command(file: Path, cache: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "trainer.plan", str(file), f"cache={cache}", f"out={out}", *words]


@contextlib.contextmanager
def started(*words):
    child = subprocess.Popen(command(*words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield child
    finally:
        child.kill()


def trainings(out: Path) -> list[int]:
    """Processes that train into this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = entry.read_bytes()
            if b"trainer/run.py" in line and f"out={out}".encode() in line:
                found.append(int(entry.parent.name))
    return found


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.check
def test_a_killed_plan_takes_its_runs_along_and_two_started_again_share_the_rest(
    tiny_cache, tiny_settings, tmp_path, capsys
):
    file, out, other = tmp_path / "plan.yaml", tmp_path / "runs", tmp_path / "by_hand"
    file.write_text(f"config: {tiny_settings}\nruns:\n  - {{stage: bbox, folds: [0, 1]}}\njobs: 2\n")
    words = ("deterministic=true", "train.epochs=2")
    assert main([*command(file, tiny_cache, out, *words)[3:], "dry_run=true"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("due     1:12 h bbox-01B") == 2 and not out.exists()
    assert "left: 2 runs, 2:23 h of work, about 1:12 h with 2 at a time" in listed

    with started(file, tiny_cache, out, *words) as killed:
        wait_for(lambda: list(out.glob("*/*/checkpoint")), 400)
        assert trainings(out)
        killed.send_signal(signal.SIGKILL)
        wait_for(lambda: not trainings(out), 10)
    assert not list(out.glob("*/*/predictions.parquet"))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        started(file, tiny_cache, out, *words, f"scheduler={cluster.scheduler_address}") as one,
    ):
        wait_for(lambda: holder(lease_file(out, "bbox-01B/fold0-seed1")), 60)
        with started(file, tiny_cache, out, *words) as two:
            said = [plan.communicate(timeout=400)[0] for plan in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], said
    assert "".join(said).count("] done in") == 2, "no run was made twice"
    assert "resuming at step" in "".join(log.read_text() for log in out.glob("logs/*.log"))
    assert all("training mean box" in lines for lines in said)

    given = dict(word.split("=") for word in words)
    runs = [
        train(stage="bbox", fold=fold, cache=tiny_cache, out=other, config=tiny_settings, **given) for fold in (0, 1)
    ]
    make.make("study_boxes", other, Cache(tiny_cache), runs)
    make.make("scores", other, Cache(tiny_cache), runs)
    for table in ("study_boxes.parquet", "scores.json"):
        assert (out / "tables" / table).read_bytes() == (other / "tables" / table).read_bytes(), table

    plan = read_plan(file, tiny_cache, out, [*words, f"config={tiny_settings}"])
    cache = Cache(tiny_cache)
    assert set(states(plan, cache).values()) == {DONE}
    moved = states(read_plan(file, tiny_cache, out, [*words, "tables.z_presence=0.2"]), cache)
    assert {name for name, state in moved.items() if state != DONE} == {"study_boxes"}
    assert set(states(read_plan(file, tiny_cache, out, [*words, "train.lr=1"]), cache).values()) == {STALE}
    capsys.readouterr()
    assert main([*command(file, tiny_cache, out, *words)[3:], "only=study_boxes"]) == 0
    assert capsys.readouterr().out == f"[study_boxes] already made: {out / 'tables/study_boxes.parquet'}\n"


def test_a_failed_run_stops_only_what_depends_on_it_and_shows_its_last_lines(
    tiny_cache, tiny_settings, tmp_path, capsys
):
    file, out = tmp_path / "plan.yaml", tmp_path / "runs"
    file.write_text(
        f"config: {tiny_settings}\nruns:\n  - {{stage: bbox, folds: [0, 1], set: {{model.weights_file: nowhere.pth}}}}\n"
        "  - {stage: vertebrae, variant: 04A, folds: [1]}\n"
    )
    assert main([*command(file, tiny_cache, out)[3:], "dry_run=true"]) == 2
    assert "error: bbox-01B/fold0-seed1: " in (said := capsys.readouterr().err) and "no such path" in said
    assert main(command(file, tiny_cache, out)[3:]) == 1
    said = capsys.readouterr()
    assert "no such path" in said.out
    assert "[vertebrae-04A/fold1-seed1] not started" in said.out
    assert "error: " in said.err and "Traceback" not in said.err + said.out


def test_an_address_that_is_none_is_said_at_once(tiny_cache, tmp_path, capsys):
    assert main([str(PLANS / "demo.yaml"), f"cache={tiny_cache}", f"out={tmp_path}", "scheduler=nope"]) == 2
    assert capsys.readouterr().err == "error: scheduler=nope: is not an address; expected tcp://HOST:PORT\n"


def test_an_order_that_comes_a_second_time_is_not_carried_out(tmp_path):
    order = RunOrder("bbox-01B/fold0-seed1", ("stage=bbox",), tmp_path, "once")
    assert launch(order).status == 2, "no cache given"
    again = launch(order)
    assert again.status == 1 and "not retried" in again.last[0]


def test_a_run_that_another_process_makes_is_left_to_it(tmp_path):
    path = lease_file(tmp_path, "bbox-01B/fold0-seed1")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"token": "t", "machine": "elsewhere/boot/pid", "pid": 7, "born": "1"}))
    outcome = launch(RunOrder("bbox-01B/fold0-seed1", ("stage=bbox",), tmp_path, "a"))
    assert outcome.status is None and outcome.last == ["is being made by process 7 on elsewhere"]


def test_what_another_process_let_go_of_does_not_wait_for_a_run_in_progress(tiny_cache, tmp_path):
    plan = read_plan(PLANS / "demo.yaml", tiny_cache, tmp_path)
    pool = SimpleNamespace(slots=1, spreads=False)
    execution = Execution(plan, Cache(tiny_cache), tmp_path, pool, read_costs(plan))
    long, other = plan.runs[:2]
    execution.left, execution.free, execution.elsewhere = [], 0, [other]
    execution.running = {Future(): (long, None)}
    step = threading.Thread(target=execution._step, daemon=True)
    step.start()
    step.join(10)
    assert not step.is_alive() and execution.left == [other]
