"""The run graph: what there is, what depends on what, what goes first, and that it can be stopped, resumed and believed."""

import contextlib
import json
import os
import random
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
from cache_schema.errors import UsageError
from trainer import train
from trainer.lease import holder, lease_file
from trainer.plan import formats
from trainer.plan.__main__ import main
from trainer.plan.execute import Execution
from trainer.plan.graph import Plan, read_plan
from trainer.plan.keys import DONE, STALE, cache_digests, node_keys, states, weights_keys
from trainer.plan.launch import Order, launch
from trainer.plan.pools import LocalPool
from trainer.plan.schedule import best_widths, lower_bound, makespan, path_costs, read_costs, simulate
from trainer.tables import make

ROOT = Path(__file__).resolve().parents[2]
PLANS = ROOT / "configs/plan"
STAGES = ("bbox", "vertebrae", "slice_fracture", "study_fracture")


def plan_of(name: str, *words: str) -> Plan:
    return read_plan(PLANS / f"{name}.yaml", Path("c"), Path("o"), words)


def one_slot_each(plan: Plan) -> dict[str, int]:
    return {node.name: int(node.is_run) for node in plan.nodes}


# the graph


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("rsna22", [18, 45, 10, 10]),
        ("rsna22-lean", [18, 45, 10, 10]),
        ("oof", [5, 15, 10, 10]),
        ("native", [5, 15, 10, 10]),
        ("demo", [2, 2, 2, 2]),
    ],
)
def test_a_plan_s_runs_by_stage(name, counts):
    plan = plan_of(name)
    assert [sum(node.kind.rpartition("-")[0] == stage for node in plan.runs) for stage in STAGES] == counts
    assert len({node.output for node in plan.runs}) == sum(counts)
    placed = set()
    for node in plan.nodes:
        assert placed.issuperset(node.needs), node.name
        placed.add(node.name)


def test_the_lean_matrix_is_the_same_training_but_for_pseudo_labels_of_other_windows():
    plans = [plan_of("rsna22"), plan_of("rsna22-lean")]
    old, new = (weights_keys(plan, {node.name: {} for node in plan.nodes}) for plan in plans)
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {name for name in plans[0].downstream("pseudo_labels") if plans[0][name].is_run}


