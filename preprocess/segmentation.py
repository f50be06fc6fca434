"""A NIfTI segmentation -> slice boxes and vertebra ratios on the study's own grid.

The segmentation's affine places it in the patient, the slices' headers place the study there; labels are looked up,
pixel by pixel, between the two. Two checks need no truth: C1 must lie above C7, and the labels must lie on brighter
pixels than their mirror images would.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel
import numpy as np

from cache_schema.layout import LEVELS
from preprocess.findings import Finding
from preprocess.geometry import Grid
from preprocess.study_plan import StudyPlan

MAX_VOXELS = 2**31
"""Cap on the voxels of a segmentation (2048 slices of 1024 x 1024): a header beyond it is a lie that would cost
gigabytes."""

PLACED = 0.9
"""Share of the labelled volume that must arrive on the study's slices for an affine to fit; the rest may stick out of
the scan, or be rounding."""

CHECKED_SLICES = 24
"""Slices on which labels are compared with their mirror images: spread over the labelled range, enough pixels to
leave noise behind."""

MIRROR_MARGIN = 0.5
"""Grey levels (3.5 HU) by which a mirror image may be brighter: a neck in the middle of the picture is as good as its
mirror image."""

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI counts millimetres to the right and the front, DICOM to the left and the back."""

STILL = 0.01
"""An axis that moves by less than this share of a voxel over a whole picture does not move."""

NEARLY = 0.1
"""Labels written with a scale come back as nearly whole numbers."""

Read = Callable[[int, int], np.ndarray]
Pictures = Callable[[int], np.ndarray]
"""z_index -> labels of that slice, (rows, columns) uint8 in the canonical picture"""


class SegmentationRefused(Exception):
    """A segmentation that cannot serve for labels; its study is kept."""

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Survey:
    """What a segmentation says slice by slice: never more than one slice's labels are held.

    pixels: of each of C1..C7, int (n, 7). boxes: x0 y0 x1 y1 around all of them, exclusive ends, -1 where there is
    none, int16 (n, 4). labelled: whether the slice holds any label at all, bool (n).
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labelled: np.ndarray


def find_segmentation(folder: str | Path | None, study: str) -> Path | None:
    """`<study>.nii` or `<study>.nii.gz` in a folder, or None."""
    if folder is None:
        return None
    candidates = (Path(folder) / f"{study}{suffix}" for suffix in (".nii", ".nii.gz"))
    return next((path for path in candidates if path.is_file()), None)


def read_segmentation(
    nifti: str | Path, plan: StudyPlan, read: Read | None = None
) -> tuple[np.ndarray | None, np.ndarray | None, list[Finding]]:
    """Slice boxes (n, 4) int16 and vertebra ratios (n, 7) float32 of a study, and what there is to say about the
    segmentation.

    Boxes are x0 y0 x1 y1 in native pixels of the canonical picture, exclusive ends, around all of C1..C7, -1 where
    there is none. The ratio is a level's pixels in the slice divided by those in its fullest slice, 0 where the level
    is absent (reference 3.2). `read(z0, z1)` gives the study's grey values for the second check, which is left out
    without it. (None, None, findings) where the segmentation is refused.
    """
    try:
        pictures, survey, findings = place_labels(nifti, plan)
        check_head_to_feet(survey.pixels, plan.z)
        if read is not None:
            check_not_mirrored(pictures, survey.labelled, read)
    except SegmentationRefused as refused:
        return None, None, [Finding(plan.id, "", "refused", refused.reason, refused.message, str(nifti))]
    return survey.boxes, vertebra_ratios(survey.pixels), findings


def place_labels(nifti: str | Path, plan: StudyPlan) -> tuple[Pictures, Survey, list[Finding]]:
    """Labels on the study's slices, by the affine where it fits them, else by fixed flips and flagged. Raises
    SegmentationRefused."""
    volume, affine = load_volume(nifti)
    voxels = sum(int(np.count_nonzero(_is_level(as_labels(volume[:, :, k])))) for k in range(volume.shape[2]))
    if not voxels:
        raise SegmentationRefused("segmentation_empty", "holds no voxel of C1 to C7")
    pictures = by_affine(volume, TO_LPS @ affine, plan.grid)
    if pictures is not None:
        survey = survey_slices(pictures, plan.grid.slices)
        placed = survey.pixels.sum(axis=1) @ _slice_volumes(plan.grid, TO_LPS @ affine)
        if placed >= PLACED * voxels * abs(np.linalg.det(affine)):
            return pictures, survey, []
    pictures = by_fixed_flips(volume, plan)
    message = "the affine does not place the labels on the slices; placed by the competition's fixed flips"
    flagged = Finding(plan.id, "", "flagged", "segmentation_by_fixed_flips", message, str(nifti))
    return pictures, survey_slices(pictures, plan.grid.slices), [flagged]


def load_volume(nifti: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Values as stored (i, j, k), mapped from the file where it is not compressed, and the affine (4, 4) to RAS mm.

    Raises SegmentationRefused.
    """
    try:
        image = nibabel.load(nifti)
        shape = image.shape
        possible = len(shape) >= 3 and max(shape[3:], default=1) == 1 and 0 < np.prod(shape, dtype=float) <= MAX_VOXELS
        if not isinstance(image, nibabel.Nifti1Image) or not possible:
            raise SegmentationRefused("segmentation_unreadable", "not a 3-dimensional NIfTI volume of a possible size")
        # unscaled values keep their narrow type and need not be read at once
        plain = (image.dataobj.slope, image.dataobj.inter) == (1, 0)
        values = np.asanyarray(image.dataobj.get_unscaled() if plain else image.dataobj)
        return values.reshape(shape[:3], order="F"), np.asarray(image.affine, float)
    except SegmentationRefused:
        raise
    except Exception as error:  # nibabel and what lies below it fail in many ways
        message = f"reading as NIfTI failed ({type(error).__name__})"
        raise SegmentationRefused("segmentation_unreadable", message) from None


