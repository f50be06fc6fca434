"""Marks on pictures: text, boxes, hatching, bars. A canvas is (height, width, 3) uint8 RGB.

x and y are continuous, in pixels of the canvas: pixel i covers [i, i + 1).
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cache_schema import LEVELS
from cache_schema.documents import write_whole

Colour = tuple[int, int, int]
Region = tuple[int, int, int, int]
"""x y width height, whole pixels"""

WHITE, BLACK, GREY, PALE = (255, 255, 255), (0, 0, 0), (130, 130, 130), (222, 222, 222)
RED, GREEN, YELLOW = (230, 60, 50), (60, 190, 90), (255, 210, 40)
PALETTE = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (127, 127, 127))
"""told apart by colour-blind readers too (Okabe and Ito)"""
LEVEL_COLOURS = dict(zip(LEVELS, PALETTE, strict=True))

_FONT = cv2.FontFace("sans")
_REGULAR, _BOLD = 400, 700
HATCH_STEP = 12


def blank(height: int, width: int, colour: Colour = WHITE) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def text_width(words: str, size: int = 13, bold: bool = False) -> int:
    return cv2.getTextSize((0, 0), words, (0, 0), _FONT, size, _BOLD if bold else _REGULAR)[2]


def text(
    canvas: np.ndarray,
    words: str,
    x: float,
    y: float,
    *,
    size: int = 13,
    colour: Colour = BLACK,
    align: str = "left",
    bold: bool = False,
) -> int:
    """One line with its baseline at y; align: left, middle or right of x. Returns the x where it ends."""
    width = text_width(words, size, bold)
    left = round(x - {"left": 0, "middle": width / 2, "right": width}[align])
    cv2.putText(canvas, words, (left, round(y)), colour, _FONT, size, _BOLD if bold else _REGULAR)
    return left + width


def shortened(words: str, width: float, size: int = 13) -> str:
    """The words, with their middle left out where they are wider than `width`."""
    kept = len(words)
    cut = words
    while text_width(cut, size) > width and kept > 2:
        kept -= 1
        cut = words[: kept // 2] + "…" + words[len(words) - (kept - kept // 2) :]
    return cut


def enlarged(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) uint8 grey -> (height, width, 3): averaged where it shrinks, its own pixels where it grows."""
    grows = height >= picture.shape[0]
    sized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST if grows else cv2.INTER_AREA)
    return np.repeat(sized[..., None], 3, axis=2)


def outline(canvas: np.ndarray, box: Sequence[float], colour: Colour, thickness: int = 2) -> None:
    """The inner edge of x0 y0 x1 y1: the outermost pixels that the box touches, and `thickness - 1` more towards its middle."""
    height, width = canvas.shape[:2]
    x0, y0 = (max(0, int(np.floor(value + 1e-6))) for value in box[:2])
    x1, y1 = (min(side, int(np.ceil(value - 1e-6))) for value, side in zip(box[2:], (width, height), strict=True))
    for inset in range(thickness):
        if x0 + inset < x1 - inset and y0 + inset < y1 - inset:
            corners = (x0 + inset, y0 + inset), (x1 - 1 - inset, y1 - 1 - inset)
            cv2.rectangle(canvas, *corners, colour, 1, cv2.LINE_8)


def hatch(canvas: np.ndarray, words: str, colour: Colour = GREY) -> None:
    """Slanting lines over the whole canvas and a word in its middle."""
    height, width = canvas.shape[:2]
    for start in range(-height, width, HATCH_STEP):
        cv2.line(canvas, (start, height), (start + height, 0), colour, 1, cv2.LINE_AA)
    reach = text_width(words, 15) // 2 + 8
    cv2.rectangle(
        canvas, (width // 2 - reach, height // 2 - 16), (width // 2 + reach, height // 2 + 12), BLACK, cv2.FILLED
    )
    text(canvas, words, width / 2, height / 2 + 4, size=15, colour=WHITE, align="middle")


def bars(
    canvas: np.ndarray,
    region: Region,
    values: np.ndarray,
    inner: np.ndarray | None = None,
    colour: Colour = PALE,
    inner_colour: Colour = RED,
) -> None:
    """A bar in [0, 1] for each of C1..C7, its value above it and its name below; `inner`: narrower bars in front.

    values, inner: (7,). A value that is NaN is drawn as a question mark.
    """
    left, top, width, height = region
    step, foot = width / len(LEVELS), top + height - 15
    inner = np.zeros(len(LEVELS)) if inner is None else inner
    tops = [foot - np.round(np.nan_to_num(each).clip(0, 1) * (foot - top - 14)).astype(int) for each in (values, inner)]
    cv2.line(canvas, (left, foot), (left + width - 1, foot), GREY, 1)
    for place, level in enumerate(LEVELS):
        middle = left + (place + 0.5) * step
        for reach, start, fill in ((0.34, tops[0][place], colour), (0.17, tops[1][place], inner_colour)):
            if start < foot:
                corners = (round(middle - reach * step), int(start)), (round(middle + reach * step), foot - 1)
                cv2.rectangle(canvas, *corners, fill, cv2.FILLED)
        ink = inner_colour if inner[place] > 0 else colour
        text(canvas, level, middle, top + height - 2, size=11, colour=ink, align="middle")
        words = _number(values[place], inner[place])
        text(canvas, words, middle, int(tops[0][place]) - 3, size=10, colour=colour, align="middle")


def _number(value: float, inner: float) -> str:
    if np.isnan(value) or np.isnan(inner):
        return "?"
    return "" if value <= 0 else f"{value:.2f}" if value >= 0.005 else "<.01"


def save(path: Path, canvas: np.ndarray) -> None:
    """As PNG, written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, cv2.imencode(".png", canvas[..., ::-1])[1].tobytes())
