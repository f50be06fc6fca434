"""Plain files: a PNG a slice, and an array a study that is mapped into memory."""

from collections.abc import Sequence

import cv2
import numpy as np

from benchmarks.peers.image import Item
from benchmarks.peers.way import Stored

cv2.setNumThreads(1)


class Png(Stored):
    PACKAGES: Sequence[str] = ("opencv-python-headless", "numpy", "pydicom", "torch")

    def write(self, id: str, pixels: np.ndarray) -> None:
        (self.folder / id).mkdir()
        for z, one in enumerate(pixels):
            cv2.imwrite(f"{self.folder}/{id}/{z}.png", one)

    def reopen(self) -> None:
        self.slices = {id: len(files) for id, files in self.files.items()}

    def read(self, item: Item) -> np.ndarray:
        found = range(item.start, min(item.end, self.slices[item.id]))
        paths = (f"{self.folder}/{item.id}/{z}.png" for z in found)
        return np.stack([cv2.imread(path, cv2.IMREAD_UNCHANGED)[item.inside] for path in paths])


class Npy(Stored):
    PACKAGES: Sequence[str] = ("numpy", "opencv-python-headless", "pydicom", "torch")

    def write(self, id: str, pixels: np.ndarray) -> None:
        np.save(self.folder / f"{id}.npy", pixels)

    def reopen(self) -> None:
        self.arrays = {id: np.load(self.folder / f"{id}.npy", mmap_mode="r") for id in self.files}

    def read(self, item: Item) -> np.ndarray:
        return np.ascontiguousarray(self.arrays[item.id][(slice(item.start, item.end), *item.inside)])
