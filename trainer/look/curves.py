"""Vertebra ratios and fractures over z, a panel for each study."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cache_schema import LEVELS, TARGETS, Cache
from cache_schema.columns import FRACTURES
from trainer.look.drawing import BLACK, GREY, LEVEL_COLOURS, RED, blank, shortened, text
from trainer.look.plot import Axes, key

KEPT = (236, 243, 250)
"""the colour behind the kept z-range"""
PANEL_WIDTH, PANEL_HEIGHT, LEFT = 760, 422, 52
RATIO_TOP, RATIO_HEIGHT, FRACTURE_TOP, FRACTURE_HEIGHT = 66, 150, 258, 110
TITLE, ACROSS, PER_PAGE = 74, 2, 8
UPPER = (-0.02, 1.05)
"""range of the y axes"""


@dataclass(frozen=True)
class Tables:
    """The tables of one RUNS, None where it has not made one."""

    study_boxes: pd.DataFrame | None
    vertebra_ratios: pd.DataFrame | None
    pseudo_labels: pd.DataFrame | None
    study_predictions: pd.DataFrame | None
    slice_fractures: pd.DataFrame | None


def pages(tables: Tables, cache: Cache | None, ids: list[str]) -> Iterator[np.ndarray]:
    """The studies' panels, eight to a page of (height, width, 3) uint8 RGB."""
    for first in range(0, len(ids), PER_PAGE):
        chosen = ids[first : first + PER_PAGE]
        rows = -(-len(chosen) // ACROSS)
        canvas = blank(TITLE + rows * PANEL_HEIGHT, ACROSS * PANEL_WIDTH + 30)
        _title(canvas)
        for place, id in enumerate(chosen):
            row, column = divmod(place, ACROSS)
            top, left = TITLE + row * PANEL_HEIGHT, 10 + column * PANEL_WIDTH
            _panel(canvas[top : top + PANEL_HEIGHT, left : left + PANEL_WIDTH], id, tables, cache)
        yield canvas


def _title(canvas: np.ndarray) -> None:
    text(canvas, "Vertebra ratios and fractures over z, out of fold", 20, 26, size=17, bold=True)
    x = 20
    for level in LEVELS:
        x = key(canvas, x, 50, level, LEVEL_COLOURS[level])
    x = key(canvas, x, 50, "any level", BLACK)
    x = key(canvas, x, 50, "predicted", GREY)
    key(canvas, x, 50, "dashed: segmentation (ratio), pseudo labels (fracture)", GREY, dashed=True)
    text(canvas, "shaded: the kept z-range", canvas.shape[1] - 20, 50, size=12, align="right")


def _panel(canvas: np.ndarray, id: str, tables: Tables, cache: Cache | None) -> None:
    def of(table: pd.DataFrame | None) -> pd.DataFrame | None:
        rows = None if table is None else table[table["id"] == id]
        return None if rows is None or rows.empty else rows

    ratios, pseudo, fractures = of(tables.vertebra_ratios), of(tables.pseudo_labels), of(tables.slice_fractures)
    box, predicted = of(tables.study_boxes), of(tables.study_predictions)
    last = max(int(rows["z_index"].max()) for rows in (ratios, pseudo, fractures) if rows is not None)
    _labels(canvas, id, cache, None if predicted is None else predicted.iloc[0])
    width = PANEL_WIDTH - LEFT - 22
    upper = Axes(canvas, (LEFT, RATIO_TOP, width, RATIO_HEIGHT), (0, max(1, last)), UPPER)
    lower = Axes(canvas, (LEFT, FRACTURE_TOP, width, FRACTURE_HEIGHT), (0, max(1, last)), UPPER)
    for axes in (upper, lower):
        if box is not None:
            axes.band(int(box["z_from"].iloc[0]), int(box["z_to"].iloc[0]) - 1, KEPT)
    upper.frame("", "ratio")
    lower.frame("z index, head to feet", "fracture", y_ticks=2)
    study = cache.study(id) if cache is not None else None
    if study is not None and study.vertebra_ratio is not None:
        z = np.arange(study.record.slices)
        for level, values in zip(LEVELS, study.vertebra_ratio.T, strict=True):
            upper.line(z, values, LEVEL_COLOURS[level], thickness=1, dashed=True)
    if ratios is not None:
        _lines(upper, ratios, LEVELS)
    if pseudo is not None:
        _lines(lower, pseudo, FRACTURES, dashed=True)
    if fractures is not None:
        _lines(lower, fractures, FRACTURES)
        lower.line(fractures["z_index"], fractures["any_frac"], BLACK)


def _lines(axes: Axes, rows: pd.DataFrame, columns: tuple[str, ...], *, dashed: bool = False) -> None:
    for column, colour in zip(columns, LEVEL_COLOURS.values(), strict=True):
        values = rows[column].to_numpy(np.float64)
        if np.nanmax(np.abs(values), initial=0) > 0:
            axes.line(rows["z_index"], values, colour, thickness=1 if dashed else 2, dashed=dashed)


def _labels(canvas: np.ndarray, id: str, cache: Cache | None, predicted: pd.Series | None) -> None:
    """Two lines above the curves: the study with its labels, and what stage 4 says of it."""
    x = text(canvas, shortened(id, 380), LEFT, 20, bold=True) + 18
    labels = None if cache is None or cache.labels is None else cache.labels.set_index("id")
    if labels is not None and id in labels.index:
        row = labels.loc[id]
        fractured = [level for level in LEVELS if not pd.isna(row[level]) and row[level] == 1]
        unknown = all(pd.isna(row[target]) for target in TARGETS)
        words = "labels unknown" if unknown else "fractured: " + " ".join(fractured) if fractured else "no fracture"
        text(canvas, words, x, 20, colour=RED if fractured else BLACK)
    if predicted is not None:
        values = [f"patient {predicted[TARGETS[0]]:.2f}", *(f"{level} {predicted[level]:.2f}" for level in LEVELS)]
        text(canvas, "study model: " + "  ".join(values), LEFT, 38, size=12)
