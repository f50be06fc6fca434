"""A plan as text: a listing, a shell script, a Slurm script, or JSON."""

import json
import shlex
from collections.abc import Mapping

from trainer.plan.costs import Costs, best_widths, lower_bound, makespan, simulate
from trainer.plan.graph import Node, Plan
from trainer.plan.keys import DONE
from trainer.plan.launch import shown

FORMATS = ("sh", "slurm", "json")


def listing(plan: Plan, costs: Costs, states: Mapping[str, str], slots: int, spreads: bool) -> str:
    """dry_run=true: one line per node with state, cost and command, and a summary of the remaining work."""
    lines = []
    for node in plan.nodes:
        cost, what = (_hours(costs[node.name]), shown(node.words)) if node.is_run else ("", f"-> {node.output}")
        lines.append(f"{states[node.name]:6} {cost:>7} {node.name:34} {what}")
    done = [name for name, state in states.items() if state == DONE]
    left = [node for node in plan.runs if node.name not in done]
    widths = best_widths(plan, costs, slots if spreads else 1, done)
    time = makespan(simulate(plan, costs, slots, widths, done))
    lines.append(
        f"{len(plan.runs)} runs, {len(plan.nodes) - len(plan.runs)} tables; left: {len(left)} runs, "
        f"{_hours(sum(costs[node.name] for node in left))} of work, about {_hours(time)} with {slots} at a time "
        f"(all of it: no less than {_hours(lower_bound(plan, costs, slots))})"
    )
    return "\n".join(lines)


def as_json(plan: Plan, costs: Costs, states: Mapping[str, str], keys: Mapping[str, str], again: list[str]) -> str:
    """again: this plan's command, which makes one node when only=NODE is added."""
    nodes = [
        {
            "name": node.name,
            "needs": list(node.needs),
            "output": str(node.output),
            "command": _command(node, again),
            "processes": node.processes,
            "cost": costs[node.name],
            "state": states[node.name],
            "key": keys[node.name],
        }
        for node in plan.nodes
    ]
    return json.dumps({"nodes": nodes}, indent=1)


def as_shell(plan: Plan, again: list[str]) -> str:
    """One command after another, each after its needs. The script stops at the first failure."""
    return "\n".join(["set -eu", *(_command(node, again) for node in plan.nodes)])


def as_slurm(plan: Plan, again: list[str]) -> str:
    """One job per node, each after its needs. Jobs share the project's folder, the cache and RUNS."""
    lines = ["set -eu", "declare -A job"]
    for node in plan.nodes:
        needs = "".join(f":${{job[{need}]}}" for need in node.needs)
        options = [f"--job-name={node.name}", *(["--gpus=1"] if node.is_run else [])]
        after = [f'--dependency="afterok{needs}" --kill-on-invalid-dep=yes'] if needs else []
        words = " ".join([*map(shlex.quote, options), *after, f"--wrap={shlex.quote(_command(node, again))}"])
        lines.append(f"job[{node.name}]=$(sbatch --parsable {words})")
    return "\n".join(lines)


def _command(node: Node, again: list[str]) -> str:
    return shown(node.words) if node.is_run else shlex.join([*again, f"only={node.name}"])


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"
