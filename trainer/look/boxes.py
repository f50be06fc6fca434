"""Study boxes on slices, and how much of each study the z-range keeps."""

from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cache_schema import Cache, Study
from cache_schema.columns import BOX, FULL_FRAME
from cache_schema.study import square_around
from trainer.look.page import (
    GREEN,
    GREY,
    MARGIN,
    PALE,
    PALETTE,
    RED,
    TOP,
    WHITE,
    YELLOW,
    key,
    note,
    outline,
    page,
    panel,
    shortened,
    show,
)
from trainer.scores.score_terms import iou
from trainer.tables.boxes import segmentation_box

TILE, GAP, HEADER = 300, 8, 42
"""in pixels"""
ACROSS, PER_PAGE = 2, 8
HISTOGRAM_BINS = 20
KEY: dict[str, dict[str, Any]] = {
    "study box and z-range": {"color": YELLOW},
    "the square that is cut out": {"color": GREY, "linewidth": 1},
    "segmentation": {"color": GREEN, "linewidth": 1},
}


def pages(boxes: pd.DataFrame, cache: Cache, ids: list[str]) -> Iterator[Figure]:
    """Each study's box on the middle slice of its z-range and, from the side, on its sagittal plane; eight to a page."""
    rows = boxes.set_index("id")
    right, down = 2 * TILE + 4 * GAP, HEADER + TILE + 2 * GAP
    for first in range(0, len(ids), PER_PAGE):
        chosen = ids[first : first + PER_PAGE]
        heading = "Study boxes: middle slice of the z-range, and the sagittal plane"
        figure = page(ACROSS * right + MARGIN, ceil(len(chosen) / ACROSS) * down, heading, dark=True)
        key(figure, KEY)
        for place, id in enumerate(chosen):
            left, top = MARGIN + place % ACROSS * right, TOP + place // ACROSS * down
            _study(figure, left, top, cache.study(id), rows.loc[id])
        yield figure


def z_range_histogram(boxes: pd.DataFrame, slices: pd.Series) -> Iterator[Figure]:
    """How many studies keep which share of their slices. slices: id -> slices of the study."""
    own = boxes[boxes["id"].isin(slices.index)]
    share = ((own["z_to"] - own["z_from"]).to_numpy() / slices.loc[own["id"]].to_numpy(float)).clip(0, 1)
    full, median = int((own["source"] == FULL_FRAME).sum()), np.median(share)
    about = f"{len(own)} studies, median {median:.2f}" + (f"; {full} without a box keep every slice" if full else "")
    figure = page(760, 372, "Share of its slices that a study's z-range keeps", about)
    axes = figure.subplots()
    axes.hist(share, bins=HISTOGRAM_BINS, range=(0, 1), rwidth=0.96, color=PALETTE[0])
    axes.axvline(median, color=RED, linestyle="--")
    axes.set(xlabel="(z_to - z_from) / slices", ylabel="studies", xlim=(0, 1), xticks=np.linspace(0, 1, 11))
    axes.locator_params(axis="y", integer=True)
    yield figure


def _study(figure: Figure, left: float, top: float, study: Study, row: pd.Series) -> None:
    record = study.record
    x0, y0, x1, y1 = box = tuple(int(row[name]) for name in BOX)
    z_from, z_to = int(row["z_from"]), int(row["z_to"])
    middle, x = (z_from + z_to) // 2, min((x0 + x1) // 2, record.columns - 1)
    height_mm = abs(study.z[0] - study.z[-1]) * record.slices / max(1, record.slices - 1)
    slice_height = (height_mm or record.slices) / record.slices / record.pixel_spacing[0]
    axial, sagittal = (panel(figure, left + place * (TILE + GAP), top + HEADER, TILE, TILE) for place in range(2))
    show(axial, _whole_frame(study, middle, middle + 1)[0])
    show(sagittal, _whole_frame(study, 0, record.slices)[:, :, x], slice_height)
    outline(axial, square_around((x0, y0, x1, y1), record.rows, record.columns), GREY, 1)
    words = [f"{row['source']}", f"z {z_from}-{z_to - 1} of {record.slices}"]
    if study.slice_box is not None:
        true = segmentation_box(study.id, study.slice_box, record.rows, record.columns)
        true_box = [true[name] for name in BOX]
        same = iou(np.array([box], float), np.array([true_box], float))[0]
        words += [f"segmentation z {true['z_from']}-{true['z_to'] - 1}", f"IoU {same:.2f}"]
        outline(axial, true_box, GREEN, 1)
        outline(sagittal, [true["y0"], true["z_from"], true["y1"], true["z_to"]], GREEN, 1)
    outline(axial, box, YELLOW)
    outline(sagittal, [y0, z_from, y1, z_to], YELLOW)
    for axes, name in ((axial, f"z {middle}"), (sagittal, f"x {x}")):
        axes.text(0.02, 0.02, name, color=WHITE, transform=axes.transAxes)
    note(figure, left, top + 17, shortened(study.id), color=WHITE, weight="bold")
    note(figure, left, top + 35, "   ".join(words), color=PALE)


def _whole_frame(study: Study, z0: int, z1: int) -> np.ndarray:
    """(z1 - z0, rows, columns) uint8; 0 where a cropped study holds nothing."""
    record = study.record
    x0, y0, x1, y1 = record.stored_region
    whole = np.zeros((z1 - z0, record.rows, record.columns), np.uint8)
    whole[:, y0:y1, x0:x1] = study.read(z0, z1, (x0, y0, x1, y1))
    return whole
