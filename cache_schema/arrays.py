"""The zarr arrays of one study: opened on first use, read cropped, written a chunk at a time and read back."""

import os
from pathlib import Path

import numpy as np
import zarr

from cache_schema.documents import checksum, chunk_checksum
from cache_schema.errors import CacheError
from cache_schema.layout import CHUNK_SLICES, GROUP, array_document, chunk_file
from cache_schema.study import Box


def open_array(folder: Path, name: str, mode: str = "r") -> zarr.Array:
    """Raises CacheError where the array cannot be opened."""
    try:
        array = zarr.open_array(zarr.storage.LocalStore(folder / name), mode=mode, zarr_format=3)
        return array.with_config({"write_empty_chunks": True})
    except Exception as error:
        raise CacheError(
            f"{name} cannot be opened ({type(error).__name__})", where=folder, do="build this study again"
        ) from error


def read_array(folder: Path, name: str) -> np.ndarray:
    """A whole array of a study."""
    _require_chunk(folder, name, 0)
    return _read(folder, name, open_array(folder, name), ...)


class StoredPixels:
    """The pixels of a study in a cache. Picklable; the open handle stays behind."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._array: zarr.Array | None = None

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "_array": None}

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w). Raises CacheError where a chunk is missing or does not check."""
        if self._array is None:
            self._array = open_array(self.folder, "pixels")
        for first in range(z0 // CHUNK_SLICES * CHUNK_SLICES, z1, CHUNK_SLICES):
            _require_chunk(self.folder, "pixels", first)
        x0, y0, x1, y1 = box or (0, 0, self._array.shape[2], self._array.shape[1])
        found = _read(self.folder, "pixels", self._array, (slice(z0, z1), slice(y0, y1), slice(x0, x1)))
        if found.shape != (z1 - z0, y1 - y0, x1 - x0):
            raise CacheError(
                "pixels have another shape than the record says", where=self.folder, do="build this study again"
            )
        return found


def _require_chunk(folder: Path, name: str, first: int) -> None:
    """zarr reads a missing chunk as zeros, in silence."""
    file = chunk_file(name, first)
    if not os.path.exists(folder / file):
        raise CacheError(f"{file} is missing", where=folder, do="build this study again")


def _read(folder: Path, name: str, array: zarr.Array, selection: object) -> np.ndarray:
    try:
        return np.asarray(array[selection])
    except Exception as error:  # zarr, its codecs and the store each raise their own
        raise CacheError(
            f"{name} does not check ({type(error).__name__})", where=folder, do="build this study again"
        ) from error


class StudyWriter:
    """Writes the arrays of one study below `folder` and lists their files as they are written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, dict] = {}
        self._pixels: zarr.Array | None = None

    def create(self, name: str, shape: tuple[int, ...]) -> zarr.Array:
        (self.folder / name).mkdir(parents=True)
        self._list(f"{name}/{GROUP}", array_document(name, shape))
        return open_array(self.folder, name, "r+")

    def write_block(self, first: int, block: np.ndarray, shape: tuple[int, int, int]) -> None:
        """One chunk of the pixels. Raises CacheError where the disk gives back something else."""
        if self._pixels is None:
            self._pixels = self.create("pixels", shape)
        self._put("pixels", self._pixels, first, block)

    def write_small(self, name: str, values: np.ndarray) -> None:
        self._put(name, self.create(name, values.shape), 0, values)

    def _put(self, name: str, array: zarr.Array, first: int, values: np.ndarray) -> None:
        array[first : first + len(values)] = values
        file = chunk_file(name, first)
        if not np.array_equal(array[first : first + len(values)], values):
            raise CacheError(f"{file} reads back changed", where=self.folder, do="check the disk")
        self.files[file] = chunk_checksum((self.folder / file).read_bytes())

    def _list(self, file: str, data: bytes) -> None:
        (self.folder / file).write_bytes(data)
        self.files[file] = checksum(data)
