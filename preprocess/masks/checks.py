"""Checks of a mask that need no ground truth: its levels' order and extent, and whether it lies on bright bone."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from cache_schema.layout import LEVELS
from preprocess.masks.label_images import LabelImages
from preprocess.masks.nifti_file import SegmentationRefused
from preprocess.masks.shifts import BetterPlace, Moves

ONE_LEVEL_MM = (30.0, *[60.0] * (len(LEVELS) - 1))
"""Extent from head to feet, of each of C1..C7, beyond which a mask's only level is no vertebra. A ring of C1 takes up
to 25 mm, C2 with its dens and a spinous process that points down up to 53 mm, the neck 110 mm and more; masks of 0 and
1 name all of it C1, whose bound is low enough to tell a part of the neck."""

STRAY = 0.01
"""Share of a level's voxels at its head and at its feet that may lie apart: a slip of the brush."""

CHECKED_SLICES = 24
"""Slices on which labels are compared with bone: spread over the labelled range, enough pixels to leave noise
behind."""

MIRROR_MARGIN = 0.5
"""Grey levels (3.5 HU) by which a mirror image may be brighter: a neck in the middle of the image is as good as its
mirror image."""

Read = Callable[[int, int], np.ndarray]


def check_levels(pixels: np.ndarray, z: np.ndarray) -> None:
    """Raise SegmentationRefused where one level reaches further than a vertebra, or the mean heights of the levels
    present do not fall from C1 to C7.

    `pixels` of each level is (n, 7), `z` (n,) mm, growing to the head.
    """
    totals = pixels.sum(axis=0)
    present = np.flatnonzero(totals)
    if len(present) == 1:
        (level,) = present
        share = np.cumsum(pixels[:, level]) / totals[level]
        inner = z[(share >= STRAY) & (share - pixels[:, level] / totals[level] <= 1 - STRAY)]
        extent = float(inner.max() - inner.min())
        if extent > ONE_LEVEL_MM[level]:
            message = f"its only level, {LEVELS[level]}, is {extent:.0f} mm tall; label C1 to C7 as 1 to 7"
            raise SegmentationRefused("segmentation_one_level", message)
    heights = (z @ pixels)[present] / totals[present]
    if (np.diff(heights) >= 0).any():
        raise SegmentationRefused(
            "segmentation_upside_down", "the levels do not run from C1 at the head to C7 at the feet"
        )


def brightness(label_images: LabelImages, labelled: np.ndarray, read: Read) -> float:
    """Mean grey level under the labels of some slices."""
    total = pixels = 0
    for z in checked_slices(labelled):
        inside = label_images(z) > 0
        total += int(read(z, z + 1)[0][inside].sum(dtype=np.int64))
        pixels += int(inside.sum())
    return total / max(1, pixels)


def check_against_bone(
    label_images: LabelImages, labelled: np.ndarray, read: Read, voxel: Sequence[float], spacing: Sequence[float]
) -> None:
    """Raise SegmentationRefused where the labels would lie better on the bone elsewhere: in one of their seven mirror
    images, or moved by more than two voxels.

    Bone is the brightest tissue, so labels in their right place beat misplaced ones; where nothing tells, they stay.
    labelled: bool (n), whether a slice has labels. spacing: mm between slices, rows and columns; voxel: how far one of
    the mask's reaches in these directions. Reads up to 24 labelled slices and their mirror slices.
    """
    mirrors, moves = Mirrors(), Moves(label_images, labelled, voxel, spacing)
    last = len(labelled) - 1
    for z in checked_slices(labelled):
        here, mirrored = read(z, z + 1)[0], read(last - z, last - z + 1)[0]
        mirrors.look(label_images(z) > 0, here, mirrored)
        moves.look(z, here)
    better = [found for found in (mirrors.better(), moves.better()) if found is not None]
    if better:
        raise max(better, key=lambda found: found.brightness).refusal


def checked_slices(labelled: np.ndarray) -> list[int]:
    """Some of the labelled slices, evenly spread."""
    places = np.flatnonzero(labelled)
    return places[np.unique(np.linspace(0, len(places) - 1, CHECKED_SLICES).round().astype(int))].tolist()


class Mirrors:
    """Grey levels under the labels of some slices and under their seven mirror images."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(product((1, -1), repeat=3), 0)
        self._pixels = 0

    def look(self, inside: np.ndarray, here: np.ndarray, mirrored: np.ndarray) -> None:
        """Where labels are, and the frames of this slice and of the one as far from the other end, (rows, columns)."""
        places = np.nonzero(inside)
        self._pixels += len(places[0])
        for flip_z, flip_y, flip_x in self._sums:
            grey = here if flip_z == 1 else mirrored
            self._sums[flip_z, flip_y, flip_x] += int(grey[::flip_y, ::flip_x][places].sum(dtype=np.int64))

    def better(self) -> BetterPlace | None:
        best = max(self._sums, key=self._sums.__getitem__)
        if (self._sums[best] - self._sums[1, 1, 1]) / self._pixels <= MIRROR_MARGIN:
            return None
        axes = [name for name, flip in zip(("head-feet", "front-back", "left-right"), best, strict=True) if flip < 0]
        message = f"mirrored {' and '.join(axes)}, the labels would lie on brighter pixels"
        return BetterPlace(self._sums[best] / self._pixels, SegmentationRefused("segmentation_mirrored", message))
