"""A fracture is geometry: an upright plane through a vertebra, a gap along it, and everything beyond it carried off by
the gap and a step.

Nothing of the bone is lost, it only moves, so that a broken vertebra weighs the same in a histogram as a whole one.
"""

from dataclasses import dataclass

import numpy as np

from preprocess.phantom.anatomy import Person, Vertebra
from preprocess.phantom.seeds import Stream, stream

CROP_PIXELS = 128
GAP_PIXELS = 5.5
"""Width of the gap in pixels of the study crop at 128; the promise is 4, the rest is for blur and rasterising."""


@dataclass(frozen=True)
class Fracture:
    """In the vertebra's own frame at scale 1: bone with normal . (q - point) above zero moved by `shift`; `gap` is in
    mm at scale 1."""

    level: int
    kind: str
    point: np.ndarray
    normal: np.ndarray
    shift: np.ndarray
    gap: float


def crop_side(person: Person) -> float:
    """Side (mm) of the square around C1..C7, from the bones' extreme points: what a study crop will be."""
    points = []
    for v in person.vertebrae[:7]:
        b = v.bone
        corners = [(-b.half_width, 0, 0), (b.half_width, 0, 0), (0, b.front, 0), (0, b.back, 0)]
        points.append(v.to_patient(np.array(corners)))
    spread = np.ptp(np.concatenate(points)[:, :2], axis=0)
    return float(spread.max())


def possible_fractures(seed: int, index: int, person: Person) -> dict[int, Fracture]:
    """For every level C1..C7 the fracture it has if it is broken: drawn for all, so that one level's label moves
    nothing else."""
    rng = stream(seed, Stream.FRACTURES, index)
    gap = GAP_PIXELS * crop_side(person) / CROP_PIXELS
    return {v.level: _draw(rng, v, gap) for v in person.vertebrae[:7]}


def _draw(rng: np.random.Generator, vertebra: Vertebra, gap: float) -> Fracture:
    choice, side, tilt, place, step, lift = rng.random(6)
    side = 1.0 if side < 0.5 else -1.0
    tilt = np.deg2rad(50 * (tilt - 0.5))
    if vertebra.level == 1:
        kind, point, heading = "lateral_mass", (side * (17 + 3 * place), -4.0, 0.0), (side, 0.0)
    elif choice < 0.6:
        kind, point, heading = "sagittal", (side * (1 + 3 * place), 0.0, 0.0), (side, 0.0)
    else:
        kind, point, heading = "coronal", (0.0, 1.5 - 3 * place, 0.0), (0.0, -1.0)
    c, s = np.cos(tilt), np.sin(tilt)
    upright = np.array([heading[0] * c - heading[1] * s, heading[0] * s + heading[1] * c, 0.0])
    along = np.array([-upright[1], upright[0], 0.0])
    up = np.array([0.0, 0.0, 1.0])
    moved = gap * upright + (2.5 * (step - 0.5)) * along + 3.0 * (lift - 0.5) * up
    to_local = vertebra.rotation.T
    # chosen in the vertebra's frame, then laid level in the patient's, so that the plane stands upright over slices
    turn = np.arctan2(vertebra.rotation[1, 0], vertebra.rotation[0, 0])
    yaw = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    return Fracture(
        level=vertebra.level,
        kind=kind,
        point=np.array(point),
        normal=to_local @ yaw @ upright,
        shift=to_local @ yaw @ moved / vertebra.scale,
        gap=gap / vertebra.scale,
    )
