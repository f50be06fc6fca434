"""The same pictures without DALI: cv2 and a torch DataLoader. For machines that cannot have DALI, and to check the graph against."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer.config import DataSettings
from trainer.data.source import INTERPOLATION, MEAN, STD, Sample, Source


def picture(sample: Sample, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """A sample -> (frames / 3, 3, size, size) float16: map, gain, cut-outs, normalisation (design 7)."""
    (a, b, c), (d, e, f) = sample.matrix
    map_x = a * sample.axis_x + b * sample.axis_y + (c - np.float32(0.5))
    map_y = d * sample.axis_x + e * sample.axis_y + (f - np.float32(0.5))
    levels = np.clip(np.rint(np.arange(256) * sample.gain[0]), 0, 255).astype(np.float32)
    tables = ((levels - MEAN[:, None]) / STD[:, None]).astype(np.float16)
    out = np.empty((len(sample.pixels), size, size), np.float16)
    holes = [
        (int(y), int(x), int(y + h), int(x + w))
        for y, x, h, w in np.hstack([sample.hole_start.reshape(-1, 2), sample.hole_shape.reshape(-1, 2)])
    ]
    for k, (frame, target) in enumerate(zip(sample.pixels[..., 0], out, strict=True)):
        table = tables[k % 3]
        moved = cv2.remap(frame, map_x, map_y, INTERPOLATION[interpolation], borderMode=cv2.BORDER_CONSTANT)
        np.take(table, moved, out=target, mode="clip")
        for y0, x0, y1, x1 in holes:
            target[y0:y1, x0:x1] = table[0]
    return out.reshape(-1, 3, size, size)


class Pictures(Dataset):
    """Picture k of a source, and the key of its item."""

    def __init__(self, source: Source, settings: DataSettings):
        self.source, self.settings = source, settings

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        sample = self.source.read(k)
        return torch.from_numpy(picture(sample, self.settings.size, self.settings.interpolation)), int(sample.key[0])

    def batches(self, batch: int, workers: int) -> Iterator[list[tuple[torch.Tensor, int]]]:
        return iter(
            DataLoader(
                self,
                batch_size=batch,
                sampler=_Counting(self.source.limit),
                num_workers=workers,
                collate_fn=list,
                multiprocessing_context="spawn" if workers else None,
                generator=torch.Generator(),  # its own, so that loading draws nothing from the model's random numbers
            )
        )


class _Counting(Sampler[int]):
    def __init__(self, limit: int | None):
        self.limit = limit

    def __iter__(self) -> Iterator[int]:
        k = 0
        while self.limit is None or k < self.limit:
            yield k
            k += 1
