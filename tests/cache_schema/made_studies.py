"""Small studies in memory, and what tests ask of files."""

import hashlib
from pathlib import Path

import numpy as np

from cache_schema import Study, StudyRecord


class InMemory:
    """Pixels that are simply there."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def read(self, z0, z1, box=None):
        x0, y0, x1, y1 = box or (0, 0, self.array.shape[2], self.array.shape[1])
        return self.array[z0:z1, y0:y1, x0:x1].copy()


def record(id: str = "1.2.3", slices: int = 19, rows: int = 20, columns: int = 24, **changes) -> StudyRecord:
    fields = {
        "id": id,
        "study_uid": id,
        "series_uid": f"{id}.1",
        "rows": rows,
        "columns": columns,
        "slices": slices,
        "spacing": (1.5, 0.5, 0.4),
        "pixel_spacing": (0.5, 0.4),
        "slice_spacing": {"min": 1.5, "median": 1.5, "max": 1.5},
        "orientation": (1, 0, 0, 0, 1, 0),
        "position": (-10.0, -12.5, 30.0),
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "decoder": "pydicom",
        "source_digest": "abc",
    }
    return StudyRecord(**fields | changes)


def make_study(id: str = "1.2.3", slices: int = 19, *, segmented: bool = True, seed: int = 0, **changes) -> Study:
    """Random pixels, the last slices black; a segmentation of the middle."""
    about = record(id, slices, **changes)
    pixels = np.random.default_rng(seed).integers(0, 256, (slices, about.rows, about.columns), np.uint8)
    pixels[-2:] = 0
    boxes = np.full((slices, 4), -1, np.int16)
    boxes[slices // 2] = 3, 4, 10, 12
    ratios = np.linspace(0, 1, slices * 7, dtype=np.float32).reshape(slices, 7)
    labels = {"slice_box": boxes, "vertebra_ratio": ratios} if segmented else {}
    return Study(about, 30 - 1.5 * np.arange(slices), np.arange(slices, 0, -1), InMemory(pixels), **labels)


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file of a cache by its name; what lies in .build is no part of it."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".build"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
