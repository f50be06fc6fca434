"""A NIfTI segmentation -> slice boxes and vertebra ratios on the study's own grid.

The segmentation's affine places it in the patient, the slices' headers place the study there; labels are looked up,
pixel by pixel, between the two. Some checks need no truth: how the levels lie to each other, and that the labels must
lie on brighter pixels than they would elsewhere.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from cache_schema.layout import LEVELS
from preprocess.findings import Finding
from preprocess.masks.checks import MIRROR_MARGIN, Read, brightness, check_against_bone, check_levels
from preprocess.masks.names import find_segmentation, unused_masks
from preprocess.masks.nifti_file import LabelVolume, SegmentationRefused, read_labels
from preprocess.masks.shifts import LabelImages
from preprocess.series.geometry import Grid
from preprocess.series.study_plan import StudyPlan

__all__ = ["find_segmentation", "place_labels", "read_segmentation", "unused_masks", "vertebra_ratios"]

PLACED = 0.9
"""Share of the labelled volume that must arrive on the study's slices for an affine to fit; the rest may stick out of
the scan, or be rounding."""

AGREE_VOXELS = 0.5
"""Affines of one file that differ by less, anywhere in it, place its labels on the same pixels but for rounding."""

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI counts millimetres to the right and the front, DICOM to the left and the back."""

STILL = 0.01
"""An axis that moves by less than this share of a voxel over a whole image does not move."""


class _StudyReadError(Exception):
    """What reading the study's own pixels raised: it is no fault of the mask that asked for them."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error


@dataclass(frozen=True)
class Survey:
    """What a segmentation says slice by slice: never more than one slice's labels are held.

    pixels: of each of C1..C7, int (n, 7). boxes: x0 y0 x1 y1 around all of them, exclusive ends, -1 where there is
    none, int16 (n, 4). labelled: whether the slice holds any label at all, bool (n). voxel: mm that a voxel of the
    file reaches between the study's slices, down and across its images.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labelled: np.ndarray
    voxel: tuple[float, float, float] = (0.0, 0.0, 0.0)


def read_segmentation(
    nifti: str | Path, plan: StudyPlan, read: Read | None = None
) -> tuple[np.ndarray | None, np.ndarray | None, list[Finding]]:
    """Slice boxes (n, 4) int16 and vertebra ratios (n, 7) float32 of a study, and what there is to say about the
    segmentation.

    Boxes are x0 y0 x1 y1 in native pixels of the canonical image, exclusive ends, around all of C1..C7, -1 where
    there is none. The ratio is a level's pixels in the slice divided by those in its fullest slice, 0 where the level
    is absent (reference 3.2). `read(z0, z1)` gives the study's grey values for the checks against bone, which are left
    out without it; what it raises is raised. Whatever else goes wrong refuses the segmentation: (None, None, findings).
    """
    try:
        with np.errstate(all="ignore"):  # affines of a broken file hold any number there is
            label_images, survey, findings = place_labels(nifti, plan, read and _marking_read_errors(read))
        check_levels(survey.pixels, plan.z)
        if read is not None:
            spacing = plan.spacing or (survey.voxel[0] or 1.0, *plan.grid.pixel_spacing)
            check_against_bone(label_images, survey.labelled, _marking_read_errors(read), survey.voxel, spacing)
        return survey.boxes, vertebra_ratios(survey.pixels), findings
    except _StudyReadError as fault:
        raise fault.error from None
    except SegmentationRefused as refused:
        reason, message = refused.reason, refused.message
    except MemoryError:
        reason, message = "segmentation_too_large", "needs more memory than there is"
    except Exception as error:  # a mask must never cost its study
        reason, message = "segmentation_unreadable", f"cannot be placed ({type(error).__name__})"
    return None, None, [Finding(plan.id, "", "refused", reason, message, str(nifti))]


def _marking_read_errors(read: Read) -> Read:
    def passing(z0: int, z1: int) -> np.ndarray:
        try:
            return read(z0, z1)
        except Exception as error:
            raise _StudyReadError(error) from error

    return passing


def place_labels(
    nifti: str | Path, plan: StudyPlan, read: Read | None = None
) -> tuple[LabelImages, Survey, list[Finding]]:
    """Labels on the study's slices, by the affine where it fits them, else by fixed flips and flagged.

    Where the file's two affines disagree that is flagged as well, and what lies on brighter pixels is taken, as far as
    `read` tells them apart. Raises SegmentationRefused.
    """
    volume = read_labels(nifti)
    voxels = sum(int(np.count_nonzero(_is_level(volume.labels[:, :, k]))) for k in range(volume.labels.shape[2]))
    if not voxels:
        raise SegmentationRefused("segmentation_empty", "holds no voxel of C1 to C7")
    apart = _farthest(volume)
    placed = _placed(volume, plan.grid, voxels, 1 if apart is None else 2)
    name, label_images, survey = _brightest(placed, read) if placed else ("neither", None, None)
    said = {}
    if apart is not None:
        where = f"up to {apart:.1f} mm apart" if np.isfinite(apart) else "apart, one of them nowhere"
        said["segmentation_two_affines"] = f"qform and sform place the labels {where}; {name} was taken"
    if label_images is None:
        label_images = by_fixed_flips(volume, plan)
        survey = survey_slices(label_images, plan.grid.slices)
        said["segmentation_by_fixed_flips"] = (
            "the affine does not place the labels on the slices; placed by the competition's fixed flips"
        )
    return label_images, survey, [Finding(plan.id, "", "flagged", *about, str(nifti)) for about in said.items()]


