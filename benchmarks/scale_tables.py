"""The reference's 83 runs over 2,019 studies and 711,601 slices: exposure, tables, items and their order, each in a fresh process.

Cache and runs are made up (benchmarks.made_up_runs): nothing is decoded or trained. Stages 3 and 4 of the reference hold nothing
out, so that their runs over five folds of configs/plan/oof.yaml are added: without them there would be nothing to score.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from benchmarks.rounds import machine, print_and_keep, table
from cache_schema import Cache
from cache_schema.tables import table_meta
from trainer.plan.graph import Plan, read_plan
from trainer.settings.stage_registry import CONFIGS, stage_class, stage_names

STUDIES, SLICES = 2019, 711_601
HEAD = ("what", "of", "seconds", "aim", "CPU", "peak MB", "aim")
AIMS = {"exposure": (10, 500), "tables": (120, 2000)}
"""seconds, MB"""


def write_plan(path: Path) -> None:
    """rsna22, and the runs of oof that its stages 3 and 4 lack."""
    rows = yaml.safe_load((CONFIGS / "plan/rsna22.yaml").read_text())["runs"]
    held_out = yaml.safe_load((CONFIGS / "plan/oof.yaml").read_text())["runs"]
    rows += [row for row in held_out if row["stage"] in ("slice_fracture", "study_fracture")]
    path.write_text(yaml.safe_dump({"runs": rows}))


def plan_of(folder: Path) -> Plan:
    return read_plan(folder / "plan.yaml", folder / "cache", folder / "runs")


def step_setup(folder: Path, studies: int, slices: int) -> dict[str, Any]:
    """Cache, runs and tables."""
    from benchmarks.made_up_runs import labels_of, write_cache, write_runs

    write_plan(folder / "plan.yaml")
    labels, origin = labels_of(studies)
    write_cache(folder / "cache", labels, slices)
    write_runs(plan_of(folder), Cache(folder / "cache"))
    return {"of": f"{len(labels)} studies, {slices} slices, {origin}"}


def step_exposure(folder: Path) -> dict[str, Any]:
    """The exposure of every run and table as it is made, and for each run with held-out studies whether it may be scored."""
    from trainer.leakage import exposure, lineage
    from trainer.runs.identity import model_key
    from trainer.runs.inputs import Inputs
    from trainer.settings.layers import load
    from trainer.tables.recipes import Sources, recipe_of
    from trainer.tables.settings import TableSettings

    plan, cache, asked = plan_of(folder), Cache(folder / "cache"), 0
    for node in plan.nodes:
        if node.is_run:
            settings = load(node.words)
            inputs = Inputs(settings, cache)
            seen = exposure.of_run(settings, inputs)
            exposure.check_scorable(settings, inputs, seen)
            asked += len(inputs.scored_ids())
            exposure.keep(settings, str(model_key(settings.run_dir)), seen)
        elif node.name != "scores":
            run_dirs = tuple(plan[need].output for need in node.needs if plan[need].is_run)
            sources = Sources(folder / "runs", cache, run_dirs, TableSettings())
            seen = recipe_of(node.name).exposure(node.name, sources)
            lineage.keep_for_table(node.output, table_meta(node.output)["digest"], seen)
    files = [path.stat().st_size for path in folder.glob("runs/**/*exposure.parquet")]
    return {"of": f"{len(files)} runs and tables, {sum(files) / 1e6:.3g} MB; {asked} times asked for a study"}


def step_tables(folder: Path) -> dict[str, Any]:
    """All tables, scores and the calibration, by the command `trainer tables`; they must be those of the setup."""
    from trainer.tables.__main__ import main

    tables = sorted(folder.glob("runs/tables/*"))
    digests = {path: table_meta(path)["digest"] for path in tables if path.suffix == ".parquet"}
    for path in tables:
        path.unlink()
    with open(folder / "tables.txt", "w") as said, redirect_stdout(said):
        status = main([str(folder / "runs"), f"cache={folder / 'cache'}"])
    if status or digests != {path: table_meta(path)["digest"] for path in digests}:
        raise SystemExit(f"trainer tables: status {status}, or other tables\n{(folder / 'tables.txt').read_text()}")
    predictions = [path.stat().st_size for path in folder.glob("runs/*/*/predictions.parquet")]
    return {"of": f"{len(predictions)} runs with {sum(predictions) / 1e9:.3g} GB of predictions"}


def step_items(folder: Path, stage: str) -> dict[str, Any]:
    """Lists the training items of the stage's run with most of them and shuffles an epoch."""
    from trainer.data.order import Training
    from trainer.runs.inputs import Inputs
    from trainer.settings.layers import load

    nodes = [node for node in plan_of(folder).runs if node.stage == stage]
    settings = load(nodes[-1].words)
    inputs = Inputs(settings, Cache(folder / "cache"))
    items = stage_class(stage)(settings, inputs).train_items(inputs.train_ids())
    order = Training(items, settings.seed, settings.train.batch, by_block=settings.facts.items == "triplets")
    for k in range(order.steps_per_epoch * order.batch):
        order[k]
    return {"of": f"{nodes[-1].name}: {len(items)} items of {len({item.id for item in items})} studies"}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "setup": step_setup,
    "exposure": step_exposure,
    "tables": step_tables,
    "items": step_items,
}


def in_fresh_process(name: str, folder: Path, *words: object) -> dict[str, Any]:
    """What a step answers, with the seconds from the process's start to its end, its CPU seconds and its peak memory."""
    command = [sys.executable, "-m", "benchmarks.scale_tables", "--step", name, str(folder), *map(str, words)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the step {name} failed")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - started}


def row(what: str, found: dict[str, Any], aims: tuple[float, float] | None = None) -> tuple[str, ...]:
    seconds, memory = ("", "")
    if aims is not None:
        met = ["yes" if found[name] <= aim else "NO" for name, aim in zip(("seconds", "peak_mb"), aims, strict=True)]
        seconds, memory = (f"<= {aim:g} {word}" for aim, word in zip(aims, met, strict=True))
    return (
        what,
        found["of"],
        f"{found['seconds']:.1f}",
        seconds,
        f"{found['cpu']:.1f}",
        f"{found['peak_mb']:.0f}",
        memory,
    )


def report(studies: int, slices: int) -> Iterator[str]:
    yield f"{machine()}\n"
    with tempfile.TemporaryDirectory(prefix="bench-scale-tables-") as temporary:
        folder = Path(temporary)
        rows = [row("made-up cache, runs and tables", in_fresh_process("setup", folder, studies, slices))]
        for name in ("exposure", "tables"):
            rows.append(row(name, in_fresh_process(name, folder), AIMS[name]))
        for stage in stage_names():
            rows.append(row("items of an epoch, listed and shuffled", in_fresh_process("items", folder, stage)))
    yield table("each in a fresh process, its start and imports included", HEAD, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--slices", type=int, default=SLICES, help="of all studies together")
    parser.add_argument("--keep", action="store_true", help="also write the output to benchmarks/results")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step is None:
        print_and_keep(report(given.studies, given.slices), "scale-tables", given.keep)
        return
    name, folder, *words = given.step
    found = STEPS[name](Path(folder), *(int(word) if word.isdecimal() else word for word in words))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(found | {"peak_mb": used.ru_maxrss / 1024, "cpu": used.ru_utime + used.ru_stime}))


if __name__ == "__main__":
    main()
