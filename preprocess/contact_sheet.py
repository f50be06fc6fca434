"""A study as an image: evenly spaced slices on one sheet."""

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from cache_schema import Cache, Study
from cache_schema.errors import UsageError, reason_of
from cache_schema.store_path import Place

SHEET_ROWS, SHEET_COLUMNS, TILE = 4, 6, 192


def write_contact_sheet(path: str | Place, id: str | None, png: Path) -> None:
    """24 slices from head to feet as a PNG, slice boxes drawn in. Raises UsageError without a study, or where it cannot be written."""
    if id is None:
        raise UsageError("--png needs a study", expected="preprocess inspect CACHE ID --png FILE")
    sheet = contact_sheet(Cache(path).study(id))
    try:
        png.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
    except OSError as error:
        with suppress(OSError):
            if png.is_file():  # half an image; pipes and devices stay
                png.unlink()
        raise UsageError(f"cannot be written ({reason_of(error)})", where=png) from error


def contact_sheet(study: Study) -> np.ndarray:
    """uint8 (4 * 192, 6 * 192): evenly spaced slices."""
    left, top = study.record.stored_region[:2]
    sheet = np.zeros((SHEET_ROWS * TILE, SHEET_COLUMNS * TILE), np.uint8)
    chosen = np.unique(np.linspace(0, study.record.slices - 1, SHEET_ROWS * SHEET_COLUMNS).round().astype(int))
    for place, z in enumerate(chosen):
        image = study.read(int(z), int(z) + 1)[0].copy()
        if study.slice_box is not None and study.slice_box[z, 0] >= 0:
            x0, y0, x1, y1 = (study.slice_box[z] - (left, top, left, top)).tolist()
            cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), 255, 2)
        down, across = place // SHEET_COLUMNS * TILE, place % SHEET_COLUMNS * TILE
        sheet[down : down + TILE, across : across + TILE] = _fit(image)
    return sheet


def _fit(image: np.ndarray) -> np.ndarray:
    """Shrunk or grown to the tile, its shape kept."""
    scale = TILE / max(image.shape)
    height, width = (max(1, round(side * scale)) for side in image.shape)
    tile = np.zeros((TILE, TILE), np.uint8)
    tile[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return tile
