"""The layers that settings come from: defaults < configs/<stage>.yaml < its variant < config=FILE < command line. No torch."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cache_schema.errors import UsageError
from trainer.settings.keyvalue import given_twice, merge, nearest, parse_assignments, read_yaml, split_files
from trainer.settings.needs import check_paths
from trainer.settings.paths import beside, check_folder
from trainer.settings.registry import stage_file, stage_names
from trainer.settings.settings import PLACES, Settings, check_keys, from_anywhere, names_a_place, validate


def full_name(key: str) -> str:
    """`micro_batch` is `train.micro_batch`, written shorter."""
    return "train.micro_batch" if key == "micro_batch" else key


def load(words: Iterable[str], *, must_exist: bool = True, places: Mapping[str, str] | None = None) -> Settings:
    """Settings from `key=value` words. Raises UsageError with the nearest right choice. places: below all else.

    must_exist=False leaves out whether paths exist, for runs whose inputs are yet to be made."""
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
    if variant not in variants:
        raise UsageError(f"no variant {variant} of stage {stage}", do=nearest(variant, variants))
    for needed in ("cache", "out"):
        if not any(needed in layer for layer in (given, *extra, places or {})):
            raise UsageError(f"no {needed} given", expected="cache=CACHE out=RUNS", do="see --help")
    merged = merge(places or {}, common, variants[variant] or {}, *extra, given, {"variant": variant})
    settings = validate(_without_nulls(merged))
    check_folder(settings.out)
    check_folder(settings.run_dir)
    if must_exist:
        check_paths(settings)
    return settings


def shown(words: Iterable[str]) -> str:
    """All settings of a run as YAML; what it is made from need not be given."""
    settings = load(words, must_exist=False, places=PLACES)
    unused = {"boxes": not settings.needs_boxes, "pseudo": settings.facts.learns_from != "pseudo_labels"}
    unused["backbone"] = settings.facts.backbone is None
    values = {name: None if unused.get(name) else value for name, value in settings.dump().items()}
    values = from_anywhere(values, os.path.abspath)
    return yaml.safe_dump(values, sort_keys=False).rstrip()


def stage_layer(path: Path, stage: str) -> dict[str, Any]:
    """A settings file: keys for every stage, and under `stages:` keys for one. Its paths are relative to its own folder."""
    content = read_yaml(path)
    per_stage = content.pop("stages", {}) or {}
    if not isinstance(per_stage, dict) or not all(isinstance(value, dict) for value in per_stage.values()):
        raise UsageError("stages does not hold settings", where=path, expected="stages: {<stage>: {section: {...}}}")
    for name in per_stage:
        if name not in stage_names():
            raise UsageError(f"no stage {name}", where=path, do=nearest(name, stage_names()))
    layer = merge(content, per_stage.get(stage) or {})
    check_keys(layer, where=path)
    return _placed(layer, path)


def _placed(layer: Mapping[str, Any], file: Path, prefix: str = "") -> dict[str, Any]:
    made = {}
    for key, value in layer.items():
        if isinstance(value, Mapping):
            value = _placed(value, file, f"{prefix}{key}.")
        made[key] = beside(file, value) if names_a_place(prefix + key, value) else value
    return made


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else None if value in ("null", "") else value
        for key, value in values.items()
    }
