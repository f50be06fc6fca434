"""The run graph: what there is, what depends on what, what it costs and goes first, and the same as commands."""

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema import Cache
from cache_schema.errors import UsageError
from trainer.plan import formats
from trainer.plan.costs import best_widths, lower_bound, makespan, path_costs, read_costs, simulate
from trainer.plan.graph import Plan, read_plan
from trainer.plan.keys import cache_digests, node_keys

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
    old, new = (node_keys(plan, {node.name: {} for node in plan.nodes})[0] for plan in plans)
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {name for name in downstream(plans[0], "pseudo_labels") if plans[0][name].is_run}


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
        ("tables: {presense: 0.4}", "no setting tables.presense; did you mean tables.presence?"),
        ("tables: {over_seeds: max}", "tables.over_seeds='max' does not fit; expected 'mean' or 'extreme'"),
        ("runs: [{stage: bbox, processes: all}]", "processes='all' does not fit"),
        ("config: [a]", "config: is not a file name"),
        ("jobs: 2", "a plan without runs; expected runs: [{stage: ..., folds: [...], seeds: [...]}]"),
        ("config: nowhere.yaml\nruns: [{stage: bbox}]", "nowhere.yaml: no such file; expected a YAML file of settings"),
        ("runs: [{stage: bbox, set: {boxes: mine.parquet}}]", "boxes= is chosen by the plan"),
        ("runs: [{stage: bbox, set: {data.bank: 2}}]", "plan.yaml, run 1: data.bank keeps features of a frozen CNN"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(plan, line, tmp_path):
    (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(UsageError) as error:
        read_plan(tmp_path / "plan.yaml", Path("c"), Path("o"))
    assert line in str(error.value)


# keys


def downstream(plan: Plan, name: str) -> set[str]:
    """All nodes that depend on this one, itself left out."""
    found = {name}
    for node in plan.nodes:
        if found.intersection(node.needs):
            found.add(node.name)
    return found - {name}


def changed_keys(before: Plan, after: Plan, digests: list[dict] | None = None) -> set[str]:
    own = digests or [{node.name: {} for node in plan.nodes} for plan in (before, after)]
    old, new = (node_keys(plan, found)[1] for plan, found in zip((before, after), own, strict=True))
    return {name for name in old if old[name] != new[name]}


def test_one_threshold_makes_exactly_the_downstream_nodes_stale():
    plan = plan_of("oof")
    after = changed_keys(plan, plan_of("oof", "tables.presence=0.4"))
    assert after == {"study_boxes"} | downstream(plan, "study_boxes")
    assert not any(name.startswith(("bbox", "vertebrae-02G")) for name in after)
    assert {"vertebrae-04A/fold3-seed1", "pseudo_labels", "study_fracture-04G/fold0-seed1", "scores"} <= after


def test_a_setting_of_one_stage_or_a_study_of_one_run_reaches_what_is_made_from_it(tiny_cache, tmp_path):
    plan = plan_of("demo")
    same = {node.name: {} for node in plan.nodes}
    name = "slice_fracture-04F/fold1-seed1"
    assert changed_keys(plan, plan, [same, same | {name: {"studies": "other"}}]) == {name} | downstream(plan, name)
    held_out = {"vertebrae-02G/fold1-seed1": {"held_out": {"studies": "other"}}}
    assert changed_keys(plan, plan, [same, same | held_out]) == set(held_out) | downstream(plan, *held_out)
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
    file.write_text(json.dumps(given | {"bbox-01A": 4}))
    assert read_costs(plan, file) == costs, "a file may hold costs of several plans"
    with pytest.raises(UsageError, match="the plan makes no bbox-01A; did you mean bbox-01B"):
        read_costs(replace(plan, costs=plan.costs | {"bbox-01A": 4}))
    file.write_text("bbox: 5\n")
    with pytest.raises(UsageError, match="holds no cost of vertebrae-02G"):
        read_costs(plan, file)
    file.write_text("bbox: soon\n")
    with pytest.raises(UsageError, match="'soon' is not a cost; expected seconds"):
        read_costs(plan, file)


# as commands


def test_the_graph_as_commands_for_a_shell_for_slurm_and_as_json():
    plan = plan_of("demo")
    again = ["python", "-m", "trainer.plan", str(PLANS / "demo.yaml"), "cache=c d", "out=o"]
    shell, slurm = formats.as_shell(plan, again), formats.as_slurm(plan, again)
    for script in (shell, slurm):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "'cache=c d' out=o only=study_boxes" in shell and shell.count("python -m trainer.run ") == 8
    fake = 'n=0; sbatch() { echo "$@" >&2; echo $RANDOM$RANDOM; }\n'
    asked = subprocess.run(["bash"], input=fake + slurm, text=True, capture_output=True, check=True).stderr.splitlines()
    assert len(asked) == len(plan.nodes)
    waits = next(line for line in asked if "--job-name=study_boxes" in line)
    assert waits.partition("--dependency=afterok:")[2].split()[0].count(":") == 1, "both boxes' runs"
    none = dict.fromkeys((node.name for node in plan.nodes), "x")
    nodes = json.loads(formats.as_json(plan, dict.fromkeys(none, 1.0), none, none, again))["nodes"]
    assert [node["name"] for node in nodes] == [node.name for node in plan.nodes]
    assert {"needs", "output", "command", "cost", "state", "key", "processes"} <= set(nodes[0])
