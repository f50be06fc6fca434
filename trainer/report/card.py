"""One study's answer on one picture, for a person to check."""

from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import starmap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from cache_schema import LEVELS, TARGETS, Study
from cache_schema.columns import FRACTURES, FULL_FRAME
from trainer.answers.answer import Answer
from trainer.look.document import RESEARCH_ONLY
from trainer.look.page import (
    BLACK,
    GREY,
    LEVEL_COLOURS,
    PALE,
    RED,
    YELLOW,
    drawing,
    note,
    outline,
    page,
    panel,
    shortened,
)
from trainer.report.heat_map import LEAST_HEAT, HeatMap
from trainer.report.planes import Plane, middle_planes, slice_edges
from trainer.report.words import model_names, wrapped

WIDTH, GAP = 1560, 14
VIEWS_TOP, VIEWS_HEIGHT = 90, 440
VIEW_WIDTHS, CURVES_WIDTH = (340, 300), 165
"""most pixels of the sagittal and the coronal view; of one panel of curves"""
BARS_LEFT, ROW = 1110, 36
TILE, SHOWN = 230, 3
"""side of a crop; how many slices are shown, most suspicious first"""
TILES_TOP, LINE = 610, 19
HEIGHT = 860
HEAT = "inferno"


def exam_card(answer: Answer, study: Study, heat_maps: Sequence[HeatMap] = ()) -> bytes:
    """PNG of an answer: two views, curves over z, probabilities, the most suspicious slices and all flags. The same bytes each time.

    heat_maps: of `answer.slices`; the slices with the highest fracture values are shown, without a heat map where it is missing.
    """
    with drawing():
        figure = page(WIDTH, HEIGHT, shortened(answer.id, 64), _about(answer))
        figure.set_layout_engine("none")
        planes = middle_planes(study, answer.box)
        _views_and_curves(figure, answer, planes)
        _bars(figure, answer)
        _slices(figure, answer, study, heat_maps)
        _words(figure, answer)
        png = BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _about(answer: Answer) -> str:
    record, (z_from, z_to) = answer.record, answer.z_range
    rows, columns = record.pixel_spacing
    pixel = f"{rows:.2f} mm" if rows == columns else f"{rows:.2f} × {columns:.2f} mm"
    apart = f"{record.slice_spacing.median:.2f} mm apart" if record.slice_spacing else "a single slice"
    box = "no box was found: the full frame" if answer.box_source == FULL_FRAME else f"box by {answer.box_source}"
    parts = [f"{record.slices} slices, {apart}, pixels of {pixel}", f"{box}, z index {z_from} to {z_to - 1}"]
    return "     ".join(parts)


def _views_and_curves(figure: Figure, answer: Answer, planes: tuple[Plane, Plane]) -> None:
    """The views in true millimetres at one scale, and the curves on the z axis of the views."""
    edges = slice_edges(answer.z)
    height_mm = edges[0] - edges[-1]
    scale = min([VIEWS_HEIGHT / height_mm, *(most / p.width_mm for most, p in zip(VIEW_WIDTHS, planes, strict=True))])
    height, left = scale * height_mm, 64.0
    x0, y0, x1, y1 = answer.box
    z_from, z_to = edges[answer.z_range[0]], edges[answer.z_range[1]]
    across = (("sagittal", y0, y1, "front", "back"), ("coronal", x0, x1, "right", "left"))
    for plane, (name, first, last, low, high) in zip(planes, across, strict=True):
        axes = panel(figure, left, VIEWS_TOP, scale * plane.width_mm, height)
        extent = (0, plane.width_mm, edges[-1], edges[0])
        image = plane.even(max(round(height), 1))
        axes.imshow(image, "gray", vmin=0, vmax=255, extent=extent, aspect="auto", interpolation="auto")
        axes.set(xlim=(0, plane.width_mm), ylim=(edges[-1], edges[0]))
        axes.grid(False)
        outline(axes, (first * plane.pixel_mm, z_from, last * plane.pixel_mm, z_to), YELLOW, 1.5)
        note(figure, left, VIEWS_TOP - 6, name, weight="bold")
        below = VIEWS_TOP + height + 16
        note(figure, left, below, low, color=GREY)
        note(figure, left + scale * plane.width_mm, below, high, color=GREY, ha="right")
        if name == "sagittal":
            axes.set_yticks(_round_ticks(edges))
            axes.tick_params(left=True, labelleft=True, colors=GREY, length=4)
            _level_names(axes, answer, plane.width_mm)
            note(figure, 14, VIEWS_TOP - 6, "z, mm", color=GREY)
        left += scale * plane.width_mm + GAP
    _curves(figure, answer, left + 4, height)


