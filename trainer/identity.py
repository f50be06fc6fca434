"""What makes a run the run it is: one key over the settings that shape its weights and the digests of all it reads.

The same key means the same run: it is done, can be resumed, or is stale. Nothing here imports torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from cache_schema.tables import table_meta

from trainer.config import Settings
from trainer.inputs import Inputs, weights_metadata

VERSIONS = {"bbox": 1, "vertebrae": 1, "slice_fracture": 1, "study_fracture": 1}
"""raised when a stage computes something else from the same inputs"""

OUTSIDE = {"cache", "out", "mode", "boxes", "pseudo", "backbone", "weights", "split", "tracker"}
"""settings that say where things are, or come in by their digests"""
OUTSIDE_DATA = {"loader", "workers", "resident", "ram_gb"}
OUTSIDE_TRAIN = {"checkpoint_minutes", "evaluate_every", "log_every", "eval_batch"}

MODEL_FILE, PREDICTIONS, CONFIG_FILE, CHECKPOINT = (
    "model.safetensors",
    "predictions.parquet",
    "config.yaml",
    "checkpoint",
)


def run_key(settings: Settings, inputs: Inputs) -> str:
    """sha256 hex of the settings and input digests that decide the weights."""
    values = {key: value for key, value in settings.dump().items() if key not in OUTSIDE}
    values["data"] = {key: value for key, value in values["data"].items() if key not in OUTSIDE_DATA}
    values["train"] = {key: value for key, value in values["train"].items() if key not in OUTSIDE_TRAIN}
    text = json.dumps([VERSIONS[settings.stage], values, inputs.digests()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prediction_inputs(settings: Settings, model_key: str) -> dict[str, str]:
    """What a prediction table is made from."""
    return {"run": model_key, "split": settings.split}


def model_key(run_dir: Path) -> str | None:
    path = run_dir / MODEL_FILE
    return weights_metadata(path).get("key") if path.is_file() else None


def is_done(settings: Settings, key: str) -> bool:
    """Whether the run's folder already holds what the settings ask for."""
    run_dir = settings.run_dir
    if model_key(run_dir) != key:
        return False
    predicts_nothing = settings.fold == "all" and settings.split == "held_out"
    path = run_dir / PREDICTIONS
    return predicts_nothing or (path.is_file() and table_meta(path)["inputs"] == prediction_inputs(settings, key))


def recorded_config(run_dir: Path) -> dict[str, Any] | None:
    """config.yaml as the run wrote it, with its `key`; None where there is none."""
    path = run_dir / CONFIG_FILE
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def set_aside(run_dir: Path, key: str) -> Path | None:
    """A folder that holds a run of another key is renamed, not overwritten. Returns where it went."""
    recorded = recorded_config(run_dir)
    if recorded is None or recorded["key"] == key:
        return None
    aside = run_dir.with_name(f".stale-{run_dir.name}-{recorded['key'][:8]}")
    number = 1
    while aside.exists():
        number += 1
        aside = run_dir.with_name(f".stale-{run_dir.name}-{recorded['key'][:8]}-{number}")
    run_dir.rename(aside)
    return aside