def as_labels(values: np.ndarray) -> np.ndarray:
    """Stored values of any number type as uint8. Raises SegmentationRefused where one of them is no label."""
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):
        labels = np.rint(values).astype(np.uint8)
        whole = np.abs(values - labels.astype(np.float32)) <= NEARLY
    if not whole.all():
        raise SegmentationRefused("segmentation_labels", "holds values that are not whole numbers from 0 to 255")
    return labels


def _is_level(labels: np.ndarray) -> np.ndarray:
    """uint8 labels -> whether they are 1 to 7; 0 becomes 255, beyond them all."""
    return labels - np.uint8(1) < len(LEVELS)


def by_affine(volume: np.ndarray, affine: np.ndarray, grid: Grid) -> Pictures | None:
    """The nearest labels at the study's pixel centres; None where `affine` (voxels to LPS mm) is no placement at
    all."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        return None
    to_voxels = np.linalg.inv(affine)
    starts = np.array(grid.positions) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    down, across = to_voxels[:3, :3] @ grid.row_step, to_voxels[:3, :3] @ grid.column_step
    rows, columns = np.arange(grid.rows)[:, None], np.arange(grid.columns)[None, :]

    def picture(z: int) -> np.ndarray:
        outside, index = [], []
        for axis, size in enumerate(volume.shape):
            place = np.full((1, 1), starts[z, axis])
            # an axis that stands still over the picture stays small: orthogonal segmentations need no full index arrays
            if abs(down[axis]) * grid.rows > STILL:
                place = place + rows * down[axis]
            if abs(across[axis]) * grid.columns > STILL:
                place = place + columns * across[axis]
            nearest = np.rint(place)
            beyond = (nearest < 0) | (nearest >= size)
            if beyond.all():
                return np.zeros((grid.rows, grid.columns), np.uint8)
            if beyond.any():
                outside.append(beyond)
            index.append(np.clip(nearest, 0, size - 1).astype(np.intp))
        labels = np.broadcast_to(as_labels(_look_up(volume, index)), (grid.rows, grid.columns))
        for beyond in outside:
            labels = np.where(beyond, np.uint8(0), labels)
        return labels

    return picture


def _look_up(volume: np.ndarray, index: list[np.ndarray]) -> np.ndarray:
    """`volume[tuple(index)]` for index arrays (rows or 1, columns or 1) of its three axes.

    Where one axis runs down the picture and one across, and the third stands still, they are cut one after the other,
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


def by_fixed_flips(volume: np.ndarray, plan: StudyPlan) -> Pictures:
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

    def picture(z: int) -> np.ndarray:
        return plan.turn.apply(as_labels(volume[:, ::-1, place[z]]).T)

    return picture


def survey_slices(pictures: Pictures, slices: int) -> Survey:
    """Look at every slice once."""
    pixels = np.zeros((slices, len(LEVELS)), int)
    boxes = np.full((slices, 4), -1, np.int16)
    labelled = np.zeros(slices, bool)
    for z in range(slices):
        whole = pictures(z)
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
    return Survey(pixels, boxes, labelled)


def check_head_to_feet(pixels: np.ndarray, z: np.ndarray) -> None:
    """Raise SegmentationRefused unless the mean heights of the levels present fall from C1 to C7.

    `pixels` of each level is (n, 7), `z` (n,) mm, growing to the head.
    """
    present = pixels.sum(axis=0) > 0
    heights = (z @ pixels)[present] / pixels.sum(axis=0)[present]
    if (np.diff(heights) >= 0).any():
        raise SegmentationRefused(
            "segmentation_upside_down", "the levels do not run from C1 at the head to C7 at the feet"
        )


def check_not_mirrored(pictures: Pictures, labelled: np.ndarray, read: Read) -> None:
    """Raise SegmentationRefused where one of the seven mirror images of the labels lies on brighter pixels than the
    labels do.

    Bone is the brightest tissue, so labels in their right place beat misplaced ones. Reads up to 24 labelled slices
    and their mirror slices.
    """
    last = len(labelled) - 1
    places = np.flatnonzero(labelled)
    chosen = places[np.unique(np.linspace(0, len(places) - 1, CHECKED_SLICES).round().astype(int))]
    sums = dict.fromkeys(product((1, -1), repeat=3), 0.0)
    pixels = 0
    for z in chosen.tolist():
        rows, columns = np.nonzero(pictures(z))
        pixels += len(rows)
        here, mirrored = read(z, z + 1)[0], read(last - z, last - z + 1)[0]
        for flip_z, flip_y, flip_x in sums:
            grey = here if flip_z == 1 else mirrored
            sums[flip_z, flip_y, flip_x] += float(grey[::flip_y, ::flip_x][rows, columns].sum(dtype=np.int64))
    best = max(sums, key=sums.get)
    if (sums[best] - sums[1, 1, 1]) / pixels > MIRROR_MARGIN:
        axes = [name for name, flip in zip(("head-feet", "front-back", "left-right"), best, strict=True) if flip < 0]
        message = f"mirrored {' and '.join(axes)}, the labels would lie on brighter pixels"
        raise SegmentationRefused("segmentation_mirrored", message)


def vertebra_ratios(pixels: np.ndarray) -> np.ndarray:
    """Pixels of each level (n, 7) -> (n, 7) float32 in [0, 1]: a level's pixels in a slice over those in its fullest
    slice."""
    return (pixels / np.maximum(pixels.max(axis=0), 1)).astype(np.float32)
