"""What becomes of a file of our own that is not as it was written: it is named once, and set aside where it would be overwritten."""

import sys
from pathlib import Path

from cache_schema.errors import CacheError, UsageError
from trainer.process.command import say

_told: set[str] = set()


class Damaged(CacheError, UsageError):
    """A file of a run that is not as it was written. Every process of the run finds the same, and one says it."""

    exit_status = 1


def tell(line: object) -> None:
    """Once in this process, however often the file is met."""
    if str(line) not in _told:
        _told.add(str(line))
        say(str(line), sys.stderr)


def free_name(path: Path) -> Path:
    """This path, or with the first number that makes it a new one."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def set_aside(path: Path) -> Path:
    """Renames what is damaged to `.damaged-<name>` beside it, and returns where it went."""
    return path.rename(free_name(path.with_name(f".damaged-{path.name}")))