def _round_ticks(edges: np.ndarray) -> np.ndarray:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if (edges[0] - edges[-1]) / s <= 10 or s == 1000)
    return np.arange(np.ceil(edges[-1] / step), np.floor(edges[0] / step) + 1) * step


def _level_names(axes: Axes, answer: Answer, width_mm: float) -> None:
    """Each level at the height where its ratio is highest."""
    if answer.curves is None:
        return
    for level in LEVELS:
        if level in answer.outside:
            continue
        ratios = answer.curves[level].to_numpy(float)
        if np.isfinite(ratios).any() and np.nanmax(ratios) > 0:
            z = answer.z[int(answer.curves["z_index"].iloc[int(np.nanargmax(ratios))])]
            words: dict[str, Any] = {"color": LEVEL_COLOURS[level], "weight": "bold"}
            seen = [withStroke(linewidth=3, foreground="white")]
            axes.text(width_mm * 0.985, z, level, ha="right", va="center", path_effects=seen, **words)


def _curves(figure: Figure, answer: Answer, left: float, height: float) -> None:
    edges = slice_edges(answer.z)
    parts = (("vertebra ratio", LEVELS), ("fracture by slice", FRACTURES))
    for number, (name, columns) in enumerate(parts):
        place = left + number * (CURVES_WIDTH + GAP)
        axes = panel(figure, place, VIEWS_TOP, CURVES_WIDTH, height)
        axes.set(frame_on=True, xlim=(-0.05, 1.05), ylim=(edges[-1], edges[0]))
        axes.set(xticks=(0, 0.5, 1), yticks=_round_ticks(edges))
        axes.tick_params(labelleft=False, length=0, colors=GREY)
        note(figure, place, VIEWS_TOP - 6, name, weight="bold")
        if answer.curves is None:
            axes.set(xticks=(), yticks=())
            axes.text(0.5, 0.5, "no slice model", color=GREY, ha="center", transform=axes.transAxes)
            continue
        z_from, z_to = edges[answer.z_range[0]], edges[answer.z_range[1]]
        axes.axhspan(z_to, z_from, color="#ecf3fa", zorder=0)
        z = answer.z[answer.curves["z_index"].to_numpy(int)]
        for level, column in zip(LEVELS, columns, strict=True):
            values = answer.curves[column].to_numpy(float)
            axes.plot(values, z, color=LEVEL_COLOURS[level], linewidth=1.5, alpha=0.3 if level in answer.outside else 1)
        if columns is FRACTURES:
            axes.plot(answer.curves["any_frac"], z, color=BLACK, linewidth=1)
    x = left
    for level, colour in (LEVEL_COLOURS | {"any": BLACK}).items():
        x = note(figure, x, VIEWS_TOP + height + 40, level, color=colour, weight="bold") + 14


