"""The header pass: every file of a source is opened once, in natural order of the paths."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cache_schema.errors import UsageError
from preprocess.findings import Finding
from preprocess.header import FileHeader
from preprocess.reading import read_headers

RSNA_FOLDER = "train_images"


def scan(source: str | Path) -> tuple[list[FileHeader], list[Finding]]:
    """Read the headers of every DICOM file under `source`, in natural order of their paths.

    `source` is an RSNA folder (its `train_images` is read), any tree, or a single file. Files that are neither named
    .dcm nor begin as DICOM files do are no findings; those that should be DICOM and are not readable are findings,
    never exceptions. Raises UsageError when `source` does not exist.
    """
    return read_many(list(enumerate(list_files(source), start=1)))


def read_many(numbered: list[tuple[int, Path]]) -> tuple[list[FileHeader], list[Finding]]:
    """The header pass over some files of a source, numbered as in the whole of it."""
    headers, findings = [], []
    for number, path in numbered:
        found = read_headers(path)
        if isinstance(found, Finding):
            findings.append(replace(found, file=str(number)))
        else:
            headers.extend(replace(header, number=number) for header in found)
    return headers, findings


def list_files(source: str | Path) -> list[Path]:
    """Every file under `source` that may be DICOM, in natural order: `9.dcm` before `10.dcm`."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError("no such file or folder", where=source, expected="a folder of DICOM files")
    if (source / RSNA_FOLDER).is_dir():
        source = source / RSNA_FOLDER
    return sorted(_walk(source), key=lambda path: natural_key(str(path)))


def _walk(folder: Path) -> Iterator[Path]:
    """Plain files below a folder, and links to nothing; opening a pipe would wait for ever."""
    seen, waiting = set(), [folder]
    while waiting:
        where = waiting.pop()
        try:
            status = os.stat(where)
            if (status.st_dev, status.st_ino) in seen:  # folders may be links, and links may lead back
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(where) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise UsageError(f"a folder below it cannot be listed ({type(error).__name__})", where=folder) from error
        waiting.extend(Path(entry.path) for entry in reversed(entries) if _is_folder(entry))
        yield from (Path(entry.path) for entry in entries if _is_file(entry))


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry) -> bool:
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def natural_key(text: str) -> list:
    """A sort key in which runs of digits count as numbers; the text itself decides between `01` and `1`."""
    parts = re.split(r"(\d+)", text)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, text)]
