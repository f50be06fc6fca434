"""Finds slices unlike both neighbours: damaged compressed bytes may decode without any error."""

import numpy as np

GRID = 32
"""pixels a side that are compared"""
LEAST = 20.0
"""grey levels of mean difference; noise and anatomy between slices of 5 mm stay below"""
TIMES_USUAL = 4.0


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w) -> some 32 x 32 of its pixels, copied."""
    return image[:: max(1, image.shape[0] // GRID), :: max(1, image.shape[1] // GRID)].copy()


def jumps(thumbnails: dict[int, np.ndarray]) -> list[int]:
    """Slices (keys: z_index) that differ from the one before and the one after far more than neighbours usually do."""
    steps = {z: _apart(image, thumbnails[z + 1]) for z, image in thumbnails.items() if z + 1 in thumbnails}
    if not steps:
        return []
    limit = max(LEAST, TIMES_USUAL * float(np.median(list(steps.values()))))
    return sorted(z for z, step in steps.items() if min(step, steps.get(z - 1, 0.0)) > limit)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())
