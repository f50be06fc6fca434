"""An animated walk through one study, head to feet: each slice with the study box, and the level ratios beside it."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cache_schema import LEVELS, Study
from cache_schema.columns import BOX, FRACTURES
from cache_schema.documents import write_whole
from trainer.look.page import (
    LEVEL_COLOURS,
    MARGIN,
    PALE,
    RED,
    TOP,
    WHITE,
    YELLOW,
    drawing,
    note,
    page,
    panel,
    shortened,
)

SIDE, BARS = 480, 300
"""in pixels"""
MOST_FRAMES, MILLISECONDS = 120, 120


def write_walk(out: Path, study: Study, tables: dict[str, pd.DataFrame]) -> str:
    """OUT/walk-<id>.webp. tables: `study_boxes`, `vertebra_ratios` and `slice_fractures`, those that there are. Returns its name."""
    own = {name: table[table["id"] == study.id] for name, table in tables.items()}
    with drawing():
        frames = _frames(study, own)
    file = BytesIO()
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0, quality=80, method=2
    )
    name = f"walk-{study.id}.webp"
    write_whole(out / name, file.getvalue())
    return name


def _frames(study: Study, own: dict[str, pd.DataFrame]) -> list[Image.Image]:
    record, (left, top, right, bottom) = study.record, study.record.stored_region
    figure = page(SIDE + BARS + 3 * MARGIN, SIDE + MARGIN, shortened(study.id), dark=True)
    canvas, words = (
        FigureCanvasAgg(figure),
        figure.text(MARGIN / figure.bbox.width, 1 - 48 / figure.bbox.height, "", color=PALE),
    )
    rows, columns = record.pixel_spacing
    scale = SIDE / max((bottom - top) * rows, (right - left) * columns)
    axes = panel(figure, MARGIN, TOP, (right - left) * columns * scale, (bottom - top) * rows * scale)
    shown = axes.imshow(
        np.zeros((2, 2), np.uint8), "gray", vmin=0, vmax=255, extent=(left, right, bottom, top), aspect="auto"
    )
    boxes = own.get("study_boxes", pd.DataFrame())
    box = boxes.iloc[0] if len(boxes) else None
    if box is not None:
        x0, y0, x1, y1 = (int(box[name]) for name in BOX)
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=YELLOW)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    side = panel(figure, SIDE + 2 * MARGIN, TOP + 24, BARS, SIDE - 48)
    note(figure, SIDE + 2 * MARGIN, TOP + 14, "vertebra ratio, and fracture in red", color=PALE)
    places = np.arange(len(LEVELS))[::-1].astype(float)
    side.set(xlim=(0, 1.2), ylim=(-0.6, len(LEVELS) - 0.4))
    side.grid(False)
    ratios = side.barh(places + 0.15, 0, 0.4, left=0.15, color=list(LEVEL_COLOURS.values()))
    fractures = side.barh(places - 0.2, 0, 0.18, left=0.15, color=RED)
    for level, place in zip(LEVELS, places, strict=True):
        side.text(0, place, level, color=WHITE, va="center")
    values = [_by_slice(own.get("vertebra_ratios"), LEVELS, record.slices)]
    values += [_by_slice(own.get("slice_fractures"), FRACTURES, record.slices)]
    frames = []
    for z in np.unique(np.linspace(0, record.slices - 1, min(MOST_FRAMES, record.slices)).astype(int)).tolist():
        shown.set_data(study.read(z, z + 1)[0])
        inside = box is None or box["z_from"] <= z < box["z_to"]
        for line in axes.lines:
            line.set_linestyle("-" if inside else ":")
        for bars, each in zip((ratios, fractures), values, strict=True):
            for bar, value in zip(bars, each[z], strict=True):
                bar.set_width(float(np.clip(value, 0, 1)))
        place = f"z index {z} of {record.slices}, slice {study.slice_number[z]}, z {study.z[z]:.1f} mm"
        words.set_text(place if inside else f"{place}, outside the z-range")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return frames


def _by_slice(rows: pd.DataFrame | None, columns: tuple[str, ...], slices: int) -> np.ndarray:
    """(slices, 7): the values of the nearest row; 0 without rows, or where unknown."""
    if rows is None or rows.empty:
        return np.zeros((slices, len(columns)))
    known = rows.sort_values("z_index")
    nearest = np.abs(known["z_index"].to_numpy()[None] - np.arange(slices)[:, None]).argmin(axis=1)
    return np.nan_to_num(known[list(columns)].to_numpy(np.float64)[nearest])
