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
from preprocess.masks.label_images import LabelImages, by_affine, by_fixed_flips
from preprocess.masks.nifti_file import LabelVolume, SegmentationRefused, read_labels
from preprocess.series.geometry import Grid
from preprocess.series.study_plan import StudyPlan

PLACED = 0.9
"""Share of the labelled volume that must arrive on the study's slices for an affine to fit; the rest may stick out of
the scan, or be rounding."""

AGREE_VOXELS = 0.5
"""Affines of one file that differ by less, anywhere in it, place its labels on the same pixels but for rounding."""

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI counts millimetres to the right and the front, DICOM to the left and the back."""


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
        reason, message = "segmentation_too_large", "needs more memory than is available"
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
    if placed:
        name, label_images, survey = _brightest(placed, read)
    else:
        label_images = by_fixed_flips(volume, plan)
        name, survey = "neither", survey_slices(label_images, plan.grid.slices)
    flags = {}
    if apart is not None:
        where = f"up to {apart:.1f} mm apart" if np.isfinite(apart) else "apart, and one of them is not finite"
        flags["segmentation_two_affines"] = f"qform and sform place the labels {where}; {name} was used"
    if not placed:
        flags["segmentation_by_fixed_flips"] = (
            "the affine does not place the labels on the slices; placed by the competition's fixed flips"
        )
    return label_images, survey, [Finding(plan.id, "", "flagged", *about, str(nifti)) for about in flags.items()]


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
