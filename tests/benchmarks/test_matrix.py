"""What hours.py makes of rates that were measured: hours of the reference's plan, costs of its runs, a schedule."""

import pytest
import yaml

from benchmarks import hours, matrix
from trainer.plan.costs import read_costs

VARIANTS = {"slice_fracture 04F": 2e14, "study_fracture 04F": 4e14}


@pytest.fixture
def rates():
    """As measured at full size: round numbers."""
    kinds = {f"{run.stage} {run.variant}" for run in matrix.runs()}
    return {kind: VARIANTS.get(kind, 1e14) for kind in sorted(kinds)}


def test_the_reference_s_matrix_is_83_trainings_and_close_to_the_operations_that_its_description_counts():
    runs = matrix.runs()
    assert len(runs) == 83
    operations = sum(matrix.image_count(run).flops(matrix.forward_flops(run.model.name, run.data.size)) for run in runs)
    assert operations == pytest.approx(9.6e18, rel=0.1)


def test_hours_follow_from_rates_and_the_schedule_on_eight_devices_is_close_to_its_bound(rates, tmp_path):
    seconds = hours.run_seconds(rates)
    assert len(seconds) == 83
    total = sum(seconds.values()) / 3600
    assert f"{total:.4g} hours on one such device" in hours.estimate(rates)
    file = tmp_path / "costs.yaml"
    said = hours.simulated(rates, file)
    assert float(said.split("hours, ")[1].split()[0]) <= 1.15
    plan = hours.read_plan(hours.PLAN, tmp_path, tmp_path)
    costs = read_costs(plan, file)
    assert costs == pytest.approx({node.name: seconds.get(node.name, 0) for node in plan.nodes}, abs=0.1)
    assert set(yaml.safe_load(file.read_text())) == {*seconds, *(name.partition("/")[0] for name in seconds)}
    other = hours.read_plan(hours.PLAN.with_name("oof.yaml"), tmp_path, tmp_path)
    assert all(cost > 0 for name, cost in read_costs(other, file).items() if other[name].is_run)


def test_one_rate_twice_as_high_halves_that_variant_alone(rates):
    before = hours.run_seconds(rates)
    after = hours.run_seconds(rates | {"slice_fracture 04F": 2 * rates["slice_fracture 04F"]})
    changed = {run for run in before if after[run] != before[run]}
    assert {run.partition("/")[0] for run in changed} == {"slice_fracture-04F"}
    assert all(after[run] == pytest.approx(before[run] / 2) for run in changed)


def test_rates_that_were_measured_in_parts_are_put_together(rates, tmp_path):
    names, file = list(rates), tmp_path / "results/rates.json"
    first = {name: rates[name] for name in names[:3]}
    assert hours.with_earlier(first, file) == first and hours.not_measured(first) == names[3:]
    rest = {name: rates[name] for name in names[3:]} | {names[0]: 7e13}
    every = hours.with_earlier(rest, file)
    assert every == rates | {names[0]: 7e13} and not hours.not_measured(every), "measured again counts more"
