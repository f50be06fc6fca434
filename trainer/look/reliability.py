"""Reliability diagram and ROC of each target, from calibration.json."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cache_schema import TARGETS
from trainer.look.page import BLACK, GREY, PALETTE, RED, key, page
from trainer.scores.calibration import Calibration, TargetCalibration
from trainer.scores.reliability import Bin, OperatingPoint

PANEL, ACROSS = 400, 2
"""side of a plot in pixels; targets in a row"""
BEFORE, AFTER = PALETTE[1], PALETTE[0]
Z = 1.96
"""of a 95 % interval"""
KEY: dict[str, dict[str, Any]] = {
    "as predicted": {"color": BEFORE, "marker": "o"},
    "calibrated, out of fold (bars: 95 %)": {"color": AFTER, "marker": "o"},
    "perfect calibration, or chance": {"color": GREY, "linewidth": 1, "linestyle": "--"},
    "threshold for 90 %": {"color": RED, "marker": "^", "linestyle": ""},
    "threshold for 95 %": {"color": RED, "marker": "s", "linestyle": ""},
}
MARKERS = ("^", "s")


def pages(calibration: Calibration) -> Iterator[Figure]:
    """One page: for each target the share of positives over the probability, in bins of equal count, and the ROC."""
    own = [(name, calibration.targets[name]) for name in TARGETS if name in calibration.targets]
    rows = -(-len(own) // ACROSS)
    figure = page(2 * ACROSS * PANEL, rows * PANEL, "Reliability and ROC of the study models, out of fold")
    key(figure, KEY)
    grid = figure.subplots(rows, 2 * ACROSS, squeeze=False)
    for place, (name, target) in enumerate(own):
        left, right = grid[place // ACROSS][place % ACROSS * 2 :][:2]
        left.set_title(name, weight="bold", size=14)
        left.set_title(f"{target.positives} of {target.n}", loc="right", color=GREY)
        if target.before is None or target.after is None:
            left.text(0, 0.5, f"no calibration: {target.missing}", color=GREY, transform=left.transAxes)
            left.set_axis_off()
            right.set_axis_off()
        else:
            _reliability(left, target)
            _roc(right, target)
    yield figure


def _reliability(axes: Axes, target: TargetCalibration) -> None:
    _square(axes, "probability", "share of fractures")
    assert target.before is not None and target.after is not None
    for found, colour in ((target.before, BEFORE), (target.after, AFTER)):
        axes.plot(
            [each.mean for each in found.bins], [each.positives / each.n for each in found.bins], "o-", color=colour
        )
    axes.vlines([each.mean for each in target.after.bins], *_bars(target.after.bins), color=AFTER, linewidth=1)
    lines = [f"{target.method}", f"log loss {target.before.log_loss:.3f} → {target.after.log_loss:.3f}"]
    lines += [f"ECE {target.before.ece.value:.3f} → {target.after.ece.value:.3f}"]
    axes.text(0.03, 0.97, "\n".join(lines), va="top", transform=axes.transAxes)


def _roc(axes: Axes, target: TargetCalibration) -> None:
    _square(axes, "1 - specificity", "sensitivity")
    false, true = np.array(target.roc, float).T
    axes.plot(false / false[-1], true / true[-1], color=BLACK)
    assert target.auc is not None
    lines = [f"AUC {target.auc.value:.3f} ({target.auc.low:.3f} - {target.auc.high:.3f})"]
    for point, marker in zip(target.operating_points, MARKERS, strict=False):
        x, y = 1 - point.specificity.value, point.sensitivity.value
        axes.plot(x, y, marker, color=RED, markersize=9, clip_on=False, zorder=3)
        lines.append(_words(point))
    axes.text(0.97, 0.03, "\n".join(lines), va="bottom", ha="right", transform=axes.transAxes)


def _words(point: OperatingPoint) -> str:
    """Both in per cent, with the bounds of the specificity."""
    found = point.specificity
    return (
        f"at {point.threshold:.3f}: sensitivity {100 * point.sensitivity.value:.0f} %,\n"
        f"specificity {100 * found.value:.0f} ({100 * found.low:.0f} - {100 * found.high:.0f}) %"
    )


def _square(axes: Axes, across: str, up: str) -> None:
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=across, ylabel=up, aspect="equal")


def _bars(bins: tuple[Bin, ...]) -> tuple[list[float], list[float]]:
    """Wilson's 95 % interval of each bin's share of positives: lower and upper ends."""
    ends: tuple[list[float], list[float]] = ([], [])
    for each in bins:
        share, spread = each.positives / each.n, Z * Z / each.n
        half = Z * sqrt(share * (1 - share) / each.n + spread / (4 * each.n))
        for end, sign in zip(ends, (-1, 1), strict=True):
            end.append((share + spread / 2 + sign * half) / (1 + spread))
    return ends
