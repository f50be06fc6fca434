"""Hours of the reference's 83 trainings, and seconds per run for `costs=` of trainer.plan, from measured rates."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from benchmarks.matrix import PLAN, forward_flops, image_count, runs
from cache_schema.documents import write_whole
from trainer.plan.costs import DOUBLING, best_widths, lower_bound, makespan, simulate
from trainer.plan.graph import read_plan
from trainer.runs.run_names import run_name

SLOTS = 8

Rates = Mapping[str, float]
"""`<stage> <variant>` -> floating-point operations of its CNN per second of training"""


def with_earlier(rates: Rates, file: Path) -> dict[str, float]:
    """Adds these rates to the file, one per machine. Returns all rates in it."""
    held = json.loads(file.read_text()) if file.is_file() else {}
    every = {**held, **rates}
    file.parent.mkdir(exist_ok=True)
    write_whole(file, json.dumps(every, indent=1, sort_keys=True).encode() + b"\n")
    return every


def not_measured(rates: Rates) -> list[str]:
    """Variants of the plan without a rate."""
    return sorted({f"{run.stage} {run.variant}" for run in runs()} - set(rates))


def run_seconds(rates: Rates) -> dict[str, float]:
    """node name -> seconds of each training of the reference's plan on one device."""
    return {
        run_name(run.run_dir): image_count(run).flops(forward_flops(run.model.name, run.data.size))
        / rates[f"{run.stage} {run.variant}"]
        for run in runs()
    }


def estimate(rates: Rates) -> str:
    """Hours of the reference's plan on one device."""
    hours: dict[str, float] = {}
    for name, seconds in run_seconds(rates).items():
        kind = name.partition("/")[0]
        hours[kind] = hours.get(kind, 0.0) + seconds / 3600
    operations = sum(image_count(run).flops(forward_flops(run.model.name, run.data.size)) for run in runs())
    each = ", ".join(f"{kind} {value:.3g}" for kind, value in hours.items())
    return f"{PLAN.name}: {operations / 1e18:.1f} EFLOP, {sum(hours.values()):.4g} hours on one such device ({each})"


def simulated(rates: Rates, file: Path | None) -> str:
    """The plan's simulated hours on eight devices. file: also writes the costs to it."""
    seconds = run_seconds(rates)
    if file:
        of_kind = {name.partition("/")[0]: cost for name, cost in seconds.items()}  # for plans of other folds and seeds
        file.write_text(yaml.safe_dump({name: round(cost, 1) for name, cost in (of_kind | seconds).items()}))
    plan = read_plan(PLAN, Path("CACHE"), Path("RUNS"))
    costs = {node.name: seconds.get(node.name, 0.0) for node in plan.nodes}
    whole = makespan(simulate(plan, costs, SLOTS, best_widths(plan, costs, SLOTS)))
    bound = lower_bound(plan, costs, SLOTS)
    return (
        f"simulated on {SLOTS} of them: {whole / 3600:.3g} hours, {whole / bound:.3f} times the larger of longest path and total "
        f"over slots, if twice the devices give {2 * DOUBLING:g} times the speed"
    )
