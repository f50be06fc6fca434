"""A mask's NIfTI file -> its labels, cut to the box that holds them.

A file is read once, forwards and a few megabytes at a time, compressed or not and whatever its number type: what
stays in memory are the labels, a byte a voxel.
"""

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path

import nibabel
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from cache_schema.errors import reason_of

MAX_VOXELS = 2**31
"""Cap on the voxels of a segmentation (2048 slices of 1024 x 1024): a header beyond it is a lie that would cost
gigabytes."""

MAX_BYTES = 2**32
"""Cap on the unpacked bytes of a segmentation: 512 slices of 1024 x 1024 as float64. Reading them takes some twenty
seconds, and whoever opens a study has two minutes."""

MAX_LABELLED = 2**28
"""Cap on the voxels kept, a byte each: a spine's are a tenth of this even in the longest scan at the finest
resolution, and a Dask worker often has half a gigabyte."""

PIECE = 2**21
"""Bytes read at a time: one slice of 1024 x 1024 as int16; stays in a processor's cache."""

NEARLY = 0.1
"""Labels written with a scale come back as nearly whole numbers."""

GZIP = b"\x1f\x8b"

HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
"""By the size that a file's first four bytes name."""

QUIET = logging.Logger("preprocess.masks.nifti_file", logging.CRITICAL + 1)
"""For what nibabel mends in a header by itself; its own logger prints."""


class SegmentationRefused(Exception):
    """A segmentation that cannot serve for labels; its study is kept."""

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class LabelVolume:
    """Labels of a mask, uint8 (i, j, k), cut to the box around all that are not 0.

    first: the voxel of the file, (3,), that the box begins with. shape: (3,) of the whole volume. forms: by name, the
    affines (4, 4) from the file's voxels to RAS mm that the header offers, the one that NIfTI prefers first.
    """

    labels: np.ndarray
    first: tuple[int, int, int]
    shape: tuple[int, int, int]
    forms: dict[str, np.ndarray]

    def plane(self, k: int) -> np.ndarray:
        """The whole of one k, (i, j)."""
        whole = np.zeros(self.shape[:2], np.uint8)
        (i, j, first), (wide, high, deep) = self.first, self.labels.shape
        if first <= k < first + deep:
            whole[i : i + wide, j : j + high] = self.labels[:, :, k - first]
        return whole


def read_labels(nifti: str | Path) -> LabelVolume:
    """Raises SegmentationRefused, whatever is wrong with the file."""
    try:
        with _opened(nifti) as stream:
            header = _read_header(stream)
            parts = _Parts()
            for k, j, lines in _blocks(stream, header):
                parts.add(k, j, as_labels(lines))
            stream.read(1)  # the end of a compressed file is where its checksum is looked at
        return LabelVolume(*parts.joined(), _shape(header), _forms(header))
    except SegmentationRefused:
        raise
    except MemoryError:
        raise SegmentationRefused("segmentation_too_large", "needs more memory than is available") from None
    except OSError as error:
        if error.errno is None:  # what gzip says of a damaged file
            raise SegmentationRefused("segmentation_unreadable", "is not a complete gzip file") from None
        raise SegmentationRefused("segmentation_unopened", f"cannot be read ({reason_of(error)})") from None
    except Exception as error:  # nibabel and what lies below it fail in many ways
        message = f"reading as NIfTI failed ({type(error).__name__})"
        raise SegmentationRefused("segmentation_unreadable", message) from None


@contextmanager
def _opened(path: str | Path) -> Iterator[BufferedIOBase]:
    """The file, unpacked where its first bytes say that it is packed, whatever its name says."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def _read_header(stream: BufferedIOBase) -> nibabel.Nifti1Header:
    """A header of which voxels can be read. Raises SegmentationRefused, and whatever nibabel raises."""
    start = stream.read(4)
    kind = next(
        (HEADERS[size] for order in ("little", "big") if (size := int.from_bytes(start, order)) in HEADERS), None
    )
    if kind is None:
        raise SegmentationRefused("segmentation_unreadable", "is not a NIfTI file")
    header = kind(start + stream.read(kind.sizeof_hdr - len(start)), check=False)
    header.check_fix(logger=QUIET)
    shape = header.get_data_shape()
    possible = len(shape) >= 3 and min(shape) > 0 and max(shape[3:], default=1) == 1
    # a magic of "ni" says that the voxels lie in a file of their own
    if not possible or np.prod(shape, dtype=float) > MAX_VOXELS or not header["magic"].item().startswith(b"n+"):
        raise SegmentationRefused("segmentation_unreadable", "not a 3-dimensional NIfTI volume of a possible size")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        values = "complex numbers" if dtype.kind == "c" else "colours"
        raise SegmentationRefused("segmentation_labels", f"holds {values}, not labels; save it as uint8")
    if np.prod(shape, dtype=float) * dtype.itemsize > MAX_BYTES:
        message = f"is more than {MAX_BYTES >> 30} GiB uncompressed; save it as uint8"
        raise SegmentationRefused("segmentation_too_large", message)
    return header


def _shape(header: nibabel.Nifti1Header) -> tuple[int, int, int]:
    i, j, k = header.get_data_shape()[:3]
    return int(i), int(j), int(k)


def _forms(header: nibabel.Nifti1Header) -> dict[str, np.ndarray]:
    """What of sform and qform is in use (a code above 0), else what NIfTI makes of the voxels' sizes alone."""
    forms = {"sform": header.get_sform(coded=True)[0]}
    try:
        forms["qform"] = header.get_qform(coded=True)[0]
    except Exception:  # a quaternion that is none matters where there is nothing else
        if forms["sform"] is None:
            raise
    used = {name: np.asarray(affine, float) for name, affine in forms.items() if affine is not None}
    return used or {"base": np.asarray(header.get_best_affine(), float)}


