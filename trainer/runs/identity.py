"""A run's identity: a key over the settings and input digests that decide its weights.

A run with the same key is done or can be resumed; one with another key is stale. Does not import torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cache_schema.errors import CacheError, UsageError
from cache_schema.tables import own_meta, read_table
from trainer.process.command import warn_once
from trainer.runs.damaged import Damaged
from trainer.runs.file_names import (
    CONFIG_DIGEST,
    CONFIG_FILE,
    EXPOSURE_FILE,
    MODEL_FILE,
    PREDICTIONS,
    PREDICTIONS_OF_ALL,
)
from trainer.runs.inputs import Inputs
from trainer.runs.run_names import run_name
from trainer.runs.weights import TRAIN_AGAIN, file_digest, require_whole, weights_metadata
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_class

OUTSIDE = {"cache", "out", "mode", "boxes", "pseudo", "backbone", "weights", "split", "tracker"}
"""settings that are paths, or whose content the digests cover"""
OUTSIDE_SECTIONS = {
    "model": {"weights_file", "chunk"},
    "data": {"loader", "workers", "resident", "ram_gb", "store_cache", "store_cache_gb", "eval_stride"},
    "train": {"autotune", "checkpoint_minutes", "evaluate_every", "log_every", "eval_batch", "threads"},
}
"""settings that do not change the weights, or only by rounding"""
INPUT_SETTINGS = {
    "model": ("name", "positional", "batch_norm", "mask_pool"),
    "data": ("size", "frames", "crop", "interpolation", "intensity"),
}
"""settings that must be equal in training and prediction"""


def run_key(settings: Settings, inputs: Inputs) -> str:
    """sha256 hex of the settings and input digests that decide the weights."""
    text = json.dumps([settings.facts.version, identity_settings(settings), inputs.training_digests()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def identity_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide the weights; a weights file is represented by its digest."""
    values = {name: value for name, value in settings.dump().items() if name not in OUTSIDE}
    for section, outside in OUTSIDE_SECTIONS.items():
        values[section] = {name: value for name, value in values[section].items() if name not in outside}
    if settings.model.batch_norm == "train":
        values["model"]["chunk"] = settings.model.chunk  # each chunk is normalised by its own statistics
    if settings.model.weights_file is not None:
        values["model"]["weights_file"] = file_digest(settings.model.weights_file)
    return values


def predictions_path(settings: Settings) -> Path:
    return settings.run_dir / (PREDICTIONS if settings.split == "held_out" else PREDICTIONS_OF_ALL)


def prediction_inputs(settings: Settings, inputs: Inputs, key: str) -> dict[str, str]:
    """The `inputs` of a prediction table."""
    asked = {"split": settings.split, "fold": str(settings.fold), "precision": settings.train.precision}
    return {"run": key, **asked, **inputs.prediction_digests(), **prediction_settings(settings)}


def prediction_settings(settings: Settings) -> dict[str, str]:
    """The settings that decide predictions but not weights."""
    return {"eval_stride": str(settings.data.eval_stride)} if settings.facts.items == "windows" else {}


def model_key(run_dir: Path) -> str | None:
    """The key of the weights in a run's folder; None if there are none. Raises Damaged if they are invalid."""
    path = run_dir / MODEL_FILE
    return weights_metadata(path).get("key") if path.is_file() else None


def is_done(settings: Settings, inputs: Inputs, key: str) -> bool:
    """Whether the run's folder already holds what the settings ask for. Prints a warning if a file is damaged."""
    try:
        return check_done(settings, inputs, key, weights_too=True)
    except CacheError as error:
        warn_once(f"{error}: {run_name(settings.run_dir)} is not done")
        return False


