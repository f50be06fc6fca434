"""What `serve` asks of a peer, and the peers that are storage with a reader."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.peers.dicom import study_pixels
from benchmarks.peers.image import Item, Look, make_image

Files = dict[str, list[str]]
"""DICOM files by study, head to feet"""


class Way(ABC):
    """One way to keep studies and to make items of them."""

    PACKAGES: Sequence[str] = ()
    """whose versions matter"""

    def __init__(self, folder: Path):
        self.folder = folder

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.PACKAGES}

    def prepare(self, files: Files) -> None:  # noqa: B027 - a way may keep nothing
        """Writes the peer's layout to the folder, which is empty."""

    @abstractmethod
    def open(self, files: Files, look: Look) -> None:
        """Opens what was prepared, in this process."""

    @abstractmethod
    def image(self, item: Item) -> np.ndarray:
        """(frames / 3, 3, size, size) float16."""

    def images(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Each item's image."""
        return [self.image(item) for item in items]

    @abstractmethod
    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        """Endless batches of one image each, by the peer's own loader."""

    def first(self, items: Sequence[Item]) -> object:
        """A batch of images, made in this process: of a loader's processes, each makes a whole batch, too."""
        return np.stack(self.images(items))


class Read(Way):
    """Reads a part of the pixels that it keeps; images by NumPy and OpenCV, and PyTorch's DataLoader."""

    WORKERS: str | None = None
    """how the loader's processes start; None: as by default"""

    @abstractmethod
    def read(self, item: Item) -> np.ndarray:
        """(slices, h, w) uint8: item.start to item.end, cropped."""

    def open(self, files: Files, look: Look) -> None:
        self.files, self.look = files, look
        self.reopen()

    @abstractmethod
    def reopen(self) -> None:
        """Opens the files, in this process."""

    def image(self, item: Item) -> np.ndarray:
        return make_image(self.read(item)[:: item.step], item, self.look)

    def loader(self, items: Sequence[Item], workers: int) -> Iterator[object]:
        from benchmarks.peers.torch_loader import batches

        return batches(self.image, items, workers, self.reopen, context=self.WORKERS)


class Stored(Read):
    """Keeps one study after another."""

    def prepare(self, files: Files) -> None:
        for id, paths in files.items():
            self.write(id, study_pixels(paths))

    @abstractmethod
    def write(self, id: str, pixels: np.ndarray) -> None:
        """Keeps a study: (n, rows, columns) uint8."""
