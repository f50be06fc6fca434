"""WebDataset: tar files of whole studies, read as a stream."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import cv2
import numpy as np
import torch
import webdataset as wds

from benchmarks.peers.dicom import study_pixels
from benchmarks.peers.image import Item, Look, make_image
from benchmarks.peers.way import Files, Way

SHARD_BYTES = 256e6
"""the low end of what its documentation advises, so that two processes have a shard each soon"""

cv2.setNumThreads(1)
torch.set_num_threads(1)


class WebDataset(Way):
    PACKAGES: Sequence[str] = ("webdataset", "torch", "numpy", "opencv-python-headless", "pydicom")

    def prepare(self, files: Files) -> None:
        pattern = str(self.folder / "studies-%06d.tar")
        with wds.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as shards:
            for id, paths in files.items():
                shards.write({"__key__": key_of(id), "npy": study_pixels(paths)})

    def open(self, files: Files, look: Look) -> None:
        self.look = look
        self.shards = [str(path) for path in sorted(self.folder.glob("*.tar"))]

    def image(self, item: Item) -> np.ndarray:
        return self.images([item])[0]

    def images(self, items: Sequence[Item]) -> list[np.ndarray]:
        """In the order of the items, made in that of the stream, which is left when all are made."""
        stream = wds.WebDataset(self.shards, shardshuffle=False).decode()
        made: dict[int, np.ndarray] = {}
        for sample in stream:
            made |= {k: self._image(item, sample) for k, item in _of_study(items, sample)}
            if len(made) == len(items):
                break
        return [made[k] for k in range(len(items))]

    def _image(self, item: Item, sample: dict) -> np.ndarray:
        slices = sample["npy"][(slice(item.start, item.end, item.step), *item.inside)]
        return make_image(slices, item, self.look)

    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        stream = (
            wds.WebDataset(self.shards, resampled=True, shardshuffle=False)
            .decode()
            .compose(partial(self._passing, items))
        )
        return iter(wds.WebLoader(stream, batch_size=1, num_workers=workers, worker_init_fn=_one_thread))

    def _passing(self, items: Sequence[Item], stream: Iterable[dict]) -> Iterator[torch.Tensor]:
        """The items of each study that passes."""
        for sample in stream:
            for _, item in _of_study(items, sample):
                yield torch.from_numpy(self._image(item, sample))


def key_of(id: str) -> str:
    """WebDataset takes what follows the first dot for a sample's part."""
    return id.replace(".", "_")


def _of_study(items: Sequence[Item], sample: dict) -> list[tuple[int, Item]]:
    return [(k, item) for k, item in enumerate(items) if key_of(item.id) == sample["__key__"]]


def _one_thread(number: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
