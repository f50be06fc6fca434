"""Contact sheets: what each item shows, with its targets drawn on and below the pictures."""

from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from cache_schema import LEVELS, TARGETS
from trainer.data.augment import AugmentParams
from trainer.look.drawing import (
    GREY,
    PALE,
    RED,
    WHITE,
    YELLOW,
    bars,
    blank,
    enlarged,
    hatch,
    outline,
    shortened,
    text,
    text_width,
)
from trainer.look.pictures import Shown
from trainer.settings.settings import Settings

BACKGROUND = (44, 44, 50)
GAP, HEADER, CAPTION, BARS, TITLE = 8, 24, 20, 84, 58
"""heights and distances in pixels"""
PER_PAGE = {"bbox": 12}
PER_PAGE_OF_ROWS = 6
LEGENDS = {
    "bbox": "yellow: the target box, moved as the picture was; it is the union over the three slices",
    "vertebrae": "bars: target ratios of C1..C7 at the slice shown",
    "slice_fracture": "grey bars: target ratios of C1..C7 at the slice shown; red: target fractures; ?: unknown, not trained on",
    "study_fracture": "labels of the study: red 1, grey 0, ?: unknown, not trained on",
}


def sheets(items: Iterable[Shown], settings: Settings, *, heading: str, tile: int, slices: int) -> Iterator[np.ndarray]:
    """Pages of (height, width, 3) uint8 RGB. tile: side of a picture on the page; slices: pictures in an item's row."""
    stage = settings.stage
    across = 2 if stage == "bbox" else 1
    block = BLOCKS[stage]
    page: list[np.ndarray] = []
    for item in items:
        page.append(block(item, tile, slices))
        if len(page) == PER_PAGE.get(stage, PER_PAGE_OF_ROWS):
            yield _page(page, across, heading, LEGENDS[stage])
            page = []
    if page:
        yield _page(page, across, heading, LEGENDS[stage])


def triplet_block(item: Shown, tile: int, slices: int) -> np.ndarray:
    """Stage 1: the three slices, each with the target box."""
    canvas = _item_canvas(3, tile, CAPTION)
    box, size = item.targets.get("box"), item.params.size
    for place in range(3):
        picture = _tile(canvas, place, tile, item, place)
        if box is not None and item.targets["has_box"] > 0:
            outline(picture, box * tile, YELLOW)
    words = "target unknown"
    if box is not None:
        words = "box " + " ".join(f"{value:.0f}" for value in box * size) if item.targets["has_box"] > 0 else "no box"
    _header(canvas, item, words)
    return canvas


def window_block(item: Shown, tile: int, slices: int) -> np.ndarray:
    """Stages 2 and 3: middle slices of triplets evenly spaced over the window, the targets of each below it."""
    places = _middle_frames(item, slices)
    canvas = _item_canvas(slices, tile, CAPTION + BARS)
    ratios, fractures = item.targets.get("ratios"), item.targets.get("fractures")
    for column, frame in enumerate(places):
        _tile(canvas, column, tile, item, frame)
        if item.z_index[frame] < 0:
            continue
        region = (column * (tile + GAP), HEADER + tile + CAPTION, tile, BARS - 6)
        if ratios is None:
            bars(canvas, region, np.full(len(LEVELS), np.nan))
        else:
            row = frame if len(ratios) == len(item.z_index) else frame // 3
            bars(canvas, region, ratios[row], None if fractures is None else fractures[row])
    _header(canvas, item, "targets unknown" if ratios is None else "")
    return canvas


def study_block(item: Shown, tile: int, slices: int) -> np.ndarray:
    """Stage 4: middle slices of triplets evenly spaced over the study's z-range, its eight labels above them."""
    canvas = _item_canvas(slices, tile, CAPTION)
    for column, frame in enumerate(_middle_frames(item, slices)):
        _tile(canvas, column, tile, item, frame)
    _header(canvas, item, "")
    x = canvas.shape[1]
    for name, value in reversed(list(zip(TARGETS, item.targets["labels"], strict=True))):
        label = "patient" if name == TARGETS[0] else name
        words, colour = (f"{label} ?", PALE) if np.isnan(value) else (label, RED if value else GREY)
        text(canvas, words, x, HEADER - 8, colour=colour, bold=bool(value == 1), align="right")
        x -= text_width(words, bold=bool(value == 1)) + 16
    return canvas


