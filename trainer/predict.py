"""`python -m trainer.predict source=DICOM_OR_CACHE models=RUNS out=DIR`: the fracture probabilities of scans, by trained models.

Boxes by every bbox run, averaged; on them every study_fracture run, averaged: the path of a plan's tables, over studies
that may have no labels.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cache_schema import TARGETS, Cache
from cache_schema.documents import write_whole
from cache_schema.errors import UsageError
from cache_schema.layout import GROUP
from cache_schema.tables import read_table, table_meta, write_table
from trainer import exposure
from trainer.command import say, serve
from trainer.config import Settings, check_folder, check_keys, validate
from trainer.identity import CONFIG_FILE, PREDICTIONS_OF_ALL, recorded_config, run_name
from trainer.inputs import MODEL_FILE
from trainer.run import run
from trainer.tables.boxes import report, study_boxes
from trainer.tables.make import made_with
from trainer.tables.studies import study_predictions
from trainer.words import merge, nearest, parse_assignments

HELP = """usage: python -m trainer.predict source=DICOM_OR_CACHE models=RUNS out=DIR [section.key=value ...]

Writes DIR/predictions.csv: for each study the probability of a fracture (patient_overall) and of one in each of C1..C7.
source=   a folder of DICOM files, decoded into DIR/cache first, or a cache. Labels are not needed.
models=   what a plan made: all finished bbox and study_fracture runs under it are used, and their probabilities averaged.
section.key=value says how it is computed: data.loader=plain without DALI, data.workers=, train.eval_batch=, train.precision=no ...
The same command again goes on where it was stopped. Another source wants another DIR.
Not a medical device: for research only.
Exit status: 0 done, 1 something is damaged, 2 a wrong setting or nothing to predict on, 3 some studies of the source were refused."""

PLACES = {"source": "source=DICOM_OR_CACHE", "models": "models=RUNS", "out": "out=DIR"}
SECTIONS = ("model", "data", "train")
COMPUTING = {
    "model": ("weights_file",),
    "data": ("loader", "workers", "resident", "ram_gb", "on_error"),
    "train": ("precision", "threads"),
}
"""settings of the machine that trained, which another one does not take over"""
MOST_SHOWN = 20
CSV, BOXES, PREDICTIONS = "predictions.csv", "study_boxes.parquet", "study_predictions.parquet"


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: the same command goes on")


def _main(words: list[str]) -> int:
    given = parse_assignments(words)
    for key in given:
        if key not in (*PLACES, *SECTIONS):
            raise UsageError(f"no setting {key}", do=nearest(key, (*PLACES, *SECTIONS)))
    for key, expected in PLACES.items():
        if not given.get(key):
            raise UsageError(f"no {key} given", expected=expected, do="see --help")
    source, models, out = (Path(given.pop(key)) for key in PLACES)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("predicts in one process", do="start it without a launcher")
    check_keys(given)
    check_folder(out)
    if not source.is_dir():
        raise UsageError("no such folder", where=f"source={source}", expected="DICOM files, or a cache")
    finished_runs(models)  # before anything is decoded
    cache, status = cache_of(source, out)
    if not cache.ids:
        raise UsageError("holds no study", where=source, expected="DICOM files, or a cache of studies")
    table = predict_studies(cache, models, out, given)
    shown = table[["id", *TARGETS]].head(MOST_SHOWN)
    say(shown.to_string(index=False, float_format="{:.3f}".format))
    say(f"{len(table)} studies{', the first of them above' * (len(table) > MOST_SHOWN)}: {out / CSV}")
    return status


def cache_of(source: Path, out: Path) -> tuple[Cache, int]:
    """The source itself where it is a cache, else OUT/cache, built or brought up to date; and the build's exit status."""
    if (source / GROUP).is_file():
        return Cache(source), 0
    from preprocess.build import build_cache

    result = build_cache(source, out / "cache")
    refused = f", {result.refused} refused: see {out / 'cache/report.csv'}" if result.refused else ""
    say(f"{out / 'cache'}: {result.studies} studies{refused}")
    if not result.studies:
        raise UsageError("no study can be used", where=source, do=f"see {out / 'cache/report.csv'}")
    return Cache(out / "cache"), result.exit_status


