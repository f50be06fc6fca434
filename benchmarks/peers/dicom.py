"""From a study's DICOM files to the pixels that every peer stores."""

from collections.abc import Iterable

import numpy as np
import pydicom
from pydicom.pixels import apply_rescale

LOW, HIGH = -500, 1300
"""HU that become 0 and 255: the window of this project's cache, so that every peer holds the same pixels"""


def study_pixels(files: Iterable[str]) -> np.ndarray:
    """(n, rows, columns) uint8 of DICOM files, in their order. Pydicom decodes by its own choice among the installed packages."""
    return np.stack([_slice_pixels(file) for file in files])


def _slice_pixels(file: str) -> np.ndarray:
    dataset = pydicom.dcmread(file)
    hu = apply_rescale(dataset.pixel_array, dataset)
    return np.round((np.clip(hu, LOW, HIGH) - LOW) * 255 / (HIGH - LOW)).astype(np.uint8)
