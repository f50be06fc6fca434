"""Any peer's images through PyTorch's DataLoader."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.image import Item

ENDLESS = 1 << 30


class Items(Dataset):
    """The images of a few items, repeated. key: of the dictionary that each is put into."""

    def __init__(self, image: Callable[[Item], np.ndarray], items: Sequence[Item], key: str | None = None):
        self.image, self.items, self.key = image, items, key

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> torch.Tensor | dict[str, torch.Tensor]:
        image = torch.from_numpy(self.image(self.items[k % len(self.items)]))
        return {self.key: image} if self.key else image


def batches(
    image: Callable[[Item], np.ndarray],
    items: Sequence[Item],
    workers: int,
    reopen: Callable[[], object],
    loader: type[DataLoader] = DataLoader,
    key: str | None = None,
    context: str | None = None,
) -> Iterator[object]:
    """Endless batches of one image. reopen: runs first in each worker process, which must not share a parent's open files.
    context: how multiprocessing starts the workers; None: as by default."""
    return iter(
        loader(
            Items(image, items, key),
            batch_size=1,
            sampler=range(ENDLESS),
            num_workers=workers,
            worker_init_fn=partial(start_worker, reopen),
            multiprocessing_context=context,
        )
    )


def start_worker(reopen: Callable[[], object], number: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    reopen()
