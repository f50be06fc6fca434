"""A failure of the system planted at the n-th file operation below given folders, by an audit hook of the interpreter.

`site_of` makes a folder for PYTHONPATH from which every process of a command gets it, workers of a build included.
"""

import errno
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "CSPINE_PLANTED"
OPERATIONS = frozenset(
    {
        *("open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"),
        *(
            "os.symlink",
            "os.truncate",
            "os.utime",
            "shutil.copyfile",
            "shutil.copytree",
            "shutil.move",
            "shutil.rmtree",
        ),
    }
)
"""audit events whose first argument is a path; a stat has none"""
LOCK = "fcntl.flock"
REASONS = tuple(
    getattr(errno, name)
    for name in ("EROFS", "ENOSPC", "EACCES", "ENAMETOOLONG", "EIO", "ENOTDIR", "EPERM", "EDQUOT", "ESTALE", "EMFILE")
)


@dataclass
class Plant:
    """nth: which operation fails, from 1 on; 0 counts only. folders: as they are given to a command."""

    folders: tuple[str, ...]
    nth: int
    reason: int
    locks: bool = False
    """an flock fails, whichever file it is of"""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    seen: int = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event == LOCK and self.locks:
            raise OSError(self.reason, os.strerror(self.reason))
        if event not in OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not any(path == folder or path.startswith(folder + os.sep) for folder in self.folders):
            return
        number = next(self._numbers)  # others may count in threads of their own meanwhile
        self.seen = max(self.seen, number)
        if number == self.nth:
            raise OSError(self.reason, os.strerror(self.reason), path)


_growing: list[Plant] = []


def _hook(event: str, arguments: tuple) -> None:
    for plant in _growing:
        plant(event, arguments)


@contextmanager
def planted(folders: list[Path], nth: int, reason: int = errno.EIO, *, locks: bool = False) -> Iterator[Plant]:
    """In this process, while the block runs. A hook cannot be taken away: one for all serves."""
    if not getattr(sys, VARIABLE, False):
        sys.addaudithook(_hook)
        setattr(sys, VARIABLE, True)
    plant = Plant(tuple(map(os.path.abspath, folders)), nth, reason, locks)
    _growing.append(plant)
    try:
        yield plant
    finally:
        _growing.remove(plant)


def site_of(folder: Path, folders: list[Path], nth: int, reason: int) -> dict[str, str]:
    """The environment in which every Python process has the failure, each counting for itself."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text("import planting\n\nplanting.plant_as_told()\n")
    paths = (str(site), str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    told = os.pathsep.join([str(nth), str(reason), *map(str, folders)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), VARIABLE: told}


def plant_as_told() -> None:
    nth, reason, *folders = os.environ[VARIABLE].split(os.pathsep)
    _growing.append(Plant(tuple(folders), int(nth), int(reason)))
    sys.addaudithook(_hook)
