"""A small source in the RSNA layout, of real DICOM and NIfTI files, and what tests ask of a cache's files."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
from dicom_files import COLUMNS, ROWS, write_nifti, write_slice

from cache_schema.layout import TARGETS

PREFIX = "1.2.826.0.1.3680043.8.498.77"
SLICES = 10
IDS = [f"{PREFIX}.{n}" for n in range(1, 5)]
SEGMENTED = IDS[:2]
HEIGHTS = 100.0 - 2.0 * np.arange(SLICES)


def labels_of(n: int) -> np.ndarray:
    """(SLICES, ROWS, COLUMNS): C1 in slices 1 to 3, C7 in 6 to 8, off the middle."""
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[1:4, 3:9, 4 + n : 12 + n] = 1
    labels[6:9, 5:11, 3 + n : 14 + n] = 7
    return labels


def hu_of(n: int) -> np.ndarray:
    """int16 (SLICES, ROWS, COLUMNS), head to feet: bone where the labels are, air around, noise of its own for each
    study."""
    noise = np.random.default_rng(n).normal(0, 20, (SLICES, ROWS, COLUMNS))
    hu = np.where(labels_of(n) > 0, 700, 40) + noise
    hu[:, :, 27:] = hu[:, 21:] = -1000
    return hu.astype(np.int16)


def write_study(source: Path, n: int, **changes) -> Path:
    """`train_images/<id>/<1..SLICES>.dcm`, number 1 at the head."""
    folder = source / "train_images" / f"{PREFIX}.{n}"
    for z in range(SLICES):
        fields = {"z": HEIGHTS[z], "number": z + 1, "study": folder.name} | changes
        write_slice(folder / f"{z + 1}.dcm", hu_of(n)[z], **fields)
    return folder


def write_rsna(source: Path) -> Path:
    """Four studies, two of them segmented, all with labels."""
    lines = [",".join(("StudyInstanceUID", *TARGETS))]
    for n, id in enumerate(IDS, start=1):
        write_study(source, n)
        if id in SEGMENTED:
            write_nifti(source / "segmentations" / f"{id}.nii", labels_of(n), HEIGHTS, "PIR")
        lines.append(f"{id},{n % 2},{n % 2},0,0,0,0,0,0")
    (source / "train.csv").write_text("\n".join(lines) + "\n")
    return source


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file of a cache by its name; what lies in .build is no part of it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".build"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def times_of(folder: Path) -> dict[str, int]:
    """When every file of a cache was written."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and ".build" not in path.parts
    }


def report_of(cache):
    return pd.read_csv(cache / "report.csv", dtype=str, keep_default_na=False)


def touch_later(path):
    """A change within the clock's resolution must not go unseen in a test; real ones are further apart."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
