"""`python -m trainer.predict source=DICOM_OR_CACHE models=RUNS out=DIR`: fracture probabilities of studies, by trained models.

Study boxes come from the mean of the bbox runs with fold=all, or of all bbox runs if there are none, as in the reference;
probabilities from the mean of all study_fracture runs. Studies need no labels.
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

Writes DIR/predictions.csv: for each study the probability of any fracture (patient_overall) and of one in each of C1..C7;
and the same in the competition's format, DIR/submission.csv.
source=   a folder of DICOM files, which are first decoded into DIR/cache, or a cache. Labels are not needed.
models=   the out= of a plan. Averages its finished study_fracture runs, on boxes of its bbox runs with fold=all or, without those,
          of all its bbox runs. Skips and names stale runs, made from other tables than RUNS holds now.
slices=true also writes DIR/slices.csv, by all slice_fracture runs: for each study and level the slice most likely to show a fracture.
section.key=value changes how predictions are computed: data.loader=plain (no DALI), data.workers=, train.eval_batch=,
          train.precision=no ... All other settings are those of the training.
Run the same command to continue after an interruption.
Not a medical device: for research only.
Exit status: 0 done, 1 something is damaged, 2 a wrong setting or nothing to predict on, 3 some studies of the source were refused."""

FOLDERS = {"source": "source=DICOM_OR_CACHE", "models": "models=RUNS", "out": "out=DIR"}
COMPUTING = {
    "model": ("chunk",),
    "data": ("loader", "workers", "resident", "ram_gb"),
    "train": ("eval_batch", "precision", "threads"),
}
"""settings that the command line may change"""
MACHINE = {"model": ("weights_file",), "data": (*COMPUTING["data"], "on_error"), "train": ("threads",)}
"""settings of the training machine, which a prediction ignores"""
MOST_SHOWN = 20
CACHE, CSV, SUBMISSION, SLICES = "cache", "predictions.csv", "submission.csv", "slices.csv"
AGAIN = "make them again with trainer.plan"
BOXES, PREDICTIONS = "study_boxes.parquet", "study_predictions.parquet"


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: run the same command to continue")


