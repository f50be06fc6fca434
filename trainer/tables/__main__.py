"""`python -m trainer.tables RUNS cache=CACHE [export=rsna22]`: all tables that the finished runs allow, and the scores."""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import sys
from pathlib import Path

from cache_schema.errors import UsageError
from trainer.process.command import one_of, serve, split_words
from trainer.settings.paths import check_folder

HELP = """usage: python -m trainer.tables RUNS cache=CACHE [export=rsna22] [tables.key=value ...]

Makes RUNS/tables from the held-out predictions of the runs under RUNS: study_boxes, vertebra_ratios, pseudo_labels,
study_predictions, submission.csv, calibration.json and scores.json, and prints the scores and the calibration.
export=rsna22 also writes them in the reference's formats, into RUNS/tables/rsna22.
tables.over_seeds=mean|extreme, tables.presence, tables.z_presence, tables.rolling_rows, tables.box_margin: how to make study_boxes
[default: as the existing table was made].
Runs that were made from another cache, other folds or other tables are stale: they are reported and left out.
Exit status: 0 made, 1 a table could not be made without stale runs, or a score was refused, 2 a wrong setting or no finished run."""


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: run the same command to continue")


def _main(words: list[str]) -> None:
    from cache_schema import Cache
    from trainer.tables import export, make
    from trainer.tables.settings import table_settings

    place, given = split_words(words, "RUNS", ("cache", "export", "tables."), needed=("cache",))
    form = one_of(given, "export", export.FORMATS) if "export" in given else None
    thresholds = {key.removeprefix("tables."): value for key, value in given.items() if key.startswith("tables.")}
    out, cache = Path(place), Cache(given["cache"])
    check_folder(out / "tables", "RUNS")
    outcome = make.make_all(out, cache, table_settings(thresholds) if thresholds else None)
    if not outcome.made and not outcome.problems and form is None:
        raise UsageError("no finished run with held-out predictions", where=out, do="train one with fold=<number>")
    if outcome.made:
        print(f"{', '.join(outcome.made)} in {out / 'tables'}")
    if form and outcome.whole:
        files = export.write(out / "tables", cache)
        print(f"{', '.join(file.name for file in files)} in {files[0].parent}")
    if "scores" in outcome.made:
        print(make.summary(out), end="")
    for problem in outcome.problems[:-1]:
        print(f"error: {problem}", file=sys.stderr)
    if outcome.problems:
        raise outcome.problems[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
