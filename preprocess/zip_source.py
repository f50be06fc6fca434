"""A zip of DICOM files as a source: unpacked for as long as it is read."""

import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_schema.errors import UsageError


def is_zip(source: str | Path) -> bool:
    """Whether the source is a file that is a zip archive."""
    return Path(source).is_file() and zipfile.is_zipfile(source)


@contextmanager
def unpacked(source: str | Path, beside: Path | None = None) -> Iterator[Path]:
    """The source itself, or for a zip a temporary folder with its files. beside: where to make it; by default the system's.

    The files' times are those of the archive, so that the same archive is recognised. Raises UsageError for a zip that is
    damaged or encrypted, or needs more space than there is.
    """
    if not is_zip(source):
        yield Path(source)
        return
    with TemporaryDirectory(prefix=".unpacked-", dir=beside) as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(source) as archive:
                _extract(archive, folder, Path(source))
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
            # RuntimeError: encrypted; the messages name the archive's files, which may be named after patients
            what = "is encrypted" if isinstance(error, RuntimeError) else "is a damaged zip"
            raise UsageError(what, where=source, expected="a zip of DICOM files", do="unpack it") from None
        yield folder


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
