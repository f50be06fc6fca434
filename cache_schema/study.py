"""A Study in memory: decoded pixels and their geometry, with or without a cache behind it."""

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cache_schema.documents import canonical_json
from cache_schema.layout import CHUNK_SLICES, LEVELS, SCHEMA_VERSION, chunk_starts, is_valid_id

Box = tuple[int, int, int, int]
"""x0 y0 x1 y1 in native pixels, exclusive ends"""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be finite")
    return value + 0.0  # -0.0 and 0.0 are one number and must have one digest


def _id(value: str) -> str:
    if not is_valid_id(value):
        raise ValueError("an id has 1 to 64 letters, digits and single dots")
    return value


Number = Annotated[float, AfterValidator(_finite)]
Length = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudyBox(_Frozen):
    """Where C1 to C7 are: native pixels, and z_index into the study; exclusive ends. `made_by`: the table's digest."""

    x0: int = Field(ge=0)
    y0: int = Field(ge=0)
    x1: int
    y1: int
    z_from: int = Field(ge=0)
    z_to: int
    made_by: str

    @model_validator(mode="after")
    def _not_empty(self) -> "StudyBox":
        if self.x0 >= self.x1 or self.y0 >= self.y1 or self.z_from >= self.z_to:
            raise ValueError("a box must not be empty")
        return self


class SliceSpacing(_Frozen):
    """Distances between neighbouring slices along the normal, mm."""

    min: Length
    median: Length
    max: Length


class Origin(_Frozen):
    """Of a cropped study: which part of the frame is stored, and the content digest of the whole study."""

    x0: int = Field(ge=0)
    y0: int = Field(ge=0)
    rows: Count
    columns: Count
    parent: str


class StudyRecord(_Frozen):
    """All that is known of a study but its arrays: lengths in mm, patient coordinates LPS, all in cache order.

    rows, columns, position and every box are those of the native frame, of which a cropped study stores a part.
    """

    id: Annotated[str, AfterValidator(_id)]
    study_uid: str
    series_uid: str
    rows: Count
    columns: Count
    slices: Count
    spacing: tuple[Length, Length, Length] | None
    """(z, y, x), z the median; None where a single slice leaves it open"""
    pixel_spacing: tuple[Length, Length]
    """(y, x)"""
    slice_spacing: SliceSpacing | None
    orientation: tuple[Number, Number, Number, Number, Number, Number]
    """direction cosines along a row, then down a column (DICOM PS3.3 C.7.6.2.1.1)"""
    position: tuple[Number, Number, Number]
    """centre of the first pixel of slice 0"""
    transfer_syntax: str
    """UID; several joined by a comma"""
    decoder: str
    source_digest: str
    content_digest: str | None = None
    """of pixels, z, slice numbers and geometry; None until every slice was read once"""
    segmentation_digest: str | None = None
    flags: tuple[str, ...] = ()
    origin: Origin | None = None
    study_box: StudyBox | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "StudyRecord":
        x0, y0, x1, y1 = self.stored_region
        if x1 > self.columns or y1 > self.rows:
            raise ValueError("origin lies outside the frame")
        box = self.study_box
        if box and (box.x0 < x0 or box.y0 < y0 or box.x1 > x1 or box.y1 > y1 or box.z_to > self.slices):
            raise ValueError("study_box lies outside the study")
        if list(self.flags) != sorted(set(self.flags)):
            raise ValueError("flags must be sorted and distinct")
        return self

    @property
    def stored_region(self) -> Box:
        """The part of the frame that is stored; all of it unless the study was cropped."""
        part = self.origin
        if part is None:
            return 0, 0, self.columns, self.rows
        return part.x0, part.y0, part.x0 + part.columns, part.y0 + part.rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns) of what is stored."""
        frame = self.origin or self
        return self.slices, frame.rows, frame.columns

    def geometry(self) -> dict[str, Any]:
        """What the content digest says beside the pixels."""
        fields = {
            *("rows", "columns", "slices", "spacing", "pixel_spacing", "slice_spacing"),
            *("orientation", "position", "origin"),
        }
        return {"schema": SCHEMA_VERSION} | self.model_dump(mode="json", include=fields)


class Pixels(Protocol):
    """Where a Study's pixels come from; picklable, opens files lazily.

    May also have `value_range`, uint8 (n, 2), and, for what only reading tells, `decoder`, `source_digest()` and `flags()`.
    """

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w); `box` in pixels of what is stored."""


