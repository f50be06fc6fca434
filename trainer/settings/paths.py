"""Paths: what relative ones are relative to, and where output may be written. Does not import torch."""

import os
from collections.abc import Iterable
from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.layout import GROUP
from cache_schema.places import check_place
from cache_schema.store_path import Place, StorePath
from trainer.settings.keyvalue import expand_user


def beside(file: Path, value: str) -> str:
    """A path given in `file`; a relative one is relative to that file's folder. Raises UsageError for a URL."""
    check_place(value)
    return str(file.parent / expand_user(value))


def check_folder(out: Path, name: str = "out") -> None:
    """Raises UsageError if `out` is not a folder and cannot become one, or lies inside a cache."""
    where = f"{name}={out}"
    for place in (out, *out.parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UsageError(f"cannot be a folder ({error.strerror})", where=where) from None
        if not place.is_dir():
            raise UsageError(
                "is not a folder", where=f"{name}={place}", expected="a folder, or a path that does not exist yet"
            )
        break
    real = Path(os.path.realpath(out))
    for place in (real, *real.parents):
        if os.path.isfile(place / GROUP):
            expected = "a folder outside it: caches are read-only"
            raise UsageError(f"lies in the cache {place}", where=where, expected=expected)


def refuse_folders(files: Iterable[Path]) -> None:
    """Raises UsageError if the path of an output file is a folder."""
    for path in files:
        if path.is_dir():
            raise UsageError("is a folder", where=path, expected="a file", do="move it away")


def is_inside(place: Place, folder: Place) -> bool:
    """Whether `place` is `folder` or lies below it, symbolic links resolved; of places in stores false."""
    if isinstance(place, StorePath) or isinstance(folder, StorePath):
        return False
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))
