import subprocess
import sys
from pathlib import Path

import pytest

from cache_schema.errors import UsageError
from trainer.plan.execute import describe, state
from trainer.plan.graph import read_plan

ROOT = Path(__file__).resolve().parents[2]
PLANS = ROOT / "configs/plan"


def test_the_reference_s_matrix_is_83_runs():
    plan = read_plan(PLANS / "rsna22.yaml", Path("c"), Path("o"))
    runs = [node for node in plan.nodes if node.is_run]
    count = {
        stage: sum(node.name.startswith(f"{stage}-") for node in runs)
        for stage in ("bbox", "vertebrae", "slice_fracture", "study_fracture")
    }
    assert count == {"bbox": 18, "vertebrae": 45, "slice_fracture": 10, "study_fracture": 10}
    assert len({node.output for node in runs}) == 83


def test_every_node_comes_after_what_it_needs():
    for name in ("rsna22", "demo"):
        placed = set()
        for node in read_plan(PLANS / f"{name}.yaml", Path("c"), Path("o")).nodes:
            assert placed.issuperset(node.needs), node.name
            placed.add(node.name)


def test_the_chain_of_the_demo_is_boxes_ratios_pseudo_labels_backbone():
    plan = read_plan(PLANS / "demo.yaml", Path("c"), Path("o"))
    assert len([node for node in plan.nodes if node.is_run]) == 8
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
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(plan, line, tmp_path):
    (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(UsageError) as error:
        read_plan(tmp_path / "plan.yaml", Path("c"), Path("o"))
    assert line in str(error.value)


def test_a_plan_runs_skips_what_is_done_and_reruns_what_is_stale(tiny_cache, tiny_settings, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(f"config: {tiny_settings}\nruns:\n  - {{stage: bbox, folds: [0, 1]}}\njobs: 2\n")
    command = [sys.executable, "-m", "trainer.plan", file, f"cache={tiny_cache}", f"out={tmp_path / 'runs'}"]

    def run(*more):
        return subprocess.run([*map(str, command), *more], cwd=ROOT, capture_output=True, text=True, check=False)

    listed = run("dry_run=true")
    assert listed.returncode == 0 and listed.stdout.count("due    bbox-01B") == 2 and not (tmp_path / "runs").exists()
    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "training mean box" in first.stdout and (tmp_path / "runs/tables/study_boxes.parquet").is_file()
    second = run()
    assert second.stdout.count("already done") == 2 and "already made" in second.stdout
    plan = read_plan(file, tiny_cache, tmp_path / "runs", ["train.lr=1"])
    assert {state(node) for node in plan.nodes if node.is_run} == {"stale"}
    assert "2 runs, 2 tables" in describe(plan)


def test_a_failed_run_stops_only_what_depends_on_it_and_shows_its_last_lines(tiny_cache, tiny_settings, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(
        f"config: {tiny_settings}\nruns:\n  - {{stage: bbox, folds: [0]}}\n  - {{stage: vertebrae, variant: 04A, folds: [0]}}\n"
    )
    command = [
        sys.executable,
        "-m",
        "trainer.plan",
        file,
        f"cache={tiny_cache}",
        f"out={tmp_path / 'runs'}",
        "train.batch=100000",
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "only 56 training items for an effective batch of 100000" in done.stdout
    assert "[vertebrae-04A/fold0-seed1] not started" in done.stdout
    assert "error: " in done.stderr and "Traceback" not in done.stderr + done.stdout
