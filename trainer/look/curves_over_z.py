"""Vertebra ratios and fractures over z, a panel for each study."""

from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cache_schema import LEVELS, TARGETS, Cache
from cache_schema.columns import FRACTURES
from trainer.look.page import BLACK, GREY, LEVEL_COLOURS, RED, key, page, shortened

PANEL_WIDTH, PANEL_HEIGHT, ACROSS, PER_PAGE = 760, 422, 2, 8
KEPT: dict[str, Any] = {"color": "#ecf3fa", "linewidth": 8}
KEY: dict[str, dict[str, Any]] = {level: {"color": colour} for level, colour in LEVEL_COLOURS.items()} | {
    "any level": {"color": BLACK},
    "predicted": {"color": GREY},
    "segmentation (ratio), pseudo labels (fracture)": {"color": GREY, "linewidth": 1, "linestyle": "--"},
    "kept z-range": KEPT,
}


def pages(tables: dict[str, pd.DataFrame], cache: Cache | None, ids: list[str]) -> Iterator[Figure]:
    """The studies' panels, eight to a page. tables: of `figures.TABLES` and `slice_fractures` those that there are."""
    for first in range(0, len(ids), PER_PAGE):
        chosen = ids[first : first + PER_PAGE]
        rows = ceil(len(chosen) / ACROSS)
        figure = page(ACROSS * PANEL_WIDTH, rows * PANEL_HEIGHT, "Vertebra ratios and fractures over z, out of fold")
        key(figure, KEY)
        grid = figure.subplots(2 * rows, ACROSS, squeeze=False, height_ratios=[15, 11] * rows)
        for place in range(ACROSS * rows):
            upper, lower = grid[place // ACROSS * 2 :][:2, place % ACROSS]
            if place < len(chosen):
                _panel(upper, lower, chosen[place], tables, cache)
            else:
                upper.remove()
                lower.remove()
        yield figure


def _panel(upper: Axes, lower: Axes, id: str, tables: dict[str, pd.DataFrame], cache: Cache | None) -> None:
    own = {name: table[table["id"] == id] for name, table in tables.items()}
    own = {name: rows for name, rows in own.items() if len(rows)}
    last = max(int(rows["z_index"].max()) for rows in own.values() if "z_index" in rows)
    upper.set(xlim=(0, max(1, last)), ylim=(-0.02, 1.05), ylabel="ratio")
    lower.set(xlim=(0, max(1, last)), ylim=(-0.02, 1.05), ylabel="fracture", xlabel="z index, head to feet")
    upper.set_title(shortened(id), weight="bold")
    if "study_boxes" in own:
        for axes in (upper, lower):
            kept = own["study_boxes"].iloc[0]
            axes.axvspan(kept["z_from"], kept["z_to"] - 1, color=KEPT["color"], zorder=0)
    if "study_predictions" in own:
        row = own["study_predictions"].iloc[0]
        values = [f"patient {row[TARGETS[0]]:.2f}", *(f"{level} {row[level]:.2f}" for level in LEVELS)]
        lower.set_title("study model: " + "  ".join(values))
    if cache is not None:
        _truth(upper, id, cache)
    if "vertebra_ratios" in own:
        _lines(upper, own["vertebra_ratios"], LEVELS)
    if "pseudo_labels" in own:
        _lines(lower, own["pseudo_labels"], FRACTURES, linestyle="--", linewidth=1)
    if "slice_fractures" in own:
        _lines(lower, own["slice_fractures"], FRACTURES)
        lower.plot("z_index", "any_frac", data=own["slice_fractures"], color=BLACK)


def _truth(axes: Axes, id: str, cache: Cache) -> None:
    """Ratios of the segmentation, and the labels as a second title."""
    ratios = cache.study(id).vertebra_ratio
    if ratios is not None:
        for level, column in zip(LEVELS, ratios.T, strict=True):
            axes.plot(column, "--", color=LEVEL_COLOURS[level], linewidth=1)
    if cache.labels is not None and len(rows := cache.labels[cache.labels["id"] == id]):
        known = rows.iloc[0][list(TARGETS)].dropna()
        fractured = [level for level in LEVELS if known.get(level) == 1]
        words = "no fracture" if len(known) else "labels unknown"
        words = "fractured: " + " ".join(fractured) if fractured else words
        axes.set_title(words, loc="right", color=RED if fractured else BLACK)


def _lines(axes: Axes, rows: pd.DataFrame, columns: tuple[str, ...], **line: Any) -> None:
    """Broken where unknown; levels that are 0 throughout are left out."""
    for column, colour in zip(columns, LEVEL_COLOURS.values(), strict=True):
        values = rows[column].to_numpy(np.float64)
        if np.nanmax(np.abs(values), initial=0) > 0:
            axes.plot(rows["z_index"], values, color=colour, **line)
