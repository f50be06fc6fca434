"""A slice that shows what a level's probability rests on."""

from typing import NamedTuple

import cv2
import numpy as np

WARNING = "NOT FOR DIAGNOSIS"
FONT, WHITE, BLACK = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255), (0, 0, 0)
AROUND = [(right, down) for right in (-1, 0, 1) for down in (-1, 0, 1) if right or down]
LETTERS_ACROSS = 0.45
"""of the width of the image, at most, that a line takes"""


class KeySlice(NamedTuple):
    """level: C1 to C7. z_index: of the slice in cache order. fracture: what the models say of this slice, 0 to 1. image: uint8
    (rows, columns, 3), RGB, the whole slice in the cache's orientation with the heat map drawn in."""

    level: str
    z_index: int
    fracture: float
    image: np.ndarray


def title(each: KeySlice, slice_number: int) -> str:
    """As it stands in the image: level, slice number of the source, and fracture."""
    return f"{each.level}  slice {slice_number}  fracture {each.fracture:.2f}"


def with_words(image: np.ndarray, above: str) -> np.ndarray:
    """A copy of uint8 (rows, columns, 3) with `above` in its upper left and WARNING in its lower left corner, white with a
    black outline."""
    image = np.ascontiguousarray(image).copy()
    rows, columns = image.shape[:2]
    widest = max(cv2.getTextSize(text, FONT, 1.0, 1)[0][0] for text in (above, WARNING))
    scale = LETTERS_ACROSS * columns / widest
    height, edge = cv2.getTextSize(WARNING, FONT, scale, 1)[0][1], max(2, columns // 64)
    for text, line in ((above, edge + height), (WARNING, rows - edge)):
        for right, down in (*AROUND, (0, 0)):  # a thicker line is no outline: OpenCV 5 makes wider letters of it
            place, colour = (edge + right, line + down), BLACK if right or down else WHITE
            cv2.putText(image, text, place, FONT, scale, colour, 1, cv2.LINE_AA)
    return image
