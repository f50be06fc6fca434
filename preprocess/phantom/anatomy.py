"""One person: a spine posed in space, and the numbers the soft tissue hangs on. Patient coordinates are DICOM's LPS in
mm."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from preprocess.phantom.seeds import Stream, stream
from preprocess.phantom.shapes import Capsule, Ellipsoid, Solid
from preprocess.phantom.vertebrae import C1_ABOVE_C2, C1_BEHIND_DENS, FORMS, Bone, bone

LAST_LEVEL = 11
"""T4: far enough below C7 for the longest scan below the neck."""


@dataclass(frozen=True)
class Vertebra:
    """A bone at its place: local = rotation.T @ (patient - centre) / scale."""

    level: int
    centre: np.ndarray
    rotation: np.ndarray
    scale: float
    bone: Bone
    spurs: tuple[Solid, ...]
    canals: tuple[Solid, ...]

    def to_patient(self, local: np.ndarray) -> np.ndarray:
        """(n, 3) local mm at scale 1 -> (n, 3) patient mm."""
        return self.centre + self.scale * np.asarray(local, float) @ self.rotation.T

    @cached_property
    def solids(self) -> tuple["Placed", ...]:
        return self._placed(self.bone.solids + self.spurs)

    @cached_property
    def hollows(self) -> tuple["Placed", ...]:
        return self._placed(self.bone.hollows + self.canals)

    @cached_property
    def ribs(self) -> tuple["Placed", ...]:
        return self._placed(self.bone.ribs)

    def _placed(self, solids: tuple[Solid, ...]) -> tuple["Placed", ...]:
        return tuple(Placed(s, self.to_patient(np.array(s.centre)), s.reach * self.scale) for s in solids)


@dataclass(frozen=True)
class Placed:
    """A solid and the sphere (patient mm) that bounds it."""

    solid: Solid
    centre: np.ndarray
    reach: float


@dataclass(frozen=True)
class Person:
    """Everything about a phantom that a scanner does not choose. `line_*` run over levels C1..T4, for the tissue
    around the spine."""

    vertebrae: tuple[Vertebra, ...]
    line_z: np.ndarray
    line_x: np.ndarray
    line_y: np.ndarray
    line_turn: np.ndarray
    girth: float
    fat: float
    head: float
    jaw_shift: float
    larynx_shift: float
    shoulder_shift: float
    contrast: float
    calcified: float
    airway: float

    def level_at(self, z: float) -> float:
        """The height as a level: 1.0 at C1's middle, 7.0 at C7's, below 1 in the head, one level a step of 18 mm
        beyond the ends."""
        levels = np.arange(1, len(self.line_z) + 1, dtype=float)
        if z > self.line_z[0]:
            return 1 - (z - self.line_z[0]) / 18
        if z < self.line_z[-1]:
            return levels[-1] + (self.line_z[-1] - z) / 22
        return float(np.interp(-z, -self.line_z, levels))

    def middle_at(self, z: float) -> tuple[float, float, float]:
        """x, y (mm) of the vertebral bodies' line at this height, and the turn of the body about it (radians)."""
        order = -self.line_z
        x, y, turn = (float(np.interp(-z, order, line)) for line in (self.line_x, self.line_y, self.line_turn))
        return x, y, turn


def make_person(seed: int, index: int) -> Person:
    """The person of study `index`; a function of (seed, index) alone."""
    rng = stream(seed, Stream.ANATOMY, index)
    scale = rng.uniform(0.94, 1.10)
    vertebrae = _pose_spine(rng, scale)
    axis_c1 = vertebrae[0].centre - vertebrae[0].rotation[:, 1] * C1_BEHIND_DENS * scale
    line = np.array([axis_c1, *(v.centre for v in vertebrae[1:])])
    turn = np.array([np.arctan2(v.rotation[1, 0], v.rotation[0, 0]) for v in vertebrae])
    return Person(
        vertebrae=vertebrae,
        line_z=line[:, 2],
        line_x=line[:, 0],
        line_y=line[:, 1],
        line_turn=turn,
        girth=rng.uniform(1.04, 1.28),
        fat=rng.uniform(3.0, 12.0),
        head=rng.uniform(1.0, 1.08),
        jaw_shift=rng.normal(0, 0.25),
        larynx_shift=rng.normal(0, 0.2),
        shoulder_shift=rng.normal(0, 0.35),
        contrast=float(rng.random() < 0.3) * rng.uniform(150, 260),
        calcified=rng.uniform(120, 420),
        airway=rng.uniform(0.85, 1.2),
    )