def check_done(settings: Settings, inputs: Inputs, key: str, *, weights_too: bool) -> bool:
    """The same; raises CacheError for the first file that is damaged, or missing although the weights exist.

    weights_too: whether to compare the run's weights with their digest, which takes some time.
    """
    run_dir, own = settings.run_dir, settings.mode == "train" or settings.weights in (None, settings.run_dir)
    if own and model_key(run_dir) != key:
        return False
    if settings.mode == "train" and (recorded_config(run_dir) or {}).get("key") != key:
        raise Damaged("is missing, or belongs to another run", where=run_dir / CONFIG_FILE)
    if own and weights_too:
        require_whole(run_dir / MODEL_FILE)
    if exposure_of(run_dir, key) is None:
        if own:
            raise Damaged("is missing, or belongs to another run", where=run_dir / EXPOSURE_FILE)
        return False
    predicts_nothing = settings.fold == "all" and settings.split == "held_out"
    path = predictions_path(settings)
    return predicts_nothing or (path.is_file() and own_meta(path)["inputs"] == prediction_inputs(settings, inputs, key))


def weights_config(run: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(metadata, settings) of a run's weights. Raises UsageError for weights of another program or of another version of their
    stage, Damaged for invalid ones."""
    path = run / MODEL_FILE
    metadata = weights_metadata(path)
    if "key" not in metadata:
        raise UsageError("holds weights of another program", where=run, expected="a run of this trainer")
    try:
        config = json.loads(metadata["config"])
        stage = config["stage"]
    except (ValueError, KeyError, TypeError):
        raise Damaged("does not hold the settings it was trained with", where=path, do=TRAIN_AGAIN) from None
    if (version := metadata.get("version")) != (now := str(stage_class(stage).version)):
        what = f"was trained by version {version} of {stage}" if version else f"has no version of {stage}"
        raise UsageError(what, where=path, expected=f"version {now}", do=TRAIN_AGAIN)
    return metadata, config


def check_weights(settings: Settings, pixel_hash: str, run: Path, stage: str | None = None) -> str:
    """The key of a finished run whose weights fit the settings. stage: of the weights; by default that of the settings.

    Raises UsageError with the first difference in stage, variant, input settings, pixel_hash or, for held-out predictions,
    fold: weights of another fold were trained on the held-out studies. Raises Damaged if the digest does not match, and
    otherwise as `weights_config`.
    """
    metadata, config = weights_config(run)
    own, stage = settings.dump(), stage or settings.stage
    pairs = [("stage", config["stage"], stage), ("variant", config["variant"], settings.variant)]
    if settings.split == "held_out":
        pairs.append(("fold", metadata["fold"], str(settings.fold)))
    names = INPUT_SETTINGS if stage == settings.stage else {"model": ("name",)}
    pairs += [(f"{key}.{name}", config[key][name], own[key][name]) for key, all in names.items() for name in all]
    pairs.append(("pixel_hash", metadata["pixel_hash"], pixel_hash))
    for name, theirs, ours in pairs:
        if theirs != ours:
            do = "give a run with these settings"
            raise UsageError(f"was trained with {name}={theirs}", where=run, expected=f"{name}={ours}", do=do)
    require_whole(run / MODEL_FILE)
    return metadata["key"]


def config_file(values: dict[str, Any]) -> bytes:
    """The content of config.yaml, whose last line is its digest."""
    return _with_digest(yaml.safe_dump(values, sort_keys=False).encode())


def _with_digest(text: bytes) -> bytes:
    return text + CONFIG_DIGEST + hashlib.sha256(text).hexdigest().encode() + b"\n"


def recorded_config(run_dir: Path) -> dict[str, Any] | None:
    """The values of config.yaml, with the run's `key`; None if there is no such file. Raises Damaged."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        return None
    data = path.read_bytes()
    text = data.rpartition(CONFIG_DIGEST)[0]
    try:
        config = yaml.safe_load(text) if data == _with_digest(text) else None
    except (yaml.YAMLError, ValueError):
        config = None
    if not isinstance(config, dict) or "key" not in config:
        raise Damaged("does not match the digest in its last line", where=path, do="start the run again to rewrite it")
    return config


def exposure_of(run_dir: Path, key: str | None) -> pd.DataFrame | None:
    """The content of the exposure file of the run of this key; None if the folder holds none. Raises CacheError if it is damaged."""
    path = run_dir / EXPOSURE_FILE
    return read_table(path) if path.is_file() and own_meta(path)["inputs"].get("run") == key else None
