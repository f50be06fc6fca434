"""What the machine that a bundle is for has already: its Python and its packages."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from cache_schema.errors import UsageError
from trainer.settings.keyvalue import nearest

PYTHONS = ("3.11", "3.12", "3.13")
PYTHON_LINE = re.compile(r"# python (\d+\.\d+)$", re.MULTILINE)
"""of a file of configs/targets"""
LISTED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^]]*\])?\s*(?:==\s*(\S+)|@\s*(\S+))")
"""`name==version`, and `name @ address` of what was not installed from a registry"""
TORCH_PACKAGES = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")


@dataclass(frozen=True)
class Target:
    name: str
    python: str
    """3.12"""
    versions: Mapping[str, str]
    """of its packages, by their normalised names"""

    @property
    def markers(self) -> dict[str, str]:
        """The environment that requirements' markers are compared with."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": "x86_64",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def has(self, name: str, needs: SpecifierSet) -> bool:
        """Whether it has the package in a version that fits."""
        return name in self.versions and needs.contains(self.versions[name], prereleases=True)

    def without_torch(self) -> "Target":
        """For a bundle with its own torch, which finds CUDA's libraries beside itself only."""
        left = {name: version for name, version in self.versions.items() if not TORCH_PACKAGES.fullmatch(name)}
        return replace(self, versions=left)


def read_target(name: str, python: str | None) -> Target:
    """name: of a file of configs/targets, or the path of what `pip freeze` printed. python: by default the file's, else this one's.

    Raises UsageError for a name that is neither, and for a file that lists no versions.
    """
    kept = packaged_targets()
    if name not in kept and not Path(name).is_file():
        what, choices = f"no target {name}, neither a file nor one of the package's", nearest(name, kept)
        raise UsageError(what, expected="what pip freeze prints there, as a file", do=choices)
    path = kept[name] if name in kept else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where=path, expected="what pip freeze prints") from None
    versions = listed_versions(text)
    if not versions and name not in kept:
        raise UsageError("lists no version", where=path, expected="lines of name==version, as pip freeze prints them")
    said = PYTHON_LINE.search(text)
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Target(name, python or (said[1] if said else running), versions)


def packaged_targets() -> dict[str, Path]:
    folder = Path(str(files("trainer"))) / "configs/targets"
    return {path.stem: path for path in sorted(folder.glob("*.txt"))}


def listed_versions(text: str) -> dict[str, str]:
    """name -> version of each line that states one. Comments, options, editable installs and unversioned addresses are passed over."""
    found = {}
    for line in text.splitlines():
        if match := LISTED.match(line.strip()):
            name, version, address = match.groups()
            version = _version_of(address) if version is None else version.partition(";")[0]
            if version is not None and _is_version(version):
                found[str(canonicalize_name(name))] = version
    return found


def _version_of(address: str) -> str | None:
    """Of a wheel, by its name."""
    name = re.split("[?#]", address)[0].rpartition("/")[2].replace("%2B", "+")
    try:
        return str(parse_wheel_filename(name)[1])
    except ValueError:  # its other names state no version
        return None


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
