"""`python -m trainer.predict source=DICOM_OR_CACHE models=RUNS out=DIR`: the fracture probabilities of scans, by trained models.

Boxes by the bbox runs of all data, averaged, or by every bbox run where there is none of these, as in the reference; on
them every study_fracture run, averaged: the path of a plan's tables, over studies that may have no labels.
"""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.documents import write_whole
from cache_schema.errors import UsageError
from cache_schema.layout import GROUP, PIXEL_HASH, REPORT
from cache_schema.tables import read_table, table_meta, write_table
from trainer.leakage import exposure
from trainer.process.command import one_of, say, serve
from trainer.process.ending import leave
from trainer.run import run
from trainer.runs.files import CONFIG_FILE, MODEL_FILE, PREDICTIONS_OF_ALL
from trainer.runs.identity import check_weights, recorded_config, weights_config
from trainer.runs.recorded import changed_since
from trainer.runs.run_names import run_name
from trainer.settings.keyvalue import merge, nearest, parse_assignments
from trainer.settings.paths import check_folder, is_inside
from trainer.settings.settings import Settings, check_keys, validate
from trainer.tables.boxes import report, study_boxes
from trainer.tables.make import made_with
from trainer.tables.settings import TableSettings
from trainer.tables.studies import study_predictions, submission, suspected_slices

HELP = """usage: python -m trainer.predict source=DICOM_OR_CACHE models=RUNS out=DIR [slices=true] [section.key=value ...]

Writes DIR/predictions.csv: for each study the probability of a fracture (patient_overall) and of one in each of C1..C7;
and the same as DIR/submission.csv, in the competition's form.
source=   a folder of DICOM files, decoded into DIR/cache first, or a cache. Labels are not needed.
models=   what a plan made: its finished study_fracture runs, and its bbox runs of fold=all or, where there is none, all of them;
          what they predict is averaged. Runs made from other tables than lie there now are named and left out.
slices=true says where to look, by all slice_fracture runs: DIR/slices.csv, for each study and level the slice most like a fracture.
section.key=value says how it is computed: data.loader=plain without DALI, data.workers=, train.eval_batch=, train.precision=no ...;
all else is as the models were trained.
The same command again goes on where it was stopped.
Not a medical device: for research only.
Exit status: 0 done, 1 something is damaged, 2 a wrong setting or nothing to predict on, 3 some studies of the source were refused."""

PLACES = {"source": "source=DICOM_OR_CACHE", "models": "models=RUNS", "out": "out=DIR"}
SLICES_ASKED = "slices"
COMPUTING = {
    "model": ("chunk",),
    "data": ("loader", "workers", "resident", "ram_gb"),
    "train": ("eval_batch", "precision", "threads"),
}
"""settings that may be given"""
MACHINE = {"model": ("weights_file",), "data": (*COMPUTING["data"], "on_error"), "train": ("threads",)}
"""those of the machine that trained, which another one does not take over"""
MOST_SHOWN = 20
CACHE, CSV, SUBMISSION, SLICES = "cache", "predictions.csv", "submission.csv", "slices.csv"
AGAIN = "make them again: trainer.plan does it"
BOXES, PREDICTIONS = "study_boxes.parquet", "study_predictions.parquet"


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: the same command goes on")


