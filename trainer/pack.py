"""`trainer pack RUNS out=FILE.cspine`: the models of a plan in one file, to carry to another machine."""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import sys
from pathlib import Path

from trainer.process.command import say, serve, split_words
from trainer.process.ending import leave
from trainer.settings.keyvalue import require_known
from trainer.settings.paths import check_folder, refuse_folders
from trainer.settings.stage_registry import stage_names
from trainer.trained.models import USED

HELP = """usage: trainer pack RUNS out=FILE.cspine [stages=NAMES] [variants=NAMES] [folds=NUMBERS] [seeds=NUMBERS]

Packs the finished runs under RUNS, the out= of a plan, into one file: weights, settings, thresholds of boxes, calibration, and
a model card (README.md in the file, which is a zip). It names no path, host or user; the studies seen in training are salted
hashes. Made again from the same runs it is the same file, byte for byte. `trainer inspect FILE.cspine` shows and checks it.
stages=   by default those that prediction uses: bbox,slice_fracture,study_fracture
variants=, folds=, seeds=   comma-separated, to choose among the runs: folds=0,1 or folds=all
Stale runs are left out and named. models=FILE.cspine works wherever models=RUNS does.
Exit status: 0 done, 1 something is damaged, 2 a wrong setting or nothing to pack."""

CHOICES = {"variants": "variant", "folds": "fold", "seeds": "seed"}


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted")


def _main(words: list[str]) -> None:
    place, given = split_words(words, "RUNS", ("out", "stages", *CHOICES), ("out",))
    runs, out = Path(place), Path(given["out"])
    refuse_folders([out])
    check_folder(out.parent)
    stages = given["stages"].split(",") if "stages" in given else list(USED)
    for stage in stages:
        require_known(stage, stage_names(), f"no stage {stage}")
    choose = {part: given[key].split(",") for key, part in CHOICES.items() if key in given}

    from trainer.trained.of_runs import models_of_runs
    from trainer.trained.pack_content import write_pack

    models = models_of_runs(runs, stages, choose)
    for line in models.notes:
        say(line)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_pack(models, out)
    counts = ", ".join(f"{len(each)} {stage}" for stage, each in models.by_stage.items())
    say(f"{counts} models, {out.stat().st_size / 1e6:.1f} MB: {out}")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
