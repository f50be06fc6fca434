"""`python -m trainer.plan PLAN.yaml cache=CACHE out=RUNS [dry_run=true] [scheduler=tcp://HOST:PORT] [format=sh|slurm|json] ...`"""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import sys
from pathlib import Path

from trainer.process.command import one_of, serve, split_words
from trainer.settings.keyvalue import require_known, split_files
from trainer.settings.paths import check_folder, refuse_folders
from trainer.settings.settings import Settings

HELP = """usage: python -m trainer.plan PLAN.yaml cache=CACHE out=RUNS [dry_run=true] [scheduler=tcp://HOST:PORT]
           [format=sh|slurm|json] [costs=FILE] [only=NODE] [config=FILE] [tables.key=value ...] [section.key=value ...]

Makes every run and table of the plan and skips those that are done. Several GPUs make several runs at a time.
dry_run=true lists each node's state (done, stale: made from other inputs, due, waits for others), cost and command.
format=     prints the graph as commands instead of running it.
scheduler=  makes the runs on the workers of a Dask cluster that shares these folders. If a plan is interrupted, its started runs
            continue there; the same command waits for them.
costs=      seconds by node name, <stage>-<variant> or stage; longest first [the plan's costs, else configs/costs.yaml].
only=       makes one node whose needs are done. section.key=value goes to every run, tables.key=value to the tables.
Exit status: 0 all made, 1 something failed, 2 a wrong plan or setting."""

OWN = ("cache", "out", "dry_run", "scheduler", "format", "costs", "only")


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: run the same command to continue")


def _main(words: list[str]) -> None:
    from cache_schema import Cache
    from cache_schema.store_path import place_of
    from trainer.leakage.lineage import table_file
    from trainer.plan import formats
    from trainer.plan.costs import read_costs
    from trainer.plan.coverage import require_fed
    from trainer.plan.execute import run_plan
    from trainer.plan.graph import plan_file, read_plan
    from trainer.plan.keys import cache_digests, node_keys, require_possible, require_unchanged, states
    from trainer.plan.pools import LocalPool, open_pool
    from trainer.tables import make

    known = [*OWN, *Settings.model_fields, "config", "micro_batch", "."]
    file, given = split_words(words, "PLAN.yaml", known, needed=("cache", "out"))
    own = {key: given.pop(key) for key in OWN if key in given}
    dry_run = one_of(own, "dry_run", ("false", "true")) == "true"
    style = one_of(own, "format", formats.FORMATS) if "format" in own else None
    scheduler = own.get("scheduler")
    # workers of a cluster start in other folders
    place = Path.absolute if scheduler else Path
    path, out = (place(Path(word)) for word in (plan_file(file), own["out"]))
    cache_path = place_of(own["cache"])
    if isinstance(cache_path, Path):
        cache_path = place(cache_path)
    if "config" in given:
        given["config"] = ",".join(str(place(file)) for file in split_files(given["config"]))
    if "model.weights_file" in given:
        given["model.weights_file"] = str(place(Path(given["model.weights_file"])))
    for name in ("tables", "logs", ".leases"):
        check_folder(out / name)
    plan = read_plan(path, cache_path, out, [f"{key}={value}" for key, value in given.items()])
    refuse_folders(table for node in plan.nodes if not node.is_run for table in (node.output, table_file(node.output)))
    if "only" in own:
        require_known(own["only"], [node.name for node in plan.nodes], f"the plan has no {own['only']}", path)
    costs = read_costs(plan, Path(own["costs"]) if "costs" in own else None)
    cache = Cache(cache_path)

    if "only" not in own and (style or not dry_run):  # another plan may have made what one node needs
        require_fed(plan, cache)
    if style not in ("sh", "slurm"):
        require_unchanged(plan, cache)
    kept = [word for word in words if word.lstrip("-").partition("=")[0] in ("cache", "out", *given)]
    again = ["python", "-m", "trainer.plan", str(path), *kept]
    if style == "sh":
        print(formats.as_shell(plan, again))
    elif style == "slurm":
        print(formats.as_slurm(plan, again))
    elif style == "json":
        _, keys = node_keys(plan, cache_digests(plan, cache))
        print(formats.as_json(plan, costs, states(plan, cache), keys, again))
    elif dry_run:
        pool, found = LocalPool(plan.jobs), states(plan, cache)
        print(formats.listing(plan, costs, found, pool.slots, pool.spreads), flush=True)
        require_fed(plan, cache)
        require_possible(plan, cache, found)
    else:
        run_plan(plan, cache, out, open_pool(scheduler, plan.jobs), costs, own.get("only"))
        if "only" not in own:
            print(make.summary(out), end="")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
