"""Whether the levels that the slice models see form a cervical spine, and which of them lie outside the field of view.

Nothing here is fitted to data: the constants are lengths of the adult neck and shares of a vertebra. What the curves do
not show clearly is flagged, and never declared outside.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from cache_schema import LEVELS, StudyRecord
from cache_schema.columns import FULL_FRAME
from cache_schema.study import Box
from trainer.answers.answer import Flag

SMOOTH_MM = 3.0
"""Standard deviation of the Gaussian along z: a fifth of a level, so that it averages noise and keeps every level."""

FOUND = 0.25
"""Smoothed ratio from which a level counts as seen: far above the noise of a trained model (0.03), and slices as far apart
as levels (every third of 5 mm) still meet nearly every level with a quarter of its largest area."""

SURE = 0.5
"""Some level must reach this ratio before any other is declared outside: half a vertebra, which noise does not draw."""

HALF = 0.5
"""Share of a level's peak: what has it somewhere else is a second peak, what has it at the end of the field is cut."""

NEIGHBOUR_MM = 15.0
"""Least distance of the centres of neighbouring levels: a vertebral body of 12 mm and a disc of 3 mm."""

WIDEST_MM = 25.0
"""Greatest distance of the centres of neighbouring levels: C2 to C3. Nearer to the end of the field of view than this, the
next level may lie outside."""

FAR_MM = 2 * NEIGHBOUR_MM
"""A model that is unsure between a level and its neighbour draws both humps nearer than this."""

LONGEST_MM = 60.0
"""More than any one level reaches from head to feet: C2 with its dens and its spinous process takes up to 53 mm."""

GAP_MM = 10.0
"""A gap is longer than this: discs are 3 to 6 mm high, and the arches of neighbouring levels reach over them."""

GAP_STEPS = 2.5
"""And longer than this many steps between the curves' slices, so that a single slice is no gap."""


NONE = "no level is found"

LEAST_LEVELS = 4
"""A study's levels count as found where more than half of the seven reach SURE."""


class LevelsFound(NamedTuple):
    """In how many of the studies that slice models hold out they find levels."""

    found: int
    studies: int

    @property
    def in_most(self) -> bool:
        return 2 * self.found >= self.studies

    @classmethod
    def of(cls, predictions: Iterable[pd.DataFrame]) -> "LevelsFound | None":
        """predictions: id, C1..C7 (ratios) by slice, of each model. None without any."""
        peaks = [frame.groupby("id")[list(LEVELS)].max() for frame in predictions]
        if not peaks:
            return None
        levels = (pd.concat(peaks) >= SURE).sum(axis=1)
        return cls(int((levels >= LEAST_LEVELS).sum()), len(levels))


@dataclass(frozen=True)
class _Level:
    """A level that is seen. mass: (n,) squared ratios around its peak, which say where it lies."""

    number: int
    centre: float
    """mm"""
    peak: float
    length: float
    """mm in which it has at least half of its peak"""
    mass: np.ndarray

    @property
    def name(self) -> str:
        return LEVELS[self.number]


def check_levels(
    curves: pd.DataFrame, z: np.ndarray, z_range: tuple[int, int], box_source: str
) -> tuple[tuple[Flag, ...], dict[str, str]]:
    """Flags of one study, and the levels outside its field of view with the reason.

    curves: z_index (increasing), C1..C7: ratios of one study, as `Answer.curves`. z: (slices,) mm, strictly decreasing.
    z_range: z_index, exclusive end, of the study box. Where no level is found, none counts as within the field of view.
    """
    place = np.asarray(z, np.float64)[curves["z_index"].to_numpy()]
    ratios = smoothed(curves[list(LEVELS)].to_numpy(np.float64), place)
    seen = list(_seen(ratios, place))
    if not seen:
        return (Flag("level_missing", NONE),), dict.fromkeys(LEVELS, NONE)
    flags: list[Flag] = []
    if box_source != FULL_FRAME:
        flags += _outside_z_range(seen, z, z_range)
    disorder = [*_order(seen), *_inner_missing(seen), *_twice(seen, ratios, place), *_gaps(seen, ratios, place)]
    ends, outside = _ends(seen, ratios, place, z, sound=not disorder and _is_spine(seen))
    return (*flags, *disorder, *ends), outside


