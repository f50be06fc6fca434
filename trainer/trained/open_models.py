"""`models=`: the out= of a plan, or one packed file."""

from pathlib import Path

from cache_schema.errors import UsageError, did_you_mean_path
from trainer.trained.models import Models
from trainer.trained.of_runs import models_of_runs
from trainer.trained.pack_file import models_of_pack


def open_models(path: Path, *, of_folds: bool = False) -> Models:
    """of_folds: of RUNS only models that hold a fold out. Raises CspineError for models that are missing, stale or damaged."""
    if path.is_file():
        return models_of_pack(path)
    if not path.exists():
        do = did_you_mean_path(path.absolute())
        raise UsageError("no such path", where=f"models={path}", expected="the out= of a plan, or a packed file", do=do)
    return models_of_runs(path, of_folds=of_folds)
