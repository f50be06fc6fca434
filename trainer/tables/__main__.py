"""`python -m trainer.tables RUNS cache=CACHE`: every table that the finished runs allow, and the scores."""

import sys
from pathlib import Path

from cache_schema import Cache
from cache_schema.errors import CspineError, UsageError

HELP = """usage: python -m trainer.tables RUNS cache=CACHE

Makes RUNS/tables from the held-out predictions of the runs under RUNS: study_boxes, vertebra_ratios, pseudo_labels,
study_predictions, submission.csv and scores.json, and prints the scores.
Exit status: 0 made, 2 a wrong setting or no finished run."""


def main(words: list[str]) -> int:
    if not words or {"-h", "--help", "help"} & set(words):
        print(HELP)
        return 0 if words else 2
    try:
        _main(words)
    except CspineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _main(words: list[str]) -> None:
    from trainer.tables import make

    places = [word for word in words if "=" not in word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    cache = given.pop("cache", None)
    if len(places) != 1 or cache is None or given:
        raise UsageError("cannot read " + " ".join(words), expected="RUNS cache=CACHE", do="see --help")
    out = Path(places[0])
    made = make.make_all(out, Cache(Path(cache)))
    if not made:
        raise UsageError("no finished run with held-out predictions", where=out)
    print(f"{', '.join(made)} in {out / 'tables'}")
    print(make.summary(out), end="")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
