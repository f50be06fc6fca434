"""What a run recorded about itself, and whether its sources have changed since. Without torch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cache_schema.errors import CacheError
from cache_schema.store_path import Place
from trainer.runs.file_names import MODEL_FILE
from trainer.runs.identity import recorded_config
from trainer.runs.sources import source_digest, source_files
from trainer.runs.weights import weights_metadata
from trainer.settings.settings import Settings, map_paths, validate


class Recorded(NamedTuple):
    values: Mapping[str, Any]
    """its settings and its key"""
    key: str
    inputs: Mapping[str, str]
    """name -> digest of what its weights were made from"""
    version: str | None = None
    """of its stage; None if there are no weights"""

    def settings(self, cache: Place, out: Path) -> Settings:
        """The run's settings with this cache and this RUNS instead of the recorded ones."""
        values = {name: value for name, value in self.moved(out).items() if name in Settings.model_fields}
        here = {"cache": cache, "out": out, "mode": "train", "split": "held_out", "weights": None}
        return validate(values | here)

    def moved(self, out: Path) -> dict[str, Any]:
        """Its values with all paths below its RUNS moved to `out`."""
        return map_paths(self.values, lambda path: str(rerooted(Path(path), Path(self.values["out"]), out)))


def recorded_of(run_dir: Path) -> Recorded | None:
    """None if there is no run. Raises CspineError if its files are damaged."""
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
        raise CacheError("does not belong to the settings in the same folder", where=path)
    return Recorded(config, config["key"], inputs, metadata.get("version"))


def changed_since(run_dir: Path, out: Path) -> list[str]:
    """Names of the run's sources that have changed under the RUNS `out`, directly or through a backbone's own sources.

    Sources that no longer exist count as unchanged. Studies are not compared: no cache is needed. Raises CspineError.
    """
    if (recorded := recorded_of(run_dir)) is None:
        return []
    files, then = source_files(recorded.moved(out)), recorded.inputs
    compared = [name for name, file in files.items() if name in then and file.is_file()]
    changed = [name for name in compared if source_digest(name, files[name]) not in (None, then[name])]
    if "backbone" not in changed and "backbone" in files and changed_since(files["backbone"].parent, out):
        changed.append("backbone")
    return changed


def rerooted(path: Path, old: Path, new: Path) -> Path:
    """A path below `old` moved below `new`; any other path unchanged."""
    then, root = Path(os.path.normpath(path)), Path(os.path.normpath(old))
    return new / then.relative_to(root) if then.is_relative_to(root) else path
