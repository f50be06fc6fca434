"""A vertebra, whole or broken, cut by one axial slice: signed distances on the pixels around it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocess.phantom.anatomy import Placed, Vertebra
from preprocess.phantom.fractures import Fracture

FAR = np.float32(99.0)
MARGIN = 3.0
"""mm around a solid within which its distance is worked out: more than a cortex and a pixel."""


@dataclass(frozen=True)
class Patch:
    """Part of a slice: `edge` is the signed distance (mm) to the bone's surface, `depth` the same as if nothing were
    broken, so that a broken face has no cortex."""

    rows: slice
    columns: slice
    edge: np.ndarray
    depth: np.ndarray


def vertebra_patch(
    vertebra: Vertebra, x: np.ndarray, y: np.ndarray, z: float, fracture: Fracture | None = None, ribs: bool = False
) -> Patch | None:
    """The vertebra (or its ribs) on the pixel centres x, y (mm) of the slice at z; None where the slice misses it."""
    extra = 0.0 if fracture is None else float(np.linalg.norm(fracture.shift)) * vertebra.scale
    solids = _cut(vertebra.ribs if ribs else vertebra.solids, x, y, z, extra)
    if not solids:
        return None
    hollows = [] if ribs else _cut(vertebra.hollows, x, y, z, extra)
    rows = slice(min(s.rows.start for s in solids), max(s.rows.stop for s in solids))
    columns = slice(min(s.columns.start for s in solids), max(s.columns.stop for s in solids))
    q = _local(vertebra, x[columns], y[rows], z)
    corner = (rows.start, columns.start)
    scale = np.float32(vertebra.scale)
    if fracture is None:
        edge = _distance(solids, hollows, q, corner) * scale
        return Patch(rows, columns, edge, edge)
    beyond = sum(
        np.float32(n) * (c - np.float32(p)) for n, c, p in zip(fracture.normal, q, fracture.point, strict=True)
    )
    kept = _distance(solids, hollows, q, corner)
    moved = _distance(solids, hollows, [c - np.float32(s) for c, s in zip(q, fracture.shift, strict=True)], corner)
    half = np.float32(fracture.gap / 2)
    edge = np.minimum(np.maximum(kept, beyond + half), np.maximum(moved, half - beyond))
    return Patch(rows, columns, edge * scale, np.where(beyond < 0, kept, moved) * scale)


@dataclass(frozen=True)
class _Cut:
    """A solid that the slice meets, and the pixels of the slice that it may touch."""

    placed: Placed
    rows: slice
    columns: slice


def _cut(solids: Sequence[Placed], x: np.ndarray, y: np.ndarray, z: float, extra: float) -> list[_Cut]:
    met = []
    for placed in solids:
        reach = placed.reach + MARGIN + extra
        flat2 = reach**2 - (z - placed.centre[2]) ** 2
        if flat2 <= 0:
            continue
        flat = flat2**0.5
        rows, columns = _span(y, placed.centre[1], flat), _span(x, placed.centre[0], flat)
        if rows.stop > rows.start and columns.stop > columns.start:
            met.append(_Cut(placed, rows, columns))
    return met


def _span(values: np.ndarray, middle: float, reach: float) -> slice:
    first, step, n = values[0], values[1] - values[0], values.size
    low, high = int(np.ceil((middle - reach - first) / step)), int((middle + reach - first) / step) + 1
    return slice(min(max(low, 0), n), min(max(high, 0), n))


def _distance(solids: list[_Cut], hollows: list[_Cut], q: list[np.ndarray], corner: tuple[int, int]) -> np.ndarray:
    height, width = q[0].shape
    d = np.full((height, width), FAR, np.float32)
    for group, merge, sign in ((solids, np.minimum, 1), (hollows, np.maximum, -1)):
        for cut in group:
            rows = slice(max(cut.rows.start - corner[0], 0), min(cut.rows.stop - corner[0], height))
            columns = slice(max(cut.columns.start - corner[1], 0), min(cut.columns.stop - corner[1], width))
            if rows.stop > rows.start and columns.stop > columns.start:
                part = d[rows, columns]
                merge(part, sign * cut.placed.solid.distance(*(c[rows, columns] for c in q)), out=part)
    return d


def _local(vertebra: Vertebra, x: np.ndarray, y: np.ndarray, z: float) -> list[np.ndarray]:
    axes = (vertebra.rotation / vertebra.scale).astype(np.float32)
    dx = (x - vertebra.centre[0]).astype(np.float32)
    dy = (y - vertebra.centre[1]).astype(np.float32)
    dz = np.float32(z - vertebra.centre[2])
    return [(dx * axes[0, k])[None, :] + (dy * axes[1, k] + dz * axes[2, k])[:, None] for k in range(3)]
