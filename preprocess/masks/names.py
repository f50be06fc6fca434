"""Which file of a folder is a study's mask, and which masks no study takes."""

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from cache_schema.errors import UsageError

SUFFIXES = (".nii", ".nii.gz")
"""Of a mask, in the order in which they are looked for; in any case."""

MASK = re.compile(r"\.(nii|nrrd|nhdr|mha|mhd|hdr|img|mgz|mnc)(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE)
"""Names of files that hold volumes; of these only NIfTI is read."""

TEXT = (".txt", ".md", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".html", ".pdf", ".log")

ENDINGS = re.compile(r"(\.[A-Za-z][^.]*)+$")

UID = re.compile(r"\d+(\.\d+){3,}")
"""What a name begins with that was made for some study."""


def find_segmentation(folder: str | Path | None, study: str) -> Path | None:
    """`<study>.nii` or `<study>.nii.gz` in a folder, or None; the suffix in any case, and blanks at the end of the
    study's UID do not count.

    Raises UsageError where the folder cannot be listed.
    """
    if folder is None:
        return None
    folder, study = Path(folder), study.rstrip()
    try:
        plain = (folder / f"{study}{suffix}" for suffix in SUFFIXES)
        found = next((path for path in plain if path.is_file()), None)
        if found is None:
            name = _other_names(folder, os.stat(folder).st_mtime_ns).get(study)
            found = folder / name if name else None
    except OSError as error:
        raise unlistable(folder, error) from None
    return found if found and found.is_file() else None


def unused_masks(folder: str | Path | None, studies: Iterable[str]) -> list[Path]:
    """Files below a folder that look like a mask, or are named after a study, and that none of `studies` takes.

    Of `<id>.nii` and `<id>.nii.gz` one is taken, files in folders below are not, nor is any format but NIfTI. Hidden
    files and plain text are left out. Raises UsageError where the folder cannot be listed.
    """
    if folder is None:
        return []
    folder, studies = Path(folder), {study.rstrip() for study in studies}
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise unlistable(folder, error) from None
    taken = {find_segmentation(folder, study) for study in studies}
    found: list[Path] = []
    for where, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        paths = (Path(where, name) for name in names if not name.startswith("."))
        found.extend(path for path in paths if path not in taken and _is_unused_mask(path, studies))
    return sorted(found)


def unlistable(folder: Path, error: OSError) -> UsageError:
    """What is said of a folder of segmentations that exists and does not open."""
    return UsageError(f"cannot be listed ({error.strerror})", where=folder, expected="a folder of <id>.nii files")


@lru_cache(maxsize=2)
def _other_names(folder: Path, changed: int) -> dict[str, str]:
    """Study -> name of its file, for names that are not simply the study's UID and a suffix. `changed` makes a folder
    that has changed another one."""
    names: dict[str, str] = {}
    for suffix in SUFFIXES:
        for name in sorted(os.listdir(folder)):
            if name.lower().endswith(suffix):
                names.setdefault(name[: -len(suffix)].rstrip(), name)
    return names


def _is_unused_mask(path: Path, studies: set[str]) -> bool:
    """Whether a file that no study takes was meant to be a mask."""
    name = path.name
    if name.lower().endswith(TEXT) or not path.is_file():
        return False
    if MASK.search(name) or ENDINGS.sub("", name).rstrip() in studies:
        return True
    return UID.match(name) is not None and not _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    """Images are often named after their own UIDs, and may lie beside masks."""
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