def _farthest(volume: LabelVolume) -> float | None:
    """mm that the affines of a file are apart where they are farthest; None where there is one, or they agree."""
    if len(volume.forms) < 2:
        return None
    one, other = volume.forms.values()
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in volume.shape))]).T
    apart = float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())
    step = np.linalg.norm(one[:3, :3], axis=0).min()
    return None if apart <= AGREE_VOXELS * step else apart


def _placed(volume: LabelVolume, grid: Grid, voxels: int, forms: int) -> list[tuple[str, LabelImages, Survey]]:
    """What the first affines of a file make of it, those of them that place its labels on the study's slices."""
    placed = []
    for name, to_ras in list(volume.forms.items())[:forms]:
        affine = TO_LPS @ to_ras
        label_images = by_affine(volume, affine, grid)
        if label_images is not None:
            survey = survey_slices(label_images, grid.slices, _voxel(affine, grid))
            if survey.pixels.sum(axis=1) @ _slice_volumes(grid, affine) >= PLACED * voxels * abs(np.linalg.det(affine)):
                placed.append((name, label_images, survey))
    return placed


def _brightest(placed: list[tuple[str, LabelImages, Survey]], read: Read | None) -> tuple[str, LabelImages, Survey]:
    """The first, unless another one lies on brighter pixels."""
    if len(placed) == 1 or read is None:
        return placed[0]
    first, second = (brightness(label_images, survey.labelled, read) for _, label_images, survey in placed)
    return placed[second > first + MIRROR_MARGIN]


def _is_level(labels: np.ndarray) -> np.ndarray:
    """uint8 labels -> whether they are 1 to 7; 0 becomes 255, beyond them all."""
    return labels - np.uint8(1) < len(LEVELS)


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
        part = tuple(_common([mask.any(axis=1 - axis) for mask in inside]) for axis in (0, 1))
        if None in part:
            return whole
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


def _slice_volumes(grid: Grid, affine: np.ndarray) -> np.ndarray:
    """mm3 that one pixel of each slice stands for, (n,)."""
    normal = np.cross(grid.row_direction, grid.column_direction)
    heights = np.array(grid.positions) @ normal
    # one slice has no distance: the segmentation's own stands in
    thickness = np.abs(np.gradient(heights)) if grid.slices > 1 else np.abs(normal @ affine[:3, :3]).max(keepdims=True)
    return thickness * grid.pixel_spacing[0] * grid.pixel_spacing[1]


def _voxel(affine: np.ndarray, grid: Grid) -> tuple[float, float, float]:
    """mm that a voxel reaches at most along the slices' normal, down and across the images."""
    ways = np.array((np.cross(grid.row_direction, grid.column_direction), grid.column_direction, grid.row_direction))
    return tuple(np.abs(ways @ affine[:3, :3]).max(axis=1).tolist())


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


def survey_slices(
    label_images: LabelImages, slices: int, voxel: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Survey:
    """Look at every slice once."""
    pixels = np.zeros((slices, len(LEVELS)), int)
    boxes = np.full((slices, 4), -1, np.int16)
    labelled = np.zeros(slices, bool)
    for z in range(slices):
        whole = label_images(z)
        rows, columns = np.flatnonzero(whole.max(axis=1)), np.flatnonzero(whole.max(axis=0))
        if not len(rows):
            continue
        y0, x0 = rows[0], columns[0]
        labels = whole[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
        labelled[z] = True
        pixels[z] = np.bincount(labels.ravel(), minlength=len(LEVELS) + 1)[1 : len(LEVELS) + 1]
        if pixels[z].any():
            level = _is_level(labels)
            rows, columns = np.flatnonzero(level.any(axis=1)), np.flatnonzero(level.any(axis=0))
            boxes[z] = x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1
    return Survey(pixels, boxes, labelled, voxel)


def vertebra_ratios(pixels: np.ndarray) -> np.ndarray:
    """Pixels of each level (n, 7) -> (n, 7) float32 in [0, 1]: a level's pixels in a slice over those in its fullest
    slice."""
    return (pixels / np.maximum(pixels.max(axis=0), 1)).astype(np.float32)
