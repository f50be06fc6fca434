"""How the first pixel of the slices moves within their plane: by a straight line, which is a shear, or by jumps, and then
one grid does not hold for all of them."""

from collections.abc import Sequence

import numpy as np

from preprocess.headers.file_header import FileHeader, known
from preprocess.series.geometry import unit_directions

SHEAR_DEGREES = 0.5
"""below it a drift is rounding in the header, as of a gantry's tilt"""
ROUNDING_MM = 0.25
"""positions are written with one decimal at least: shorter ways say nothing"""
MOST_PAIRED, MOST_GROUPS = 200, 64


def in_plane(headers: Sequence[FileHeader]) -> np.ndarray:
    """Where the first pixel lies along the first image's rows and columns, (n, 2) mm."""
    row, column = known(unit_directions(known(headers[0].orientation)))
    return np.array([h.position for h in headers]) @ np.stack([row, column], axis=1)


def shear_and_jump(headers: Sequence[FileHeader], positions: np.ndarray) -> tuple[float, float]:
    """Of slices in order: degrees between the line of first pixels and the normal, and the mm by which they leave that
    line. Both 0 where they are no more than rounding."""
    if len(headers) < 2:
        return 0.0, 0.0
    origins = in_plane(headers)
    slope = _usual_slope(origins, positions)
    off = origins - positions[:, None] * slope
    jump = float(np.hypot(*np.ptp(off, axis=0)))
    drift = float(np.hypot(*slope))
    degrees = float(np.degrees(np.arctan(drift)))
    pixel = min(known(headers[0].pixel_spacing))
    if degrees < SHEAR_DEGREES or drift * np.ptp(positions) < max(ROUNDING_MM, pixel / 2):
        degrees = 0.0
    return degrees, jump if jump > max(ROUNDING_MM, pixel / 2) else 0.0


def in_plane_groups(headers: Sequence[FileHeader], positions: np.ndarray) -> list[int]:
    """A number for each image: those of one number lie within a pixel of each other, once the drift is taken off."""
    origins, pixel = in_plane(headers), min(known(headers[0].pixel_spacing))
    order = np.argsort(positions, kind="stable")
    slopes = (_usual_slope(origins[order], positions[order]), _slope_of_pairs(origins, positions))
    return min((_within(origins - positions[:, None] * slope, pixel) for slope in slopes), key=max)


def _usual_slope(origins: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """mm in the plane for each mm along the normal, (2,): the median over slices a quarter of the series apart, on which a
    jump has no hold and rounding little."""
    apart = max(1, len(positions) // 4)
    along = positions[apart:] - positions[:-apart]
    there = np.abs(along) > 1e-6
    if not there.any():
        return np.zeros(2)
    return np.median((origins[apart:] - origins[:-apart])[there] / along[there, None], axis=0)


def _slope_of_pairs(origins: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The same over all pairs (Theil-Sen): for two volumes that lie in each other, of one slope."""
    chosen = np.unique(np.linspace(0, len(positions) - 1, min(len(positions), MOST_PAIRED)).round().astype(int))
    one, other = np.triu_indices(len(chosen), 1)
    along = positions[chosen[one]] - positions[chosen[other]]
    there = np.abs(along) > 1e-6
    if not there.any():
        return np.zeros(2)
    return np.median((origins[chosen[one]] - origins[chosen[other]])[there] / along[there, None], axis=0)


def _within(origins: np.ndarray, size: float) -> list[int]:
    """Groups of points (n, 2) none of which is farther than `size` from its group's first one."""
    if (np.hypot(*(origins - origins[0]).T) <= size).all():
        return [0] * len(origins)
    firsts: list[np.ndarray] = []
    found = []
    for point in origins:
        if len(firsts) > MOST_GROUPS:  # nothing that could be parted by
            return list(range(len(origins)))
        near = next((i for i, first in enumerate(firsts) if np.hypot(*(point - first)) <= size), None)
        if near is None:
            near = len(firsts)
            firsts.append(point)
        found.append(near)
    return found
