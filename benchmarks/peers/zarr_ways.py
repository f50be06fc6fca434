"""zarr-python, alone and with the codec pipeline of the zarrs crate."""

from collections.abc import Sequence

import cv2
import numpy as np
import zarr

from benchmarks.peers.image import Item
from benchmarks.peers.way import Files, Stored

CHUNK_SLICES = 8
"""2 MiB of 512 x 512 uint8: zarr's guide to performance advises 1 MB or more, and whole slices make no read of a crop unpack twice"""

cv2.setNumThreads(1)
zarr.config.set({"threading.max_workers": 1})


class ZarrPython(Stored):
    PACKAGES: Sequence[str] = ("zarr", "numcodecs", "numpy", "opencv-python-headless", "pydicom", "torch")

    def write(self, id: str, pixels: np.ndarray) -> None:
        chunks = (min(CHUNK_SLICES, len(pixels)), *pixels.shape[1:])
        array = zarr.create_array(self.folder / id, shape=pixels.shape, chunks=chunks, dtype=pixels.dtype)
        array[:] = pixels

    def reopen(self) -> None:
        self.arrays = {id: zarr.open_array(self.folder / id, mode="r") for id in self.files}

    def read(self, item: Item) -> np.ndarray:
        return np.asarray(self.arrays[item.id][(slice(item.start, item.end), *item.inside)])


class Zarrs(ZarrPython):
    PACKAGES = ("zarrs", *ZarrPython.PACKAGES)
    WORKERS = "spawn"
    """its threads do not survive a fork, and a forked worker waits for them for ever"""

    def prepare(self, files: Files) -> None:
        use_zarrs()
        super().prepare(files)

    def reopen(self) -> None:
        use_zarrs()
        super().reopen()


def use_zarrs() -> None:
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
