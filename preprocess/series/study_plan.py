"""All that is decided about a study before its pixels are read."""

from dataclasses import dataclass

import numpy as np

from preprocess.headers.file_header import FileHeader
from preprocess.series.geometry import Grid, Turn


@dataclass(frozen=True)
class SlicePlan:
    """One slice in cache order. z: mm along the normal; file: its file's number among the study's sorted files,
    1-based. alternatives: other images at its place, the best first, one of which takes its place where it does not decode."""

    header: FileHeader
    z: float
    slice_number: int
    file: int
    alternatives: tuple["SlicePlan", ...] = ()

    @property
    def path(self) -> str:
        return self.header.path

    @property
    def frame(self) -> int:
        return self.header.frame


@dataclass(frozen=True)
class StudyPlan:
    """All that is decided about a study before its pixels are read. Picklable; slices run head to feet.

    rows, columns, orientation, position and pixel_spacing (of `grid`) are those of the canonical image, after
    `turn`.
    """

    id: str
    study_uid: str
    series_uid: str
    slices: tuple[SlicePlan, ...]
    turn: Turn
    grid: Grid
    flags: tuple[str, ...]

    @property
    def rows(self) -> int:
        return self.grid.rows

    @property
    def columns(self) -> int:
        return self.grid.columns

    @property
    def z(self) -> np.ndarray:
        """(n,) float64 mm, strictly decreasing."""
        return np.array([s.z for s in self.slices])

    @property
    def slice_number(self) -> np.ndarray:
        return np.array([s.slice_number for s in self.slices], np.int32)

    @property
    def orientation(self) -> tuple[float, ...]:
        return (*self.grid.row_direction, *self.grid.column_direction)

    @property
    def position(self) -> tuple[float, ...]:
        return self.grid.positions[0]

    @property
    def slice_spacing(self) -> dict[str, float] | None:
        if len(self.slices) < 2:
            return None
        steps = -np.diff(self.z)
        return {"min": float(steps.min()), "median": float(np.median(steps)), "max": float(steps.max())}

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """(z, y, x) mm, z the median; None where one slice leaves it open."""
        down, across = self.grid.pixel_spacing
        return None if self.slice_spacing is None else (self.slice_spacing["median"], down, across)

    @property
    def transfer_syntax(self) -> str:
        return ",".join(sorted({s.header.transfer_syntax for s in self.slices}))

    @property
    def images(self) -> list[SlicePlan]:
        """The slices and their alternatives, in slice order."""
        return [image for place in self.slices for image in (place, *place.alternatives)]

    @property
    def files(self) -> list[tuple[str, int, int]]:
        """(path, size, mtime_ns) of every source file once, in slice order."""
        return list(dict.fromkeys((s.path, s.header.size, s.header.mtime_ns) for s in self.images))
