"""A slice being painted: shapes in mm about the spine, laid one over another with soft edges."""

import numpy as np


class Canvas:
    """HU on a grid whose pixel centres are x, y (mm). Shapes are given in the body's own axes: origin on the line of
    the vertebral bodies, X to the left, Y to the back, turned with the head."""

    def __init__(self, x: np.ndarray, y: np.ndarray, middle: tuple[float, float, float]) -> None:
        mx, my, turn = middle
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        dx, dy = (x - mx).astype(np.float32), (y - my).astype(np.float32)
        self.step = float(x[1] - x[0])
        self.x_by = (dx * c)[None, :] + (dy * s)[:, None]
        self.y_by = (dy * c)[:, None] - (dx * s)[None, :]
        self._dx, self._dy, self._c, self._s = dx, dy, float(c), float(s)
        self.hu = np.full((y.size, x.size), -1000, np.float32)
        self._inside: np.ndarray | None = None

    def near(self, cx: float, cy: float, reach: float) -> tuple[slice, slice]:
        """The rectangle of pixels within `reach` mm of a point given in the body's axes."""
        px, py = cx * self._c - cy * self._s, cx * self._s + cy * self._c
        rows = slice(*np.searchsorted(self._dy, (py - reach, py + reach)))
        columns = slice(*np.searchsorted(self._dx, (px - reach, px + reach)))
        return rows, columns

    def paint(
        self, distance: np.ndarray, hu: float | np.ndarray, at: tuple[slice, slice] = (slice(None), slice(None))
    ) -> None:
        """Lay `hu` where the signed distance (mm) is negative, fading over one pixel."""
        if self._inside is not None:
            distance = np.maximum(distance, self._inside[at])
        cover = np.clip(0.5 - distance / self.step, 0, 1)
        part = self.hu[at]
        part += cover * (hu - part)

    def keep_inside(self, distance: np.ndarray) -> None:
        """From now on paint only where this distance is negative."""
        self._inside = distance

    def ellipse(self, cx: float, cy: float, a: float, b: float, hu: float, turn: float = 0.0) -> None:
        """An ellipse of half-axes a (along X before turning by `turn` degrees) and b, in mm."""
        if min(a, b) <= 0.2:
            return
        at = self.near(cx, cy, max(a, b) + 1.5)
        px, py = self.x_by[at] - cx, self.y_by[at] - cy
        if px.size == 0:
            return
        if turn:
            c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
            px, py = px * c + py * s, py * c - px * s
        self.paint((np.sqrt((px / a) ** 2 + (py / b) ** 2) - 1) * min(a, b), hu, at)

    def pair(self, cx: float, cy: float, a: float, b: float, hu: float, turn: float = 0.0) -> None:
        """The same ellipse on both sides, mirrored."""
        self.ellipse(cx, cy, a, b, hu, turn)
        self.ellipse(-cx, cy, a, b, hu, -turn)

    def ring(
        self,
        cx: float,
        cy: float,
        a: float,
        b: float,
        thickness: float,
        hu: float,
        front: float = -1e3,
        back: float = 1e3,
    ) -> None:
        """An elliptic band with outer half-axes a and b, kept for Y between front and back."""
        at = self.near(cx, cy, max(a, b) + 1.5)
        px, py = self.x_by[at] - cx, self.y_by[at] - cy
        if px.size == 0 or min(a, b) <= thickness:
            return
        half = thickness / 2
        r = np.sqrt((px / (a - half)) ** 2 + (py / (b - half)) ** 2)
        d = np.abs(r - 1) * min(a - half, b - half) - half
        self.paint(np.maximum(d, np.maximum(front - self.y_by[at], self.y_by[at] - back)), hu, at)

    def horseshoe(
        self, apex: float, width: float, end: float, thickness: float, hu: float | np.ndarray, teeth: float = 0.0
    ) -> None:
        """A band along a parabola, its apex at (0, apex) in front and its ends at (+-width, end); `teeth` cuts it into
        beads of that many mm."""
        if thickness <= 0.4:
            return
        at = self.near(0, (apex + end) / 2, max(width, (end - apex) / 2) + thickness + 2)
        px, py = self.x_by[at], self.y_by[at]
        if px.size == 0:
            return
        bow = (end - apex) / width**2
        slope = 2 * bow * px
        d = np.abs(py - (apex + bow * px**2)) / np.sqrt(1 + slope**2) - thickness / 2
        if teeth:
            along = np.where(np.abs(slope) < 1, px, np.sign(px) * (py - apex))
            d = np.maximum(d, 0.6 - np.abs((along / teeth) % 1 - 0.5) * teeth)
        self.paint(np.maximum(d, py - end), hu, at)

    def outline(self, half_width: float, front: float, back: float) -> np.ndarray:
        """Signed distance of a body outline, rounder than a box and squarer than an ellipse, deeper in front than
        behind."""
        px, py = np.abs(self.x_by) / half_width, self.y_by / np.where(self.y_by < 0, front, back).astype(np.float32)
        px2, py2 = px * px, py * py
        total = px2 * np.sqrt(np.sqrt(px2)) + py2 * np.sqrt(np.sqrt(py2))
        # the 2.5th power of the radius, unrolled about 1: only the surface has to be right
        return (total - 1) * np.float32(min(half_width, front, back) / 2.5)