def test_the_chain_of_the_demo_is_boxes_ratios_pseudo_labels_backbone():
    plan = plan_of("demo")
    assert set(plan["study_boxes"].needs) == {"bbox-01B/fold0-seed1", "bbox-01B/fold1-seed1"}
    assert plan["vertebrae-02G/fold1-seed1"].needs == ()
    assert plan["slice_fracture-04F/fold1-seed1"].needs == ("pseudo_labels", "study_boxes")
    assert plan["pseudo_labels"].needs == ("vertebra_ratios",)
    assert set(plan["study_fracture-04F/fold1-seed1"].needs) == {"study_boxes", "slice_fracture-04F/fold1-seed1"}


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        ("run: []", "a plan has no run; did you mean runs?"),
        ("runs: [{stage: bbx}]", "no stage bbx; did you mean bbox?"),
        ("runs: [{stage: bbox, fold: [0]}]", "a run has no fold; did you mean folds?"),
        ("runs: [{stage: vertebrae, variant: 04A}]", "needs study_boxes, which the plan does not make"),
        ("runs: [", "not valid YAML at line 1"),
        ("tables: {presense: 0.4}", "no setting tables.presense; did you mean presence?"),
        ("tables: {over_seeds: max}", "tables.over_seeds='max' does not fit; expected 'mean' or 'extreme'"),
        ("runs: [{stage: bbox, processes: all}]", "processes='all' does not fit"),
        ("config: [a]", "config: is no file's name"),
        ("runs: [{stage: bbox, set: {boxes: mine.parquet}}]", "boxes= is the plan's own to choose"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(plan, line, tmp_path):
    (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(UsageError) as error:
        read_plan(tmp_path / "plan.yaml", Path("c"), Path("o"))
    assert line in str(error.value)


# keys


def changed_keys(before: Plan, after: Plan, digests: list[dict] | None = None) -> set[str]:
    own = digests or [{node.name: {} for node in plan.nodes} for plan in (before, after)]
    old, new = (node_keys(plan, found) for plan, found in zip((before, after), own, strict=True))
    return {name for name in old if old[name] != new[name]}


def test_one_threshold_makes_exactly_the_downstream_nodes_stale():
    plan = plan_of("oof")
    after = changed_keys(plan, plan_of("oof", "tables.presence=0.4"))
    assert after == {"study_boxes"} | plan.downstream("study_boxes")
    assert not any(name.startswith(("bbox", "vertebrae-02G")) for name in after)
    assert {"vertebrae-04A/fold3-seed1", "pseudo_labels", "study_fracture-04G/fold0-seed1", "scores"} <= after


def test_a_setting_of_one_stage_or_a_study_of_one_run_reaches_what_is_made_from_it(tiny_cache, tmp_path):
    plan = plan_of("demo")
    same = {node.name: {} for node in plan.nodes}
    name = "slice_fracture-04F/fold1-seed1"
    assert changed_keys(plan, plan, [same, same | {name: {"studies": "other"}}]) == {name} | plan.downstream(name)
    held_out = {"vertebrae-02G/fold1-seed1": {"held_out": {"studies": "other"}}}
    assert changed_keys(plan, plan, [same, same | held_out]) == set(held_out) | plan.downstream(*held_out)
    coarse = changed_keys(plan, plan_of("demo", "data.eval_stride=6"))
    assert {"vertebra_ratios", "pseudo_labels", name} <= coarse and "study_boxes" not in coarse
    backbone = {"study_predictions", *(f"study_fracture-04F/fold{fold}-seed1" for fold in (0, 1))}
    only_predicts = changed_keys(plan, plan, [same, same | {name: {"held_out": {"studies": "other"}}}])
    assert only_predicts == {name, "scores"} and not backbone & only_predicts, "stage 4 stands on weights alone"
    assert changed_keys(plan, plan_of("demo", "train.lr=1")) == {node.name for node in plan.nodes}
    real = read_plan(PLANS / "demo.yaml", tiny_cache, tmp_path)
    digests = cache_digests(real, Cache(tiny_cache))
    assert digests["bbox-01B/fold0-seed1"] != digests["bbox-01B/fold1-seed1"], "each trains on the other fold"
    assert "labels" in digests["study_fracture-04F/fold0-seed1"]


# cost and order


def test_the_reference_s_matrix_on_eight_slots_ends_within_15_percent_of_the_lower_bound():
    plan = plan_of("rsna22")
    costs = read_costs(plan)
    bound = lower_bound(plan, costs, 8)
    alone = makespan(simulate(plan, costs, 8, one_slot_each(plan)))
    assert alone > 1.15 * bound, "ten long runs on eight GPUs take two rounds"
    assert makespan(simulate(plan, costs, 8, best_widths(plan, costs, 8))) <= 1.15 * bound
    draw = random.Random(0)
    for _ in range(3):
        factor = {kind: draw.uniform(0.5, 2) for kind in sorted({node.kind for node in plan.nodes})}
        other = {node.name: costs[node.name] * factor[node.kind] for node in plan.nodes}
        schedule = simulate(plan, other, 8, best_widths(plan, other, 8))
        assert makespan(schedule) <= 1.15 * lower_bound(plan, other, 8)


def test_a_schedule_keeps_order_and_slots_and_starts_with_the_longest_path():
    plan = plan_of("oof")
    costs = read_costs(plan)
    widths = best_widths(plan, costs, 8)
    schedule = {slot.name: slot for slot in simulate(plan, costs, 8, widths)}
    assert set(schedule) == {node.name for node in plan.nodes}
    for node in plan.nodes:
        assert all(schedule[need].end <= schedule[node.name].start for need in node.needs)
    for now in {slot.start for slot in schedule.values()}:
        assert sum(widths[name] for name, slot in schedule.items() if slot.start <= now < slot.end) <= 8
    first = {name for name, slot in schedule.items() if slot.start == 0}
    assert {f"bbox-01B/fold{fold}-seed1" for fold in range(5)} <= first, "boxes are on the longest path"
    longest = path_costs(plan, costs)
    assert longest["bbox-01B/fold0-seed1"] == sum(
        costs[f"{kind}/fold0-seed1"]
        for kind in ("bbox-01B", "vertebrae-04A", "slice_fracture-04F", "study_fracture-04F")
    )


def test_costs_are_taken_by_the_most_exact_name(tmp_path):
    plan = plan_of("demo")
    file = tmp_path / "costs.json"
    given = {"bbox": 5, "vertebrae-02G": 7, "slice_fracture": 1, "study_fracture": 2, "bbox-01B/fold1-seed1": 3}
    file.write_text(json.dumps(given))
    assert read_costs(plan)["bbox-01B/fold0-seed1"] == float(plan.costs["bbox"]), "the demo states its own"
    costs = read_costs(plan, file)
    assert [costs[f"bbox-01B/fold{fold}-seed1"] for fold in (0, 1)] == [5, 3]
    assert costs["vertebrae-02G/fold0-seed1"] == 7 and costs["study_boxes"] == 0
    file.write_text("bbox: 5\n")
    with pytest.raises(UsageError, match="holds no cost of vertebrae-02G"):
        read_costs(plan, file)
    file.write_text("bbox: soon\n")
    with pytest.raises(UsageError, match="'soon' is no cost; expected seconds"):
        read_costs(plan, file)


def test_each_gpu_is_a_slot_and_is_given_out_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-7,1")
    monkeypatch.setattr("trainer.plan.pools.launch", lambda order, children: order.devices)
    pool = LocalPool(None)
    assert pool.slots == 4 and pool.spreads
    futures = [pool.submit(Order(str(i), (), tmp_path, "a"), width) for i, width in enumerate((1, 2, 1, 4))]
    assert sorted(futures[3].result()) == ["1", "3", "5", "GPU-7"] and len(futures[1].result()) == 2
    pool.stop()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalPool(None).slots == 1 and not LocalPool(3).spreads and LocalPool(3).slots == 3


# as commands


def test_the_graph_as_commands_for_a_shell_for_slurm_and_as_json():
    plan = plan_of("demo")
    again = formats.again(PLANS / "demo.yaml", ["cache=c d", "out=o"])
    shell, slurm = formats.as_shell(plan, again), formats.as_slurm(plan, again)
    for script in (shell, slurm):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "'cache=c d' out=o only=study_boxes" in shell and shell.count("python trainer/run.py") == 8
    fake = 'n=0; sbatch() { echo "$@" >&2; echo $RANDOM$RANDOM; }\n'
    asked = subprocess.run(["bash"], input=fake + slurm, text=True, capture_output=True, check=True).stderr.splitlines()
    assert len(asked) == len(plan.nodes)
    waits = next(line for line in asked if "--job-name=study_boxes" in line)
    assert waits.partition("--dependency=afterok:")[2].split()[0].count(":") == 1, "both boxes' runs"
    none = dict.fromkeys((node.name for node in plan.nodes), "x")
    nodes = json.loads(formats.as_json(plan, dict.fromkeys(none, 1.0), none, none, again))["nodes"]
    assert [node["name"] for node in nodes] == [node.name for node in plan.nodes]
    assert {"needs", "output", "command", "cost", "state", "key", "processes"} <= set(nodes[0])


# execution


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
    make.study_boxes(other, Cache(tiny_cache), runs)
    make.scores(other, Cache(tiny_cache), runs)
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
        f"config: {tiny_settings}\nruns:\n  - {{stage: bbox, folds: [0]}}\n  - {{stage: vertebrae, variant: 04A, folds: [0]}}\n"
    )
    assert main(command(file, tiny_cache, out, "train.batch=100000")[3:]) == 1
    said = capsys.readouterr()
    assert "only 56 training items for an effective batch of 100000" in said.out
    assert "[vertebrae-04A/fold0-seed1] not started" in said.out
    assert "error: " in said.err and "Traceback" not in said.err + said.out


def test_an_order_that_comes_a_second_time_is_not_carried_out(tmp_path):
    order = Order("bbox-01B/fold0-seed1", ("stage=bbox",), tmp_path, "once")
    assert launch(order).status == 2, "no cache given"
    again = launch(order)
    assert again.status == 1 and "not tried again" in again.last[0]


def test_a_run_that_another_process_makes_is_left_to_it(tmp_path):
    path = lease_file(tmp_path, "bbox-01B/fold0-seed1")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"token": "t", "machine": "elsewhere/boot/pid", "pid": 7, "born": "1"}))
    outcome = launch(Order("bbox-01B/fold0-seed1", ("stage=bbox",), tmp_path, "a"))
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


def test_a_child_ends_when_its_parent_does(tmp_path):
    child = ROOT / "trainer/plan/child.py"
    parent = (
        f"import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-P', {str(child)!r}, str(os.getpid()),"
    )
    parent += " 'sleep', '60']).pid, flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"), 5)
    process.kill()
    process.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2], 5)
