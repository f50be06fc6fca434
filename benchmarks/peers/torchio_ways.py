"""TorchIO: NIfTI files without compression, and its own transforms."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import nibabel
import numpy as np
import SimpleITK
import torch
import torchio as tio

from benchmarks.peers.dicom import study_pixels
from benchmarks.peers.image import Item, Look, in_order, stretched
from benchmarks.peers.torch_loader import batches
from benchmarks.peers.way import Files, Way

cv2.setNumThreads(1)
torch.set_num_threads(1)
SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


class TorchIO(Way):
    """Tensors are (1, columns, rows, slices), positions in voxels."""

    PACKAGES: Sequence[str] = ("torchio", "simpleitk", "nibabel", "torch", "numpy", "pydicom")

    def prepare(self, files: Files) -> None:
        for id, paths in files.items():
            tensor = torch.from_numpy(study_pixels(paths).transpose(2, 1, 0)[None])
            tio.ScalarImage(tensor=tensor).save(self.folder / f"{id}.nii", squeeze=True)

    def open(self, files: Files, look: Look) -> None:
        self.look = look

    def image(self, item: Item) -> np.ndarray:
        reader = partial(read_slices, item)
        subject = tio.Subject(ct=tio.ScalarImage(self.folder / f"{item.id}.nii", reader=reader))
        voxels = transform(item, self.look.size, subject.spatial_shape)(subject).ct.numpy()[0]
        return self._finished(in_order(voxels.transpose(2, 1, 0), item), item)

    def _finished(self, frames: np.ndarray, item: Item) -> np.ndarray:
        """(frames, size, size) uint8 -> (frames / 3, 3, size, size) float16."""
        tables = self.look.tables
        out = np.empty(frames.shape, np.float16)
        for k, (frame, target) in enumerate(zip(frames, out, strict=True)):
            np.take(tables[k % 3], frame, out=target, mode="clip")
            for x0, y0, x1, y1 in item.holes:
                target[y0:y1, x0:x1] = tables[k % 3, 0]
        return out.reshape(-1, 3, *frames.shape[1:])

    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        alone = partial(SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads, 1)
        return batches(self.image, items, workers, alone, tio.SubjectsLoader, "ct")


def read_slices(item: Item, path: Path) -> tuple[torch.Tensor, np.ndarray]:
    """A reader for TorchIO: the item's slices alone, mapped. Its own reads the whole volume, and copies it."""
    voxels = np.asanyarray(nibabel.load(path, mmap="c").dataobj)[..., item.start : item.end : item.step]
    return torch.from_numpy(voxels[None]), np.eye(4)


def transform(item: Item, size: int, shape: Sequence[int]) -> tio.Transform:
    """Crop, stretch, and one interpolation. shape: columns, rows and slices of the image."""
    columns, rows, slices = shape
    x0, y0, x1, y1 = item.box or (0, 0, columns, rows)
    crop = tio.Crop((x0, columns - x1, y0, rows - y1, 0, 0))
    stretch = tio.Lambda(partial(stretch_slices, item.gain))
    return tio.Compose([crop, stretch, tio.Resample(target=((size, size, slices), _affine(item, x0, y0)))])


def stretch_slices(gain: float, tensor: torch.Tensor) -> torch.Tensor:
    """By slice, which no intensity transform of TorchIO does."""
    slices = np.ascontiguousarray(tensor[0].numpy().transpose(2, 1, 0))
    return torch.from_numpy(stretched(slices, gain).transpose(2, 1, 0)[None])


def _affine(item: Item, x0: int, y0: int) -> np.ndarray:
    """(4, 4): output voxel -> position. Both count voxels from their centres."""
    linear, offset = item.matrix[:, :2].astype(float), item.matrix[:, 2].astype(float)
    affine = np.eye(4)
    affine[:2, :2] = linear
    affine[:2, 3] = linear @ [0.5, 0.5] + offset - 0.5 + [x0, y0]
    return affine
