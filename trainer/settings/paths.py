"""Where things lie: what a file's own paths are relative to, and where nothing may be written. Nothing here imports torch."""

import os
from collections.abc import Iterable
from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.layout import GROUP
from cache_schema.places import check_place
from trainer.settings.keyvalue import at_home


def beside(file: Path, value: str) -> str:
    """A path that stands in `file`, relative ones below that file's folder. Raises UsageError for an address."""
    check_place(value)
    return str(file.parent / at_home(value))


def check_folder(out: Path, name: str = "out") -> None:
    """Raises UsageError where a folder cannot be made because a file lies in its way, or would be made in a cache."""
    where = f"{name}={out}"
    for place in (out, *out.parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UsageError(f"cannot be a folder ({error.strerror})", where=where) from None
        if not place.is_dir():
            raise UsageError("is no folder", where=f"{name}={place}", expected="a folder, or a place for one")
        break
    real = Path(os.path.realpath(out))
    for place in (real, *real.parents):
        if os.path.isfile(place / GROUP):
            raise UsageError(
                f"lies in the cache {place}", where=where, expected="a folder outside, for it is only read"
            )


def refuse_folders(files: Iterable[Path]) -> None:
    """Raises UsageError where a folder lies in the place of a file that is to be written."""
    for path in files:
        if path.is_dir():
            raise UsageError("is a folder", where=path, expected="a file, or nothing", do="move it away")


def is_inside(place: Path, folder: Path) -> bool:
    """Whether one is the other or lies below it, by whatever links."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))
