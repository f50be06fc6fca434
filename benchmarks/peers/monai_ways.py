"""MONAI's caching datasets, and images by MONAI's transforms on tensors, the slices as channels."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset, set_track_meta
from monai.transforms import CastToType, NormalizeIntensity, Resample, ScaleIntensity, SpatialCrop, Transform

from benchmarks.peers.dicom import study_pixels
from benchmarks.peers.image import Item, Look, in_order, sampled
from benchmarks.peers.torch_loader import batches
from benchmarks.peers.way import Files, Way

JUST_OVER = 255.001
"""so that what is exactly a grey level is not rounded to the one below"""

cv2.setNumThreads(1)
torch.set_num_threads(1)
set_track_meta(False)  # its guide to fast training: without metadata and transforms to invert


class Decode(Transform):
    """Study -> (n, rows, columns) uint8: the part without chance, which MONAI caches."""

    def __init__(self, files: Files):
        self.files = files

    def __call__(self, id: str) -> torch.Tensor:
        return torch.from_numpy(study_pixels(self.files[id]))


class Cached(Way):
    """All studies in memory, as uint8."""

    PACKAGES: Sequence[str] = ("monai", "torch", "numpy", "pydicom")
    dataset: Dataset | None = None

    def _dataset(self, files: Files) -> Dataset:
        # copy_cache: the crop is copied, so what is cached does not change
        return CacheDataset(list(files), Decode(files), progress=False, copy_cache=False)

    def prepare(self, files: Files) -> None:
        self.dataset = self._dataset(files)

    def open(self, files: Files, look: Look) -> None:
        self.rows, self.look = {id: row for row, id in enumerate(files)}, look
        self.dataset = self.dataset or self._dataset(files)

    def image(self, item: Item) -> np.ndarray:
        assert self.dataset is not None
        slices = self.dataset[self.rows[item.id]][item.start : item.end : item.step]
        return make_image(slices, item, self.look).numpy()

    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        return batches(self.image, items, workers, lambda: None, DataLoader)


class Persistent(Cached):
    """A file of torch.save for each study."""

    def _dataset(self, files: Files) -> Dataset:
        return PersistentDataset(list(files), Decode(files), self.folder)

    def prepare(self, files: Files) -> None:
        dataset = self._dataset(files)
        for row in range(len(files)):
            dataset[row]


def make_image(slices: torch.Tensor, item: Item, look: Look) -> torch.Tensor:
    """(n, rows, columns) uint8 -> (frames / 3, 3, size, size) float16."""
    if item.box is not None:
        x0, y0, x1, y1 = item.box
        slices = SpatialCrop(roi_start=(y0, x0), roi_end=(y1, x1))(slices)
    to_uint8 = CastToType(torch.uint8)
    frames = to_uint8(ScaleIntensity(minv=0, maxv=JUST_OVER, channel_wise=True)(slices))
    if item.gain != 1:
        frames = to_uint8(ScaleIntensity(minv=None, maxv=None, factor=item.gain - 1)(frames).clamp(max=255))
    frames = torch.from_numpy(np.ascontiguousarray(in_order(frames.numpy(), item)))
    resample = Resample(mode="bilinear", padding_mode="zeros", dtype=np.float32)
    image = resample(frames, _grid(item, *frames.shape[1:]))
    for x0, y0, x1, y1 in item.holes:
        image[:, y0:y1, x0:x1] = 0
    triplets = item.frames // 3
    normalise = NormalizeIntensity(np.tile(look.mean, triplets), np.tile(look.std, triplets), channel_wise=True)
    return CastToType(torch.float16)(normalise(image)).reshape(triplets, 3, look.size, look.size)


def _grid(item: Item, height: int, width: int) -> torch.Tensor:
    """(2, size, size) float32: y and x of each output pixel's sample, from the centre of the crop, in pixels."""
    map_x, map_y = sampled(item)
    return torch.from_numpy(np.stack([map_y - (height - 1) / 2, map_x - (width - 1) / 2]))
