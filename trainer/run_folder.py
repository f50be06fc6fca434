"""A run's folder before the run goes on in it: what is another's, or damaged, is set aside with a line and never overwritten."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from cache_schema.documents import write_whole
from trainer.damaged import Damaged, free_name, set_aside
from trainer.identity import CHECKPOINT, CONFIG_FILE, config_file, model_key, recorded_config
from trainer.weights import MODEL_FILE, require_whole, weights_metadata


def make_room(run_dir: Path, key: str) -> Iterator[str]:
    """Leaves what the run of this key goes on from, its settings and weights; a line for each thing that was renamed.

    A folder with another run's settings, or without settings and with another's weights, is renamed as a whole.
    """
    try:
        recorded = recorded_config(run_dir)
    except Damaged as error:
        recorded = None
        yield f"{error}; it is now {set_aside(run_dir / CONFIG_FILE)}"
    if recorded is not None and recorded["key"] != key:
        yield _rename(run_dir, recorded["key"])
        return
    path = run_dir / MODEL_FILE
    if path.is_file():
        try:
            require_whole(path)
            held = model_key(run_dir)
        except Damaged as error:
            yield f"{error}; it is now {set_aside(path)}"
        else:
            if held != key:
                yield _rename(run_dir, held or "unknown")


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
