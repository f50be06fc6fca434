"""The header pass: every file of a source is opened once, in natural order of the paths."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache_schema.errors import UsageError
from preprocess.findings import REASONS, Finding
from preprocess.headers.file_header import FileHeader
from preprocess.headers.read import OtherFile, read_headers
from preprocess.natural_order import natural_key

RSNA_FOLDER = "train_images"


@dataclass
class Inventory:
    """What the files of a source are. unread: findings about files that are no image and should be one, or may be."""

    headers: list[FileHeader] = field(default_factory=list)
    unread: list[Finding] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """how many files are known to be something else, by kind"""

    def add(self, other: "Inventory") -> None:
        self.headers += other.headers
        self.unread += other.unread
        self.others += other.others

    def about_others(self) -> list[Finding]:
        """One row that counts what was passed over, or none."""
        if not self.others:
            return []
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))
        return [Finding("", "", "flagged", "other_files", f"skipped: {counts}")]


def scan(source: str | Path, salt: bytes = b"") -> Inventory:
    """Read the headers of every DICOM file under `source`, in natural order of their paths.

    `source` is an RSNA folder (its `train_images` is read), any tree, or a single file. salt: see
    `preprocess.headers.read.read_headers`. Whatever the files hold becomes a header, a finding or a count, never an exception.
    Raises UsageError when `source` does not exist.
    """
    files, unlisted = find_files(source)
    found = read_many(list(enumerate(files, start=1)), salt)
    found.unread += unlisted
    return found


def read_many(numbered: Iterable[tuple[int, Path]], salt: bytes = b"") -> Inventory:
    """The header pass over some files of a source, numbered as in the whole of it."""
    found = Inventory()
    for number, path in numbered:
        content = read_headers(path, salt)
        if isinstance(content, Finding):
            found.unread.append(replace(content, file=str(number)))
        elif isinstance(content, OtherFile):
            found.others[content.kind] += 1
        else:
            found.headers.extend(replace(header, number=number) for header in content)
    return found


def find_files(source: str | Path, *, without: Iterable[str | Path] = ()) -> tuple[list[Path], list[Finding]]:
    """Every file under `source` in natural order (`9.dcm` before `10.dcm`), and a finding for each folder below it that
    cannot be listed.

    without: folders that are not looked into. Raises UsageError when `source` is missing or cannot be listed itself.
    """
    source = Path(source)
    if source.is_file():
        return [source], []
    if not source.is_dir():
        raise UsageError("no such file or folder", where=source, expected="a folder of DICOM files")
    top = source / RSNA_FOLDER if (source / RSNA_FOLDER).is_dir() else source
    files, unlisted = _walk(top, {_identity(path) for path in without})
    if unlisted and unlisted[0][0] == 1:
        raise UsageError(f"cannot be listed ({unlisted[0][2]})", where=top, expected="a folder of DICOM files")
    findings = []
    for number, folder, why in unlisted:
        message = f"folder {number} of the source: {REASONS['unlisted_folder']} ({why})"
        findings.append(Finding("", "", "refused", "unlisted_folder", message, str(folder)))
    return sorted(files, key=lambda path: natural_key(str(path))), findings


def _walk(top: Path, left_out: set[tuple[int, int] | None]) -> tuple[list[Path], list[tuple[int, Path, str]]]:
    """Plain files below a folder, links to nothing included (opening a pipe would wait for ever), and (number in the order
    of the walk, folder, reason) of every folder that cannot be listed."""
    files: list[Path] = []
    unlisted: list[tuple[int, Path, str]] = []
    seen, waiting, number = set(left_out), [top], 0
    while waiting:
        folder = waiting.pop()
        identity = _identity(folder)
        if identity is not None and identity in seen:  # folders may be links, and links may lead back
            continue
        seen.add(identity)
        number += 1
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            unlisted.append((number, folder, error.strerror or type(error).__name__))
            continue
        waiting.extend(Path(entry.path) for entry in reversed(entries) if _is_folder(entry))
        files.extend(Path(entry.path) for entry in entries if _is_file(entry))
    return files, unlisted


def _identity(folder: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
