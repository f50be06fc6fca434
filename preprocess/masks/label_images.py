"""The labels of a mask on each slice of its study, looked up slice by slice."""

from collections.abc import Callable

import numpy as np

from preprocess.masks.nifti_file import LabelVolume, SegmentationRefused
from preprocess.series.geometry import Grid
from preprocess.series.study_plan import StudyPlan

LabelImages = Callable[[int], np.ndarray]
"""z_index -> labels of that slice, (rows, columns) uint8 in the canonical image"""

STILL = 0.01
"""An axis that moves by less than this share of a voxel over a whole image does not move."""


def by_affine(volume: LabelVolume, affine: np.ndarray, grid: Grid) -> LabelImages | None:
    """The nearest labels at the study's pixel centres; None where `affine` (voxels to LPS mm) is no placement at
    all."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        return None
    to_voxels = np.linalg.inv(affine)
    starts = np.array(grid.positions) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    down, across = to_voxels[:3, :3] @ grid.row_step, to_voxels[:3, :3] @ grid.column_step
    rows, columns = np.arange(grid.rows)[:, None], np.arange(grid.columns)[None, :]

    def image(z: int) -> np.ndarray:
        whole = np.zeros((grid.rows, grid.columns), np.uint8)
        places = []
        for axis, first in enumerate(volume.first):
            place = np.full((1, 1), starts[z, axis])
            # an axis that stands still over the image stays small: orthogonal segmentations need no full index arrays
            if abs(down[axis]) * grid.rows > STILL:
                place = place + rows * down[axis]
            if abs(across[axis]) * grid.columns > STILL:
                place = place + columns * across[axis]
            places.append(np.rint(place) - first)
        inside = [(place >= 0) & (place < size) for place, size in zip(places, volume.labels.shape, strict=True)]
        rows_inside, columns_inside = (_common([mask.any(axis=1 - axis) for mask in inside]) for axis in (0, 1))
        if rows_inside is None or columns_inside is None:
            return whole
        part = rows_inside, columns_inside
        index = [
            _cut(place, part).clip(0, size - 1).astype(np.intp)
            for place, size in zip(places, volume.labels.shape, strict=True)
        ]
        labels = _look_up(volume.labels, index)
        for mask in (_cut(mask, part) for mask in inside):
            if not mask.all():
                labels = labels * mask
        whole[part] = labels
        return whole

    return image


def _common(masks: list[np.ndarray]) -> slice | None:
    """From the first to the last place where all masks (n) or (1) are true; None where there is none."""
    common = np.logical_and.reduce(np.broadcast_arrays(*masks))
    places = np.flatnonzero(common)
    if len(places) == len(common):
        return slice(None)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else None


def _cut(array: np.ndarray, part: tuple[slice, slice]) -> np.ndarray:
    """A part of (rows or 1, columns or 1)."""
    return array[tuple(cut if size > 1 else slice(None) for cut, size in zip(part, array.shape, strict=True))]


def _look_up(volume: np.ndarray, index: list[np.ndarray]) -> np.ndarray:
    """`volume[tuple(index)]` for index arrays (rows or 1, columns or 1) of its three axes.

    Where one axis runs down the image and one across, and the third stands still, they are cut one after the other,
    as views where no voxel is left out or repeated: a tenth of the cost.
    """
    down = [axis for axis, places in enumerate(index) if places.shape[0] > 1]
    across = [axis for axis, places in enumerate(index) if places.shape[1] > 1]
    if len(down) != 1 or len(across) != 1 or down == across:
        return volume[tuple(index)]
    cut = [places.item() if places.size == 1 else slice(None) for places in index]
    plane = volume[tuple(cut)] if down < across else volume[tuple(cut)].T
    return plane[_line(index[down[0]])][:, _line(index[across[0]])]


def _line(places: np.ndarray) -> slice | np.ndarray:
    places = places.ravel()
    step = int(places[1] - places[0])
    if abs(step) != 1 or (np.diff(places) != step).any():
        return places
    end = int(places[-1]) + step
    return slice(int(places[0]), end if end >= 0 else None, step)


def by_fixed_flips(volume: LabelVolume, plan: StudyPlan) -> LabelImages:
    """Labels placed without an affine, as the reference does (3.1): voxels are (x, y, z) with y upside down, and z as
    well where the slices run from head to feet by slice number. Raises SegmentationRefused where the shape is not the
    study's."""
    rows, columns = (plan.columns, plan.rows) if plan.turn.transpose else (plan.rows, plan.columns)
    if volume.shape != (columns, rows, len(plan.slices)):
        raise SegmentationRefused("segmentation_geometry", "neither the affine nor the shape fits the study's slices")
    by_number = np.argsort(plan.slice_number, kind="stable")
    head_first = len(by_number) > 1 and np.mean(np.diff(plan.z[by_number])) < 0
    place = np.empty(len(by_number), int)
    place[by_number] = np.arange(len(by_number))[:: -1 if head_first else 1]

    def image(z: int) -> np.ndarray:
        return plan.turn.apply(volume.plane(int(place[z]))[:, ::-1].T)

    return image