class Study:
    """Decoded pixels and their geometry, head to feet; rows run to the back, columns to the patient's left.

    z: float64 (n) mm, strictly decreasing. slice_number: int32 (n). slice_box: int16 (n, 4) or None, -1 where empty.
    vertebra_ratio: float32 (n, 7) in [0, 1] or None. Both or neither.
    """

    def __init__(
        self,
        record: StudyRecord,
        z: np.ndarray,
        slice_number: np.ndarray,
        pixels: Pixels,
        slice_box: np.ndarray | None = None,
        vertebra_ratio: np.ndarray | None = None,
    ):
        n = record.slices
        self.record, self.pixels = record, pixels
        self.z = _array(z, np.float64, (n,), "z") + 0.0
        self.slice_number = _array(slice_number, np.int32, (n,), "slice_number")
        if not np.isfinite(self.z).all() or (np.diff(self.z) >= 0).any():
            raise ValueError("z must be finite and strictly decreasing: head to feet")
        if (slice_box is None) != (vertebra_ratio is None):
            raise ValueError("slice_box and vertebra_ratio come together")
        self.slice_box = None if slice_box is None else _array(slice_box, np.int16, (n, 4), "slice_box")
        self.vertebra_ratio = (
            None if vertebra_ratio is None else _array(vertebra_ratio, np.float32, (n, len(LEVELS)), "vertebra_ratio")
        )

    @property
    def id(self) -> str:
        return self.record.id

    @cached_property
    def value_range(self) -> np.ndarray:
        """uint8 (n, 2), min and max of each slice; reads the whole study where its source does not keep them."""
        known = getattr(self.pixels, "value_range", None)
        if known is not None:
            return known
        return np.concatenate([value_range(block) for block in blocks(self)])

    def read(self, z0: int, z1: int, box: Box | None = None) -> np.ndarray:
        """uint8 (z1 - z0, h, w): slices z0 up to z1, cut to `box` (native pixels, exclusive ends), or all that is stored.

        Raises ValueError for slices or boxes outside of what the study holds.
        """
        record = self.record
        if not 0 <= z0 < z1 <= record.slices:
            raise ValueError(f"{self.id} has slices 0 up to {record.slices}, not {z0} up to {z1}")
        if box is None:
            return self.pixels.read(z0, z1)
        left, top, right, bottom = record.stored_region
        x0, y0, x1, y1 = map(int, box)
        if not (left <= x0 < x1 <= right and top <= y0 < y1 <= bottom):
            raise ValueError(
                f"{self.id} holds the pixels {record.stored_region}, which do not contain the box {(x0, y0, x1, y1)}"
            )
        return self.pixels.read(z0, z1, (x0 - left, y0 - top, x1 - left, y1 - top))

    def record_after_reading(self) -> StudyRecord:
        """The record with the decoders used, the source's digest and the flags. Call it after the last slice was read."""
        update = {}
        if hasattr(self.pixels, "decoder"):
            update["decoder"] = self.pixels.decoder
        if hasattr(self.pixels, "source_digest"):
            update["source_digest"] = self.pixels.source_digest()
        if hasattr(self.pixels, "flags"):
            update["flags"] = tuple(sorted({*self.record.flags, *self.pixels.flags()}))
        return self.record.model_copy(update=update)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id}, {'x'.join(map(str, self.record.shape))})"


class ContentDigest:
    """sha256 of geometry, pixels in order, z and slice numbers: the same for any codec, decoder or worker count.

    Give `update` every slice once, in order.
    """

    def __init__(self, study: Study):
        self._study = study
        self._hash = hashlib.sha256(canonical_json(study.record.geometry()))

    def update(self, block: np.ndarray) -> None:
        self._hash.update(np.ascontiguousarray(block, np.uint8).data)

    def hexdigest(self) -> str:
        total = self._hash.copy()
        total.update(self._study.z.astype("<f8").tobytes())
        total.update(self._study.slice_number.astype("<i4").tobytes())
        return total.hexdigest()


def segmentation_digest(study: Study) -> str | None:
    """sha256 of slice boxes and vertebra ratios; None without a segmentation."""
    if study.slice_box is None or study.vertebra_ratio is None:
        return None
    return hashlib.sha256(
        study.slice_box.astype("<i2").tobytes() + study.vertebra_ratio.astype("<f4").tobytes()
    ).hexdigest()


def blocks(study: Study) -> Iterator[np.ndarray]:
    """The pixels that a study holds, up to 8 slices at a time, in order: uint8 (<= 8, h, w)."""
    n = study.record.slices
    for first in chunk_starts(0, n):
        yield study.read(first, min(first + CHUNK_SLICES, n))


def square_around(box: Box, rows: int, columns: int) -> Box:
    """What training cuts around a study's box: the shorter side padded to the longer, ceil before and floor after, clipped
    to the frame (reference 2.3)."""
    x0, y0, x1, y1 = box
    missing = (x1 - x0) - (y1 - y0)
    before, after = (abs(missing) + 1) // 2, abs(missing) // 2
    if missing > 0:
        y0, y1 = y0 - before, y1 + after
    else:
        x0, x1 = x0 - before, x1 + after
    return max(0, x0), max(0, y0), min(columns, x1), min(rows, y1)


def value_range(block: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w) -> uint8 (n, 2): min and max of each slice."""
    flat = block.reshape(len(block), -1)
    return np.stack([flat.min(axis=1), flat.max(axis=1)], axis=1)


def _array(values: np.ndarray, dtype: type, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    same: np.ndarray = array.astype(dtype)
    if np.issubdtype(dtype, np.integer) and not np.array_equal(same, array):
        raise ValueError(f"{name} does not fit {np.dtype(dtype)}")
    return np.ascontiguousarray(same)
