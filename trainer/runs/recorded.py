"""What a run wrote about itself, and where what it was made from lies now. No torch."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cache_schema.errors import CacheError
from cache_schema.tables import read_table, table_meta
from trainer.runs.files import MODEL_FILE
from trainer.runs.identity import recorded_config
from trainer.runs.inputs import own_boxes_digest
from trainer.runs.weights import weights_digest, weights_metadata
from trainer.settings.settings import Settings, validate


class Recorded(NamedTuple):
    values: Mapping[str, Any]
    """its settings, with its key"""
    key: str
    inputs: Mapping[str, str]
    """digests of what its weights were made from, by name"""
    version: str | None = None
    """of its stage, as the weights state it; None where there are none"""

    def settings(self, cache: Path, out: Path) -> Settings:
        """As the run had them, with this cache, and with this RUNS in the place of the one that it was made in."""
        values = {name: value for name, value in self.values.items() if name in Settings.model_fields}
        values |= {name: str(path) for name, path in self.places(out).items()}
        if file := values["model"].get("weights_file"):
            values["model"] = values["model"] | {"weights_file": rerooted(Path(file), Path(values["out"]), out)}
        here = {"cache": cache, "out": out, "mode": "train", "split": "held_out", "weights": None}
        return validate(values | here)

    def places(self, out: Path) -> dict[str, Path]:
        """Where its boxes, pseudo labels and backbone lie below the RUNS `out`; what it was not given is left out."""
        given = {name: self.values.get(name) for name in ("boxes", "pseudo", "backbone")}
        old = Path(self.values["out"])
        return {name: rerooted(Path(path), old, out) for name, path in given.items() if path not in (None, "cache")}


def recorded_of(run_dir: Path) -> Recorded | None:
    """None where there is no run. Raises CspineError where what it wrote is damaged."""
    config, path = recorded_config(run_dir), run_dir / MODEL_FILE
    metadata = weights_metadata(path) if path.is_file() else {}
    try:
        if config is None and "config" in metadata:
            config = json.loads(metadata["config"]) | {"key": metadata["key"]}
        inputs = json.loads(metadata.get("inputs", "{}"))
    except (ValueError, KeyError, TypeError):
        raise CacheError("has metadata that cannot be read", where=path) from None
    if config is None:
        return None
    if metadata and metadata.get("key") != config["key"]:
        raise CacheError("is not of the settings beside it", where=path)
    return Recorded(config, config["key"], inputs, metadata.get("version"))


def changed_since(run_dir: Path, out: Path) -> list[str]:
    """Names of what the run's weights were made from and is something else under the RUNS `out` now, its backbone's too.

    Needs no cache, and so knows nothing of the studies. What is no longer there has not changed. Raises CspineError.
    """
    recorded = recorded_of(run_dir)
    places = {} if recorded is None else recorded.places(out)
    then = {} if recorded is None else recorded.inputs
    changed = [name for name, path in places.items() if name in then and NOW[name](path) not in (None, then[name])]
    if "backbone" not in changed and "backbone" in places and changed_since(places["backbone"], out):
        changed.append("backbone")
    return changed


NOW: Mapping[str, Callable[[Path], str | None]] = {
    "boxes": lambda path: own_boxes_digest(read_table(path)) if path.is_file() else None,
    "pseudo": lambda path: table_meta(path)["digest"] if path.is_file() else None,
    "backbone": lambda path: weights_digest(path / MODEL_FILE) if (path / MODEL_FILE).is_file() else None,
}
"""by the names of `Inputs.training_digests` the same digests; None of what is not there, or does not tell"""


def rerooted(path: Path, old: Path, new: Path) -> Path:
    """Where what a run was given below its `old` RUNS lies below the `new` one; any other path as it is."""
    then, root = Path(os.path.normpath(path)), Path(os.path.normpath(old))
    return new / then.relative_to(root) if then.is_relative_to(root) else path
