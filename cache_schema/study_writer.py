"""Writes the arrays of a study, a chunk at a time, to wherever its files go."""

from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np

from cache_schema.arrays import pack
from cache_schema.chunks import CRC_BYTES
from cache_schema.documents import checksum, chunk_checksum
from cache_schema.errors import CacheError
from cache_schema.layout import CHUNK_SLICES, GROUP, array_document, chunk_file, chunk_starts
from cache_schema.study import ContentDigest, Study, StudyRecord, blocks, segmentation_digest, value_range

Write = Callable[[str, bytes], None]
"""takes a file's name below the study, and its bytes"""
Files = dict[str, dict[str, Any]]
"""what a study's zarr.json lists of its other files, by their names"""
Fill = Callable[[Write], tuple[bytes, Files]]
"""writes all files of a study but its zarr.json, and returns that, and what it lists"""


class StudyWriter:
    """Packs the arrays of one study and lists their files as they are written. shard: slices of pixels a file."""

    def __init__(self, write: Write, shard: int | None = None):
        self.shard = shard
        self.files: Files = {}
        self._write_file = write
        self._waiting: list[bytes] = []
        """chunks of the shard that is being filled"""

    def write_block(self, first: int, block: np.ndarray, shape: tuple[int, int, int]) -> None:
        """One chunk of the pixels: (<= 8, h, w) uint8, the first of them slice `first`."""
        if not self.files:
            self._create("pixels", shape)
        if len(block) < CHUNK_SLICES:  # Zarr keeps whole chunks, filled up
            block = np.concatenate([block, np.zeros((CHUNK_SLICES - len(block), *block.shape[1:]), np.uint8)])
        if self.shard is None:
            self._write("pixels", first, block)
            return
        self._waiting.append(pack(block))
        last = first + CHUNK_SLICES
        if last % self.shard == 0 or last >= shape[0]:
            self._write_shard(chunk_file("pixels", first, self.shard), self.shard // CHUNK_SLICES)

    def write_small(self, name: str, values: np.ndarray) -> None:
        self._create(name, values.shape)
        self._write(name, 0, values)

    def _create(self, name: str, shape: tuple[int, ...]) -> None:
        document = array_document(name, shape, self.shard)
        self._write_file(f"{name}/{GROUP}", document)
        self.files[f"{name}/{GROUP}"] = checksum(document)

    def _write(self, name: str, first: int, values: np.ndarray) -> None:
        file, data = chunk_file(name, first), pack(values)
        self._write_file(file, data)
        self.files[file] = chunk_checksum(data)

    def _write_shard(self, file: str, places: int) -> None:
        """The chunks one after another, then the index (Zarr's sharding codec, index at the end)."""
        sizes = [len(chunk) for chunk in self._waiting]
        index = np.full((places, 2), np.iinfo(np.uint64).max, "<u8")
        index[: len(sizes), 0] = np.cumsum([0, *sizes[:-1]])
        index[: len(sizes), 1] = sizes
        packed = index.tobytes()
        crc = google_crc32c.value(packed).to_bytes(CRC_BYTES, "little")
        data = b"".join([*self._waiting, packed, crc])
        self._write_file(file, data)
        listed = [[len(chunk), chunk_checksum(chunk)["crc32c"]] for chunk in self._waiting]
        self.files[file] = checksum(data) | {"chunks": listed}
        self._waiting = []


def write_arrays(study: Study, write: Write, shard: int | None = None) -> tuple[StudyRecord, Files]:
    """Write every array of a study; returns its record with the digests, and what that lists. 8 slices, or one shard's
    packed chunks, are in memory at a time. Raises CacheError where a digest is not what the source promised."""
    record = study.record
    shape = record.shape
    writer, digest, ranges = StudyWriter(write, shard), ContentDigest(study), []
    for first, block in zip(chunk_starts(0, shape[0]), blocks(study), strict=True):
        if block.dtype != np.uint8 or block.shape[1:] != shape[1:]:
            raise ValueError(f"{study.id} gives {block.dtype} {block.shape}, its record says uint8 {shape}")
        writer.write_block(first, block, shape)
        digest.update(block)
        ranges.append(value_range(block))
    small = {"z": study.z, "slice_number": study.slice_number, "value_range": np.concatenate(ranges)}
    if study.slice_box is not None and study.vertebra_ratio is not None:
        small |= {"slice_box": study.slice_box, "vertebra_ratio": study.vertebra_ratio}
    for name, values in small.items():
        writer.write_small(name, values)
    found = {"content_digest": digest.hexdigest(), "segmentation_digest": segmentation_digest(study)}
    for name, value in found.items():
        if getattr(record, name) not in (None, value):
            raise CacheError(f"{name} is not what its source promised", where=study.id, do="verify the source")
    return study.record_after_reading().model_copy(update=found), writer.files
