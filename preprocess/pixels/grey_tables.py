"""Stored words of one kind of slice -> grey values: rescaling, window, inversion and padding, as tables of 65,536 entries."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cache_schema.layout import HU_HIGH, HU_LOW
from preprocess.headers.file_header import FileHeader

LOOKS = {
    "air": (1, -1300.0, HU_LOW),
    "tissue": (2, -200.0, 300.0),
    "metal": (4, 2500.0, np.inf),
    "bright": (8, HU_HIGH, np.inf),
}
"""bit, and the HU from and to: air (below it lies what was never measured: scanners fill corners with -2000 or -3024), soft
tissue from fat to blood, metal, and the top of the window"""
MEASURED = 16
"""bit of a word that is no padding"""
AIR = 0
"""what PixelPaddingValue becomes, in MONOCHROME1 too"""


@dataclass(frozen=True)
class WordTables:
    """grey: uint8 (65536,), padding whose HU lies outside of the window is air. looks: uint8 (65536,), sums of LOOKS.
    padding, inside: bool (65536,), which words are padding, and which of them mean an HU inside the window; None where
    there are none."""

    grey: np.ndarray
    looks: np.ndarray
    padding: np.ndarray | None
    inside: np.ndarray | None


def tables_of(header: FileHeader) -> WordTables:
    """Shared by all slices of one kind."""
    return _tables(
        header.slope,
        header.intercept,
        header.pixel_representation,
        header.bits_stored,
        header.photometric,
        header.marks.padding,
    )


@lru_cache(64)
def _tables(
    slope: float,
    intercept: float,
    pixel_representation: int,
    bits_stored: int,
    photometric: str,
    padding: tuple[int, int] | None,
) -> WordTables:
    hu = hounsfield(slope, intercept, pixel_representation, bits_stored)
    grey = window_table(slope, intercept, pixel_representation, bits_stored, photometric)
    # MONOCHROME1 is judged as its grey values are: turned about the middle of the window
    turned = HU_LOW + HU_HIGH - hu if photometric == "MONOCHROME1" else hu
    looks = np.full(65536, MEASURED, np.uint8)
    for bit, low, high in LOOKS.values():
        looks[(turned >= low) & (turned <= high)] += bit
    if padding is None:
        return WordTables(grey, looks, None, None)
    low, high = padding
    words = np.arange(65536)
    whole = words - ((words >> 15) << 16) if pixel_representation else words
    stored = stored_values(pixel_representation, bits_stored)
    pads = ((stored >= low) & (stored <= high)) | ((whole >= low) & (whole <= high))
    inside = pads & (hu > HU_LOW) & (hu < HU_HIGH)
    grey = np.where(pads & ~inside, np.uint8(AIR), grey)
    looks[pads] = 0
    for table in (grey, looks, pads, inside):
        table.flags.writeable = False
    return WordTables(grey, looks, pads, inside if inside.any() else None)


def stored_values(pixel_representation: int, bits_stored: int) -> np.ndarray:
    """Raw 16-bit word -> stored value, int64 (65536,): masked to `bits_stored` bits, and sign-extended where
    `pixel_representation` is 1, so that rubbish in unused bits does not matter."""
    stored = np.arange(65536, dtype=np.int64) & ((1 << bits_stored) - 1)
    if pixel_representation:
        stored -= (stored >> (bits_stored - 1)) << bits_stored
    return stored


def hounsfield(slope: float, intercept: float, pixel_representation: int, bits_stored: int) -> np.ndarray:
    """Raw 16-bit word -> HU = stored * slope + intercept, float64 (65536,)."""
    return stored_values(pixel_representation, bits_stored).astype(np.float64) * slope + intercept


@lru_cache(64)
def window_table(
    slope: float, intercept: float, pixel_representation: int, bits_stored: int, photometric: str
) -> np.ndarray:
    """Raw 16-bit word -> grey value, as (65536,) uint8, padding left aside.

    u = round((clip(HU, -500, 1300) + 500) * 255 / 1800), all in float64, halves to the even number. MONOCHROME1 gives
    255 - u.
    """
    hu = hounsfield(slope, intercept, pixel_representation, bits_stored)
    grey = np.rint((np.clip(hu, HU_LOW, HU_HIGH) - HU_LOW) * 255 / (HU_HIGH - HU_LOW)).astype(np.uint8)
    table = 255 - grey if photometric == "MONOCHROME1" else grey
    table.flags.writeable = False
    return table


def padding_at_the_edge(stored: np.ndarray, tables: WordTables) -> np.ndarray | None:
    """Of padding that means an HU inside the window: where it is connected to the frame's edge by padding, bool (rows,
    columns); None where nothing is."""
    if tables.inside is None or tables.padding is None:
        return None
    pads = tables.padding[stored]
    edge = np.concatenate([pads[0], pads[-1], pads[:, 0], pads[:, -1]])
    if not edge.any():
        return None
    _, pieces = cv2.connectedComponents(pads.astype(np.uint8))
    outer = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])[edge])
    found = np.isin(pieces, outer) & tables.inside[stored]
    return found if found.any() else None