def smoothed(ratios: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(n, 7) at (n,) mm -> (n, 7): a Gaussian mean along z."""
    weights = np.exp(-0.5 * ((place[:, None] - place[None]) / SMOOTH_MM) ** 2)
    return weights @ ratios / weights.sum(axis=1, keepdims=True)


def _seen(ratios: np.ndarray, place: np.ndarray) -> Iterator[_Level]:
    """Levels that reach FOUND, not only as the shadow of a stronger one at the same place."""
    for number, ratio in enumerate(ratios.T):
        top = ratio.argmax()
        if ratio[top] >= max(FOUND, HALF * ratios[top].max()):
            yield _level(number, ratio, place)


def _level(number: int, ratio: np.ndarray, place: np.ndarray) -> _Level:
    top = int(ratio.argmax())
    mass = _mass(ratio, place, top)
    length = float(np.count_nonzero(ratio >= HALF * ratio[top]) * _step(place))
    return _Level(number, float(place @ mass / mass.sum()), float(ratio[top]), length, mass)


def _mass(ratio: np.ndarray, place: np.ndarray, top: int) -> np.ndarray:
    return np.where(np.abs(place - place[top]) < NEIGHBOUR_MM, np.clip(ratio, 0, None) ** 2, 0)


def box_flags(box: Box, source: str, record: StudyRecord) -> Iterator[Flag]:
    """Flags about a study box in native pixels."""
    if source == FULL_FRAME:
        yield Flag("no_box", "no box was found: the models saw the full frame and all slices")
        return
    edges = zip(("left", "top", "right", "bottom"), box, record.stored_region, strict=True)
    if touched := [name for name, own, frame in edges if own == frame]:
        yield Flag("box_at_frame", f"the box touches the image's edge: {', '.join(touched)}")


def _outside_z_range(seen: list[_Level], z: np.ndarray, z_range: tuple[int, int]) -> Iterator[Flag]:
    top, bottom = z[z_range[0]], z[z_range[1] - 1]
    for level in seen:
        if not bottom <= level.centre <= top:
            message = f"{level.name} is found outside the slices of the box, which the study models saw"
            yield Flag("outside_box", message, level.name)


def _order(seen: list[_Level]) -> Iterator[Flag]:
    for upper, lower in pairwise(seen):
        if _above(upper, lower) <= 0.5:
            yield Flag("levels_out_of_order", f"{lower.name} is not found below {upper.name}", lower.name)


def _above(upper: _Level, lower: _Level) -> float:
    """In [0, 1]: how often a place of one level lies above a place of the other, as the Mann-Whitney statistic; 0.5 where
    nothing tells."""
    below = lower.mass[::-1].cumsum()[::-1] - lower.mass / 2
    return float(upper.mass @ below / (upper.mass.sum() * lower.mass.sum()))


def _inner_missing(seen: list[_Level]) -> Iterator[Flag]:
    numbers = {level.number for level in seen}
    for number in range(min(numbers) + 1, max(numbers)):
        if number not in numbers:
            yield Flag("level_missing", f"{LEVELS[number]} is not found", LEVELS[number])


def _twice(seen: list[_Level], ratios: np.ndarray, place: np.ndarray) -> Iterator[Flag]:
    """A second peak of half the height, and not much shorter: one slice that is wrong is no level."""
    for level in seen:
        ratio = ratios[:, level.number]
        far = np.where(np.abs(place - place[ratio.argmax()]) >= FAR_MM, ratio, 0)
        first, second = int(ratio.argmax()), int(far.argmax())
        if far[second] < max(FOUND, HALF * level.peak):
            continue
        if _mass(far, place, second).sum() >= HALF**2 * _mass(ratio, place, first).sum():
            distance = abs(place[first] - place[second])
            yield Flag("level_twice", f"{level.name} is found at two places, {distance:.0f} mm apart", level.name)


def _gaps(seen: list[_Level], ratios: np.ndarray, place: np.ndarray) -> Iterator[Flag]:
    """Between the outermost centres: stretches in which no level reaches half of FOUND."""
    belongs = place[ratios.max(axis=1) >= FOUND / 2]
    top, bottom = max(level.centre for level in seen), min(level.centre for level in seen)
    least = max(GAP_MM, GAP_STEPS * _step(place))
    for above, below in pairwise(belongs):
        if above - below > least and bottom < above <= top:
            near = max((level for level in seen if level.centre >= above), key=lambda level: -level.centre)
            yield Flag("gap", f"{above - below:.0f} mm below {near.name} belong to no level", near.name)


def _step(place: np.ndarray) -> float:
    return float(np.median(-np.diff(place))) if len(place) > 1 else 0.0


def _is_spine(seen: list[_Level]) -> bool:
    """Whether what is seen looks like vertebrae: one of them for certain, none longer than a vertebra can be."""
    return max(level.peak for level in seen) >= SURE and all(level.length <= LONGEST_MM for level in seen)


def _ends(
    seen: list[_Level], ratios: np.ndarray, place: np.ndarray, z: np.ndarray, *, sound: bool
) -> tuple[list[Flag], dict[str, str]]:
    """What is cut or missing at the head and at the feet. sound: whether levels may be declared outside."""
    flags, outside = [], {}
    ends = (
        (seen[0], range(seen[0].number - 1, -1, -1), 0, float(z[0]), "above"),
        (seen[-1], range(seen[-1].number + 1, len(LEVELS)), -1, float(z[-1]), "below"),
    )
    for last, beyond, at, end, side in ends:
        cut = [
            level for level in ([last] if sound else seen) if _is_cut(level, ratios[:, level.number], place, at, end)
        ]
        level = max(cut, key=lambda level: ratios[at, level.number], default=last)
        reason = f"the field of view ends {'within' if cut else side} {level.name}"
        room = abs(end - last.centre)
        gone = [number for number in beyond if sound and room < NEIGHBOUR_MM * abs(number - last.number)]
        if cut or gone:
            flags.append(Flag("cut_end", reason, level.name))
        for number in beyond:
            name = LEVELS[number]
            if number in gone:
                outside[name] = reason
                flags.append(Flag("outside_field", f"{name} lies outside the image: {reason}", name))
                continue
            near = room < WIDEST_MM * abs(number - last.number)
            where = f"the field of view ends {room:.0f} mm {side} the centre of {last.name}"
            flags.append(Flag("cut_end" if near else "level_missing", f"{name} is not found: {where}", name))
    return flags, {name: outside[name] for name in LEVELS if name in outside}


def _is_cut(level: _Level, ratio: np.ndarray, place: np.ndarray, at: int, end: float) -> bool:
    return _at_end(ratio, place, at, end) >= HALF * level.peak


def _at_end(ratio: np.ndarray, place: np.ndarray, at: int, end: float) -> float:
    """The ratio where the field of view ends, by the curve's slope at its own end; 0 where the curve ends well before."""
    if len(place) < 2 or abs(end - place[at]) > 2 * _step(place):
        return 0.0
    inner = 1 if at == 0 else -2
    rise = (ratio[at] - ratio[inner]) / abs(place[at] - place[inner])
    return float(ratio[at] + min(0.0, rise) * abs(end - place[at]))
