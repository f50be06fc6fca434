"""Learning curves of every run, by stage and variant, from what they logged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.look.drawing import BLACK, GREY, PALETTE, Colour, blank, text
from trainer.look.plot import Axes, key
from trainer.runs.files import METRICS_FILE
from trainer.runs.metrics_log import MetricsLog
from trainer.scores.scores import HELD_OUT
from trainer.settings.registry import stage_names

TITLE, ROW, WIDTH, LEFT = 44, 300, 1500, 60
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


def page(found: Sequence[History]) -> np.ndarray:
    """(height, width, 3) uint8 RGB: a row for each stage and variant, loss on the left, held-out scores on the right."""
    names = list(dict.fromkeys(history.name for history in found))
    canvas = blank(TITLE + ROW * len(names), WIDTH)
    text(canvas, "Learning curves", 20, 28, size=17, bold=True)
    for place, name in enumerate(names):
        own = [history for history in found if history.name == name]
        top = TITLE + place * ROW
        _row(canvas[top : top + ROW], name, own)
    return canvas


def _row(canvas: np.ndarray, name: str, own: list[History]) -> None:
    x = text(canvas, name, LEFT, 18, size=15, bold=True) + 24
    folds = sorted({history.fold for history in own})
    for fold in folds:
        count = sum(history.fold == fold for history in own)
        x = key(canvas, x, 17, f"fold {fold}" + (f" ({count} runs)" if count > 1 else ""), _colour(fold))
    last = max(max(history.loss) for history in own)
    values = np.concatenate([list(history.loss.values()) for history in own])
    known = values[np.isfinite(values)]
    top = float(np.percentile(known, 99)) if len(known) else 1.0
    half, height = WIDTH // 2 - LEFT - 30, ROW - 106
    axes = Axes(canvas, (LEFT, 52, half, height), (0, last), (min(0.0, float(known.min(initial=0))), top * 1.05 or 1.0))
    axes.frame("optimiser steps", "training loss")
    for history in own:
        steps, losses = np.array(list(history.loss)), np.array(list(history.loss.values()))
        axes.line(steps, losses, _pale(_colour(history.fold)), thickness=1)
    for history in own:
        steps, losses = np.array(list(history.loss)), np.array(list(history.loss.values()))
        axes.line(steps, _smooth(losses), _colour(history.fold))
        if len(steps) == 1:
            axes.dots(steps, losses, _colour(history.fold))
    _scores(canvas, (WIDTH // 2 + LEFT, 52, half, height), own, last)


def _scores(canvas: np.ndarray, region: tuple[int, int, int, int], own: list[History], last: int) -> None:
    scored = [history for history in own if history.scores]
    left, top, width, height = region
    if not scored:
        text(canvas, "no held-out score", left + width / 2, top + height / 2, colour=GREY, align="middle")
        return
    first = next(iter(scored[0].scores.values()))
    values = [row[name] for each in scored for row in each.scores.values() for name in ("value", "baseline_value")]
    axes = Axes(canvas, region, (0, last * 1.02), (0, max(values) * 1.1 or 1.0))
    better = "higher" if first["metric"] == "iou" else "lower"
    axes.frame("optimiser steps", f"held out: {first['metric']} ({better} is better); dashed: {first['baseline']}")
    for history in scored:
        colour, steps = _colour(history.fold), list(history.scores)
        axes.line(
            [0, last], [list(history.scores.values())[-1]["baseline_value"]] * 2, colour, thickness=1, dashed=True
        )
        axes.line(steps, [row["value"] for row in history.scores.values()], colour)
        axes.dots(steps, [row["value"] for row in history.scores.values()], colour)


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


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean, over fewer values at both ends."""
    reach = len(values) // SMOOTHED_SHARE // 2
    total = np.concatenate([[0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _colour(fold: str) -> Colour:
    return PALETTE[int(fold) % len(PALETTE)] if fold.isdecimal() else BLACK


def _pale(colour: Colour) -> Colour:
    return tuple(255 - (255 - value) // 3 for value in colour)
