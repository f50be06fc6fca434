"""The models of a plan's finished runs."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cache_schema.errors import UsageError
from cache_schema.tables import read_table, table_meta
from trainer.answers.anatomy import LevelsFound
from trainer.leakage import exposure, lineage
from trainer.runs.file_names import CONFIG_FILE, MODEL_FILE, PREDICTIONS
from trainer.runs.identity import recorded_config, weights_config
from trainer.runs.recorded import changed_since
from trainer.runs.run_names import RunName, run_name
from trainer.runs.weights import require_whole, weights_digest
from trainer.scores.calibration import Calibration
from trainer.tables.calibration import FILE as CALIBRATION
from trainer.tables.make import made_with
from trainer.trained.models import (
    BOXES,
    SLICES,
    STUDIES,
    USED,
    Models,
    TrainedModel,
    check_models,
    leave_out_order,
    priors_of,
)

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "make them again with trainer.plan"
TABLE = "study_boxes.parquet"
NEEDED = (BOXES, STUDIES)
"""stages without which there is no answer"""


def models_of_runs(
    runs: Path,
    stages: Collection[str] = USED,
    choose: Mapping[str, Collection[str]] | None = None,
    *,
    of_folds: bool = False,
) -> Models:
    """The finished runs of these stages under RUNS, of bbox those with fold=all if there are any (reference 9).

    Stale runs are left out, and named in `notes`. choose: `variant`, `fold` or `seed` -> the values to use. of_folds: only runs
    that hold a fold out. Raises UsageError if a stage other than slice_fracture has no run left.
    """
    notes: list[str] = []
    by_stage = {stage: _of_stage(runs, stage, notes, choose or {}, of_folds) for stage in stages}
    every = [model for models in by_stage.values() for model in models]
    if not (runs / "tables" / TABLE).is_file():
        notes.append(f"{runs} has no tables/{TABLE}, which records the thresholds of boxes: using the defaults")
    pixel_hash = check_models(every)
    for model in every:
        require_whole(model.where / MODEL_FILE)
    calibration = _calibration(runs / "tables", notes)
    return Models(
        runs,
        {stage: models for stage, models in by_stage.items() if models},
        made_with(runs),
        pixel_hash,
        calibration,
        LevelsFound.of(
            read_table(path) for model in by_stage.get(SLICES, ()) if (path := model.where / PREDICTIONS).is_file()
        ),
        notes=tuple(notes),
        leave_out=tuple(leave_out_order(by_stage)),
        priors=priors_of(calibration),
    )


def finished_runs(models: Path, stage: str, *, needed: bool = True) -> list[Path]:
    """Folders of the stage's finished runs under MODELS. Raises UsageError if there are none and they are needed."""
    if not models.is_dir():
        raise UsageError("no such folder", where=f"models={models}", expected="the out= of a plan, or a packed file")
    pattern = f"{stage}-*/fold*-seed*/{MODEL_FILE}"
    found = sorted(path.parent for path in models.glob(pattern))
    if needed and not found:
        raise UsageError(f"no finished {stage} run", where=f"models={models}", expected=pattern)
    return found


def of_all_data(runs: list[Path]) -> list[Path]:
    """The runs with fold=all, if there are any: the reference's boxes of new studies come from those (its 9)."""
    return [run for run in runs if run.name.startswith("foldall-")] or runs


def _of_stage(
    runs: Path, stage: str, notes: list[str], choose: Mapping[str, Collection[str]], of_folds: bool
) -> tuple[TrainedModel, ...]:
    found = finished_runs(runs, stage, needed=stage in NEEDED)
    found = [run for run in found if all(getattr(RunName.of(run), part) in own for part, own in choose.items())]
    if of_folds:
        found = [run for run in found if RunName.of(run).fold != "all"]
    elif stage == BOXES:
        found = of_all_data(found)
    if not found and stage in NEEDED:
        raise UsageError(f"no {stage} run is chosen", where=f"models={runs}", do="choose others")
    fit, why = [], ""
    for run in found:
        if names := changed_since(run, runs):
            why = f"made from other {' and '.join(names)} than {runs} holds now"
            notes.append(f"{run_name(run)}: stale, left out: {why}")
        else:
            fit.append(run)
    if not fit and stage in NEEDED:
        what = f"all {len(found)} runs like {run_name(found[0])} are stale: {why}"
        raise UsageError(what, where=f"models={runs}", do=AGAIN)
    models = tuple(map(trained_model, fit))
    own: dict[Path, TrainedModel] = {}
    for model in models:
        settings = model.settings({}, gpu=True)
        if (twin := own.setdefault(settings.run_dir, model)) is not model:
            line = f"has the same settings as {twin.where}: {run_name(settings.run_dir)}"
            raise UsageError(line, where=model.where, do="move one of them out of models=")
    return models


def trained_model(run: Path) -> TrainedModel:
    """A finished run's weights. Raises UsageError for weights of another version, Damaged for invalid ones."""
    metadata, _ = weights_config(run)  # first: it names weights of an older version, whose other files are older, too
    config = recorded_config(run)
    if config is None:
        raise UsageError("no settings with its weights", where=run, expected=CONFIG_FILE)
    path = run / MODEL_FILE
    return TrainedModel(
        run_name(run),
        config,
        metadata,
        weights_digest(path),
        path.stat().st_size,
        partial(_tensors, path),
        run,
        partial(_seen, run),
    )


def _calibration(tables: Path, notes: list[str]) -> Calibration | None:
    """None if there is none, or if it is not of the predictions that lie beside it. Raises CacheError if it is damaged."""
    path, predictions = tables / CALIBRATION, tables / "study_predictions.parquet"
    if not path.is_file():
        return None
    found = Calibration.read(path)
    if predictions.is_file() and table_meta(predictions)["digest"] == found.inputs["study_predictions"]:
        return found
    notes.append(f"{path}: stale, left out: made from other study_predictions")
    return None


def _tensors(path: Path) -> "dict[str, Tensor]":
    from trainer.runs.checkpoint import read_tensors

    return read_tensors(path)


def _seen(run: Path, ids: Collection[str]) -> dict[str, set[str]]:
    seen = exposure.kept(run)
    asked = set(ids)
    return {kind: asked & lineage.seen_by_weights(seen, kind) for kind in (lineage.LABEL, lineage.SEGMENTATION)}
