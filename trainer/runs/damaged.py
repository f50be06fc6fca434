"""Damaged files of a run: the error, and how they are renamed instead of overwritten."""

from pathlib import Path

from cache_schema.errors import CacheError, CspineError, UsageError


class Damaged(CacheError, UsageError):
    """A file of a run is not as it was written. All processes raise it, and the main one prints it."""

    exit_status = 1


def is_read_error(error: CspineError) -> bool:
    """Whether a file could not be read, perhaps only for a while: it is not known to be missing or damaged."""
    return isinstance(error.__context__, OSError) and not isinstance(error.__context__, FileNotFoundError)


def free_name(path: Path) -> Path:
    """The path itself, or with the first numeric suffix that is not in use."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def set_aside(path: Path) -> Path:
    """Renames a damaged file or folder to `.damaged-<name>` and returns its new path."""
    return path.rename(free_name(path.with_name(f".damaged-{path.name}")))
