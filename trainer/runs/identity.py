"""What makes a run the run it is: one key over the settings that shape its weights and the digests of all it trains on.

The same key means the same run: it is done, can be resumed, or is stale. Nothing here imports torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cache_schema.errors import CacheError, UsageError
from cache_schema.tables import own_meta, read_table
from trainer.runs.damaged import Damaged, tell
from trainer.runs.files import CONFIG_DIGEST, CONFIG_FILE, EXPOSURE_FILE, MODEL_FILE, PREDICTIONS, PREDICTIONS_OF_ALL
from trainer.runs.inputs import Inputs
from trainer.runs.run_names import run_name
from trainer.runs.weights import TRAIN_AGAIN, file_digest, require_whole, weights_metadata
from trainer.settings.registry import stage_class
from trainer.settings.settings import Settings

OUTSIDE = {"cache", "out", "mode", "boxes", "pseudo", "backbone", "weights", "split", "tracker"}
"""settings that say where things are, or come in by their digests"""
OUTSIDE_SECTIONS = {
    "model": {"weights_file", "chunk"},
    "data": {"loader", "workers", "resident", "ram_gb", "eval_stride"},
    "train": {"autotune", "checkpoint_minutes", "evaluate_every", "log_every", "eval_batch", "threads"},
}
"""settings that change no weight, or by no more than rounding"""
INPUT_SETTINGS = {
    "model": ("name", "positional", "batch_norm", "mask_pool"),
    "data": ("size", "frames", "crop", "interpolation", "intensity"),
}
"""settings that a prediction must share with the training of its weights"""


def run_key(settings: Settings, inputs: Inputs) -> str:
    """sha256 hex of the settings and input digests that decide the weights."""
    text = json.dumps([settings.facts.version, identity_settings(settings), inputs.training_digests()], sort_keys=True)
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
    return {"eval_stride": str(settings.data.eval_stride)} if settings.facts.items == "windows" else {}


def model_key(run_dir: Path) -> str | None:
    """The key of the weights in a run's folder; None where there are none. Raises Damaged where they cannot be read."""
    path = run_dir / MODEL_FILE
    return weights_metadata(path).get("key") if path.is_file() else None


def is_done(settings: Settings, inputs: Inputs, key: str) -> bool:
    """Whether the run's folder already holds what the settings ask for. What is damaged is named and is not done."""
    try:
        return check_done(settings, inputs, key, weights_too=True)
    except CacheError as error:
        tell(f"{error}: so {run_name(settings.run_dir)} is not done")
        return False


def check_done(settings: Settings, inputs: Inputs, key: str, *, weights_too: bool) -> bool:
    """The same; raises CacheError for the first file that is damaged, or is gone while the weights are there.

    weights_too: whether the tensors of its own weights are compared with their digest, which takes a while.
    """
    run_dir, own = settings.run_dir, settings.mode == "train" or settings.weights in (None, settings.run_dir)
    if own and model_key(run_dir) != key:
        return False
    if settings.mode == "train" and (recorded_config(run_dir) or {}).get("key") != key:
        raise Damaged("is gone, or another run's", where=run_dir / CONFIG_FILE)
    if own and weights_too:
        require_whole(run_dir / MODEL_FILE)
    if kept_for_run(run_dir, key) is None:
        if own:
            raise Damaged("is gone, or another run's", where=run_dir / EXPOSURE_FILE)
        return False
    predicts_nothing = settings.fold == "all" and settings.split == "held_out"
    path = predictions_path(settings)
    return predicts_nothing or (path.is_file() and own_meta(path)["inputs"] == prediction_inputs(settings, inputs, key))


def weights_config(run: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(metadata, settings) of a run's weights. Raises UsageError for those of another program, or of another version of
    their stage, which would compute something else; Damaged for what cannot be read."""
    path = run / MODEL_FILE
    metadata = weights_metadata(path)
    if "key" not in metadata:
        raise UsageError("holds weights of another program", where=run, expected="a run of this trainer")
    try:
        config = json.loads(metadata["config"])
        stage = config["stage"]
    except (ValueError, KeyError, TypeError):
        raise Damaged("does not say how it was trained", where=path, do=TRAIN_AGAIN) from None
    if (version := metadata.get("version")) != (now := str(stage_class(stage).version)):
        what = f"was trained by version {version} of {stage}" if version else f"says no version of {stage}"
        raise UsageError(what, where=path, expected=f"version {now}", do=TRAIN_AGAIN)
    return metadata, config


def check_weights(settings: Settings, pixel_hash: str, run: Path, stage: str | None = None) -> str:
    """The key of a finished run that fits: of this stage (by default its own), these images, these pixels (of a cache), this fold.

    Raises UsageError naming what differs, and as `weights_config`; Damaged where tensors or metadata do not match their
    digest. Another fold's weights have seen what this fold holds out.
    """
    metadata, config = weights_config(run)
    own, stage = settings.dump(), stage or settings.stage
    pairs = [("stage", config["stage"], stage), ("variant", config["variant"], settings.variant)]
    if settings.split == "held_out":
        pairs.append(("fold", metadata["fold"], str(settings.fold)))
    pairs += [
        (f"model.{n}", config["model"][n], own["model"][n])
        for n in INPUT_SETTINGS["model"]
        if stage == settings.stage or n == "name"
    ]
    pairs += [
        (f"data.{n}", config["data"][n], own["data"][n]) for n in INPUT_SETTINGS["data"] if stage == settings.stage
    ]
    pairs.append(("pixel_hash", metadata["pixel_hash"], pixel_hash))
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise UsageError(
                f"was trained with {name}={theirs}", where=run, expected=f"{name}={ours}", do="give the run that fits"
            )
    require_whole(run / MODEL_FILE)
    return metadata["key"]


def config_file(values: dict[str, Any]) -> bytes:
    """config.yaml, with its digest at the end."""
    text = yaml.safe_dump(values, sort_keys=False).encode()
    return text + CONFIG_DIGEST + hashlib.sha256(text).hexdigest().encode() + b"\n"


def recorded_config(run_dir: Path) -> dict[str, Any] | None:
    """config.yaml as the run wrote it, with its `key`; None where there is none. Raises Damaged."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        return None
    data = path.read_bytes()
    text = data.rpartition(CONFIG_DIGEST)[0]
    try:
        config = yaml.safe_load(text)
        same = data == text + CONFIG_DIGEST + hashlib.sha256(text).hexdigest().encode() + b"\n"
    except (yaml.YAMLError, ValueError):
        same = False
    if not same or not isinstance(config, dict) or "key" not in config:
        do = "run what it is of again, which makes it anew"
        raise Damaged("is not what a run wrote, as its last line says it", where=path, do=do)
    return config


def kept_for_run(run_dir: Path, key: str | None) -> pd.DataFrame | None:
    """None where there is none, or the one there belongs to a run of another key. Raises CacheError where it is damaged."""
    path = run_dir / EXPOSURE_FILE
    if not path.is_file() or own_meta(path)["inputs"].get("run") != key:
        return None
    return read_table(path)
