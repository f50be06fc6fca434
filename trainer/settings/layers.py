"""Settings from their layers: defaults < configs/<stage>.yaml < its variant < config=FILE < command line. Without torch."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cache_schema.errors import UsageError
from trainer.settings.keyvalue import given_twice, merge, parse_assignments, read_yaml, require_known, split_files
from trainer.settings.needs import check_paths
from trainer.settings.paths import beside, check_folder
from trainer.settings.settings import PLACEHOLDERS, SOURCES, Settings, check_keys, map_paths, validate
from trainer.settings.stage_registry import config_of, stage_file, stage_names


def full_name(key: str) -> str:
    """`micro_batch` is short for `train.micro_batch`."""
    return "train.micro_batch" if key == "micro_batch" else key


def load(words: Iterable[str], *, must_exist: bool = True, places: Mapping[str, str] | None = None) -> Settings:
    """Settings from `key=value` words. Raises UsageError, which suggests the closest valid choice.

    must_exist=False: do not check that input paths exist. places: the lowest layer, for paths.
    """
    given = parse_assignments(words)
    extra: list[dict[str, Any]] = []
    files = given.pop("config", None)
    micro_batch = given.pop("micro_batch", None)
    if isinstance(files, dict):
        raise UsageError("config is a value, not a section", expected="config=FILE or FILE,FILE")
    stage = given.get("stage")
    if stage is None:
        raise UsageError("no stage given", expected="stage=" + "|".join(stage_names()), do="see --help")
    common, variants = stage_file(str(stage))
    if files is not None:
        extra = [stage_layer(path, stage) for path in split_files(files)]
    check_keys(given)
    if micro_batch is not None:
        if "micro_batch" in given.get("train", {}):
            raise given_twice(f"train.micro_batch={given['train']['micro_batch']}", f"micro_batch={micro_batch}")
        given = merge(given, {"train": {"micro_batch": micro_batch}})
    variant = given.get("variant") or next((layer["variant"] for layer in reversed(extra) if "variant" in layer), None)
    variant = variant or next(iter(variants))
    require_known(variant, variants, f"no variant {variant} of stage {stage}")
    for needed in ("cache", "out"):
        if not any(needed in layer for layer in (given, *extra, places or {})):
            raise UsageError(f"no {needed} given", expected="cache=CACHE out=RUNS", do="see --help")
    own = merge(common, variants[variant] or {})
    check_keys(own, where=config_of(stage))
    merged = merge(places or {}, own, *extra, given, {"variant": variant})
    settings = validate(_without_nulls(merged))
    check_folder(settings.out)
    check_folder(settings.run_dir)
    if must_exist:
        check_paths(settings)
    return settings


def shown(words: Iterable[str]) -> str:
    """All settings of a run as YAML, with a placeholder for each required path that is not given."""
    settings = load(words, must_exist=False, places=PLACEHOLDERS)
    unused = SOURCES.keys() - settings.sources().keys()
    values = {name: None if name in unused else value for name, value in settings.dump().items()}
    kept = set(PLACEHOLDERS.values())
    values = map_paths(values, lambda path: path if path in kept else os.path.abspath(path))
    return yaml.safe_dump(values, sort_keys=False).rstrip()


def stage_layer(path: Path, stage: str) -> dict[str, Any]:
    """A settings file: keys for every stage and, under `stages:`, for one. Its paths are relative to its folder."""
    content = read_yaml(path)
    per_stage = content.pop("stages", {}) or {}
    if not isinstance(per_stage, dict) or not all(isinstance(value, dict) for value in per_stage.values()):
        raise UsageError("stages does not hold settings", where=path, expected="stages: {<stage>: {section: {...}}}")
    for name in per_stage:
        require_known(name, stage_names(), f"no stage {name}", path)
    layer = merge(content, per_stage.get(stage) or {})
    check_keys(layer, where=path)
    return map_paths(layer, lambda value: beside(path, value))


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else None if value in ("null", "") else value
        for key, value in values.items()
    }
