"""Where pixels lie in the patient: orientation, the in-plane turn to the canonical image, and the grid of a whole
study."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from preprocess.headers.file_header import Vector

MAX_DEGREES_FROM_AXIAL = 30.0
TILT_DEGREES = 0.5
"""Below half a degree a tilt is rounding in the header; a gantry is set in steps of half a degree."""

PERPENDICULAR_TOLERANCE = 0.01


@dataclass(frozen=True)
class Turn:
    """The in-plane change from the image as stored to the canonical one: first `transpose`, then the flips."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def __bool__(self) -> bool:
        return self.transpose or self.flip_rows or self.flip_columns

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(rows, columns) as stored -> view of the canonical (rows, columns)."""
        if self.transpose:
            image = image.T
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a study lie, in canonical order: mm in the patient's LPS system, of pixel centres.

    positions: first pixel of every slice, (n, 3) head to feet. row_direction is the direction in which the column
    index grows, column_direction the one in which the row index grows. pixel_spacing is (between rows, between
    columns).
    """

    rows: int
    columns: int
    positions: tuple[Vector, ...]
    row_direction: Vector
    column_direction: Vector
    pixel_spacing: Vector

    @property
    def slices(self) -> int:
        return len(self.positions)

    @property
    def row_step(self) -> np.ndarray:
        """From a pixel to the one below it, (3,) mm."""
        return np.asarray(self.column_direction) * self.pixel_spacing[0]

    @property
    def column_step(self) -> np.ndarray:
        """From a pixel to the one right of it, (3,) mm."""
        return np.asarray(self.row_direction) * self.pixel_spacing[1]


@lru_cache(4096)
def unit_directions(orientation: Vector) -> tuple[np.ndarray, np.ndarray] | None:
    """ImageOrientationPatient as two unit vectors (row, column), or None where they are not perpendicular unit
    vectors."""
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > PERPENDICULAR_TOLERANCE:
        return None
    row, column = row / lengths[0], column / lengths[1]
    return (row, column) if abs(row @ column) <= PERPENDICULAR_TOLERANCE else None


def slice_normal(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Unit normal of a slice, pointing to the head."""
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return -normal if normal[2] < 0 else normal


@lru_cache(4096)
def degrees_from_axial(orientation: Vector) -> float:
    """Angle between the slice normal and the patient's axis, 0 to 90; 90 where the orientation is no orientation."""
    directions = unit_directions(orientation)
    if directions is None:
        return 90.0
    return float(np.degrees(np.arccos(min(1.0, slice_normal(*directions)[2]))))


def turn_to_canonical(row: np.ndarray, column: np.ndarray) -> Turn:
    """The turn after which columns run to the patient's left (+x) and rows to the back (+y), as nearly as quarter
    turns allow."""
    transpose = abs(row[0]) < abs(row[1])
    if transpose:
        row, column = column, row
    return Turn(transpose=bool(transpose), flip_rows=bool(column[1] < 0), flip_columns=bool(row[0] < 0))


def canonical_grid(
    turn: Turn, rows: int, columns: int, positions: np.ndarray, row: np.ndarray, column: np.ndarray, spacing: Vector
) -> Grid:
    """The grid of the turned images, from that of the stored ones (positions (n, 3), spacing (between rows, between
    columns))."""
    if turn.transpose:
        rows, columns, row, column, spacing = columns, rows, column, row, spacing[::-1]
    if turn.flip_columns:
        positions, row = positions + row * spacing[1] * (columns - 1), -row
    if turn.flip_rows:
        positions, column = positions + column * spacing[0] * (rows - 1), -column
    return Grid(rows, columns, tuple(map(_vector, positions)), _vector(row), _vector(column), _vector(spacing))


def _vector(values: Iterable[float]) -> Vector:
    return tuple(float(value) + 0.0 for value in values)  # no negative zeros in records
