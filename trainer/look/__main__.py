"""`python -m trainer.look`: contact sheets of what a model is shown, or figures of the tables that runs made."""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import sys
from pathlib import Path

from cache_schema import Cache
from cache_schema.errors import UsageError
from trainer.process.command import one_of, say, serve
from trainer.process.ending import leave
from trainer.runs.run_names import run_name
from trainer.settings.keyvalue import flat, nearest, parse_assignments, whole
from trainer.settings.layers import load
from trainer.settings.paths import check_folder
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_names

HELP = f"""usage: python -m trainer.look stage={"|".join(stage_names())} [variant=NAME] cache=CACHE out=FOLDER
           [boxes=TABLE|cache] [pseudo=TABLE] [fold=0|all] [seed=1] [config=FILE] [section.key=value ...]
           [draw=train|still] [epoch=0] [items=12] [slices=6] [tile=256]
       python -m trainer.look tables=RUNS [cache=CACHE] [out=FOLDER] [items=12] [report=true] [walk=ID]

With stage=: contact sheets (PNG) of what that stage's model is shown under these settings, out of the training loader: the first
items of an epoch, in training's order and with its augmentation, boxes and targets drawn in.
  draw=still     the same items without augmentation
  mode=predict   a sample of what is predicted on (split=held_out|all), never augmented; another for each epoch=
  epoch, items   which epoch; how many items
  slices         images in the row of a window or study: middle slices of triplets, evenly spaced
  tile           side of an image on the sheet, in pixels
A backbone is not needed: it shapes no image.

With tables=: figures (PNG) of the tables under RUNS, into RUNS/look unless out= is given: ratio and fracture curves over z and, with
cache=, boxes on slices, of `items` studies; the histogram of the kept z-range; reliability and ROC of the study models; learning curves
of all runs.
  report=true    also report.html: these figures and the scores in one file and, with cache=, held-out studies, worst first
  walk=ID        also walk-ID.webp, with cache=: all slices of a study one after the other, with its box, ratios and fractures

Exit status: 0 drawn, 1 a check failed, 2 a wrong setting or nothing to draw."""

OWN = ("draw", "epoch", "items", "slices", "tile")


def main(words: list[str]) -> int:
    return serve(words, HELP, _look, "interrupted")


def _look(words: list[str]) -> None:
    given = flat(parse_assignments(words))
    out, made = (_tables if "tables" in given else _sheets)(given)
    say(f"{', '.join(made)} in {out}")


def _sheets(given: dict[str, str]) -> tuple[Path, list[str]]:
    names = (*Settings.model_fields, *OWN, "config", "micro_batch")
    for key in given:
        if key.partition(".")[0] not in names:
            raise UsageError(f"no setting {key}", do=nearest(key, names))
    if "out" not in given:
        raise UsageError("no out given", expected="out=FOLDER", do="see --help")
    own = {key: given.pop(key) for key in OWN if key in given}
    settings = load(f"{key}={value}" for key, value in ({"backbone": "."} | given).items())
    predicting = settings.mode == "predict"
    draw = one_of(own, "draw", ("still",) if predicting else ("train", "still"))
    count, slices = _whole(own, "items", 12), _whole(own, "slices", 6, least=3, most=1000)
    epoch, tile = _whole(own, "epoch", 0, least=0, most=100_000), _whole(own, "tile", 256, least=128, most=2048)

    from trainer.look.page import save
    from trainer.look.sheets import sheets
    from trainer.look.shown import shown

    items = shown(settings, epoch=epoch, count=count, still=draw == "still")
    name = "predict" if predicting else f"epoch{epoch}-{draw}"
    held = f"fold={settings.fold}, seed={settings.seed}, {settings.data.size} px"
    what = f"items of prediction (split={settings.split})" if predicting else f"training items of epoch {epoch}"
    how = "augmented" if draw == "train" else "not augmented"
    heading = f"{settings.stage} {settings.variant}: {what}, {how}; {held}"
    pages = sheets(items, settings, heading=heading, tile=tile, slices=slices)
    return settings.out, save(settings.out, f"{settings.stage}-{settings.variant}-{name}", pages)


def _tables(given: dict[str, str]) -> tuple[Path, list[str]]:
    names = ("tables", "cache", "out", "items", "report", "walk")
    for key in given:
        if key not in names:
            raise UsageError(f"tables= takes no {key}", do=nearest(key, names))
    runs = Path(given["tables"])
    if not runs.is_dir():
        raise UsageError("no such folder", where=f"tables={runs}", expected="the out= of runs")
    cache = Cache(given["cache"]) if "cache" in given else None
    report, walk = one_of(given, "report", ("false", "true")) == "true", given.get("walk")
    if walk is not None and cache is None:
        raise UsageError("walk= needs the study's slices", do="add cache=CACHE")
    if walk is not None and cache is not None and walk not in cache.ids:
        raise UsageError(f"no study {walk}", where=cache.path)
    out = Path(given.get("out", runs / "look"))
    check_folder(out)
    if cache is not None:
        _say_stale(runs, cache)

    from trainer.look.figures import figures
    from trainer.look.page import save

    made = []
    for name, pages in figures(runs, cache, _whole(given, "items", 12)):
        made += save(out, name, pages)
    if report and made:
        from trainer.look.run_report import write_run_report

        made.append(write_run_report(out, runs, cache, made))
    if walk is not None and cache is not None:
        from trainer.look.figures import all_tables
        from trainer.look.walk import write_walk

        out.mkdir(parents=True, exist_ok=True)
        made.append(write_walk(out, cache.study(walk), all_tables(runs)))
    if not made:
        raise UsageError("no table and no training to draw", where=runs)
    return out, made


def _say_stale(runs: Path, cache: Cache) -> None:
    """Runs of other studies, or of another cache: their boxes and curves are drawn on this one all the same."""
    from trainer.runs.held_out import held_out_runs
    from trainer.tables.finished import FinishedRuns

    finished = FinishedRuns(runs, cache)
    for found in map(finished.judged, held_out_runs(runs)):
        if found.why:
            say(f"{run_name(found.run_dir)}: stale, drawn all the same: {found.why}", sys.stderr)


def _whole(given: dict[str, str], key: str, default: int, least: int = 1, most: int = 10_000) -> int:
    return whole(given.get(key, str(default)), key, least, most)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
