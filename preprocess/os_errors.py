"""OSErrors as one line: the system's reason, and the typed path that it concerns."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cache_schema.errors import UsageError, advice_on, reason_of
from cache_schema.layout import BUILD_FOLDER, is_valid_id

SOURCE = "source"
CACHES = ("cache", "out")
"""parameters whose folders hold studies by their ids"""


def as_usage_error(error: OSError, typed: Mapping[str, object], place: str | None = None) -> UsageError:
    """typed: a command's parameters and their values. place: what it is about where the error names no file.

    Below a cache the study is named; below SOURCE nothing is, for names of files may be names of patients, unless
    `paths` is among the parameters and true.
    """
    do = advice_on(error)
    reason = reason_of(error) if error.errno is not None else f"a file or a connection failed ({reason_of(error)})"
    file = error.filename
    if not isinstance(file, str | bytes | os.PathLike):
        return UsageError(reason, where=place, do=do)
    file = os.path.abspath(os.fsdecode(file))
    name, place = _owner(file, typed)
    if place is None:
        return UsageError(reason, where=file if SOURCE not in typed or _is_below(file, _temporary()) else None, do=do)
    if name == SOURCE and file != os.path.abspath(place):
        if typed.get("paths"):
            return UsageError(reason, where=file, do=do)
        return UsageError(f"{reason}, for a file or folder below it", where=place, do=do or "give --paths to name it")
    study = _study(Path(os.path.relpath(file, place)).parts) if name in CACHES else None
    return UsageError(f"{reason} (study {study})" if study else reason, where=place, do=do)


def _owner(file: str, typed: Mapping[str, object]) -> tuple[str, str | None]:
    """The parameter whose path is nearest above a file, and that path as it was typed."""
    found: tuple[str, str | None] = ("", None)
    depth = -1
    for name, value in typed.items():
        if not isinstance(value, str | Path):
            continue
        for folder in {os.path.abspath(value), os.path.realpath(value)}:
            if _is_below(file, folder) and len(folder) > depth:
                found, depth = (name, str(value)), len(folder)
    return found


def _is_below(file: str, folder: str) -> bool:
    return file == folder or file.startswith(folder.rstrip("/") + "/")


def _temporary() -> str:
    try:
        return os.path.abspath(tempfile.gettempdir())
    except OSError:
        return os.devnull


def _study(parts: tuple[str, ...]) -> str | None:
    """The id in a path below a cache."""
    first, second, third = (*parts, "", "", "")[:3]
    if first == BUILD_FOLDER:
        first = third.rpartition("-")[0] if second in ("new", "old") else third.removesuffix(".json")
    elif not second:
        return None
    return first if is_valid_id(first) else None
