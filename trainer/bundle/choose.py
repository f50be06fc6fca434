"""Which packages go along: the target's own torch or another one, and all that follows from it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from packaging.version import Version

from cache_schema.errors import UsageError
from trainer.bundle.packages import installed_version, needed, project_requirements
from trainer.bundle.targets import Target, read_target
from trainer.bundle.wheels import given_wheel, requires_of
from trainer.bundle.write import Contents

TORCH = ("torch", "torchvision")
CU12 = {"torch": "2.10.0", "torchvision": "0.25.0"}
"""the newest whose ordinary wheels bring CUDA 12"""


def choose(name: str, python: str | None, cuda: str, torch: Sequence[Path], models: Path) -> Contents:
    """name, python, cuda: the settings of `trainer bundle`. torch: wheels that the user gives.

    Raises UsageError for settings that do not go together, and where the target's torch is too old; NoWheel.
    """
    target = read_target(name, python)
    if torch and cuda != "cpu":
        raise UsageError("torch= gives a torch without CUDA", do="give cuda=cpu with it")
    pins, given = dict[str, str](), dict[str, Path]()
    if cuda == "target":
        _check_torch(target)
    else:
        target = target.without_torch()
    if cuda == "cu12":
        pins = dict(CU12)
    for path in torch:
        own, version = given_wheel(path, target.python)
        if own not in TORCH:
            raise UsageError(f"is a wheel of {own}", where=path, expected="one of torch or torchvision")
        pins[own], given[own] = version, path
    if "torch" in given and "torchvision" not in given:
        here = installed_version("torch")
        if here is None or Version(pins["torch"]).release != Version(here).release:
            what = f"torch {pins['torch']} needs a torchvision of its own"
            raise UsageError(what, do="give both wheels: torch=FILE.whl,FILE.whl")
    asked = needed(target, pins, partial(_requires, target.python, given))
    return Contents(target, asked, models, given)


def _requires(python: str, given: dict[str, Path], name: str, version: str) -> list[str]:
    return requires_of(name, version, python, given)


def _check_torch(target: Target) -> None:
    for requirement in project_requirements():
        if requirement.name in TORCH and not target.has(requirement.name, requirement.specifier):
            there = target.versions.get(requirement.name)
            what = f"the target has {requirement.name} {there}" if there else f"the target has no {requirement.name}"
            do = "give cuda=cu13, cuda=cu12 or cuda=cpu, and the bundle brings it"
            raise UsageError(what, where=f"target={target.name}", expected=str(requirement.specifier), do=do)
