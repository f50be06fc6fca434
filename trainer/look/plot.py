"""Axes on a canvas: lines, bands, bars and ticks in data coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from trainer.look.drawing import BLACK, GREY, PALE, WHITE, Colour, Region, text

SUBPIXEL = 4
"""bits of OpenCV's fixed-point coordinates"""
DASH, DASHED = 10.0, 6.0
"""pixels from dash to dash, and length of one"""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` + 1 round values (1, 2 or 5 times a power of ten apart) within low..high."""
    raw = max(high - low, 1e-12) / most
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [round(float(k * step), 12) + 0.0 for k in np.arange(first, last + 1)]


@dataclass(frozen=True)
class Axes:
    """The region of a canvas that data is drawn in, with what its edges stand for."""

    canvas: np.ndarray
    region: Region
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> np.ndarray:
        """(n, 2) float64 canvas coordinates; y is clipped to the axes."""
        left, top, width, height = self.region
        (x0, x1), (y0, y1) = self.x, self.y
        across = (np.asarray(x, np.float64) - x0) / (x1 - x0 or 1)
        up = (np.clip(np.asarray(y, np.float64), y0, y1) - y0) / (y1 - y0 or 1)
        return np.stack([left + across * width, top + height - up * height], axis=1)

    def frame(self, x_label: str = "", y_label: str = "", *, x_ticks: int = 8, y_ticks: int = 5) -> None:
        """Grid, ticks with their values, labels. Drawn before the data."""
        left, top, width, height = self.region
        for value in ticks(*self.y, most=y_ticks):
            y = round(float(self.place([self.x[0]], [value])[0, 1]))
            cv2.line(self.canvas, (left, y), (left + width, y), PALE, 1)
            text(self.canvas, f"{value:g}", left - 6, y + 4, size=11, align="right")
        for value in ticks(*self.x, most=x_ticks):
            x = round(float(self.place([value], [self.y[0]])[0, 0]))
            cv2.line(self.canvas, (x, top), (x, top + height), PALE, 1)
            text(self.canvas, f"{value:g}", x, top + height + 15, size=11, align="middle")
        cv2.rectangle(self.canvas, (left, top), (left + width, top + height), GREY, 1)
        text(self.canvas, x_label, left + width / 2, top + height + 31, size=12, align="middle")
        text(self.canvas, y_label, left, top - 7, size=12)

    def band(self, x0: float, x1: float, colour: Colour) -> None:
        """A filled range of x, behind what comes after."""
        (a, bottom), (b, top) = self.place([x0, x1], self.y)
        cv2.rectangle(self.canvas, (round(a), round(top)), (round(b), round(bottom)), colour, cv2.FILLED)

    def bar(self, x0: float, x1: float, value: float, colour: Colour) -> None:
        (a, bottom), (b, top) = self.place([x0, x1], [self.y[0], value])
        if bottom - top >= 1:
            cv2.rectangle(
                self.canvas, (round(a) + 1, round(top)), (round(b) - 1, round(bottom) - 1), colour, cv2.FILLED
            )

    def line(
        self,
        x: Sequence[float] | np.ndarray,
        y: Sequence[float] | np.ndarray,
        colour: Colour,
        *,
        thickness: int = 2,
        dashed: bool = False,
    ) -> None:
        """Through the points in order, broken where y is NaN."""
        points, known = self.place(x, y), ~np.isnan(np.asarray(y, np.float64))
        for run in np.split(np.arange(len(points)), np.flatnonzero(~known)):
            part = points[run[known[run]]]
            for piece in _dashes(part) if dashed else [part]:
                fixed = np.round(piece * 2**SUBPIXEL).astype(np.int32)
                cv2.polylines(self.canvas, [fixed[:, None]], False, colour, thickness, cv2.LINE_AA, SUBPIXEL)

    def dots(self, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, colour: Colour) -> None:
        for point in np.round(self.place(x, y) * 2**SUBPIXEL).astype(int).tolist():
            cv2.circle(self.canvas, tuple(point), 4 << SUBPIXEL, WHITE, cv2.FILLED, cv2.LINE_AA, SUBPIXEL)
            cv2.circle(self.canvas, tuple(point), 3 << SUBPIXEL, colour, cv2.FILLED, cv2.LINE_AA, SUBPIXEL)


def key(canvas: np.ndarray, x: float, y: float, words: str, colour: Colour, *, dashed: bool = False) -> int:
    """A short line and what it stands for, with the words' baseline at y. Returns the x where they end."""
    sample = Axes(canvas, (round(x), round(y) - 4, 24, 1), (0, 1), (0, 1))
    sample.line([0, 1], [0, 0], colour, dashed=dashed)
    return text(canvas, words, x + 30, y, size=12, colour=BLACK) + 16


def _dashes(points: np.ndarray) -> list[np.ndarray]:
    """(n, 2) -> pieces of the same line, DASHED long and DASH apart, each of some points."""
    if len(points) < 2:
        return []
    along = np.concatenate([[0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    starts = np.arange(0, along[-1], DASH)
    at = starts[:, None] + np.linspace(0, DASHED, 4)
    return [np.stack([np.interp(each, along, points[:, axis]) for axis in (0, 1)], axis=1) for each in at]
