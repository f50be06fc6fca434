"""Whether a mask moved by some millimetres would lie better on the bone.

A place is as good as the labels there are brighter than the pixels close around them: bone is brighter than what it
lies in, and a bright region that extends beyond the labels, as the base of the skull does, is no vertebra.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from preprocess.masks.label_images import LabelImages
from preprocess.masks.nifti_file import SegmentationRefused

AROUND_MM = 2.5
"""What lies so near to the labels should be darker than they are: the soft tissue around a vertebra."""

SHIFT_VOXELS = 2
"""A mask so far off may be a matter of rounding, of the voxels' corners or centres."""

CLEARLY = 0.05
"""Share of its contrast by which a place further off has to be better than all that are not: on a vertebra, the third
and the fourth voxel cost 13 % together."""

IN_PLANE_MM = 16.0
"""How far a mask is moved in its slices, pixel by pixel: a third of a vertebra's width."""

UPDOWN_MM, UPDOWN_STEP_MM, UPDOWN_SLICES, UPDOWN_EVERY = 24.0, 3.0, 6, 2
"""How far it is moved to head and feet, in steps of which size, up to how many slices by each of them, and for every
which of the slices looked at: it costs more than all the rest."""

ASIDE_MM, ASIDE_PIXEL_MM = 3.0, 1.0
"""How far it is moved in its slices as well, then, and by how much at a time."""

BESIDE_MM, BESIDE_PIXEL_MM, FAR_CLEARLY = 64.0, 2.0, 0.5
"""How far a mask is moved that may lie beside the bone altogether, by how much at a time, and the share of its contrast
by which a place has to be better then: teeth and implants are that near and brighter than a vertebra, but not so much
that it would have half their contrast only."""

MIN_CONTRAST = 15.0
"""Grey levels (106 HU) by which the labels must be brighter than what is around them, in the better place: bone, not
muscle beside fat, nor noise."""

WAYS = (("feet", "head"), ("back", "front"), ("left", "right"))
"""Of the patient, by axis: where a growing index leads, and a falling one."""

ROUNDING = 1e-3


@dataclass(frozen=True)
class BetterPlace:
    """A place where the labels would lie on brighter pixels: their mean grey level there, and the refusal."""

    brightness: float
    refusal: SegmentationRefused


class Moves:
    """Contrasts of a mask's labels in other places, on the slices that are looked at.

    labelled: bool (n), whether a slice has labels. voxel, spacing: mm of a voxel of the mask and between pixels of the
    study, along slices, rows and columns.
    """

    def __init__(
        self, label_images: LabelImages, labelled: np.ndarray, voxel: Sequence[float], spacing: Sequence[float]
    ):
        self._label_images, self._labelled, self._step_mm = label_images, labelled, float(spacing[0])
        pixel, two_voxels = np.asarray(spacing[1:]), SHIFT_VOXELS * np.maximum(voxel, spacing)
        self._slices_allowed = int(two_voxels[0] / spacing[0] + ROUNDING)
        self._plane = _Contrast(pixel, 0.0, IN_PLANE_MM, two_voxels[1:])
        self._beside = _Contrast(pixel, BESIDE_PIXEL_MM, BESIDE_MM, two_voxels[1:])
        aside = (pixel, ASIDE_PIXEL_MM, ASIDE_MM, two_voxels[1:])
        self._still = {step: _Contrast(pixel, ASIDE_PIXEL_MM, 0.0, two_voxels[1:]) for step in self._steps()}
        self._stepped = {step: _Contrast(*aside) for step in self._still}
        self._updown = 0
        self._aside_outline = lru_cache(256)(lambda z: self._stepped[1].outline(label_images(z)))

    def _steps(self) -> list[int]:
        """By how many slices the labels are moved, to the feet where that is positive."""
        stride = max(1, round(UPDOWN_STEP_MM / self._step_mm))
        each = max(UPDOWN_SLICES, self._slices_allowed)
        most = min(len(self._labelled) - 1, max(each, int(UPDOWN_MM / self._step_mm)))
        steps = [step for step in range(1, most + 1) if step <= each or step % stride == 0]
        return [*(-step for step in steps), *steps]

    def look(self, z: int, frame: np.ndarray) -> None:
        """At the frame (rows, columns) uint8 of a labelled slice."""
        labels = self._label_images(z)
        for contrast in (self._plane, self._beside):
            contrast.add(contrast.sums(contrast.outline(labels), contrast.shrunk(frame)))
        if self._stepped and self._plane.slices % UPDOWN_EVERY == 1:
            self._look_updown(z, frame)

    def _look_updown(self, z: int, frame: np.ndarray) -> None:
        any_still, any_stepped = self._still[1], self._stepped[1]
        small = any_stepped.shrunk(frame)
        here = any_still.sums(self._aside_outline(z), small)
        self._updown += 1
        for step, stepped in self._stepped.items():
            if 0 <= z - step < len(self._labelled) and self._labelled[z - step]:
                self._still[step].add(here)
                stepped.add(stepped.sums(self._aside_outline(z - step), small))

    def better(self) -> BetterPlace | None:
        """The best place that is further off than masks may be, where it is clearly better than all that are not."""
        steps = [step for step, still in self._still.items() if 2 * still.slices >= self._updown > 0]
        before = {step: self._still[step].middle() for step in steps}
        allowed = [step for step in steps if abs(step) <= self._slices_allowed]
        least = max(self._plane.best_allowed() - self._plane.middle(), 0.0)
        least = max([least, *(self._stepped[step].best_allowed() - before[step] for step in allowed)])
        places = [
            (self._plane, self._plane.middle(), 0, CLEARLY),
            (self._beside, self._beside.middle(), 0, FAR_CLEARLY),
        ]
        places += [(self._stepped[step], before[step], step, CLEARLY) for step in steps]
        found: list[tuple[float, BetterPlace]] = []
        for there, here, step, share in places:
            contrast, gain = there.best(), there.best() - here
            if contrast >= MIN_CONTRAST and gain - least > share * contrast:
                refusal = SegmentationRefused(
                    "segmentation_shifted", _describe_move((step * self._step_mm, *there.move()))
                )
                found.append((gain, BetterPlace(there.brightness(), refusal)))
        return max(found, key=lambda pair: pair[0], default=(0.0, None))[1]