BLOCKS: dict[str, Callable[[Shown, int, int], np.ndarray]] = {
    "bbox": triplet_block,
    "vertebrae": window_block,
    "slice_fracture": window_block,
    "study_fracture": study_block,
}


def describe(params: AugmentParams) -> str:
    """The parts of an augmentation that an image does not show by itself."""
    words = []
    if np.linalg.det(params.matrix[:, :2]) < 0:
        words.append("mirrored")
    if params.gain != 1:
        words.append(f"contrast x {params.gain:.2f}")
    if params.reverse:
        words.append("slices reversed")
    if params.step > 1:
        words.append(f"every {params.step} slices")
    return ", ".join(words)


def _middle_frames(item: Shown, slices: int) -> list[int]:
    """Places in the item of the middle slices of evenly spaced triplets; the first slice where the study ends with it."""
    triplets = len(item.z_index) // 3
    chosen = np.unique(np.linspace(0, triplets - 1, slices).round().astype(int))
    return [int(3 * t + (item.z_index[3 * t + 1] >= 0 or item.z_index[3 * t] < 0)) for t in chosen]


def _item_canvas(columns: int, tile: int, below: int) -> np.ndarray:
    return blank(HEADER + tile + below, columns * (tile + GAP) - GAP, BACKGROUND)


def _tile(canvas: np.ndarray, column: int, tile: int, item: Shown, frame: int) -> np.ndarray:
    """Puts one picture and its z_index on the canvas; returns the picture's part of the canvas, to be drawn on."""
    left, z = column * (tile + GAP), int(item.z_index[frame])
    picture = canvas[HEADER : HEADER + tile, left : left + tile]
    picture[:] = enlarged(item.frames[frame], tile, tile)
    if z < 0:
        hatch(picture, "padding")
    words = f"z {z}" if z >= 0 else "-"
    text(canvas, words, left + tile / 2, HEADER + tile + CAPTION - 5, colour=WHITE, align="middle")
    return picture


def _header(canvas: np.ndarray, item: Shown, words: str) -> None:
    """Study, slices and draw on the left, `words` on the right."""
    z, width = item.z_index[item.z_index >= 0], canvas.shape[1]
    padded = len(item.z_index) - len(z)
    about = [f"z {z.min()}-{z.max()} of {item.item.slices}"]
    about += [f"{padded} padded"] if padded else []
    about += [describe(item.params)] if describe(item.params) else []
    id = shortened(item.item.id, 0.36 * width)
    x = text(canvas, id, 0, HEADER - 8, colour=WHITE, bold=True)
    text(canvas, "  ".join(about), x + 14, HEADER - 8, colour=PALE)
    text(canvas, words, width, HEADER - 8, colour=YELLOW, align="right")


def _page(blocks: list[np.ndarray], across: int, heading: str, legend: str) -> np.ndarray:
    height, width = blocks[0].shape[:2]
    rows = -(-len(blocks) // across)
    gap = 3 * GAP
    canvas = blank(TITLE + rows * (height + gap), across * (width + gap) + GAP, BACKGROUND)
    text(canvas, heading, 2 * GAP, 26, size=17, colour=WHITE, bold=True)
    text(canvas, legend, 2 * GAP, 46, colour=PALE)
    for place, block in enumerate(blocks):
        row, column = divmod(place, across)
        top, left = TITLE + row * (height + gap), 2 * GAP + column * (width + gap)
        canvas[top : top + height, left : left + width] = block
        if row:
            cv2.line(canvas, (left, top - GAP), (left + width, top - GAP), GREY, 1)
    return canvas
