"""A page: a matplotlib figure whose parts are placed in pixels from its top left, saved as the same bytes each time.

Draw and save inside `drawing()`, which keeps a user's matplotlibrc out of the picture.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from cache_schema import LEVELS
from cache_schema.documents import write_whole

WHITE, BLACK, GREY, PALE, DARK = "#ffffff", "#000000", "#828282", "#dedede", "#2c2c32"
RED, GREEN, YELLOW = "#e63c32", "#3cbe5a", "#ffd228"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
"""told apart by colour-blind readers too (Okabe and Ito)"""
LEVEL_COLOURS = dict(zip(LEVELS, PALETTE, strict=True))
DPI = 72
"""a point is a pixel, in widths of lines and sizes of letters too"""
MARGIN, TOP = 16, 58
"""pixels left of the heading, and those that it takes with the line below it"""

STYLE = {
    "font.size": 12,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "grid.color": PALE,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "text.parse_math": False,
    "agg.path.chunksize": 10_000,
}
drawing = partial(style.context, ["default", STYLE])


def page(width: int, height: int, heading: str, about: str = "", *, dark: bool = False) -> Figure:
    """White, with plots laid out below the heading and a line about it; or dark, for what `panel` and `note` place.

    width, height: pixels, the latter without the heading.
    """
    whole, colour = height + TOP, WHITE if dark else BLACK
    figure = Figure((width / DPI, whole / DPI), dpi=DPI, facecolor=DARK if dark else WHITE)
    if not dark:
        figure.set_layout_engine("constrained", rect=(0, 0, 1, height / whole), w_pad=8 / DPI, h_pad=6 / DPI)
    note(figure, MARGIN, 26, heading, color=colour, size=16, weight="bold")
    note(figure, MARGIN, 48, about, color=colour)
    return figure


def key(figure: Figure, lines: Mapping[str, Mapping[str, Any]]) -> None:
    """Below the heading: what lines of a colour, style and width stand for."""
    handles = [Line2D([], [], **line) for line in lines.values()]
    corner, ink = (0, 1 - 30 / figure.bbox.height), BLACK if figure.get_layout_engine() else WHITE
    figure.legend(handles, lines, loc="upper left", bbox_to_anchor=corner, ncols=len(lines), labelcolor=ink)


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes without frame and ticks."""
    whole = figure.bbox
    corner = left / whole.width, 1 - (top + height) / whole.height
    sides = width / whole.width, height / whole.height
    return figure.add_axes((*corner, *sides), frameon=False, xticks=(), yticks=())


def note(figure: Figure, x: float, y: float, words: str, **text: Any) -> float:
    """One line with its baseline at y. Returns the x of its right edge."""
    drawn = figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, words, **text)
    return drawn.get_window_extent().x1


def show(axes: Axes, image: np.ndarray, aspect: float = 1) -> None:
    """(h, w) uint8 grey; pixel i covers [i, i + 1). Averaged where it shrinks, its own pixels where it grows."""
    height, width = image.shape
    how = "nearest" if axes.bbox.height >= height and axes.bbox.width >= width else "auto"
    axes.imshow(image, "gray", vmin=0, vmax=255, extent=(0, width, height, 0), aspect=aspect, interpolation=how)


def outline(axes: Axes, box: Iterable[float], colour: str, linewidth: float = 2) -> None:
    """x0 y0 x1 y1, in the coordinates of the axes."""
    x0, y0, x1, y1 = map(float, box)
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=linewidth))


def shortened(words: str, most: int = 44) -> str:
    """The words, with their middle left out where they are longer than `most` letters."""
    return words if len(words) <= most else f"{words[: most // 2]}…{words[-(most // 2 - 1) :]}"


def save(out: Path, name: str, pages: Iterable[Figure]) -> list[str]:
    """As PNG, each written whole, once it is drawn. Returns the files' names."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with drawing():
        for number, figure in enumerate(pages, 1):
            png = BytesIO()
            figure.savefig(png, format="png", metadata={"Software": None})
            made.append(f"{name}-{number:02}.png")
            write_whole(out / made[-1], png.getvalue())
    return made
