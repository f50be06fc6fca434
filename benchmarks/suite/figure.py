"""The throughput table as a figure: `python -m benchmarks.suite.figure RUN.json OUT.svg`."""

import sys
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.suite.run import OURS, ROWS, Run, load_run
from cache_schema.errors import UsageError
from trainer.process.command import serve

DRAWN = ("window", "triplet", "prepare", "first")
"""the rows with a panel each"""
STYLE = {"svg.hashsalt": "cspine", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
"""the same file for the same run; text stays text"""
HEIGHT_OF_WAY, HEIGHT_OF_REST, WIDTH = 0.27, 1.3, 11.0
GREY, BLUE = "#555555", "#1f6fb2"


def draw(run: Run, path: Path) -> None:
    """An SVG: for each way its cost over cspine's, with the range of its rounds, on a logarithmic axis."""
    ways = run.others()[::-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT_OF_REST + HEIGHT_OF_WAY * len(ways)), layout="constrained")
        axes = figure.subplots(1, len(DRAWN), sharey=True)
        for ax, row in zip(axes, DRAWN, strict=True):
            for y, way in enumerate(ways):
                if (ratio := run.factor(row, way)) is not None:
                    ax.plot([min(ratio.pairs), max(ratio.pairs)], [y, y], color=BLUE, linewidth=2.5, alpha=0.4)
                    ax.plot([median(ratio.pairs)], [y], "o", color=BLUE, markersize=5)
            ax.axvline(1, color=GREY, linewidth=1)
            ax.set(xscale="log", title=ROWS[row].title, yticks=range(len(ways)), yticklabels=ways)
            ax.grid(axis="x", alpha=0.25)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(axis="y", length=0)
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}×")
            ax.xaxis.set_minor_locator(NullLocator())
        figure.supxlabel(f"cost over {OURS}'s; right of the line {OURS} is cheaper (commit {run.commit}, {run.date})")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def main(words: list[str]) -> int:
    return serve(words, __doc__ or "", _draw, "interrupted")


def _draw(words: list[str]) -> None:
    if len(words) != 2:
        raise UsageError(f"{len(words)} words given", expected="RUN.json OUT.svg")
    draw(load_run(Path(words[0])), Path(words[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
