"""Checks, from labels and folds, that a plan's runs of earlier stages give its later ones the tables they need."""

from cache_schema import Cache
from cache_schema.errors import CspineError, UsageError
from trainer.plan.graph import Plan, feeder, name_node
from trainer.runs.inputs import Inputs
from trainer.settings.layers import load
from trainer.settings.settings import Settings

NEW_FOLDS = "draw other folds: preprocess labels CACHE CSV --folds N"


def require_fed(plan: Plan, cache: Cache) -> None:
    """Raises UsageError for the first run without training data, or with missing rows in a table that the plan makes.

    A study's row comes from the runs that hold its fold out.
    """
    every = {node.name: load(node.words, must_exist=False) for node in plan.runs}
    held_out = {table: {every[name].fold for name in plan[feeder].needs} for table, feeder in _feeders(plan).items()}
    for node in plan.runs:
        settings = every[node.name]
        try:
            needed = _folds_needed(settings, Inputs(settings, cache))
        except CspineError as error:
            name_node(error, node)
            raise
        for table in node.needs:
            if table in held_out and (missing := needed[table] - held_out[table]):
                stage = feeder(table)
                shown = ", ".join(map(str, sorted(missing)))
                raise UsageError(
                    f"needs {table} of the studies of fold {shown}, which no {stage} run of the plan holds out",
                    where=node.name,
                    do=f"give the plan's {stage} runs folds: {sorted(missing | held_out[table])}",
                )


def _feeders(plan: Plan) -> dict[str, str]:
    """Table that runs read -> the table that is pooled from predictions to make it."""
    pooled = {"study_boxes": "study_boxes", "pseudo_labels": "vertebra_ratios"}
    return {table: feeder for table, feeder in pooled.items() if any(node.name == table for node in plan.nodes)}


def _folds_needed(settings: Settings, inputs: Inputs) -> dict[str, set[int]]:
    """Table -> the folds of the studies whose rows the run needs."""
    trained = inputs.training_fold_ids()
    if not trained:
        outside = "" if settings.fold == "all" else f" outside fold {settings.fold}"
        if inputs.segmented:
            line, do = f"no study with a segmentation{outside} to train {settings.stage} on", "build the cache with"
            raise UsageError(line, where=inputs.cache.path, do=f"{do} --segmentations DIR, or {NEW_FOLDS}")
        raise UsageError(f"no study with a fold{outside} to train on", where=inputs.cache.path, do=NEW_FOLDS)
    ids = {"study_boxes": inputs.read_ids(), "pseudo_labels": trained}
    return {table: set(inputs.labels.loc[own, "fold"].astype(int)) for table, own in ids.items()}
