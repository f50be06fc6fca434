"""Runs a plan's graph on this machine: a node once what it needs is done, several at a time, skipping what is done and not stale."""

import collections
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue

from cache_schema import Cache
from cache_schema.errors import CspineError, UsageError
from trainer.config import load
from trainer.identity import is_done, recorded_config, run_key
from trainer.inputs import Inputs
from trainer.plan.graph import Node, Plan
from trainer.tables import make

RUN_SCRIPT = Path(__file__).resolve().parents[1] / "run.py"
LAST_LINES = 15


def state(node: Node) -> str:
    """A run's state now: done, stale (made from other settings or inputs), due, or waits (for tables or runs that are not there yet)."""
    try:
        settings = load(node.words)
        inputs = Inputs(settings)
        key = run_key(settings, inputs)
    except UsageError:
        return "waits"
    if is_done(settings, inputs, key):
        return "done"
    recorded = recorded_config(settings.run_dir)
    return "due" if recorded is None or recorded["key"] == key else "stale"


def execute(plan: Plan, cache: Path, out: Path) -> list[str]:
    """Makes everything in the plan. Returns the names of the nodes that failed or could not start for want of these."""
    devices = gpus()
    jobs = plan.jobs or max(1, len(devices))
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    done: set[str] = set()
    failed: set[str] = set()
    running: dict[Future[bool], Node] = {}
    children: set[subprocess.Popen] = set()
    left = list(plan.nodes)
    opened = Cache(cache)
    pool = ThreadPoolExecutor(jobs)
    try:
        while left or running:
            for node in [node for node in left if failed.intersection(node.needs)]:
                left.remove(node)
                failed.add(node.name)
                print(
                    f"[{node.name}] not started: it needs {', '.join(sorted(failed.intersection(node.needs)))}",
                    flush=True,
                )
            ready = next((node for node in left if done.issuperset(node.needs)), None)
            if ready is not None:
                left.remove(ready)
                if not ready.is_run:
                    (done if _make(ready, plan, opened, out) else failed).add(ready.name)
                elif state(ready) == "done":
                    print(f"[{ready.name}] already done", flush=True)
                    done.add(ready.name)
                else:
                    running[pool.submit(_launch, ready, out, slots, devices, children)] = ready
            elif running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    node = running.pop(future)
                    (done if future.result() else failed).add(node.name)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(children):
            child.terminate()
        raise
    pool.shutdown()
    return [node.name for node in plan.nodes if node.name in failed]


def _make(node: Node, plan: Plan, cache: Cache, out: Path) -> bool:
    runs = [plan[name].output for name in node.needs if plan[name].is_run]
    try:
        made = make.TABLES[node.name](out, cache, runs)
    except CspineError as error:
        print(f"[{node.name}] failed: {error}", flush=True)
        return False
    print(f"[{node.name}] {'made' if made else 'already made'}: {node.output}", flush=True)
    return True


def _launch(
    node: Node, out: Path, slots: "SimpleQueue[int]", devices: list[str], children: set[subprocess.Popen]
) -> bool:
    """One run in a process of its own; its output goes to the terminal under its name and to RUNS/logs."""
    log = out / "logs" / f"{node.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    slot, started = slots.get(), time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    print(f"[{node.name}] started", flush=True)
    last = collections.deque[str](maxlen=LAST_LINES)
    command = [sys.executable, str(RUN_SCRIPT), *node.words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    children.add(child)
    try:
        with log.open("w", buffering=1) as file:
            for line in child.stdout:
                file.write(line)
                last.append(line.rstrip())
        status = child.wait()
    finally:
        children.discard(child)
        slots.put(slot)
    seconds = time.monotonic() - started
    if status == 0:
        print(
            f"[{node.name}] done in {seconds:.0f} s"
            + "".join(f"\n    {line}" for line in last if line.startswith("score")),
            flush=True,
        )
        return True
    print(f"[{node.name}] failed after {seconds:.0f} s with status {status}; the end of {log}:", flush=True)
    for line in last:
        print(f"    {line}", flush=True)
    return False


def gpus() -> list[str]:
    """This process's GPUs, counted by the driver's device files so that the plan itself need not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def describe(plan: Plan) -> str:
    """dry_run=true: every node with its state and command."""
    lines = []
    for node in plan.nodes:
        what = state(node) if node.is_run else "table"
        command = f"python trainer/run.py {' '.join(node.words)}" if node.is_run else f"-> {node.output}"
        lines.append(f"{what:6} {node.name:34} {command}")
    runs = sum(node.is_run for node in plan.nodes)
    return "\n".join([*lines, f"{runs} runs, {len(plan.nodes) - runs} tables"])


def run_plan(plan: Plan, cache: Path, out: Path) -> None:
    """Raises CspineError where something failed; whatever did not depend on it has been made."""
    if failed := execute(plan, cache, out):
        error = CspineError(
            f"{len(failed)} of {len(plan.nodes)} nodes are not done: {', '.join(failed)}",
            do="mend the cause and run the same command",
        )
        error.exit_status = 1
        raise error
