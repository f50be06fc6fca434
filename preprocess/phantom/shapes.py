"""Solids in a vertebra's own frame, as signed distances in mm (negative inside).

The frame: u to the patient's left, v to the back, w to the head; the origin is the middle of the vertebral body.
Distances are first-order near the surface, which is all that anti-aliasing and a cortical shell need.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

Point = tuple[float, float, float]


class Solid(Protocol):
    """What a vertebra is made of. `centre` and `reach` bound the solid by a sphere."""

    @property
    def centre(self) -> Point: ...

    @property
    def reach(self) -> float: ...

    def distance(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid whose axes are the frame's."""

    centre: Point
    radii: Point

    @property
    def reach(self) -> float:
        return max(self.radii)

    def distance(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        (cu, cv, cw), (ru, rv, rw) = self.centre, self.radii
        r = np.sqrt(((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 + ((w - cw) / rw) ** 2)
        return (r - 1) * min(self.radii)


@dataclass(frozen=True)
class Capsule:
    """A rod from `start` to `end`, its radius growing evenly from `r0` to `r1`."""

    start: Point
    end: Point
    r0: float
    r1: float

    @property
    def centre(self) -> Point:
        (u0, v0, w0), (u1, v1, w1) = self.start, self.end
        return (u0 + u1) / 2, (v0 + v1) / 2, (w0 + w1) / 2

    @property
    def reach(self) -> float:
        return float(np.linalg.norm(np.subtract(self.end, self.start))) / 2 + max(self.r0, self.r1)

    def distance(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        au, av, aw = self.start
        du, dv, dw = np.subtract(self.end, self.start)
        pu, pv, pw = u - au, v - av, w - aw
        t = np.clip((pu * du + pv * dv + pw * dw) / (du * du + dv * dv + dw * dw), 0, 1)
        gap = np.sqrt((pu - t * du) ** 2 + (pv - t * dv) ** 2 + (pw - t * dw) ** 2)
        return gap - (self.r0 + (self.r1 - self.r0) * t)


@dataclass(frozen=True)
class Pillar:
    """A rounded block sheared along v: its end planes are w = -shear * v, as facet joints are. `lift` raises its
    sides, as uncinate processes do."""

    centre: Point
    radii: tuple[float, float]
    half_height: float
    shear: float = 0.0
    waist: float = 0.0
    lift: float = 0.0

    @property
    def reach(self) -> float:
        return float(np.hypot(np.hypot(*self.radii), self.half_height + self.lift + abs(self.shear) * self.radii[1]))

    def distance(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        (cu, cv, cw), (ru, rv) = self.centre, self.radii
        pu, pv = (u - cu) / ru, (v - cv) / rv
        pw = (w - cw) + self.shear * (v - cv)
        side = np.sqrt(np.sqrt(pu**4 + pv**4))
        if self.waist:
            side = side * (1 + self.waist * (1 - np.minimum((pw / self.half_height) ** 2, 1)))
        raised = self.lift / 2 * np.minimum(pu**4, 1)
        top = np.abs(pw - raised) - (self.half_height + raised)
        return np.maximum((side - 1) * min(self.radii), top)


@dataclass(frozen=True)
class Ring:
    """An elliptic ring around the canal; `front` and `back` are the v between which it is kept; it slopes down to the
    back."""

    centre: Point
    inner: tuple[float, float]
    thickness: float
    half_height: float
    slope: float = 0.0
    front: float = -1e3
    back: float = 1e3

    @property
    def reach(self) -> float:
        return max(self.inner) + self.thickness + self.half_height

    def distance(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        (cu, cv, cw), half = self.centre, self.thickness / 2
        ru, rv = self.inner[0] + half, self.inner[1] + half
        r = np.sqrt(((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2)
        ring = np.abs(r - 1) * min(ru, rv) - half
        tall = np.abs(w - cw + self.slope * (v - cv)) - self.half_height
        d = np.maximum(ring, tall)
        return np.maximum(d, np.maximum(self.front - v, v - self.back))
