"""The registered stages by name: a file in trainer/stages with its configs/<name>.yaml, or an entry point in the group
`cspine.stages` of an installed package. Does not import torch.
"""

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_schema.errors import UsageError
from trainer.settings.keyvalue import nearest, read_yaml

if TYPE_CHECKING:
    from trainer.stages.base import Stage

CONFIGS = (Path(__file__).resolve().parents[1] / "configs").resolve()
"""a link to the top level's in a checkout, a folder in a wheel"""
STAGES = Path(__file__).resolve().parents[1] / "stages"
ENTRY_POINTS = "cspine.stages"


@cache
def stage_names() -> tuple[str, ...]:
    """Sorted so that each stage follows those whose tables or weights it needs; stages of other packages come last."""
    own = [path.stem for path in STAGES.glob("*.py") if (CONFIGS / f"{path.stem}.yaml").is_file()]
    return (*sorted(own, key=lambda name: stage_class(name).order), *sorted(_installed()))


@cache
def stage_class(name: str) -> "type[Stage]":
    """Raises UsageError for an unknown name, or if the package that provides the stage cannot be imported."""
    if (STAGES / f"{name}.py").is_file() and (CONFIGS / f"{name}.yaml").is_file():
        module = importlib.import_module(f"trainer.stages.{name}")
        return next(each for each in vars(module).values() if getattr(each, "name", None) == name)
    if name not in _installed():
        raise UsageError(f"no stage {name}", do=nearest(name, stage_names()))
    found = _installed()[name]
    try:
        stage = found.load()
    except Exception as error:  # another package's code may fail in any way
        line = f"cannot be imported ({type(error).__name__}: {error})"
        raise UsageError(line, where=f"stage {name}, {found.value}", do="repair or remove the package") from error
    if getattr(stage, "name", None) != name:
        raise UsageError("does not have the name of its entry point", where=f"stage {name}, {found.value}")
    return stage


@cache
def _installed() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=ENTRY_POINTS)}


def stage_file(stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(common settings, settings by variant) of the stage's YAML file; the first variant is the default."""
    content = read_yaml(stage_class(stage).config)
    return content, content.pop("variants")