def _blocks(stream: BufferedIOBase, header: nibabel.Nifti1Header) -> Iterator[tuple[int, int, np.ndarray]]:
    """(k, first j, values (lines, i)) of the whole volume, forwards. Values are valid until the next ones are asked
    for. Raises SegmentationRefused where the file is too short."""
    wide, high, deep = _shape(header)
    dtype = header.get_data_dtype()
    slope, inter = header.get_slope_inter()
    scale = None if slope is None or (slope, inter) == (1, 0) else (slope, inter)
    lines = min(high, max(1, PIECE // (wide * dtype.itemsize)))
    buffer = np.empty(lines * wide, dtype)
    stream.seek(header.get_data_offset())
    for k in range(deep):
        for j in range(0, high, lines):
            values = buffer[: min(lines, high - j) * wide]
            _fill(stream, values.view(np.uint8).data)
            values = values.reshape(-1, wide)
            yield k, j, values if scale is None else apply_read_scaling(values, *scale)


def _fill(stream: BufferedIOBase, room: memoryview) -> None:
    filled = 0
    while filled < len(room):
        count = stream.readinto(room[filled:])
        if not count:
            raise SegmentationRefused("segmentation_unreadable", "ends before its last voxel")
        filled += count


@dataclass
class _Parts:
    """The labels met so far: pieces (k, j, i, labels (j, i)) cut to what is not 0."""

    pieces: list[tuple[int, int, int, np.ndarray]] = field(default_factory=list)
    voxels: int = 0

    def add(self, k: int, j: int, labels: np.ndarray) -> None:
        rows = np.flatnonzero(labels.max(axis=1))
        if not len(rows):
            return
        labels = labels[rows[0] : rows[-1] + 1]
        columns = np.flatnonzero(labels.max(axis=0))
        labels = labels[:, columns[0] : columns[-1] + 1].copy()
        self.voxels += labels.size
        if self.voxels > MAX_LABELLED:
            message = f"the boxes around its labels in each slice hold more than {MAX_LABELLED:,} voxels"
            raise SegmentationRefused("segmentation_too_large", message)
        self.pieces.append((k, j + int(rows[0]), int(columns[0]), labels))

    def joined(self) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Labels (i, j, k) and the voxel that they begin with. Pieces are given up as they are copied: both together
        would take twice the memory."""
        if not self.pieces:
            return np.zeros((0, 0, 0), np.uint8), (0, 0, 0)
        starts = np.array([piece[:3] for piece in self.pieces])
        first = starts.min(axis=0)
        sizes = np.array([(1, *piece[3].shape) for piece in self.pieces])
        whole = np.zeros((starts + sizes).max(axis=0) - first, np.uint8)
        while self.pieces:
            *start, labels = self.pieces.pop()
            k, j, i = (int(place) for place in start - first)
            whole[k, j : j + labels.shape[0], i : i + labels.shape[1]] = labels
        k, j, i = map(int, first)
        return whole.transpose(2, 1, 0), (i, j, k)


def as_labels(values: np.ndarray) -> np.ndarray:
    """Numbers of any type as uint8. Raises SegmentationRefused where one of them is no label."""
    if values.dtype == np.uint8:
        return values
    if not values.any():
        return np.zeros(values.shape, np.uint8)
    if values.dtype.kind in "iu":
        whole = values.min() >= 0 and values.max() <= 255
        labels = values.astype(np.uint8)
    else:
        with np.errstate(invalid="ignore"):
            labels = np.rint(values).astype(np.uint8)
            whole = (np.abs(values - labels.astype(np.float32)) <= NEARLY).all()
    if not whole:
        raise SegmentationRefused("segmentation_labels", "holds values that are not whole numbers from 0 to 255")
    return labels