def _main(words: list[str]) -> int:
    given, known = parse_assignments(words), (*FOLDERS, "slices", *COMPUTING)
    for key in given:
        if key not in known:
            raise UsageError(f"no setting {key}", do=nearest(key, known))
    for key, example in FOLDERS.items():
        if not isinstance(given.get(key) or None, str):
            raise UsageError(f"no {key} given", expected=example, do="see --help")
    source, models, out = (Path(given.pop(key)) for key in FOLDERS)
    slices = one_of(given, "slices", ("false", "true")) == "true"
    given.pop("slices", None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("prediction runs in one process", do="start it without a launcher")
    check_keys(given)
    for section, values in given.items():
        for name in values:
            if name not in COMPUTING[section]:
                names = ", ".join(f"{key}.{each}" for key, names in COMPUTING.items() for each in names)
                raise UsageError(f"{section}.{name} is fixed by the training", expected=f"one of {names}")
    table, status = predict_studies(source, models, out, given, slices=slices)
    shown = table[["id", *TARGETS]].head(MOST_SHOWN)
    say(shown.to_string(index=False, float_format="{:.3f}".format))
    say(f"{len(table)} studies{f' (the first {MOST_SHOWN} above)' * (len(table) > MOST_SHOWN)}: {out / CSV}")
    return status


def predict_studies(
    source: Path, models: Path, out: Path, given: Mapping[str, Any], *, slices: bool = False
) -> tuple[pd.DataFrame, int]:
    """Predicts every study in the source. Returns the `study_predictions` table, and 3 if studies were refused, else 0.

    Writes the table, its CSV files and the study boxes to OUT; with slices, the suspected slices, too. models: RUNS of a
    plan. given: settings by section, which override those of the training. Skips runs whose predictions are done. Raises
    CspineError; for wrong models and settings before it decodes anything.
    """
    for folder in (out, out / "runs"):
        check_folder(folder)
    if not source.is_dir():
        raise UsageError("no such folder", where=f"source={source}", expected="DICOM files, or a cache")
    is_cache = (source / GROUP).is_file()
    if is_inside(out / CACHE, source) and not is_cache:
        raise UsageError(f"is inside source={source}", where=f"out={out}", expected="a folder outside the source")
    place = source if is_cache else out / CACHE
    pixel_hash = Cache(source).pixel_hash if is_cache else PIXEL_HASH
    used = [of_all_data(finished_runs(models, "bbox")), finished_runs(models, "study_fracture")]
    used += [finished_runs(models, "slice_fracture")] if slices else []
    used = [_not_stale(runs, models) for runs in used]
    box_runs, study_runs, *others = (_settings(runs, place, pixel_hash, out, given) for runs in used)
    slice_runs = others[0] if others else []
    thresholds = _thresholds(models)
    status = 0 if is_cache else _build(source, out)
    _remove_results(out)
    cache = Cache(place)
    if not cache.ids:
        raise UsageError("holds no study", where=source, expected="DICOM files, or a cache of studies")
    say(f"{len(cache.ids)} studies, {len(box_runs)} bbox runs, {len(study_runs)} study_fracture runs")
    _report_seen([*study_runs, *slice_runs], cache.ids)

    studies = cache.index[["id", "rows", "columns", "slices"]]
    found = _predictions(box_runs, cache)
    boxes = study_boxes(list(found.values()), studies, **dict(thresholds))
    write_table(out / BOXES, boxes, "trainer.predict", _digests(found))
    if lines := report(boxes):
        say(lines)
    found = _predictions(study_runs, cache)
    folds = pd.DataFrame({"id": studies["id"], "fold": pd.NA})
    table = study_predictions(list(found.values()), folds if cache.labels is None else cache.labels)
    write_table(out / PREDICTIONS, table, "trainer.predict", _digests(found))
    write_whole(out / CSV, table[["id", *TARGETS]].to_csv(index=False, float_format="%.4f").encode())
    write_whole(out / SUBMISSION, submission(table).to_csv(index=False).encode())
    if slice_runs:
        where = suspected_slices(list(_predictions(slice_runs, cache).values()))
        numbers = {id: cache.study(id).slice_number for id in cache.ids}
        where.insert(2, "slice_number", [numbers[id][z] for id, z in zip(where["id"], where["z_index"], strict=True)])
        write_whole(out / SLICES, where.to_csv(index=False, float_format="%.4f").encode())
    return table, status


def finished_runs(models: Path, stage: str) -> list[Path]:
    """Folders of the stage's finished runs under MODELS. Raises UsageError if there are none."""
    if not models.is_dir():
        raise UsageError("no such folder", where=f"models={models}", expected="the out= of a plan")
    pattern = f"{stage}-*/fold*-seed*/{MODEL_FILE}"
    if not (found := sorted(path.parent for path in models.glob(pattern))):
        raise UsageError(f"no finished {stage} run", where=f"models={models}", expected=pattern)
    return found


def of_all_data(runs: list[Path]) -> list[Path]:
    """The runs with fold=all, if there are any: the reference's boxes of new studies come from those (its 9)."""
    return [run for run in runs if run.name.startswith("foldall-")] or runs


def _not_stale(runs: list[Path], models: Path) -> list[Path]:
    """Skips and names runs made from other tables or another backbone than MODELS holds now. Raises UsageError if none is left."""
    changed = {weights: changed_since(weights, models) for weights in runs}
    for weights, names in changed.items():
        if names:
            say(f"{run_name(weights)}: stale, left out: made from other {' and '.join(names)} than {models} holds now")
    fit = [weights for weights, names in changed.items() if not names]
    if not fit:
        raise UsageError(f"all {len(runs)} runs like {run_name(runs[0])} are stale", where=f"models={models}", do=AGAIN)
    return fit


def _settings(runs: list[Path], cache: Path, pixel_hash: str, out: Path, given: Mapping[str, Any]) -> list[Settings]:
    """The settings of each run's prediction. Raises UsageError if weights do not fit, or two runs have the same folder."""
    found: dict[Path, Settings] = {}
    for weights in runs:
        weights_config(weights)  # first: it names weights of an older version, whose other files are older, too
        settings = _settings_of(weights, cache, out, given)
        check_weights(settings, pixel_hash, weights)
        if (twin := found.setdefault(settings.run_dir, settings)) is not settings:
            line = f"has the same settings as {twin.weights}: {run_name(settings.run_dir)}"
            raise UsageError(line, where=weights, do="move one of them out of models=")
    return list(found.values())


def _settings_of(weights: Path, cache: Path, out: Path, given: Mapping[str, Any]) -> Settings:
    """The settings of the training, changed for a prediction on this cache and machine."""
    from trainer.session import on_gpu  # imports torch, which --help does without

    recorded = recorded_config(weights)
    if recorded is None:
        raise UsageError("no settings with its weights", where=weights, expected=CONFIG_FILE)
    values = {name: value for name, value in recorded.items() if name in Settings.model_fields}
    for section, names in MACHINE.items():
        values[section] = {name: value for name, value in values[section].items() if name not in names}
    if not on_gpu():
        values["train"].pop("precision")  # a CPU has its own default
    places = {"cache": cache, "out": out / "runs", "weights": weights, "boxes": out / BOXES}
    others = {"mode": "predict", "split": "all", "tracker": "none", "deterministic": False}
    return validate(merge(values, places, others, {"pseudo": None, "backbone": None}, given))


def _remove_results(out: Path) -> None:
    """Removes the results of an earlier command, which may be of other studies."""
    for name in (CSV, SUBMISSION, PREDICTIONS, SLICES):
        (out / name).unlink(missing_ok=True)


def _build(source: Path, out: Path) -> int:
    """Builds or updates the cache. Returns the build's exit status. Raises UsageError if it has no study."""
    from preprocess.build.build_cache import build_cache

    cache = out / CACHE
    result = build_cache(source, cache, pixels_only=True, prune=True)
    if result.refused:
        say(f"{result.refused} studies were refused: see {cache / REPORT}")
    if not result.studies:
        _remove_results(out)
        raise UsageError("no study can be used", where=source, do=f"see {cache / REPORT}")
    return result.exit_status


def _thresholds(models: Path) -> TableSettings:
    if not (models / "tables" / BOXES).is_file():
        say(f"{models} has no tables/{BOXES}, which records the thresholds of boxes: using the defaults")
    return made_with(models)


def _predictions(runs: list[Settings], cache: Cache) -> dict[Path, pd.DataFrame]:
    """Path -> table of each run's predictions, all from one index."""
    paths = [run(settings, cache) / PREDICTIONS_OF_ALL for settings in runs]
    return {path: read_table(path) for path in paths}


def _report_seen(runs: list[Settings], ids: list[str]) -> None:
    """Names studies that these models were trained on: their probabilities say nothing about the models."""
    weights = [settings.weights for settings in runs if settings.weights]
    seen = set().union(*(exposure.kept(each)["study"] for each in weights)) & set(ids)
    if seen:
        say(f"{len(seen)} of {len(ids)} studies were seen in training by these models, first {min(seen)}")


def _digests(found: Mapping[Path, pd.DataFrame]) -> dict[str, str]:
    return {run_name(path.parent): table_meta(path)["digest"] for path in found}


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
