"""Executes a plan: starts a node when its needs are done, longest path first, and skips what is done and not stale."""

import signal
import time
import traceback
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from cache_schema import Cache
from cache_schema.errors import CacheError, CspineError
from trainer.plan.costs import Costs, best_widths, next_node, path_costs
from trainer.plan.graph import Node, Plan
from trainer.plan.keys import DONE, state, states
from trainer.plan.launch import RunOrder, RunOutcome, log_file, remove_mark, remove_marks
from trainer.plan.pools import Pool
from trainer.process.faults import in_one_line
from trainer.runs.lease import holder, lease_file
from trainer.runs.run_folder import remove_checkpoints
from trainer.tables import make

SAID = ("error: ", "interrupted")
"""prefixes of a run's own last line that says why it ended"""
CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
POLL = 2.0
"""seconds between checks of runs that another process makes"""


class Execution:
    """One pass over a plan. failed: nodes that failed, and those that need them."""

    def __init__(self, plan: Plan, cache: Cache, out: Path, pool: Pool, costs: Costs):
        self.plan, self.cache, self.out, self.pool = plan, cache, out, pool
        self.longest = path_costs(plan, costs)
        now = states(plan, cache)
        done = [name for name, found in now.items() if found == DONE]
        self.widths = best_widths(plan, costs, pool.slots if pool.spreads else 1, done)
        self.left = list(plan.nodes)
        self.ready: list[Node] = []
        self.elsewhere: list[Node] = []
        self.running: dict[Future[RunOutcome], tuple[Node, RunOrder]] = {}
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self.free = pool.slots

    def run(self, only: str | None = None) -> list[str]:
        """Makes all nodes, or only one, whose needs must be done. Returns the names of what failed."""
        if only is not None:
            self._require_needs(self.plan[only])
            self.left = [self.plan[only]]
            self.done = {node.name for node in self.plan.nodes if node.name != only}
        try:
            while self.left or self.ready or self.running or self.elsewhere:
                self._step()
        finally:
            self.pool.stop()
        return [node.name for node in self.plan.nodes if node.name in self.failed]

    def _require_needs(self, node: Node) -> None:
        """Raises CacheError if a table would be made from something stale or missing."""
        for name in () if node.is_run else node.needs:
            if (found := state(self.plan[name], self.plan, self.cache)) != DONE:
                raise CacheError(f"needs {name}, which is {found}", where=node.name, do=f"make that first: only={name}")

    def _step(self) -> None:
        """Starts everything that can start now, then waits for something to end."""
        self._give_up_what_needs_the_failed()
        for node in [node for node in self.left if self.done.issuperset(node.needs)]:
            self.left.remove(node)
            if not node.is_run:
                self._make(node)
                return  # its dependents may be ready now
            if state(node, self.plan, self.cache) == DONE:
                remove_marks(self.out, node.name)
                remove_checkpoints(node.output)
                self._end(node, True, "already done")
            else:
                self.ready.append(node)
        while (chosen := next_node(self.ready, self.longest, self.widths, self.free)) is not None:
            self.ready.remove(chosen)
            self._start(chosen)
        if self._look_elsewhere():
            return  # these, or their dependents, may start now
        if self.running:
            ended = wait(self.running, timeout=POLL if self.elsewhere else None, return_when=FIRST_COMPLETED).done
            for future in ended:
                self._settle(future)
        elif self.elsewhere:
            time.sleep(POLL)

    def _start(self, node: Node) -> None:
        order = RunOrder(node.name, node.words, self.out, uuid.uuid4().hex)
        width = self.widths[node.name]
        self.free -= width
        say(node, f"started on {width} GPUs" if width > 1 else "started")
        self.running[self.pool.submit(order, width)] = (node, order)

    def _settle(self, future: Future[RunOutcome]) -> None:
        node, order = self.running.pop(future)
        self.free += self.widths[node.name]
        remove_mark(order)
        try:
            outcome = future.result()
        except Exception as error:  # the cluster lost a worker or the scheduler
            outcome = RunOutcome(1, 0.0, [f"{type(error).__name__}: {error}"])
        if outcome.status is None:
            say(node, f"{outcome.last[0]}: waiting for it")
            self.elsewhere.append(node)
        elif outcome.status == 0:
            scores = [f"\n    {line}" for line in outcome.last if line.startswith("score")]
            self._end(node, True, f"done in {outcome.seconds:.0f} s" + "".join(scores))
        else:
            self._end(node, False, failure(outcome, log_file(self.out, node.name)))

    def _look_elsewhere(self) -> bool:
        """Takes back runs that another process has ended. Returns whether there are any."""
        found = [node for node in self.elsewhere if holder(lease_file(self.out, node.name)) is None]
        for node in found:
            self.elsewhere.remove(node)
            self.left.append(node)
        return bool(found)

    def _make(self, node: Node) -> None:
        runs = [self.plan[name].output for name in node.needs if self.plan[name].is_run]
        try:
            made = make.make(node.name, self.out, self.cache, runs, self.plan.tables)
        except Exception as error:  # a failed table must not end the plan, as a failed run does not
            line = in_one_line(error)
            if line is None:
                traceback.print_exc()
            self._end(node, False, f"failed: {line or f'{type(error).__name__}: {error}'}")
        else:
            self._end(node, True, f"{'made' if made else 'already made'}: {node.output}")

    def _give_up_what_needs_the_failed(self) -> None:
        for node in list(self.left):  # in the plan's order, so that it reaches what needs these in turn
            if missing := sorted(self.failed.intersection(node.needs)):
                self.left.remove(node)
                self._end(node, False, f"not started: it needs {', '.join(missing)}")

    def _end(self, node: Node, well: bool, line: str) -> None:
        (self.done if well else self.failed).add(node.name)
        say(node, line)


def failure(outcome: RunOutcome, log: Path) -> str:
    """Why a run failed: in one line if it said so itself or was killed, else with the end of its output."""
    failed, number = f"failed after {outcome.seconds:.0f} s", (outcome.status or 0) - 128
    said = [line.removeprefix("error: ") for line in outcome.last if line.startswith(SAID)]
    if number == signal.SIGKILL:
        why = "it was killed (SIGKILL), probably out of memory"
    elif number in CRASHES:
        why = f"it crashed ({signal.Signals(number).name})"
    elif said:
        why = said[-1]
    else:
        return "\n    ".join([f"{failed} with status {outcome.status}; the end of {log}:", *outcome.last])
    return f"{failed}: {why}; its log is {log}"


def say(node: Node, line: str) -> None:
    print(f"[{node.name}] {line}", flush=True)


def run_plan(plan: Plan, cache: Cache, out: Path, pool: Pool, costs: Costs, only: str | None = None) -> None:
    """Makes all nodes of a plan, or one. Raises CspineError if some failed, after all that do not need them."""
    if failed := Execution(plan, cache, out, pool, costs).run(only):
        error = CspineError(
            f"{len(failed)} of {len(plan.nodes)} nodes are not done: {', '.join(failed)}",
            do="fix the cause and run the same command",
        )
        error.exit_status = 1
        raise error
