"""The files of a source, in a few bytes each, and whether its folders are as they were."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cache_schema.documents import SETTLED_SECONDS
from cache_schema.errors import UsageError
from cache_schema.store_path import Place, StorePath, place_named
from preprocess.findings import REASONS, Finding
from preprocess.headers.opened import FileState, state_of
from preprocess.natural_order import runs_in_natural_order
from preprocess.progress import Steps

RSNA_FOLDER = "train_images"


class FolderState(NamedTuple):
    """What tells that a folder holds the same names as before. Adding, removing or renaming a file changes its time."""

    mtime_ns: int
    has_folders: bool
    """so that it has to be listed to find them"""


@dataclass
class SourceFiles:
    """Files in natural order of their paths, as runs of names in one folder. folders: by device and inode, which tell nothing
    of their names; but for those that had just changed."""

    runs: list[tuple[str, list[str]]] = field(default_factory=list)
    folders: dict[str, FolderState] = field(default_factory=dict)
    states: dict[str, FileState] = field(default_factory=dict)
    """of files in a store, by their paths: what its listing told"""

    def __len__(self) -> int:
        return sum(len(names) for _, names in self.runs)

    def __iter__(self) -> Iterator[Place]:
        return (place_named(os.path.join(folder, name)) for folder, names in self.runs for name in names)

    def batches(self, size: int) -> Iterator[list[tuple[int, Place]]]:
        """(number, path) of so many files at a time, numbered from 1 on."""
        numbered = enumerate(self, start=1)
        while batch := list(islice(numbered, size)):
            yield batch

    def below(self, source: Place) -> Iterator[tuple[str, str]]:
        """(path, path relative to `source`) of every file."""
        for folder, names in self.runs:
            relative = os.path.relpath(folder, str(source))
            for name in names:
                yield os.path.join(folder, name), name if relative == os.curdir else os.path.join(relative, name)


def find_files(
    source: str | Place, *, without: Iterable[str | Place] = (), steps: Steps | None = None
) -> tuple[SourceFiles, list[Finding]]:
    """Every file under `source` in natural order (`9.dcm` before `10.dcm`), and a finding for each folder below it that
    cannot be listed.

    without: folders that are not looked into. steps: told of folders and files as they are found. Raises UsageError when
    `source` is missing or cannot be listed itself.
    """
    if isinstance(source, StorePath):
        return _in_store(source, without), []
    source = Path(source)
    if source.is_file():
        return SourceFiles([(os.path.dirname(source) or os.curdir, [source.name])]), []
    if not source.is_dir():
        raise UsageError("no such file or folder", where=source, expected="a folder of DICOM files")
    top = _top(source)
    files: dict[str, Sequence[str]] = {}
    folders: dict[str, Sequence[str]] = {}
    states: dict[str, FolderState] = {}
    unlisted: list[tuple[int, str, str]] = []
    known: dict[str, str] = {}  # one string for all files of a name
    for number, folder in enumerate(_walk(top, without), start=1):
        if folder.why_not:
            unlisted.append((number, folder.path, folder.why_not))
            continue
        if folder.files:
            files[folder.path] = [known.setdefault(name, name) for name in folder.files]
        if folder.folders:
            folders[folder.path] = folder.folders
        if folder.mtime_ns is not None:
            states[folder.identity] = FolderState(folder.mtime_ns, bool(folder.folders))
        if steps is not None:
            steps.advance(folders=1, files=len(folder.files))
    if unlisted and unlisted[0][0] == 1:
        raise UsageError(f"cannot be listed ({unlisted[0][2]})", where=top, expected="a folder of DICOM files")
    findings = []
    for number, path, why in unlisted:
        message = f"folder {number} of the source: {REASONS['unlisted_folder']} ({why})"
        findings.append(Finding("", "", "refused", "unlisted_folder", message, str(Path(path))))
    return SourceFiles(list(runs_in_natural_order(str(top), files, folders)), states), findings


def _in_store(source: StorePath, without: Iterable[str | Place]) -> SourceFiles:
    """By one listing."""
    listed, left_out = source.listing(), tuple(f"{place}/" for place in without)
    if not listed:
        raise UsageError("holds no files", where=source, expected="DICOM files")
    top = source / RSNA_FOLDER if any(name.startswith(f"{RSNA_FOLDER}/") for name in listed) else source
    files: dict[str, list[str]] = {}
    folders: dict[str, set[str]] = {}
    states = {}
    for name, (size, tag) in listed.items():
        path = str(source / name)
        if not path.startswith(f"{top}/") or path.startswith(left_out):
            continue
        folder, _, file = path.rpartition("/")
        files.setdefault(folder, []).append(file)
        states[path] = state_of(tag, size)
        while folder != str(top):
            above, _, below = folder.rpartition("/")
            folders.setdefault(above, set()).add(below)
            folder = above
    runs = runs_in_natural_order(str(top), files, {folder: sorted(names) for folder, names in folders.items()})
    return SourceFiles(list(runs), states=states)


def are_unchanged(
    source: str | Path, folders: Mapping[str, FolderState], *, without: Iterable[str | Place] = ()
) -> bool:
    """Whether the folders under `source` are those of `folders` and have their times: a stat for each, and a listing of
    those that have folders in them."""
    top = _top(Path(source))
    seen, waiting, found = _identities(without), [str(top)], 0
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
            identity = _identity(status)
            if identity in seen:
                continue
            seen.add(identity)
            state = folders.get(identity)
            if state is None or state.mtime_ns != status.st_mtime_ns:
                return False
            found += 1
            if state.has_folders:
                with os.scandir(path) as entries:
                    waiting.extend(entry.path for entry in entries if _is_folder(entry))
        except OSError:
            return False
    return found == len(folders) > 0


class _Folder(NamedTuple):
    """A folder that was listed, or could not be."""

    path: str
    identity: str
    mtime_ns: int | None = None
    """None where it had just changed: another change within a step of the clock would go unseen"""
    files: Sequence[str] = ()
    folders: Sequence[str] = ()
    why_not: str = ""


def _walk(top: Path, without: Iterable[str | Place]) -> Iterator[_Folder]:
    """All folders from `top` on, once each. Files are plain ones and links to nothing (opening a pipe would wait for ever)."""
    seen, waiting = _identities(without), [str(top)]
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
        except OSError:
            status = None
        identity = "" if status is None else _identity(status)
        if identity and identity in seen:  # folders may be links, and links may lead back
            continue
        seen.add(identity)
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield _Folder(path, identity, why_not=error.strerror or type(error).__name__)
            continue
        folders = [entry.name for entry in entries if _is_folder(entry)]
        files = [entry.name for entry in entries if _is_file(entry)]
        waiting.extend(os.path.join(path, name) for name in reversed(folders))
        yield _Folder(path, identity, _settled_mtime(status), files, folders)


def _settled_mtime(status: os.stat_result | None) -> int | None:
    if status is None or time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
        return None
    return status.st_mtime_ns


def _top(source: Path) -> Path:
    return source / RSNA_FOLDER if (source / RSNA_FOLDER).is_dir() else source


def _identities(folders: Iterable[str | Place]) -> set[str]:
    found = set()
    for folder in folders:
        if isinstance(folder, StorePath):
            continue
        try:
            found.add(_identity(os.stat(folder)))
        except OSError:
            continue
    return found


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}"


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # opening it says why
        return True