def _pose_spine(rng: np.random.Generator, scale: float) -> tuple[Vertebra, ...]:
    """From C2 up to C1 and down to T4 along a curve of random lordosis, lean, side bend and turn."""
    levels = np.arange(1, LAST_LEVEL + 1)
    lean, lordosis = np.deg2rad(rng.normal(2, 4)), np.deg2rad(rng.uniform(-2, 26))
    pitch = (
        lean
        + lordosis * ((levels - 4) / 4) * np.where(levels < 4, 0.7, 1.0)
        + np.deg2rad(rng.normal(0, 1.5, levels.size))
    )
    pitch = np.clip(pitch, np.deg2rad(-22), np.deg2rad(30))
    bend = np.deg2rad(rng.normal(0, 3) + rng.normal(0, 4) * (levels - 4) / 4)
    head_turn = np.deg2rad(np.clip(rng.normal(0, 9), -18, 18))
    turn = np.deg2rad(rng.normal(0, 2)) + head_turn * np.interp(levels, [1, 2, 7, 11], [1.0, 0.55, 0.1, 0.0])
    sizes = scale * np.clip(rng.normal(1, 0.035, levels.size), 0.92, 1.08)

    centres = np.zeros((levels.size, 3))
    rotations = np.array([_rotation(*angles) for angles in zip(pitch, bend, turn, strict=True)])
    centres[0] = rotations[1] @ np.array([0, C1_BEHIND_DENS, C1_ABOVE_C2]) * sizes[1]
    for i in range(2, levels.size):
        upper, lower = FORMS[int(levels[i - 1])], FORMS[int(levels[i])]
        step = sizes[i - 1] * (upper.height / 2 + upper.disc) + sizes[i] * lower.height / 2
        down = -(rotations[i - 1][:, 2] + rotations[i][:, 2])
        centres[i] = centres[i - 1] + step * down / np.linalg.norm(down)
    return tuple(
        Vertebra(int(n), centres[i], rotations[i], float(sizes[i]), bone(int(n)), *_decoys(rng, int(n)))
        for i, n in enumerate(levels)
    )


def _rotation(pitch: float, bend: float, turn: float) -> np.ndarray:
    """Columns are the local u, v, w in patient axes; a positive pitch leans the top forward, as lordosis does at its
    lower end."""
    cp, sp, cb, sb, ct, st = (f(a) for a in (pitch, bend, turn) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[ct, -st, 0], [st, ct, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _decoys(rng: np.random.Generator, level: int) -> tuple[tuple[Solid, ...], tuple[Solid, ...]]:
    """Spurs and nutrient canals that intact and broken levels carry alike; each is under 2 px wide at 128 px, or
    short."""
    draws = rng.random(8)
    if level == 1:
        ossicle = Ellipsoid((10 * (draws[0] - 0.5), -28.5, 7.0), (2.4, 1.8, 2.0))
        spot = Capsule((side := 18 if draws[1] > 0.5 else -18, -9, -2), (side, -3, -2), 0.8, 0.8)
        return ((ossicle,) if draws[2] < 0.6 else ()), (spot,)
    bu, bv = FORMS[level].body
    spurs: list[Solid] = []
    for k, edge in ((0, 0.5), (1, -0.5)):
        if draws[k] < 0.55:
            at = (bu * (draws[2 + k] - 0.5) * 1.4, -bv - 0.5, edge * FORMS[level].height - edge * 3)
            spurs.append(Ellipsoid(at, (3.2, 2.4, 2.2)))
    w = (draws[4] - 0.5) * 3
    canals: list[Solid] = [Capsule((0, bv, w), (3 * (draws[5] - 0.5), -0.2 * bv, w), 1.0, 0.7)]
    if draws[6] < 0.5:
        canals.append(Capsule((-bu, -0.5, w + 1), (-0.4 * bu, 0.5, w + 1), 0.8, 0.6))
    return tuple(spurs), tuple(canals)