def finished_runs(models: Path) -> dict[str, list[Path]]:
    """Folders of the finished runs under MODELS by stage. Raises UsageError where a stage has none."""
    if not models.is_dir():
        raise UsageError("no such folder", where=f"models={models}", expected="the out= of a plan")
    found = {}
    for stage in ("bbox", "study_fracture"):
        found[stage] = sorted(path.parent for path in models.glob(f"{stage}-*/fold*-seed*/{MODEL_FILE}"))
        if not found[stage]:
            raise UsageError(
                f"no finished {stage} run", where=f"models={models}", expected=f"{stage}-*/fold*-seed*/{MODEL_FILE}"
            )
    return found


def predict_studies(cache: Cache, models: Path, out: Path, given: Mapping[str, Any]) -> pd.DataFrame:
    """The `study_predictions` table of every study in the cache, into OUT with the boxes and a CSV of it.

    models: RUNS of a plan. given: settings by section, on top of those that each run was trained with. Runs whose
    predictions are there already are not made again. Raises CspineError.
    """
    runs = finished_runs(models)
    say(", ".join(f"{len(found)} {stage} runs" for stage, found in runs.items()))
    _say_what_was_seen(runs["study_fracture"], cache)
    studies = cache.index[["id", "rows", "columns", "slices"]]
    found = _predictions(runs["bbox"], cache, out, given, None)
    boxes = study_boxes(list(found.values()), studies, **dict(made_with(models)))
    write_table(out / BOXES, boxes, "trainer.predict", _digests(found))
    if lines := report(boxes):
        say(lines)
    found = _predictions(runs["study_fracture"], cache, out, given, out / BOXES)
    folds = pd.DataFrame({"id": studies["id"], "fold": pd.NA})
    table = study_predictions(list(found.values()), folds if cache.labels is None else cache.labels)
    write_table(out / PREDICTIONS, table, "trainer.predict", _digests(found))
    write_whole(out / CSV, table[["id", *TARGETS]].to_csv(index=False, float_format="%.4f").encode())
    return table


def _predictions(
    runs: list[Path], cache: Cache, out: Path, given: Mapping[str, Any], boxes: Path | None
) -> dict[Path, pd.DataFrame]:
    """Path of each run's prediction table, and the table."""
    found = {}
    for weights in runs:
        path = run(_settings(weights, cache.path, out, given, boxes)) / PREDICTIONS_OF_ALL
        found[path] = read_table(path)
    return found


def _settings(weights: Path, cache: Path, out: Path, given: Mapping[str, Any], boxes: Path | None) -> Settings:
    """Those that the run was trained with, as of a prediction on this cache and this machine."""
    recorded = recorded_config(weights)
    if recorded is None:
        raise UsageError("no settings beside its weights", where=weights, expected=CONFIG_FILE)
    values = {name: value for name, value in recorded.items() if name in Settings.model_fields}
    for section, names in COMPUTING.items():
        values[section] = {name: value for name, value in values[section].items() if name not in names}
    here = {"cache": cache, "out": out / "runs", "mode": "predict", "split": "all", "weights": weights}
    none = {"boxes": boxes, "pseudo": None, "backbone": None, "tracker": "none", "deterministic": False}
    return validate(merge(values, here, none, given))


def _say_what_was_seen(runs: list[Path], cache: Cache) -> None:
    """Probabilities of studies that a model learned from say nothing about the model."""
    seen = set().union(*(exposure.kept(weights)["study"] for weights in runs)) & set(cache.ids)
    if seen:
        say(f"{len(seen)} of {len(cache.ids)} studies were seen in training by these models, first {min(seen)}")


def _digests(found: Mapping[Path, pd.DataFrame]) -> dict[str, str]:
    return {run_name(path.parent): table_meta(path)["digest"] for path in found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
