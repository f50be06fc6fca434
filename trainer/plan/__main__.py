"""`python -m trainer.plan PLAN.yaml cache=CACHE out=RUNS [dry_run=true] [section.key=value ...]`"""

import sys
from pathlib import Path

from cache_schema.errors import CspineError, UsageError

HELP = """usage: python -m trainer.plan PLAN.yaml cache=CACHE out=RUNS [dry_run=true] [section.key=value ...]

Makes every run and table of the plan in order, several runs at a time where there are several GPUs, and skips what is done.
dry_run=true lists the nodes with their state and command. section.key=value goes to every run.
Exit status: 0 all made, 1 something failed, 2 a wrong plan or setting."""


def main(words: list[str]) -> int:
    if not words or {"-h", "--help", "help"} & set(words):
        print(HELP)
        return 0 if words else 2
    try:
        _main(words)
    except CspineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    return 0


def _main(words: list[str]) -> None:
    from cache_schema import Cache
    from trainer.plan.execute import describe, run_plan
    from trainer.plan.graph import read_plan
    from trainer.tables import make

    plans = [word for word in words if "=" not in word]
    if len(plans) != 1:
        raise UsageError(f"{len(plans)} plans given", expected="one PLAN.yaml", do="see --help")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    own = {key: given.pop(key, None) for key in ("cache", "out", "dry_run")}
    if own["cache"] is None or own["out"] is None:
        raise UsageError(f"no {'cache' if own['cache'] is None else 'out'} given", expected="cache=CACHE out=RUNS")
    cache, out = Path(own["cache"]), Path(own["out"])
    plan = read_plan(Path(plans[0]), cache, out, [f"{key}={value}" for key, value in given.items()])
    Cache(cache)
    dry_run = (own["dry_run"] or "false").lower()
    if dry_run not in ("true", "false"):
        raise UsageError(f"dry_run={dry_run} does not fit", expected="true or false")
    if dry_run == "true":
        print(describe(plan))
        return
    run_plan(plan, cache, out)
    print(make.summary(out), end="")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
