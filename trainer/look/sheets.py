"""Contact sheets: what each item shows, with its targets drawn on, below and above the images."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import ceil

import numpy as np
from matplotlib.figure import Figure

from cache_schema import LEVELS, TARGETS
from trainer.data.augment import AugmentParams
from trainer.look.page import GREY, MARGIN, PALE, RED, TOP, WHITE, YELLOW, note, outline, page, panel, shortened, show
from trainer.look.shown import Shown
from trainer.settings.settings import Settings

GAP, HEADER, CAPTION, BARS = 8, 24, 20, 84
"""heights and distances in pixels"""
ACROSS, PER_PAGE = {"triplets": 2}, {"triplets": 12}
"""items, where they are not one across and six to a page"""
LABEL_WIDTH, LETTER_WIDTH = 42, 9
DRAWN = ("box", "has_box", "ratios", "fractures", "labels", "mask")
"""targets that need no words of their own"""


def sheets(items: Iterable[Shown], settings: Settings, *, heading: str, tile: int, slices: int) -> Iterator[Figure]:
    """tile: side of an image on the page, in pixels; slices: images in the row of a window or study."""
    facts, rest = settings.facts, iter(items)
    while chosen := list(islice(rest, PER_PAGE.get(facts.items, 6))):
        rows = [(item, range(3) if facts.items == "triplets" else _middle_frames(item, slices)) for item in chosen]
        yield sheet(rows, heading, facts.legend, tile=tile, across=ACROSS.get(facts.items, 1))


def sheet(
    rows: Sequence[tuple[Shown, Sequence[int]]], heading: str, legend: str, *, tile: int, across: int = 1
) -> Figure:
    """A page of items, each with the places of those of its images that are shown."""
    width = max(len(frames) for _, frames in rows) * (tile + GAP) - GAP
    below = CAPTION + (BARS if any("ratios" in item.targets for item, _ in rows) else 0)
    right, down = width + 3 * GAP, HEADER + tile + below + 3 * GAP
    figure = page(across * right + GAP, ceil(len(rows) / across) * down, heading, legend, dark=True)
    for place, (item, frames) in enumerate(rows):
        left, top = MARGIN + place % across * right, TOP + place // across * down
        _header(figure, item, left, top + HEADER - 8, width)
        for column, frame in enumerate(frames):
            _tile(figure, item, frame, left + column * (tile + GAP), top + HEADER, tile)
    return figure


def describe(params: AugmentParams) -> str:
    """The augmentation parameters that an image does not show by itself."""
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


def _header(figure: Figure, item: Shown, left: float, y: float, width: float) -> None:
    """Study, slices and augmentation on the left, targets of the whole item on the right."""
    z = item.z_index[item.z_index >= 0]
    about = [f"z {z.min()}-{z.max()} of {item.item.slices}", describe(item.params)]
    if len(z) < len(item.z_index):
        about.insert(1, f"{len(item.z_index) - len(z)} padded")
    id = shortened(item.item.id, int(0.36 * width / LETTER_WIDTH))
    x = note(figure, left, y, id, color=WHITE, weight="bold")
    note(figure, x + 12, y, "  ".join(filter(None, about)), color=PALE)
    right = left + width
    labels = item.targets.get("labels", ())
    for name, value in zip(reversed(TARGETS[: len(labels)]), reversed(labels), strict=True):
        words = ("patient" if name == TARGETS[0] else name) + (" ?" if np.isnan(value) else "")
        colour, weight = (RED, "bold") if value == 1 else (PALE if np.isnan(value) else GREY, "normal")
        note(figure, right, y, words, color=colour, weight=weight, ha="right")
        right -= LABEL_WIDTH
    note(figure, right, y, _words(item), color=YELLOW, ha="right")


def _words(item: Shown) -> str:
    if not item.targets:
        return "targets unknown"
    words = [f"{name}={value}" for name, value in item.targets.items() if name not in DRAWN]
    if "box" in item.targets:
        box = " ".join(f"{value:.0f}" for value in item.targets["box"] * item.params.size)
        words.append(f"box {box}" if item.targets.get("has_box", 1) > 0 else "no box")
    return "  ".join(words)


def _tile(figure: Figure, item: Shown, frame: int, left: float, top: float, tile: int) -> None:
    """One image with its z_index and the targets that are its own."""
    axes, size, z = panel(figure, left, top, tile, tile), item.params.size, int(item.z_index[frame])
    show(axes, item.frames[frame])
    axes.set_xlabel(f"z {z}" if z >= 0 else "-", color=WHITE)
    if "box" in item.targets and item.targets.get("has_box", 1) > 0:
        outline(axes, item.targets["box"] * size, YELLOW)
    if z < 0:
        axes.fill_between((0, size), size, facecolor="none", edgecolor=GREY, hatch="//")
        axes.text(size / 2, size / 2, "padding", color=WHITE, backgroundcolor="black", ha="center", va="center")
    elif "ratios" in item.targets:
        ratios = _row(item, "ratios", frame)
        fractures = _row(item, "fractures", frame) if "fractures" in item.targets else np.zeros_like(ratios)
        _bars(figure, ratios, fractures, left, top + tile + CAPTION + 18, tile)


def _row(item: Shown, name: str, frame: int) -> np.ndarray:
    """Of a target with a row for each slice or each triplet, the one that the slice has."""
    values = item.targets[name]
    return values[frame if len(values) == len(item.z_index) else frame // 3]


def _bars(figure: Figure, ratios: np.ndarray, fractures: np.ndarray, left: float, top: float, width: float) -> None:
    """A bar in [0, 1] for each of C1..C7 with its value, and a narrower one in front; a question mark where unknown."""
    axes = panel(figure, left, top, width, BARS - 42)
    axes.patch.set_visible(False)
    bars = axes.bar(LEVELS, np.nan_to_num(ratios), 0.68, color=PALE)
    axes.bar(LEVELS, np.nan_to_num(fractures), 0.34, color=RED)
    axes.bar_label(bars, [_number(*pair) for pair in zip(ratios, fractures, strict=True)], color=PALE, fontsize=10)
    axes.axhline(0, color=GREY, linewidth=1, clip_on=False)
    axes.set(ylim=(0, 1), xticks=range(len(LEVELS)))
    axes.tick_params(bottom=False, pad=1, labelsize=11, labelcolor=PALE, grid_alpha=0)
    for level, fracture in zip(axes.get_xticklabels(), fractures, strict=True):
        level.set_color(RED if fracture > 0 else PALE)


def _number(ratio: float, fracture: float) -> str:
    if np.isnan(ratio) or np.isnan(fracture):
        return "?"
    return "" if ratio <= 0 else f"{ratio:.2f}" if ratio >= 0.005 else "<.01"
