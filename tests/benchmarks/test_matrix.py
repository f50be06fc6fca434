"""What benchmarks.train makes of rates that were measured: hours of the reference's plan, costs of its runs, a schedule."""

from types import SimpleNamespace

import pytest
import yaml

from benchmarks import matrix, train
from trainer.plan.schedule import read_costs

VARIANTS = {("slice_fracture", "04F"): 2e14, ("study_fracture", "04F"): 4e14}


@pytest.fixture
def found(monkeypatch):
    """As measured at full size, at rates that are round numbers."""
    monkeypatch.setattr(train, "is_full_size", lambda settings: True)
    kinds = {(run.stage, run.variant) for run in matrix.runs()}
    return [
        SimpleNamespace(name=f"{stage} {variant}", rate=VARIANTS.get((stage, variant), 1e14), settings=None)
        for stage, variant in sorted(kinds)
    ]


def test_the_reference_s_matrix_is_83_trainings_and_close_to_the_operations_that_its_description_counts():
    runs = matrix.runs()
    assert len(runs) == 83
    operations = sum(matrix.pictures(run).flops(matrix.forward_flops(run.model.name, run.data.size)) for run in runs)
    assert operations == pytest.approx(9.6e18, rel=0.1)


def test_hours_follow_from_rates_and_the_schedule_on_eight_devices_is_close_to_its_bound(found, tmp_path):
    seconds = train.run_seconds(found)
    assert len(seconds) == 83
    total = sum(seconds.values()) / 3600
    assert f"{total:.4g} hours on one such device" in train.estimate(found)
    file = tmp_path / "costs.yaml"
    said = train.simulated(found, file)
    assert float(said.split("hours, ")[1].split()[0]) <= 1.15
    plan = train.read_plan(train.PLAN, tmp_path, tmp_path)
    costs = read_costs(plan, file)
    assert costs == pytest.approx({node.name: seconds.get(node.name, 0) for node in plan.nodes}, abs=0.1)
    assert set(yaml.safe_load(file.read_text())) == {*seconds, *(name.partition("/")[0] for name in seconds)}
    other = train.read_plan(train.PLAN.with_name("oof.yaml"), tmp_path, tmp_path)
    assert all(cost > 0 for name, cost in read_costs(other, file).items() if other[name].is_run)


def test_one_rate_twice_as_high_halves_that_variant_alone(found):
    before = train.run_seconds(found)
    name = "slice_fracture 04F"
    next(each for each in found if each.name == name).rate *= 2
    after = train.run_seconds(found)
    changed = {run for run in before if after[run] != before[run]}
    assert {run.partition("/")[0] for run in changed} == {"slice_fracture-04F"}
    assert all(after[run] == pytest.approx(before[run] / 2) for run in changed)
