"""What `trainer predict` needs, what of it a target has, and what a bundle must bring in which version.

Versions are those that are installed here: the locked and tested ones. Nothing is resolved: a package that the target has in a version
that fits is left to it with all that it needs; any other is brought, and what it needs is looked at in turn.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from cache_schema.errors import UsageError
from trainer.bundle.targets import Target

PROJECT = "cspine"
ROOTS = (
    "accelerate",
    "google-crc32c",
    "imagecodecs",
    "matplotlib",
    "numcodecs",
    "numpy",
    "obstore",
    "opencv-python-headless",
    "packaging",
    "pandas",
    "pyarrow",
    "pydantic",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "pyyaml",
    "rich",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)
"""of the project's requirements, those that prediction imports. DALI is none of them: without it OpenCV makes the same images"""
OPTIONAL = {"pylibjpeg-libjpeg"}
"""the others decode without it; left out where it was left out here"""

RequiresOf = Callable[[str, str], Iterable[str]]
"""(name, version) -> its requirements, as a wheel's metadata states them"""


@dataclass
class Wanted:
    """All that is asked of one package."""

    needs: SpecifierSet = field(default_factory=SpecifierSet)
    extras: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Needed:
    brought: Mapping[str, str]
    """name -> version"""
    own: Mapping[str, tuple[str, str]]
    """the target's: name -> (its version, the versions that fit)"""


def needed(target: Target, pins: Mapping[str, str], requires_of: RequiresOf) -> Needed:
    """pins: versions of packages that are not those installed here. Raises UsageError where no version is known for a package."""
    brought: dict[str, tuple[str, frozenset[str]]] = {}
    while True:
        asked = project_requirements()
        for name, (version, extras) in brought.items():
            asked += _applying(requires_of(name, version), target, extras)
        wanted: dict[str, Wanted] = {}
        for requirement in asked:
            entry = wanted.setdefault(canonicalize_name(requirement.name), Wanted())
            entry.needs &= requirement.specifier
            entry.extras |= requirement.extras
        absent = {name: each for name, each in wanted.items() if not target.has(name, each.needs)}
        found = {name: (_version(name, each.needs, pins), frozenset(each.extras)) for name, each in absent.items()}
        if found == brought:
            break
        brought = found
    own = {name: (target.versions[name], str(each.needs)) for name, each in wanted.items() if name not in brought}
    return Needed({name: brought[name][0] for name in sorted(brought)}, dict(sorted(own.items())))


def project_requirements() -> list[Requirement]:
    """What prediction needs of the project's own requirements."""
    found = [Requirement(line) for line in metadata.requires(PROJECT) or []]
    named = {str(canonicalize_name(each.name)): each for each in found if "extra" not in str(each.marker)}
    absent = {name for name in OPTIONAL if installed_version(name) is None}
    return [named[name] for name in ROOTS if name not in absent]


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _applying(lines: Iterable[str], target: Target, extras: Iterable[str]) -> list[Requirement]:
    """The requirements that hold on the target, with these extras."""
    found = []
    for requirement in map(Requirement, lines):
        places = [{**target.markers, "extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(place) for place in places):
            found.append(requirement)
    return found


def _version(name: str, needs: SpecifierSet, pins: Mapping[str, str]) -> str:
    here = pins.get(name) or installed_version(name)
    if here is not None and needs.contains(here, prereleases=True):
        return here
    exact = [each.version for each in needs if each.operator == "==" and not each.version.endswith(".*")]
    if name in pins or not exact:
        what = f"{name} {needs} is needed" + (f", and {here} is given" if here else " and not installed here")
        raise UsageError(what, do="set up the environment again: make setup")
    return exact[0]
