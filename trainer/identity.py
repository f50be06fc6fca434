"""What makes a run the run it is: one key over the settings that shape its weights and the digests of all it trains on.

The same key means the same run: it is done, can be resumed, or is stale. Nothing here imports torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from cache_schema.errors import UsageError
from cache_schema.tables import table_meta
from trainer.config import Settings
from trainer.inputs import MODEL_FILE, Inputs, file_digest, weights_metadata
from trainer.tables.lineage import kept_for_run

VERSIONS = {"bbox": 2, "vertebrae": 2, "slice_fracture": 2, "study_fracture": 2}
"""raised when a stage computes something else from the same inputs"""

OUTSIDE = {"cache", "out", "mode", "boxes", "pseudo", "backbone", "weights", "split", "tracker"}
"""settings that say where things are, or come in by their digests"""
OUTSIDE_SECTIONS = {
    "model": {"weights_file", "chunk"},
    "data": {"loader", "workers", "resident", "ram_gb", "eval_stride"},
    "train": {"autotune", "checkpoint_minutes", "evaluate_every", "log_every", "eval_batch", "threads"},
}
"""settings that change no weight, or by no more than rounding"""
PICTURE = {
    "model": ("name", "positional", "batch_norm", "mask_pool"),
    "data": ("size", "frames", "crop", "interpolation", "intensity"),
}
"""settings that a prediction must share with the training of its weights"""

CONFIG_FILE, CHECKPOINT = "config.yaml", "checkpoint"
PREDICTIONS = "predictions.parquet"
"""of the held-out fold, by the run itself"""
PREDICTIONS_OF_ALL = "predictions-all.parquet"


def run_key(settings: Settings, inputs: Inputs) -> str:
    """sha256 hex of the settings and input digests that decide the weights."""
    text = json.dumps(
        [VERSIONS[settings.stage], identity_settings(settings), inputs.training_digests()], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def identity_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide the weights, with the digest of a backbone's file in the place of its path."""
    values = {name: value for name, value in settings.dump().items() if name not in OUTSIDE}
    for section, outside in OUTSIDE_SECTIONS.items():
        values[section] = {name: value for name, value in values[section].items() if name not in outside}
    if settings.model.batch_norm == "train":
        values["model"]["chunk"] = settings.model.chunk  # a chunk is normalised by its own statistics
    if settings.model.weights_file is not None:
        values["model"]["weights_file"] = file_digest(settings.model.weights_file)
    return values


def predictions_path(settings: Settings) -> Path:
    return settings.run_dir / (PREDICTIONS if settings.split == "held_out" else PREDICTIONS_OF_ALL)


def prediction_inputs(settings: Settings, inputs: Inputs, key: str) -> dict[str, str]:
    """What a prediction table is made from."""
    asked = {"split": settings.split, "fold": str(settings.fold), "precision": settings.train.precision}
    return {"run": key, **asked, **inputs.prediction_digests(), **prediction_settings(settings)}


def prediction_settings(settings: Settings) -> dict[str, str]:
    """Those that decide predictions and no weights."""
    overlapping = settings.stage in ("vertebrae", "slice_fracture")
    return {"eval_stride": str(settings.data.eval_stride)} if overlapping else {}


def run_name(run_dir: Path) -> str:
    """`<stage>-<variant>/fold<k>-seed<s>`, whatever folder RUNS is."""
    return f"{run_dir.parent.name}/{run_dir.name}"


def model_key(run_dir: Path) -> str | None:
    path = run_dir / MODEL_FILE
    return weights_metadata(path).get("key") if path.is_file() else None


def is_done(settings: Settings, inputs: Inputs, key: str) -> bool:
    """Whether the run's folder already holds what the settings ask for."""
    own = settings.mode == "train" or settings.weights in (None, settings.run_dir)
    if (own and model_key(settings.run_dir) != key) or kept_for_run(settings.run_dir, key) is None:
        return False
    predicts_nothing = settings.fold == "all" and settings.split == "held_out"
    path = predictions_path(settings)
    return predicts_nothing or (
        path.is_file() and table_meta(path)["inputs"] == prediction_inputs(settings, inputs, key)
    )


def check_weights(settings: Settings, pixel_hash: str, run: Path, *, stage: str) -> str:
    """The key of a finished run that fits: of this stage and these pictures, these pixels (of a cache), and this fold.

    Raises UsageError naming what differs. Another fold's weights have seen what this fold holds out.
    """
    metadata = weights_metadata(run / MODEL_FILE)
    if "key" not in metadata:
        raise UsageError("holds weights of another program", where=run, expected="a run of this trainer")
    config = json.loads(metadata["config"])
    own = settings.dump()
    pairs = [("stage", config["stage"], stage), ("variant", config["variant"], settings.variant)]
    if settings.split == "held_out":
        pairs.append(("fold", metadata["fold"], str(settings.fold)))
    pairs += [
        (f"model.{n}", config["model"][n], own["model"][n])
        for n in PICTURE["model"]
        if stage == settings.stage or n == "name"
    ]
    pairs += [(f"data.{n}", config["data"][n], own["data"][n]) for n in PICTURE["data"] if stage == settings.stage]
    pairs.append(("pixel_hash", metadata["pixel_hash"], pixel_hash))
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise UsageError(
                f"was trained with {name}={theirs}", where=run, expected=f"{name}={ours}", do="give the run that fits"
            )
    return metadata["key"]


def recorded_config(run_dir: Path) -> dict[str, Any] | None:
    """config.yaml as the run wrote it, with its `key`; None where there is none."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict) or "key" not in config:
        raise UsageError("is not what a run wrote", where=path, do="move the run's folder away")
    return config


def set_aside(run_dir: Path, key: str) -> Path | None:
    """A folder that holds a run of another key is renamed, not overwritten. Returns where it went."""
    recorded = recorded_config(run_dir)
    if recorded is None or recorded["key"] == key:
        return None
    name, number = f".stale-{run_dir.name}-{recorded['key'][:8]}", 1
    while run_dir.with_name(name if number == 1 else f"{name}-{number}").exists():
        number += 1
    return run_dir.rename(run_dir.with_name(name if number == 1 else f"{name}-{number}"))
