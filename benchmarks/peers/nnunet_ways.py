"""The blosc2 files of nnU-Net v2, by its own classes."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import cv2
import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from benchmarks.peers.image import Item
from benchmarks.peers.way import Stored

PATCH_SLICES = 96

cv2.setNumThreads(1)


class NnUnet(Stored):
    PACKAGES: Sequence[str] = ("nnunetv2", "blosc2", "numpy", "opencv-python-headless", "pydicom", "torch")

    def write(self, id: str, pixels: np.ndarray) -> None:
        """Its preprocessor's call, for a patch of one window. Its segmentation, which no other way keeps, is one voxel."""
        data, none, one = pixels[None], np.zeros((1, 1, 1, 1), np.uint8), (1, 1, 1, 1)
        patch = (PATCH_SLICES, *pixels.shape[1:])
        blocks, chunks = comp_blosc2_params(data.shape, patch, data.itemsize)
        path = str(self.folder / id)
        nnUNetDatasetBlosc2.save_case(data, none, {}, path, chunks, blocks, chunks_seg=one, blocks_seg=one)

    def reopen(self) -> None:
        self.dataset = nnUNetDatasetBlosc2(str(self.folder), list(self.files))

    def read(self, item: Item) -> np.ndarray:
        data, *_ = self.dataset.load_case(item.id)
        return np.asarray(data[(0, slice(item.start, item.end), *item.inside)])

    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        """With the settings of nnU-Net's trainer."""
        batches = Batches(self.image, items)
        return NonDetMultiThreadedAugmenter(batches, None, workers, max(6, workers // 2), wait_time=0.002)


class Batches:
    """What nnU-Net's augmenter asks of a loader of batches. Each of its processes has a copy, and makes every item in turn."""

    def __init__(self, image: Callable[[Item], np.ndarray], items: Sequence[Item]):
        self.image, self.items = image, cycle(items)

    def set_thread_id(self, number: int) -> None:
        cv2.setNumThreads(1)

    def __next__(self) -> dict[str, torch.Tensor]:
        return {"data": torch.from_numpy(self.image(next(self.items)))[None]}
