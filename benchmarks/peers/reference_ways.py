"""The reference's way, with this project's packages."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.items import augment_settings
from benchmarks.others import Albumentations, decoded
from benchmarks.peers.image import Item, Look
from benchmarks.peers.torch_loader import batches
from benchmarks.peers.way import Files, Way

cv2.setNumThreads(1)
torch.set_num_threads(1)


class Reference(Way):
    """Decodes DICOM files for every item, and augments by albumentations with random numbers of its own."""

    PACKAGES: Sequence[str] = ("pydicom", "pylibjpeg-libjpeg", "albumentations", "torch")

    def open(self, files: Files, look: Look) -> None:
        self.files = {id: [Path(path) for path in paths] for id, paths in files.items()}
        self._augmented = {stage: Albumentations(augment_settings(stage)) for stage in ("vertebrae", "bbox")}

    def image(self, item: Item) -> np.ndarray:
        slices = decoded(self.files[item.id][item.start : item.end : item.step], item.box)
        augmented = self._augmented["vertebrae" if item.frames > 3 else "bbox"]
        return augmented.reference(slices, item.warp, item.start)

    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        return batches(self.image, items, workers, lambda: None, DataLoader)
