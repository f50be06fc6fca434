"""Costs, priorities and GPUs of a plan's nodes: pure functions, the same for simulation and execution."""

import heapq
import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cache_schema.errors import UsageError
from trainer.plan.graph import Node, Plan
from trainer.settings.keyvalue import nearest, read_yaml, require_known
from trainer.settings.stage_registry import CONFIGS, stage_class

DEFAULT_COSTS = CONFIGS / "costs.yaml"
DOUBLING = 0.95
"""speed per GPU that remains when a run uses twice as many"""

LONGEST = 1e9
"""most seconds of a node: thirty years"""

Costs = Mapping[str, float]
"""node name -> seconds on one slot (a GPU, or one of the simultaneous runs on CPUs)"""
Widths = Mapping[str, int]
"""node name -> number of slots"""


class Slot(NamedTuple):
    name: str
    start: float
    end: float


def read_costs(plan: Plan, path: Path | None = None) -> dict[str, float]:
    """Seconds by node name, `<stage>-<variant>`, table or stage -> seconds of every node. The most specific name counts.

    path: a YAML or JSON file; the default is the plan's own costs, else configs/costs.yaml. A table costs nothing by
    default. Raises UsageError for unknown names, missing runs and invalid seconds.
    """
    path = path or (None if plan.costs else DEFAULT_COSTS)
    stated, where = (read_yaml(path, "costs"), path) if path else (plan.costs, "the plan's costs")
    given = {name: _seconds(value, f"{where}, {name}") for name, value in stated.items()}
    if path == DEFAULT_COSTS:  # it lacks the stages of other packages
        given = {node.stage: stage_class(node.stage).seconds for node in plan.runs} | given
    if not path:  # a file may serve several plans
        known = dict.fromkeys(name for node in plan.nodes for name in _names(node))
        for name in given:
            require_known(name, known, f"the plan makes no {name}", where)
    found = {}
    for node in plan.nodes:
        own = [given[name] for name in _names(node) if name in given]
        if not own and node.is_run:
            raise UsageError(f"holds no cost of {node.kind}", where=where, do=nearest(node.kind, given))
        found[node.name] = own[0] if own else 0.0
    return found


def _names(node: Node) -> list[str]:
    """The names under which its cost may be given, most specific first."""
    return [node.name, node.kind, *([node.stage] if node.stage else [])]


def path_costs(plan: Plan, costs: Costs) -> dict[str, float]:
    """node name -> seconds of the longest path from the node's start to the end of the plan."""
    after: dict[str, float] = {node.name: 0.0 for node in plan.nodes}
    for node in reversed(plan.nodes):
        own = costs[node.name] + after[node.name]
        for need in node.needs:
            after[need] = max(after[need], own)
    return {name: costs[name] + rest for name, rest in after.items()}


def lower_bound(plan: Plan, costs: Costs, slots: int) -> float:
    """Lower bound of any schedule's seconds: the longest path, or all work shared evenly."""
    return max([sum(costs.values()) / slots, *path_costs(plan, costs).values()])


def next_node(ready: Iterable[Node], longest: Mapping[str, float], widths: Widths, free: int) -> Node | None:
    """The node with the longest path among those that fit into the free slots; the first of equals."""
    fitting = [node for node in ready if widths[node.name] <= free]
    return max(fitting, key=lambda node: longest[node.name], default=None)


def simulate(plan: Plan, costs: Costs, slots: int, widths: Widths, done: Collection[str] = ()) -> list[Slot]:
    """Start and end of each node that is not done. Tables take no slot."""
    longest, ended = path_costs(plan, costs), set(done)
    running: list[tuple[float, int, str]] = []
    left = [node for node in plan.nodes if node.name not in ended]
    schedule: list[Slot] = []
    now, free = 0.0, slots
    while left or running:
        ready = [node for node in left if ended.issuperset(node.needs)]
        node = next_node(ready, longest, widths, free)
        if node is not None:
            left.remove(node)
            end = now + spread(costs[node.name], widths[node.name])
            free -= widths[node.name]
            heapq.heappush(running, (end, len(schedule), node.name))
            schedule.append(Slot(node.name, now, end))
        else:
            now, _, name = heapq.heappop(running)
            ended.add(name)
            free += widths[name]
    return schedule


def makespan(schedule: Iterable[Slot]) -> float:
    return max((slot.end for slot in schedule), default=0.0)


def spread(seconds: float, width: int) -> float:
    """A run's seconds over `width` GPUs."""
    return seconds / (width * DOUBLING ** math.log2(width)) if width else seconds


def best_widths(plan: Plan, costs: Costs, slots: int, done: Collection[str] = ()) -> dict[str, int]:
    """The slots of each node that end the plan soonest in simulation: the same for all runs of a kind, 0 for tables.

    With one slot each, ten equal runs on eight GPUs would take two rounds, the second with six GPUs idle.
    """
    kinds = {node.kind: _choices(node.processes, slots) for node in plan.runs}
    chosen = {kind: choices[0] for kind, choices in kinds.items()}

    def widths(of_kind: Widths) -> dict[str, int]:
        return {node.name: of_kind[node.kind] if node.is_run else 0 for node in plan.nodes}

    def seconds(of_kind: Widths) -> float:
        return makespan(simulate(plan, costs, slots, widths(of_kind), done))

    wide = [kind for kind, choices in kinds.items() if len(choices) > 1]
    best = seconds(chosen) if wide else 0.0
    for candidate in itertools.product(*(kinds[kind] for kind in wide)):
        trial = {**chosen, **dict(zip(wide, candidate, strict=True))}
        if wide and (found := seconds(trial)) < best * 0.999:
            best, chosen = found, trial
    return widths(chosen)


def _choices(most: int, slots: int) -> list[int]:
    """Powers of two up to the run's maximum and the number of slots."""
    return [2**power for power in range(min(most, slots).bit_length())]


def _seconds(value: Any, where: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds <= LONGEST:
        raise UsageError(f"{value!r:.80} is not a cost", where=where, expected=f"seconds from 0 to {LONGEST:.0e}")
    return seconds
