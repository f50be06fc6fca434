"""Study boxes on slices, and how much of each study the z-range keeps."""

from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd

from cache_schema import Cache, Study
from cache_schema.columns import BOX, FULL_FRAME
from cache_schema.study import square_around
from trainer.look.drawing import GREEN, GREY, PALE, PALETTE, RED, WHITE, YELLOW, blank, outline, shortened, text
from trainer.look.plot import Axes
from trainer.scores.score_terms import iou
from trainer.tables.boxes import segmentation_box

BACKGROUND = (44, 44, 50)
TILE, GAP, HEADER, TITLE = 300, 8, 42, 58
ACROSS, PER_PAGE = 2, 8
HISTOGRAM_BINS = 20


def pages(boxes: pd.DataFrame, cache: Cache, ids: list[str]) -> Iterator[np.ndarray]:
    """Each study's box on the middle slice of its z-range and, from the side, on its sagittal plane; eight to a page."""
    rows = boxes.set_index("id")
    for first in range(0, len(ids), PER_PAGE):
        chosen = ids[first : first + PER_PAGE]
        down, width = -(-len(chosen) // ACROSS), 2 * TILE + 4 * GAP
        canvas = blank(TITLE + down * (HEADER + TILE + 2 * GAP), ACROSS * width + 2 * GAP, BACKGROUND)
        text(
            canvas,
            "Study boxes: middle slice of the z-range, and the sagittal plane",
            2 * GAP,
            26,
            size=17,
            colour=WHITE,
            bold=True,
        )
        x = text(canvas, "yellow: study box and z-range", 2 * GAP, 46, colour=YELLOW) + 18
        x = text(canvas, "grey: the square that is cut out", x, 46, colour=PALE) + 18
        text(canvas, "green: segmentation", x, 46, colour=GREEN)
        for place, id in enumerate(chosen):
            row, column = divmod(place, ACROSS)
            top, left = TITLE + row * (HEADER + TILE + 2 * GAP), 2 * GAP + column * width
            _study(canvas[top : top + HEADER + TILE, left : left + 2 * TILE + GAP], cache.study(id), rows.loc[id])
        yield canvas


def z_range_histogram(boxes: pd.DataFrame, slices: pd.Series) -> np.ndarray:
    """How many studies keep which share of their slices. slices: id -> slices of the study."""
    own = boxes[boxes["id"].isin(slices.index)]
    share = ((own["z_to"] - own["z_from"]).to_numpy() / slices.loc[own["id"]].to_numpy(float)).clip(0, 1)
    counts, edges = np.histogram(share, HISTOGRAM_BINS, (0, 1))
    canvas = blank(430, 760)
    text(canvas, "Share of its slices that a study's z-range keeps", 20, 28, size=17, bold=True)
    full = int((own["source"] == FULL_FRAME).sum())
    about = f"{len(own)} studies, median {np.median(share):.2f}"
    text(canvas, about + (f"; {full} without a box keep every slice" if full else ""), 20, 50)
    axes = Axes(canvas, (56, 84, 680, 290), (0, 1), (0, max(1, counts.max()) * 1.08))
    axes.frame("(z_to - z_from) / slices", "studies", x_ticks=10)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        axes.bar(low, high, count, PALETTE[0])
    axes.line([np.median(share)] * 2, axes.y, RED, dashed=True)
    return canvas


def _study(canvas: np.ndarray, study: Study, row: pd.Series) -> None:
    record = study.record
    box = tuple(int(row[name]) for name in BOX)
    z_from, z_to = int(row["z_from"]), int(row["z_to"])
    middle = (z_from + z_to) // 2
    true = None
    if study.slice_box is not None:
        true = segmentation_box(study.id, study.slice_box, record.rows, record.columns)
    words = [f"{row['source']}", f"z {z_from}-{z_to - 1} of {record.slices}"]
    if true is not None:
        same = iou(np.array([box], float), np.array([[true[name] for name in BOX]], float))[0]
        words += [f"segmentation z {true['z_from']}-{true['z_to'] - 1}", f"IoU {same:.2f}"]
    text(canvas, shortened(study.id, canvas.shape[1]), 0, 17, colour=WHITE, bold=True)
    text(canvas, "   ".join(words), 0, 35, colour=PALE, size=12)

    axial = _framed(canvas[HEADER:, :TILE], _whole_frame(study, middle, middle + 1)[0], (record.rows, record.columns))
    _mark(axial, square_around(box, record.rows, record.columns), GREY, (record.columns, record.rows), 1)
    if true is not None:
        _mark(axial, [true[name] for name in BOX], GREEN, (record.columns, record.rows), 1)
    _mark(axial, box, YELLOW, (record.columns, record.rows), 2)
    text(axial, f"z {middle}", 6, axial.shape[0] - 7, colour=WHITE)

    x = min((box[0] + box[2]) // 2, record.columns - 1)
    plane = _whole_frame(study, 0, record.slices)[:, :, x]
    height_mm = abs(study.z[0] - study.z[-1]) * record.slices / max(1, record.slices - 1)
    physical = (height_mm or record.slices, record.rows * record.pixel_spacing[0])
    sagittal = _framed(canvas[HEADER:, TILE + GAP :], plane, physical)
    span = (record.rows, record.slices)
    if true is not None:
        _mark(sagittal, [true["y0"], true["z_from"], true["y1"], true["z_to"]], GREEN, span, 1)
    _mark(sagittal, [box[1], z_from, box[3], z_to], YELLOW, span, 2)
    text(sagittal, f"x {x}", 6, sagittal.shape[0] - 7, colour=WHITE)


def _whole_frame(study: Study, z0: int, z1: int) -> np.ndarray:
    """(z1 - z0, rows, columns) uint8; 0 where a cropped study holds nothing."""
    record = study.record
    x0, y0, x1, y1 = record.stored_region
    held = study.read(z0, z1, (x0, y0, x1, y1))
    if held.shape[1:] == (record.rows, record.columns):
        return held
    whole = np.zeros((z1 - z0, record.rows, record.columns), np.uint8)
    whole[:, y0:y1, x0:x1] = held
    return whole


def _framed(canvas: np.ndarray, picture: np.ndarray, proportions: tuple[float, float]) -> np.ndarray:
    """The picture in the middle of the canvas, as large as fits with these (height, width) proportions; returns its part."""
    scale = min(canvas.shape[0] / proportions[0], canvas.shape[1] / proportions[1])
    height, width = (max(1, int(side * scale)) for side in proportions)
    top, left = (canvas.shape[0] - height) // 2, (canvas.shape[1] - width) // 2
    part = canvas[top : top + height, left : left + width]
    part[:] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)[..., None]
    return part


def _mark(
    part: np.ndarray,
    box: list[int] | tuple[int, ...],
    colour: tuple[int, int, int],
    span: tuple[int, int],
    thickness: int,
) -> None:
    """A box given in a (width, height) span, on the picture that shows all of the span."""
    scale = np.array([part.shape[1] / span[0], part.shape[0] / span[1]] * 2)
    outline(part, np.array(box, float) * scale, colour, thickness)
