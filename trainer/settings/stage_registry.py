"""The registered stages by name: a file in trainer/stages with its configs/<name>.yaml, or an entry point in the group
`cspine.stages` of an installed package. Does not import torch.
"""

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_schema.errors import UsageError
from trainer.settings.keyvalue import read_yaml, require_known

if TYPE_CHECKING:
    from trainer.stages.base import Stage

CONFIGS = (Path(__file__).resolve().parents[1] / "configs").resolve()
"""a link to the top level's in a checkout, a folder in a wheel"""
STAGES = Path(__file__).resolve().parents[1] / "stages"
ENTRY_POINTS = "cspine.stages"


@cache
def stage_names() -> tuple[str, ...]:
    """Sorted so that each stage follows those whose tables or weights it needs; stages of other packages come last."""
    own = [path.stem for path in STAGES.glob("*.py") if _is_own(path.stem)]
    return (*sorted(own, key=lambda name: stage_class(name).order), *sorted(_installed()))


@cache
def stage_class(name: str) -> "type[Stage]":
    """Raises UsageError for an unknown name, or if the package that provides the stage cannot be imported."""
    if _is_own(name):
        module = importlib.import_module(f"trainer.stages.{name}")
        return next(each for each in vars(module).values() if getattr(each, "name", None) == name)
    require_known(name, stage_names(), f"no stage {name}")
    found, *others = _installed()[name]
    where, do = f"stage {name}, {found.value}", "repair or remove the package"
    if others:
        raise UsageError(f"is also that of {others[0].value}", where=where, do="remove one of the packages")
    try:
        stage = found.load()
    except Exception as error:  # another package's code may fail in any way
        raise UsageError(f"cannot be imported ({type(error).__name__}: {error})", where=where, do=do) from error
    if getattr(stage, "name", None) != name:
        raise UsageError("does not have the name of its entry point", where=where, do=do)
    if missing := getattr(stage, "__abstractmethods__", ()):
        raise UsageError(f"does not define {', '.join(sorted(missing))}", where=where, do=do)
    return stage


def _is_own(name: str) -> bool:
    return (STAGES / f"{name}.py").is_file() and (CONFIGS / f"{name}.yaml").is_file()


@cache
def _installed() -> dict[str, list[EntryPoint]]:
    """name -> the packages' entry points of this name. The project's own stages keep their names."""
    found: dict[str, list[EntryPoint]] = {}
    for each in entry_points(group=ENTRY_POINTS):
        if not _is_own(each.name):
            found.setdefault(each.name, []).append(each)
    return found


def config_of(stage: str) -> Path:
    """The stage's YAML file."""
    return stage_class(stage).config or CONFIGS / f"{stage}.yaml"


def stage_file(stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(common settings, settings by variant) of the stage's YAML file; the first variant is the default."""
    path = config_of(stage)
    content = read_yaml(path)
    variants = content.pop("variants", None)
    if not isinstance(variants, dict) or not variants:
        raise UsageError("names no variants", where=path, expected="variants: {NAME: {section: {...}}}")
    return content, variants
