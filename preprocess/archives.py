"""A zip of DICOM files as a source: unpacked for as long as it is read."""

import fcntl
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_schema.errors import UsageError, advice_on, reason_of

PREFIX = ".unpacked-"
YOUNG_SECONDS = 60
"""a folder younger than this may not be locked yet by who made it"""


def is_zip(source: str | Path) -> bool:
    """Whether the source is a file that is a zip archive."""
    return Path(source).is_file() and zipfile.is_zipfile(source)


@contextmanager
def unpacked(source: str | Path, beside: Path | None = None) -> Iterator[Path]:
    """The source itself, or for a zip a temporary folder with its files. beside: where to make it; by default the system's.

    The files' times are those of the archive, so that the same archive is recognised. Raises UsageError for a zip that is
    damaged or encrypted, needs more space than there is, or has names that the disk cannot hold.
    """
    if not is_zip(source):
        yield Path(source)
        return
    if beside is not None:
        _sweep(beside)
    with TemporaryDirectory(prefix=PREFIX, dir=beside) as name:
        folder = Path(name)
        lock = _locked(folder)
        try:
            _unpack(Path(source), folder)
            yield folder
        finally:
            if lock is not None:
                os.close(lock)


def _sweep(beside: Path) -> None:
    """Removes what killed processes left: patients' files must not stay behind."""
    for folder in beside.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > YOUNG_SECONDS and (handle := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def _locked(folder: Path) -> int | None:
    """A lock on the folder, held until this process ends or closes it; None if another has it, or if there are no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _unpack(source: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            _extract(archive, folder, source)
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # zlib, lzma and others have their own
        raise _one_line(error, source) from None


def _extract(archive: zipfile.ZipFile, folder: Path, source: Path) -> None:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
    if needed > free:
        line = f"needs {needed / 1e9:.1f} GB to be unpacked, and {free / 1e9:.1f} GB are free"
        raise UsageError(line, where=source, do="make room, or unpack it elsewhere")
    for entry in entries:
        path = archive.extract(entry, folder)  # zipfile keeps it inside the folder, whatever its name
        when = time.mktime((*entry.date_time, 0, 0, -1))
        os.utime(path, (when, when))


def _one_line(error: Exception, source: Path) -> UsageError:
    """The error without its message, which names the archive's files: they may be named after patients."""
    if isinstance(error, OSError) and error.errno is not None:
        line, do = f"cannot be unpacked: {reason_of(error)}", advice_on(error)
        return UsageError(line, where=source, do=do or "unpack it")
    what = "is encrypted" if type(error) is RuntimeError else "is a damaged zip"
    return UsageError(what, where=source, expected="a zip of DICOM files", do="unpack it")
