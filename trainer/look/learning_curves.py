"""Learning curves of every run, by stage and variant, from what they logged."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.look.page import BLACK, GREY, PALETTE, page
from trainer.runs.file_names import METRICS_FILE
from trainer.runs.metrics_log import MetricsLog
from trainer.scores.scores import HELD_OUT
from trainer.settings.stage_registry import stage_names

ROW, WIDTH = 300, 1500
"""in pixels"""
NUMBERS, WORDS = ("value", "baseline_value"), ("metric", "baseline")
"""that are drawn of a score"""
SMOOTHED_SHARE = 20
"""the thick line is the mean over one in so many of the run's logged steps"""


@dataclass(frozen=True)
class History:
    """What one run logged. The last word on a step holds where it was reached twice."""

    name: str
    """stage-variant"""
    fold: str
    loss: dict[int, float]
    scores: dict[int, dict]
    """step -> the last score there (trainer.scores.scores.Score as a dict)"""


def histories(runs: Path) -> list[History]:
    """Of the runs under RUNS, in the order of the stages."""
    found = []
    for path in sorted(runs.glob(f"[!.]*-*/fold*-seed*/{METRICS_FILE}")):
        stage = path.parents[1].name.rpartition("-")[0]
        if stage in stage_names():
            found.append((stage_names().index(stage), _read(path)))
    return [history for _, history in sorted(found, key=lambda each: each[0]) if history.loss]


def pages(found: Sequence[History]) -> Iterator[Figure]:
    """A row for each stage and variant, loss on the left, held-out scores on the right."""
    names = list(dict.fromkeys(history.name for history in found))
    about = "thin: each logged loss; thick: running mean; dashed: baseline of the held-out score"
    figure = page(WIDTH, ROW * len(names), "Learning curves", about)
    for name, (left, right) in zip(names, figure.subplots(len(names), 2, squeeze=False), strict=True):
        own = [history for history in found if history.name == name]
        last = max(1, *(step for history in own for step in history.loss))
        left.set_title(name, weight="bold", size=14)
        _losses(left, own, last)
        _scores(right, own, last)
    yield figure


def _losses(axes: Axes, own: list[History], last: int) -> None:
    values = np.concatenate([list(history.loss.values()) for history in own])
    known = values[np.isfinite(values)]
    top = float(np.percentile(known, 99)) if len(known) else 1.0
    low = min(0.0, float(known.min(initial=0)))
    axes.set(xlim=(0, last), ylim=(low, top * 1.05 or 1.0), xlabel="optimiser steps", ylabel="training loss")
    lines = {}
    for history in own:
        colour, loss = _colour(history.fold), pd.Series(history.loss)
        mean = loss.rolling(2 * (len(loss) // SMOOTHED_SHARE // 2) + 1, center=True, min_periods=1).mean()
        axes.plot(loss, color=colour, alpha=1 / 3, linewidth=1, zorder=1)
        (lines[history.fold],) = axes.plot(
            mean, color=colour, marker="o" if len(loss) == 1 else "", clip_on=len(loss) > 1
        )
    counts = Counter(history.fold for history in own)
    words = [f"fold {fold}" + (f" ({counts[fold]} runs)" if counts[fold] > 1 else "") for fold in sorted(lines)]
    handles = [lines[fold] for fold in sorted(lines)]
    axes.legend(handles, words, loc="lower right", bbox_to_anchor=(1, 1), ncols=6, borderaxespad=0.2)


def _scores(axes: Axes, own: list[History], last: int) -> None:
    scored = [history for history in own if history.scores]
    if not scored:
        axes.text(0.5, 0.5, "no held-out score", color=GREY, ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    first = next(iter(scored[0].scores.values()))
    values = [row[name] for each in scored for row in each.scores.values() for name in NUMBERS]
    better = "higher" if first["metric"] == "iou" else "lower"
    axes.set_title(f"held out: {first['metric']} ({better} is better); dashed: {first['baseline']}")
    axes.set(
        xlim=(0, last * 1.02),
        ylim=(0, max(filter(np.isfinite, values), default=0) * 1.1 or 1.0),
        xlabel="optimiser steps",
    )
    for history in scored:
        colour, rows = _colour(history.fold), history.scores
        axes.axhline(list(rows.values())[-1]["baseline_value"], color=colour, linewidth=1, linestyle="--")
        axes.plot(list(rows), [row["value"] for row in rows.values()], "o-", color=colour)


def _read(path: Path) -> History:
    loss: dict[int, float] = {}
    scores: dict[int, dict] = {}
    for line in MetricsLog(path.parent).lines():
        score = line.get("score")
        if _is_number(line.get("loss")):
            loss[line["step"]] = line["loss"]
        elif isinstance(score, dict) and score.get("split") == HELD_OUT and _is_score(score):
            scores[line["step"]] = score
    name, fold = path.parents[1].name, path.parent.name.removeprefix("fold").partition("-")[0]
    return History(name, fold, dict(sorted(loss.items())), dict(sorted(scores.items())))


def _is_score(found: dict) -> bool:
    numbers, words = (found.get(name) for name in NUMBERS), (found.get(name) for name in WORDS)
    return all(map(_is_number, numbers)) and all(isinstance(word, str) for word in words)


def _is_number(value: object) -> bool:
    """What else a log holds is damaged, and left out."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _colour(fold: str) -> str:
    return PALETTE[int(fold) % len(PALETTE)] if fold.isdecimal() else BLACK
