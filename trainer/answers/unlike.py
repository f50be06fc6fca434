"""Whether an image is far from all that a model was trained on: a few numbers of a study beside their range in training.

All numbers are of whole frames, for every stage: what any prediction can compute, with or without a box. Does not import
torch.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cache_schema import Study
from cache_schema.errors import CspineError
from cache_schema.study import Box
from trainer.runs.inputs import Inputs

RANGE = "range"
"""key of a training range in the metadata of weights"""

SLICES = 16
"""read of each study, evenly spaced"""

STUDIES = 64
"""training studies that are read, evenly spaced in the order of their ids: a range needs no more, and a run of thousands of
studies must not read all of them again"""

FACTOR = 1.5
"""A number is unlike training where it lies beyond the training range by more than this factor. Scanners, doses and
patients of one population differ by about as much among themselves."""

STEP = 3
"""Pixels between those whose difference is noise: reconstruction smooths the noise of direct neighbours away, down to the
rounding of the cached pixels (7 HU)."""

MASK = 6.0
"""Standard deviation of the mask of `_noise` under noise of 1: the root of the sum of its squares."""

NORMAL = 0.6745
"""Median of the absolute value of a standard normal variable."""

NAMES = {
    "grey_level": "the mean grey level is {}",
    "noise": "the noise is {} grey levels",
    "slice_spacing": "the slice spacing is {} mm",
    "pixel_spacing": "the pixel spacing is {} mm",
    "rows": "the image has {} rows",
    "columns": "the image has {} columns",
}
"""statistic -> how a sentence begins"""


def image_statistics(study: Study, box: Box | None = None, z_range: tuple[int, int] | None = None) -> dict[str, float]:
    """The statistics of NAMES of one study; what cannot be known is left out.

    box, z_range: the part that is looked at, native pixels and z_index with exclusive ends; None: whole frames, all slices.
    grey_level and noise are in levels of the cached uint8 pixels, lengths in mm. Of a cropped study without a box they are
    left out: its whole frames are not known. Raises CacheError or StudyRefused where the pixels cannot be read.
    """
    record = study.record
    found = {"pixel_spacing": float(np.sqrt(np.prod(record.pixel_spacing)))}
    found |= {"rows": float(record.rows), "columns": float(record.columns)}
    if record.slice_spacing is not None:
        found["slice_spacing"] = record.slice_spacing.median
    if box is None and record.origin is not None:
        return found
    first, end = z_range or (0, record.slices)
    places = np.unique(np.linspace(first, end - 1, SLICES).round().astype(int)).tolist()
    images = [study.read(z, z + 1, box)[0] for z in places]
    found["grey_level"] = float(np.mean([image.mean() for image in images]))
    noise = [value for image in images if (value := _noise(image)) is not None]
    return found | ({"noise": float(np.median(noise))} if noise else {})


def _noise(image: np.ndarray) -> float | None:
    """Standard deviation of an image's noise in grey levels; None where all pixels are black or white, which hides it.

    The difference of two Laplacians, which is blind to edges and slopes (Immerkaer, Fast Noise Variance Estimation, Computer
    Vision and Image Understanding 64, 1996), at every STEP-th pixel; the median instead of his mean, so that fine structure
    does not count.
    """
    rows = image.astype(np.int16)
    rows = rows[: -2 * STEP] - 2 * rows[STEP:-STEP] + rows[2 * STEP :]
    both = rows[:, : -2 * STEP] - 2 * rows[:, STEP:-STEP] + rows[:, 2 * STEP :]
    middle = image[STEP:-STEP, STEP:-STEP]
    seen = np.abs(both[(middle > 0) & (middle < 255)])
    if not seen.size:
        return None
    # whole numbers stand for the half around them, or the median could only move in their steps
    share = np.cumsum(np.bincount(seen)) / seen.size
    return float(np.interp(0.5, [0, *share], [0, *np.arange(len(share)) + 0.5])) / NORMAL / MASK


class Range(NamedTuple):
    low: float
    high: float
    n: int
    """studies"""


@dataclass(frozen=True)
class TrainingRange:
    """Of each statistic the least and the greatest value in the studies that a model was trained on."""

    ranges: Mapping[str, Range]

    @classmethod
    def of(cls, statistics: Iterable[Mapping[str, float]]) -> "TrainingRange":
        values: dict[str, list[float]] = {}
        for study in statistics:
            for name, value in study.items():
                values.setdefault(name, []).append(float(f"{value:.6g}"))
        return cls({name: Range(min(own), max(own), len(own)) for name, own in values.items()})

    @classmethod
    def from_json(cls, text: str) -> "TrainingRange":
        """Raises ValueError for any other document."""
        try:
            return cls(
                {name: Range(float(low), float(high), int(n)) for name, (low, high, n) in json.loads(text).items()}
            )
        except (AttributeError, TypeError):
            raise ValueError("is no training range") from None

    def to_json(self) -> str:
        return json.dumps(self.ranges, sort_keys=True)

    def unlike(self, statistics: Mapping[str, float]) -> list[str]:
        """A sentence for each statistic that lies beyond its range by more than FACTOR; what either side lacks is not compared."""
        found = []
        for name, sentence in NAMES.items():
            if name in statistics and name in self.ranges:
                value, (low, high, n) = statistics[name], self.ranges[name]
                if not low / FACTOR <= value <= high * FACTOR:
                    was = f"{low:.3g} to {high:.3g} in {n} training studies"
                    found.append(f"{sentence.format(f'{value:.3g}')}, beside {was}")
        return found


def merged(ranges: Iterable[TrainingRange]) -> TrainingRange:
    """What any of several models was trained on. n: of the model with the most studies, since models share studies."""
    together: dict[str, Range] = {}
    for one in ranges:
        for name, own in one.ranges.items():
            other = together.get(name, own)
            together[name] = Range(min(own.low, other.low), max(own.high, other.high), max(own.n, other.n))
    return TrainingRange(together)


def training_range(inputs: Inputs) -> TrainingRange:
    """Of up to STUDIES of the studies that a run trains on. Those that cannot be read are left out: n says so."""
    ids, found = inputs.train_ids(), []
    for place in np.unique(np.linspace(0, len(ids) - 1, min(STUDIES, len(ids))).round().astype(int)):
        with suppress(CspineError, OSError):
            found.append(image_statistics(inputs.study(ids[place])))
    return TrainingRange.of(found)