def _describe_move(move: Sequence[float]) -> str:
    ways = [f"{abs(by):.1f} mm to the {way[int(by < 0)]}" for by, way in zip(move, WAYS, strict=True) if by]
    return f"moved {' and '.join(ways)}, the labels would lie on brighter pixels"


class _Outline(NamedTuple):
    """The labels of one slice, and what is around them: uint8 (rows, columns) of the part of the frame that begins at
    y0, x0; 1 where they are."""

    y0: int
    x0: int
    inside: np.ndarray
    around: np.ndarray


_Sums = tuple[np.ndarray | float, np.ndarray | float, int, int]


class _Contrast:
    """Grey levels of labels less those around them, over some slices together, for all moves in their slices of up to
    `search` mm: maps, the middle of which is no move.

    pixel: mm between rows and columns of the frames, which are shrunk by whole factors to pixels of about `coarse` mm.
    allowed: mm by which labels may be off.
    """

    def __init__(self, pixel: np.ndarray, coarse: float, search: float, allowed: np.ndarray):
        self._factors = np.maximum(1, np.rint(coarse / pixel)).astype(int)
        self._pixel = pixel * self._factors
        self._search = (search / self._pixel).astype(int)
        self._allowed = np.minimum(np.ceil(allowed / self._pixel - ROUNDING).astype(int), self._search)
        self._margins = np.maximum(1, np.rint(AROUND_MM / self._pixel)).astype(int)
        shape = tuple(2 * self._search + 1)
        self._inside, self._around = np.zeros(shape), np.zeros(shape)
        self._pixels = [0, 0]
        self.slices = 0

    def shrunk(self, image: np.ndarray) -> np.ndarray:
        """By whole factors, without the last rows and columns that do not fill a pixel: means of blocks are quick."""
        if (self._factors == 1).all():
            return image
        down, across = self._factors.tolist()
        rows, columns = (max(1, size // factor) for size, factor in zip(image.shape, (down, across), strict=True))
        return cv2.resize(image[: rows * down, : columns * across], (columns, rows), interpolation=cv2.INTER_AREA)

    def outline(self, labels: np.ndarray) -> _Outline | None:
        """Of labels (rows, columns) of a whole frame; None where they are too small to be seen."""
        used = (labels > 0).astype(np.uint8)
        if (self._factors > 1).any():
            used = (self.shrunk(255 * used) > 127).astype(np.uint8)
        if not used.any():
            return None
        down, across = self._margins.tolist()
        rows, columns = _reach(used.max(axis=1), down), _reach(used.max(axis=0), across)
        inside = used[rows, columns]
        box = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * across + 1, 2 * down + 1))
        return _Outline(rows.start, columns.start, inside, cv2.dilate(inside, box) - inside)

    def sums(self, outline: _Outline | None, frame: np.ndarray) -> _Sums:
        """Of grey levels inside and around, maps or 0, and of how many pixels; the frame is shrunk already."""
        if outline is None:
            return 0.0, 0.0, 0, 0
        (high, wide), (down, across) = outline.inside.shape, self._search.tolist()
        rows = np.arange(outline.y0 - down, outline.y0 + high + down).clip(0, frame.shape[0] - 1)
        columns = np.arange(outline.x0 - across, outline.x0 + wide + across).clip(0, frame.shape[1] - 1)
        grey = frame[rows][:, columns].astype(np.float32)
        masks = outline.inside, outline.around
        inside, around = (cv2.matchTemplate(grey, mask.astype(np.float32), cv2.TM_CCORR) for mask in masks)
        return inside, around, int(np.count_nonzero(outline.inside)), int(np.count_nonzero(outline.around))

    def add(self, sums: _Sums) -> None:
        """Those of one slice."""
        inside, around, *pixels = sums
        self._inside += inside
        self._around += around
        self._pixels = [before + more for before, more in zip(self._pixels, pixels, strict=True)]
        self.slices += 1

    def _map(self) -> np.ndarray:
        return self._inside / max(1, self._pixels[0]) - self._around / max(1, self._pixels[1])

    def middle(self) -> float:
        """The contrast of labels that stay."""
        return float(self._map()[tuple(self._search)])

    def best(self) -> float:
        return float(self._map().max())

    def best_allowed(self) -> float:
        """Of the moves that labels may be off by."""
        part = zip(self._search, self._allowed, strict=True)
        return float(self._map()[tuple(slice(middle - by, middle + by + 1) for middle, by in part)].max())

    def move(self) -> np.ndarray:
        """mm to the back and to the left of the move that has the greatest contrast."""
        return (np.array(np.unravel_index(np.argmax(self._map()), self._inside.shape)) - self._search) * self._pixel

    def brightness(self) -> float:
        """Mean grey level of the labels there."""
        return float(self._inside.flat[np.argmax(self._map())]) / max(1, self._pixels[0])


def _reach(used: np.ndarray, margin: int) -> slice:
    places = np.flatnonzero(used)
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin)
