"""The golden cache of schema 1, made again: `python tests/cache_schema/golden.py FOLDER`."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from made_studies import InMemory, record

from cache_schema import CacheWriter, Study
from cache_schema.layout import BUILD_FOLDER, TARGETS

GOLDEN = Path(__file__).parent / "golden-1"
WHOLE, PART = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
SIDE, SLICES = 16, 3


def pixels() -> np.ndarray:
    """uint8 (3, 16, 16): ramps, and a last slice of one value."""
    z, y, x = np.mgrid[:SLICES, :SIDE, :SIDE]
    grey = (16 * y + x + 85 * z) % 256
    return np.where(z == SLICES - 1, 7, grey).astype(np.uint8)


def studies() -> list[Study]:
    """A whole study with a segmentation, and a cropped one without."""
    z, number = 1.5 - 0.625 * np.arange(SLICES), np.arange(1, SLICES + 1)
    about = {"slices": SLICES, "rows": SIDE, "columns": SIDE, "spacing": (0.625, 0.5, 0.4)}
    about["slice_spacing"] = dict.fromkeys(("min", "median", "max"), 0.625)
    boxes = np.array([[-1, -1, -1, -1], [3, 4, 9, 11], [-1, -1, -1, -1]])
    ratios = np.zeros((SLICES, 7))
    ratios[1] = np.arange(7) / 6
    whole = Study(record(WHOLE, **about, flags=("gantry_tilt", "lossy")), z, number, InMemory(pixels()), boxes, ratios)
    part = {"x0": 2, "y0": 5, "rows": 8, "columns": 6, "parent": "0" * 64}
    cut = InMemory(pixels()[:, 5:13, 2:8])
    return [whole, Study(record(PART, **about, origin=part), z, number, cut)]


def make_golden(folder: Path) -> None:
    writer = CacheWriter(folder)
    for study in studies():
        writer.publish(study)
    labels = pd.DataFrame({"id": [WHOLE, PART], **dict.fromkeys(TARGETS, 0), "fold": [0, 1]}).astype({"C2": "Int8"})
    labels.loc[0, ["patient_overall", "C1"]] = 1
    labels.loc[1, "C2"] = pd.NA
    row = [WHOLE, "", "flagged", "gantry_tilt", "the slice normal is tilted by 18.5 degrees"]
    report = pd.DataFrame([row], columns=["id", "file", "severity", "reason", "message"])
    writer.finish(labels, report, made_by="golden", inputs={"labels": "1" * 64})
    box = {"x0": 3, "y0": 5, "x1": 8, "y1": 12, "z_from": 0, "z_to": 3}
    writer.set_boxes(pd.DataFrame([{"id": WHOLE, **box}]))
    shutil.rmtree(folder / BUILD_FOLDER)


if __name__ == "__main__":
    make_golden(Path(sys.argv[1]))
