"""LitData: chunks of whole studies, of which it reads windows of slices in place."""

import os
import tempfile
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
from litdata import StreamingDataset, optimize
from litdata.streaming.temporal import TemporalArrayLoader

from benchmarks.peers.dicom import study_pixels
from benchmarks.peers.image import Item
from benchmarks.peers.way import Files, Read

CHUNK_BYTES = "64MB"
"""its documentation's usual size"""

cv2.setNumThreads(1)


def record(files: Files, id: str) -> dict[str, np.ndarray]:
    """A study as `optimize` stores it; runs in its process."""
    return {"slices": study_pixels(files[id])}


class LitData(Read):
    PACKAGES: Sequence[str] = ("litdata", "numpy", "opencv-python-headless", "pydicom", "torch")

    def prepare(self, files: Files) -> None:
        # on the same disk, so that its chunks are moved and not copied
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as beside:
            os.environ |= {"DATA_OPTIMIZER_CACHE_FOLDER": beside, "DATA_OPTIMIZER_DATA_CACHE_FOLDER": beside}
            optimize(
                partial(record, files),
                inputs=list(files),
                output_dir=str(self.folder),
                chunk_bytes=CHUNK_BYTES,
                num_workers=1,
                start_method="fork",  # else its process imports everything anew
                keep_data_ordered=True,
                reorder_files=False,
                item_loader=TemporalArrayLoader(),
                verbose=False,
            )

    def reopen(self) -> None:
        self.rows = {id: row for row, id in enumerate(self.files)}
        self.dataset = StreamingDataset(str(self.folder), item_loader=TemporalArrayLoader())

    def read(self, item: Item) -> np.ndarray:
        found = self.dataset.read_window(self.rows[item.id], item.start, item.end - item.start, ["slices"])["slices"]
        return found[(slice(None), *item.inside)]
