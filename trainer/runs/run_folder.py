"""A run's folder before the run goes on in it: what is another's, or damaged, is set aside with a line and never overwritten."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cache_schema.documents import write_whole
from cache_schema.errors import CacheError
from cache_schema.tables import table_meta
from trainer.runs.damaged import Damaged, free_name, set_aside
from trainer.runs.files import (
    CHECKPOINT,
    CONFIG_FILE,
    EXPOSURE_FILE,
    METRICS_FILE,
    MODEL_FILE,
    POSITION,
    PREDICTIONS,
    PREDICTIONS_OF_ALL,
)
from trainer.runs.identity import config_file, model_key, recorded_config
from trainer.runs.weights import require_whole, weights_metadata
from trainer.settings.paths import refuse_folders

PREDICTION_FILES = (PREDICTIONS, PREDICTIONS_OF_ALL)


def require_files(run_dir: Path) -> None:
    """Raises UsageError, before anything is computed, where a folder lies in the place of a file that the run writes."""
    refuse_folders(run_dir / name for name in (CONFIG_FILE, MODEL_FILE, EXPOSURE_FILE, *PREDICTION_FILES, METRICS_FILE))


def make_room(run_dir: Path, key: str) -> Iterator[str]:
    """Leaves what the run of this key goes on from; a line for each thing that was renamed.

    A folder with another run's settings is renamed as a whole; so is one without settings that holds another's weights,
    checkpoint or predictions.
    """
    try:
        recorded = recorded_config(run_dir)
    except Damaged as error:
        recorded = None
        yield f"{error}; it is now {set_aside(run_dir / CONFIG_FILE)}"
    if recorded is not None and recorded["key"] != key:
        yield _rename(run_dir, recorded["key"])
        return
    path, held = run_dir / MODEL_FILE, set()
    if path.is_file():
        try:
            require_whole(path)
            held = {model_key(run_dir)}
        except Damaged as error:
            yield f"{error}; it is now {set_aside(path)}"
    if recorded is None and not held:
        held = {*_keys_of_checkpoints(run_dir), *_keys_of_predictions(run_dir)}
    if others := held - {key}:
        yield _rename(run_dir, min(filter(None, others), default="unknown"))


def _keys_of_checkpoints(run_dir: Path) -> Iterator[str | None]:
    """Of those that state one: the rest is damaged, and restored by nobody."""
    for name in (CHECKPOINT, f"{CHECKPOINT}.old"):
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            yield json.loads((run_dir / name / POSITION).read_bytes())["key"]


def _keys_of_predictions(run_dir: Path) -> Iterator[str | None]:
    """None of those that came from elsewhere, and do not say what predicted them."""
    for name in PREDICTION_FILES:
        if (path := run_dir / name).is_file():
            with suppress(CacheError):
                yield table_meta(path)["inputs"].get("run")


def write_config_again(run_dir: Path, key: str) -> None:
    """Where it is gone: the settings that the weights say they were trained with."""
    settings = json.loads(weights_metadata(run_dir / MODEL_FILE)["config"])
    write_whole(run_dir / CONFIG_FILE, config_file({"key": key, **settings}))


def remove_checkpoints(run_dir: Path) -> None:
    """Of a run that is done: they are three times its weights, and nothing goes on from them."""
    for name in (CHECKPOINT, f"{CHECKPOINT}.old", f"{CHECKPOINT}.new"):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def _rename(run_dir: Path, key: str) -> str:
    aside = run_dir.rename(free_name(run_dir.with_name(f".stale-{run_dir.name}-{key[:8]}")))
    return f"{run_dir} held a run of other settings or inputs; it is now {aside}"