def _main(words: list[str]) -> int:
    given = parse_assignments(words)
    for key in given:
        if key not in (known := (*PLACES, SLICES_ASKED, *COMPUTING)):
            raise UsageError(f"no setting {key}", do=nearest(key, known))
    for key, expected in PLACES.items():
        if not isinstance(given.get(key) or None, str):
            raise UsageError(f"no {key} given", expected=expected, do="see --help")
    source, models, out = (Path(given.pop(key)) for key in PLACES)
    slices = one_of(given, SLICES_ASKED, ("false", "true")) == "true"
    given.pop(SLICES_ASKED, None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("predicts in one process", do="start it without a launcher")
    check_keys(given)
    for section, values in given.items():
        for name in values:
            if name not in COMPUTING[section]:
                known = ", ".join(f"{key}.{each}" for key, names in COMPUTING.items() for each in names)
                raise UsageError(f"{section}.{name} is what the models were trained with", expected=f"one of {known}")
    table, status = predict_studies(source, models, out, given, slices=slices)
    shown = table[["id", *TARGETS]].head(MOST_SHOWN)
    say(shown.to_string(index=False, float_format="{:.3f}".format))
    say(f"{len(table)} studies{', the first of them above' * (len(table) > MOST_SHOWN)}: {out / CSV}")
    return status


def predict_studies(
    source: Path, models: Path, out: Path, given: Mapping[str, Any], *, slices: bool = False
) -> tuple[pd.DataFrame, int]:
    """The `study_predictions` table of every study in the source, into OUT with the boxes and a CSV of it; and 3 where studies
    of the source were refused, else 0. slices: into OUT, where to look for the fractures, too.

    models: RUNS of a plan. given: settings by section, on top of those that each run was trained with. Runs whose
    predictions are there already are not made again. Raises CspineError, for what is wrong with models and settings
    before anything is decoded.
    """
    for folder in (out, out / "runs"):
        check_folder(folder)
    if not source.is_dir():
        raise UsageError("no such folder", where=f"source={source}", expected="DICOM files, or a cache")
    is_cache = (source / GROUP).is_file()
    if is_inside(out / CACHE, source) and not is_cache:
        raise UsageError(
            f"lies in source={source}", where=f"out={out}", expected="a folder outside, for scans are only read"
        )
    place = source if is_cache else out / CACHE
    pixel_hash = Cache(source).pixel_hash if is_cache else PIXEL_HASH
    used = [of_all_data(finished_runs(models, "bbox")), finished_runs(models, "study_fracture")]
    used += [finished_runs(models, "slice_fracture")] if slices else []
    used = [_still_fitting(runs, models) for runs in used]
    boxers, fracturers, *rest = (_settings(runs, place, pixel_hash, out, given) for runs in used)
    lookers = rest[0] if rest else []
    thresholds = _thresholds(models)
    status = 0 if is_cache else _build(source, out)
    _forget(out)
    cache = Cache(place)
    if not cache.ids:
        raise UsageError("holds no study", where=source, expected="DICOM files, or a cache of studies")
    say(f"{len(cache.ids)} studies, {len(boxers)} bbox runs, {len(fracturers)} study_fracture runs")
    _say_what_was_seen([*fracturers, *lookers], cache.ids)

    studies = cache.index[["id", "rows", "columns", "slices"]]
    found = _predictions(boxers, cache)
    boxes = study_boxes(list(found.values()), studies, **dict(thresholds))
    write_table(out / BOXES, boxes, "trainer.predict", _digests(found))
    if lines := report(boxes):
        say(lines)
    found = _predictions(fracturers, cache)
    folds = pd.DataFrame({"id": studies["id"], "fold": pd.NA})
    table = study_predictions(list(found.values()), folds if cache.labels is None else cache.labels)
    write_table(out / PREDICTIONS, table, "trainer.predict", _digests(found))
    write_whole(out / CSV, table[["id", *TARGETS]].to_csv(index=False, float_format="%.4f").encode())
    write_whole(out / SUBMISSION, submission(table).to_csv(index=False).encode())
    if lookers:
        where = suspected_slices(list(_predictions(lookers, cache).values()))
        numbers = {id: cache.study(id).slice_number for id in cache.ids}
        where.insert(2, "slice_number", [numbers[id][z] for id, z in zip(where["id"], where["z_index"], strict=True)])
        write_whole(out / SLICES, where.to_csv(index=False, float_format="%.4f").encode())
    return table, status


def finished_runs(models: Path, stage: str) -> list[Path]:
    """Folders of the stage's finished runs under MODELS. Raises UsageError where there is none."""
    if not models.is_dir():
        raise UsageError("no such folder", where=f"models={models}", expected="the out= of a plan")
    pattern = f"{stage}-*/fold*-seed*/{MODEL_FILE}"
    if not (found := sorted(path.parent for path in models.glob(pattern))):
        raise UsageError(f"no finished {stage} run", where=f"models={models}", expected=pattern)
    return found


def of_all_data(runs: list[Path]) -> list[Path]:
    """Those that held nothing out, where there are any: the reference's boxes of new studies are theirs (its 9)."""
    return [run for run in runs if run.name.startswith("foldall-")] or runs


def _still_fitting(runs: list[Path], models: Path) -> list[Path]:
    """Without those that were made from other tables or another backbone than lie under MODELS now: each is named.

    Raises UsageError where none is left."""
    changed = {weights: changed_since(weights, models) for weights in runs}
    for weights, names in changed.items():
        if names:
            say(f"{run_name(weights)}: stale, left out: made from other {' and '.join(names)} than {models} holds now")
    fit = [weights for weights, names in changed.items() if not names]
    if not fit:
        raise UsageError(f"all {len(runs)} runs like {run_name(runs[0])} are stale", where=f"models={models}", do=AGAIN)
    return fit


def _settings(runs: list[Path], cache: Path, pixel_hash: str, out: Path, given: Mapping[str, Any]) -> list[Settings]:
    """Of each run's prediction. Raises UsageError where its weights do not fit, or two would write to one place."""
    found: dict[Path, Settings] = {}
    for weights in runs:
        weights_config(weights)  # of an older version its other files are too
        settings = _settings_of(weights, cache, out, given)
        check_weights(settings, pixel_hash, weights)
        if (twin := found.setdefault(settings.run_dir, settings)) is not settings:
            line = f"is the same run as {twin.weights} by its settings: {run_name(settings.run_dir)}"
            raise UsageError(line, where=weights, do="move one of them out of models=")
    return list(found.values())


def _settings_of(weights: Path, cache: Path, out: Path, given: Mapping[str, Any]) -> Settings:
    """Those that the run was trained with, as of a prediction on this cache and this machine."""
    from trainer.session import on_gpu  # torch: not for the sake of --help

    recorded = recorded_config(weights)
    if recorded is None:
        raise UsageError("no settings beside its weights", where=weights, expected=CONFIG_FILE)
    values = {name: value for name, value in recorded.items() if name in Settings.model_fields}
    for section, names in MACHINE.items():
        values[section] = {name: value for name, value in values[section].items() if name not in names}
    if not on_gpu():
        values["train"].pop("precision")  # what a GPU needs for speed a CPU does not
    here = {"cache": cache, "out": out / "runs", "mode": "predict", "split": "all", "weights": weights}
    here["boxes"] = out / BOXES
    none = {"pseudo": None, "backbone": None, "tracker": "none", "deterministic": False}
    return validate(merge(values, here, none, given))


def _forget(out: Path) -> None:
    """What an earlier command has found: it may be of other studies."""
    for name in (CSV, SUBMISSION, PREDICTIONS, SLICES):
        (out / name).unlink(missing_ok=True)


def _build(source: Path, out: Path) -> int:
    """The cache, built or brought up to date. Returns the build's exit status; raises UsageError where no study can be used."""
    from preprocess.build.build_cache import build_cache

    cache = out / CACHE
    result = build_cache(source, cache, pixels_only=True, prune=True)
    if result.refused:
        say(f"{result.refused} studies were refused: see {cache / REPORT}")
    if not result.studies:
        _forget(out)
        raise UsageError("no study can be used", where=source, do=f"see {cache / REPORT}")
    return result.exit_status


def _thresholds(models: Path) -> TableSettings:
    if not (models / "tables" / BOXES).is_file():
        say(f"{models} has no tables/{BOXES}, which says by what thresholds boxes were made: the defaults are taken")
    return made_with(models)


def _predictions(runs: list[Settings], cache: Cache) -> dict[Path, pd.DataFrame]:
    """Path of each run's prediction table, and the table; all of the studies of one index."""
    paths = [run(settings, cache) / PREDICTIONS_OF_ALL for settings in runs]
    return {path: read_table(path) for path in paths}


def _say_what_was_seen(runs: list[Settings], ids: list[str]) -> None:
    """Probabilities of studies that a model learned from say nothing about the model."""
    seen = set().union(*(exposure.kept(settings.weights)["study"] for settings in runs)) & set(ids)
    if seen:
        say(f"{len(seen)} of {len(ids)} studies were seen in training by these models, first {min(seen)}")


def _digests(found: Mapping[Path, pd.DataFrame]) -> dict[str, str]:
    return {run_name(path.parent): table_meta(path)["digest"] for path in found}


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