def _bars(figure: Figure, answer: Answer) -> None:
    """A bar for each target; a mark where the calibrated probability lies; the reason in place of a bar."""
    width = 270
    note(figure, BARS_LEFT, VIEWS_TOP - 6, "probability of a fracture", weight="bold")
    if answer.calibrated is not None:
        note(figure, WIDTH - 14, VIEWS_TOP - 6, "◆ calibrated", color=BLACK, ha="right")
    for row, target in enumerate(TARGETS):
        middle = VIEWS_TOP + 10 + row * ROW + ROW / 2
        colour = LEVEL_COLOURS.get(target, BLACK)
        note(figure, BARS_LEFT, middle + 5, "any" if target == TARGETS[0] else target, weight="bold", color=colour)
        if target in answer.outside:
            note(figure, BARS_LEFT + 40, middle + 5, shortened(answer.outside[target], 52), color=GREY, style="italic")
            continue
        axes = panel(figure, BARS_LEFT + 40, middle - 10, width, 20)
        value = answer.outputs[target]
        axes.set(xlim=(0, 1), ylim=(0, 1), facecolor=PALE, frame_on=True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.axvspan(0, value, color=RED if value >= 0.5 else GREY)
        axes.axvline(0.5, color=BLACK, linewidth=0.5)
        words = f"{value:.3f}"
        if answer.calibrated is not None and target in answer.calibrated:
            own = answer.calibrated[target]
            axes.plot([own], [0.5], "D", color=BLACK, markersize=7, markeredgecolor="white", clip_on=False)
            words += f"   ◆ {own:.3f}"
        note(figure, BARS_LEFT + 40 + width + 8, middle + 5, words)


def _slices(figure: Figure, answer: Answer, study: Study, heat_maps: Sequence[HeatMap]) -> None:
    """The most suspicious slices: the crop alone, and with its heat map."""
    y, step = TILES_TOP, 2 * TILE + 6 + 2 * GAP
    own = {heat.suspected.level: heat for heat in heat_maps}
    shown = [each for each in answer.slices if each.level not in answer.outside]
    shown = sorted(shown, key=lambda each: (-each.fracture, each.level))[:SHOWN]
    if not shown:
        why = "no level lies within the field of view" if answer.slices else "no slice model answered"
        note(figure, 16, y, f"No slice is pointed at: {why}.", color=GREY)
    for place, suspected in enumerate(shown):
        left = 16 + place * step
        x = note(figure, left, y, suspected.level, weight="bold", color=LEVEL_COLOURS[suspected.level])
        words = f"slice {suspected.slice_number} (z index {suspected.z_index}), fracture {suspected.fracture:.2f}"
        note(figure, x + 8, y, words)
        heat = own.get(suspected.level)
        square = answer.box if heat is None else heat.square
        crop = study.read(suspected.z_index, suspected.z_index + 1, square)[0]
        rows, columns = study.record.pixel_spacing
        scale = TILE / max(crop.shape[0] * rows, crop.shape[1] * columns)
        size = crop.shape[1] * columns * scale, crop.shape[0] * rows * scale
        for number in range(2):
            axes = panel(figure, left + number * (TILE + 6), y + 10, *size)
            extent = (square[0], square[2], square[3], square[1])
            axes.imshow(crop, "gray", vmin=0, vmax=255, extent=extent, aspect="auto", interpolation="auto")
            if number and heat is not None:
                _overlay(axes, heat, extent)
            elif number:
                axes.text(0.5, 0.5, "no heat map", color="white", ha="center", transform=axes.transAxes)


def _overlay(axes: Axes, heat: HeatMap, extent: tuple[int, int, int, int]) -> None:
    opacity = np.clip((heat.values - LEAST_HEAT) / (1 - LEAST_HEAT), 0, 1) * 0.75
    axes.imshow(
        heat.values, HEAT, vmin=0, vmax=1, alpha=opacity, extent=extent, aspect="auto", interpolation="bilinear"
    )
    axes.plot(*heat.peak(), "o", markersize=16, markerfacecolor="none", markeredgecolor="#56b4e9", markeredgewidth=1.5)


def _words(figure: Figure, answer: Answer) -> None:
    """Flags below the bars, models below the views, and what the card is not."""
    top, most = VIEWS_TOP + 10 + len(TARGETS) * ROW + 24, 58
    lines = [line for flag in answer.flags for line in wrapped(f"• {flag.sentence}", most)]
    room = int((TILES_TOP - 24 - top) / LINE)
    note(figure, BARS_LEFT, top, "flags" if lines else "no flags", weight="bold")
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more lines, in the report's table"]
    _down(figure, BARS_LEFT, top + LINE, lines, RED)
    bottom = HEIGHT + 58 - 20
    note(
        figure,
        16,
        bottom,
        shortened("models:  " + ";  ".join(starmap(model_names, answer.models.items())), 150),
        color=GREY,
    )
    note(figure, WIDTH - 14, bottom, RESEARCH_ONLY, weight="bold", ha="right")


def _down(figure: Figure, x: float, y: float, lines: Iterable[str], colour: str) -> None:
    for number, line in enumerate(lines):
        note(figure, x, y + number * LINE, line, color=colour)
