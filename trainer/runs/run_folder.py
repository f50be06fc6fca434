"""Preparing a run's folder: files of another run, and damaged files, are renamed and never overwritten."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cache_schema.documents import write_whole
from cache_schema.errors import CacheError
from cache_schema.tables import table_meta
from trainer.runs.damaged import Damaged, free_name, set_aside
from trainer.runs.file_names import (
    CHECKPOINT,
    CHECKPOINT_NEW,
    CHECKPOINT_OLD,
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
    """Raises UsageError, before anything is computed, if the path of an output file is a folder."""
    refuse_folders(run_dir / name for name in (CONFIG_FILE, MODEL_FILE, EXPOSURE_FILE, *PREDICTION_FILES, METRICS_FILE))


def make_room(run_dir: Path, key: str) -> Iterator[str]:
    """Keeps the files of the run of this key and renames others; yields a message for each renamed path.

    A folder with the settings of another run is renamed as a whole, and so is one without settings that holds the weights,
    checkpoint or predictions of another run.
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
    """Of the readable checkpoints; damaged ones are never restored."""
    for name in (CHECKPOINT, CHECKPOINT_OLD):
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            yield json.loads((run_dir / name / POSITION).read_bytes())["key"]


def _keys_of_predictions(run_dir: Path) -> Iterator[str | None]:
    """None for imported predictions, which do not name a run."""
    for name in PREDICTION_FILES:
        if (path := run_dir / name).is_file():
            with suppress(CacheError):
                yield table_meta(path)["inputs"].get("run")


def write_config_again(run_dir: Path, key: str) -> None:
    """Restores config.yaml from the metadata of the weights."""
    settings = json.loads(weights_metadata(run_dir / MODEL_FILE)["config"])
    write_whole(run_dir / CONFIG_FILE, config_file({"key": key, **settings}))


def remove_checkpoints(run_dir: Path) -> None:
    """Removes the checkpoints of a finished run, which are three times as large as its weights."""
    for name in (CHECKPOINT, CHECKPOINT_OLD, CHECKPOINT_NEW):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def _rename(run_dir: Path, key: str) -> str:
    aside = run_dir.rename(free_name(run_dir.with_name(f".stale-{run_dir.name}-{key[:8]}")))
    return f"{run_dir} held a run of other settings or inputs; it is now {aside}"
