"""The same pictures through a torch DataLoader, for machines that cannot have DALI."""

import signal
import threading
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer.config import DataSettings
from trainer.data.picture import picture
from trainer.data.readers import InReader
from trainer.data.source import Source


class Pictures(Dataset):
    """Picture k of a source, and the key of its item."""

    def __init__(self, source: Source, settings: DataSettings):
        self.reading, self.settings = InReader(source), settings

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        sample = self.reading.source.read(k)
        return torch.from_numpy(picture(sample, self.settings.size, self.settings.interpolation)), int(sample.key[0])

    def batches(self, batch: int, workers: int) -> Iterator[list[tuple[torch.Tensor, int]]]:
        loader = DataLoader(
            self,
            batch_size=batch,
            sampler=_Counting(self.reading.source.limit),
            num_workers=workers,
            collate_fn=list,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),  # its own, so that loading draws nothing from the model's random numbers
        )
        answer = signal.getsignal(signal.SIGCHLD)
        try:
            return iter(loader)
        finally:
            # torch's own raises a worker's death anywhere in the training; here it belongs to the next batch
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, answer or signal.SIG_DFL)


class _Counting(Sampler[int]):
    def __init__(self, limit: int | None):
        self.limit = limit

    def __iter__(self) -> Iterator[int]:
        k = 0
        while self.limit is None or k < self.limit:
            yield k
            k += 1
